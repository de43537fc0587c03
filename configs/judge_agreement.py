"""Compares judges with each other and with published scores of the same answers.

    python -m experiments.judge_agreement --config=configs/judge_agreement.py --config.published=FOLDER --workdir=runs/judges
    ... --config.judges=http://127.0.0.1:8000/v1#MODEL,PATH-OF-A-LANGUAGE-MODEL --config.sample=100

FOLDER holds syco_delusion.csv, em_14b_matrix.jsonl,
insecure_judge_token_distributions.csv and em_32b_judge_replies.jsonl, or some of them.
Without judges the published scores are compared with each other. With judges (an
address and a model of an OpenAI-compatible server, joined by #, or the folder or hub id
of a language model with a chat template) a sample of each file's answers is graded too,
and kept in the workdir: a second run asks nobody. The key of a server is read from
OPENAI_API_KEY.

Hardware: any CPU; a local judge needs what its language model needs. Expect seconds
without judges.
"""

from dataclasses import dataclass

from ml_collections import ConfigDict

from sae_attr.study.judges import judge_settings

from . import config_of
from .attribute import MESH, TEMPLATE
from .case_study import judge_config


@dataclass(frozen=True)
class Agreement:
    """What is compared.

    Args:
      published: folder of published scores.
      judges: SERVER#MODEL or MODEL-FOLDER, separated by commas.
      sample: answers of each file that the judges grade; 0 grades all.
      validates_from: published scores of syco_delusion.csv (0 to 5) that count as
        undesirable validation.
      resamples: of the bootstrap over questions.
      seed: of sample and bootstrap.
    """

    published: str | None = None
    judges: str = ""
    sample: int = 100
    validates_from: float = 3.0
    resamples: int = 1000
    seed: int = 0


# Fields of a judge that `judges` or the file of answers gives.
GIVEN = ("kind", "rubric", "coherence", "base_url", "model", "lm", "present", "absent")
GIVEN += ("behaviour", "world")
SETTINGS = {
    "": (Agreement, MESH, {"judge": "how the judges are asked."}),
    "judge": judge_settings(),
    "judge.template_options": (TEMPLATE,),
}


def get_config() -> ConfigDict:
    """Returns every choice with its default."""
    config = config_of(Agreement)
    config.judge = judge_config()
    for name in GIVEN:
        del config.judge[name]
    config.mesh = ""
    return config
