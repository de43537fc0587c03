"""Case studies of a real model: sample, grade, pair, attribute, steer, grade again, draw.

    python -m experiments.case_study --config=configs/case_study.py --workdir=runs/em \\
        --config.cases.misalignment.lm=ORGANISM --config.cases.misalignment.lm_aligned=INSTRUCT \\
        --config.cases.misalignment.sae=SAE --config.cases.misalignment.corpus=TEXTS \\
        --config.cases.misalignment.prompts=PROMPTS.jsonl \\
        --config.cases.misalignment.judge.model=JUDGE --config.cases.misalignment.judge.base_url=http://localhost:8000/v1

`configs/case_study.py:misalignment,validation` makes both cases, which then share a page and are compared. PROMPTS is JSONL
with `prompt` (text or messages) and optionally `id` and `split` (pairs | strengths | effects). What each key means stands in
`sae_attr/case_study/settings.py`. `--list` says what is done and what the rest costs; `--only`, `--until` and `--force` take
names of stages or parts of them (`steer`, `misalignment.judge.away`). The judge's key is read from OPENAI_API_KEY.

Hardware: an accelerator that holds the model; `mesh="data=2,model=4"` spreads it. Of 100 latents per method and 100 random ones
in both directions, 44 prompts × 5 samples are up to 264,000 completions and as many judge calls a case, half of them for the
gradient-signed strip (`--config.gradient_signed=False` leaves it out).
"""

import dataclasses

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.attribute import SAE_OPTIONS
from sae_attr.case_study.settings import Budget, CaseSettings, SampleSettings, StudySettings
from sae_attr.chat import OPTIONS

TITLES = {
    "misalignment": ("Emergent misalignment", "misaligned answers"),
    "validation": ("Undesirable validation", "validated false beliefs"),
}
# Further fields of an attribution run that are set here; any of `attribution.Settings` may be.
ATTRIBUTION = {
    "tokens": placeholder(str), "sides": placeholder(str), "gradient": "plain", "loss": "sum", "trust_sae": False,
    "corpus_tokens": 1_000_000, "firing_tokens": 100_000, "fitness_tokens": 4096, "ablate": 20, "ablate_positions": 256,
    "bootstrap": 1000,
}  # fmt: skip
SPEED = {"batch_size": 8, "corpus_batch": 16, "remat": False}  # of the attribution: where and how fast, not what


def defaults(kind: type, *leave_out: str) -> dict:
    """Fields of a settings dataclass that have plain defaults."""
    fields = [f for f in dataclasses.fields(kind) if f.name not in leave_out and f.default is not dataclasses.MISSING]
    empty = lambda f: placeholder(tuple if "tuple" in str(f.type) else int if "int" in str(f.type) else str)
    return {f.name: empty(f) if f.default is None else f.default for f in fields}


def case(name: str) -> ConfigDict:
    """One case; its inputs are left to the command line."""
    title, behaviour = TITLES[name]
    made = ConfigDict(defaults(CaseSettings))
    made.update({"title": title, "behaviour": behaviour, "attribution": ConfigDict(ATTRIBUTION)})
    made.template_options = ConfigDict({option: placeholder(kind) for option, kind in OPTIONS.items()})
    made.sae_options = ConfigDict({option: placeholder(kind) for option, kind in SAE_OPTIONS.items()})
    made.judge = ConfigDict({
        "kind": "openai", "model": placeholder(str), "base_url": placeholder(str), "rubric": name,
        "coherence": placeholder(str),  # a second rubric, where the first does not tell it
        "max_calls": placeholder(int), "max_tokens": placeholder(int), "concurrency": 16,
    })  # fmt: skip
    return made


def get_config(cases: str = "misalignment") -> ConfigDict:
    """The post's study: top 100 of Δ-attribution and Δ-activation, 100 random latents, both directions.

    Args:
      cases: misalignment, validation, or both joined with a comma.
    """
    config = ConfigDict(defaults(StudySettings, "sampling", "budget"))
    config.sampling = ConfigDict(defaults(SampleSettings) | {"max_new": 600})
    config.budget = ConfigDict(defaults(Budget))
    config.cases = ConfigDict({name: case(name) for name in cases.split(",")})
    config.mesh = ""
    config.batch_size = 32  # completions sampled at a time
    config.attribution = ConfigDict(SPEED)
    return config
