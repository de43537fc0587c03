"""Case studies of a real model: sample, grade, pair, attribute, steer, grade again,
draw.

    python -m experiments.case_study --config=configs/case_study.py --workdir=runs/em \\
        --config.cases.misalignment.lm=ORGANISM --config.cases.misalignment.lm_aligned=INSTRUCT \\
        --config.cases.misalignment.sae=SAE --config.cases.misalignment.corpus=TEXTS \\
        --config.cases.misalignment.prompts=PROMPTS.jsonl \\
        --config.cases.misalignment.judge.model=JUDGE --config.cases.misalignment.judge.base_url=http://localhost:8000/v1

`configs/case_study.py:misalignment,validation` makes both cases, which then share a
page and are compared. PROMPTS is JSONL with `prompt` (text or messages) and optionally
`id`, `split` (pairs | strengths | effects), `group` (of prompts that belong together),
`present` and `absent` (texts of its own, for `effects_by=exact`). Every field of the settings in
`sae_attr/study/settings.py`, of a judge and of an attribution is a key; `--help` lists
all with defaults and meaning. `--list` says what is done and what the rest costs;
`--only`, `--until` and `--force` take names of stages or parts of them (`steer`,
`misalignment.judge.away`). The judge's key is read from OPENAI_API_KEY.

Hardware: an accelerator that holds the model; `mesh="data=2,model=4"` spreads it. Of
100 latents per method and 100 random ones in both directions, 44 prompts × 5 samples
are up to 264,000 completions and as many judge calls a case, half of them for the
gradient-signed strip (`--config.gradient_signed=False` leaves it out).
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from sae_attr.attribution.plane import PlaneSettings
from sae_attr.judge.kinds import SECRETS
from sae_attr.sae.formats.parts import LoadOptions
from sae_attr.steering.contrast import Contrast
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.dictionary_settings import DictionarySettings
from sae_attr.study.judges import judge_settings, reader_settings
from sae_attr.study.serving_settings import SampleServer
from sae_attr.study.settings import (
    CaseSettings,
    IncoherenceBudget,
    SampleSettings,
    StudySettings,
)
from sae_attr.text.chat import OPTIONS

from . import any_keys, config_of, one_of
from .attribute import MESH, TEMPLATE

TITLES = {
    "misalignment": ("Emergent misalignment", "misaligned answers"),
    "validation": ("Undesirable validation", "validated false beliefs"),
}
SPEED = (
    "batch_size",
    "corpus_batch",
    "remat",
)  # of the attribution: where and how fast, not what
# Fields of an attribution that a case or the study gives it.
GIVEN = (
    "lm",
    "adapter",
    "lm_aligned",
    "sae",
    "sae_format",
    "sae_options",
    "site",
    "pairs",
    "corpus",
)
GIVEN += ("column", "split", "template_options", "top", "dtype", "resid_dtype", "seed")
SETTINGS = {
    "": (StudySettings, MESH, {"batch_size": "completions sampled at a time."}),
    "sampling": (SampleSettings,),
    "budget": (IncoherenceBudget,),
    "plane": (PlaneSettings,),
    "attribution": (Settings,),
    "cases.*": (CaseSettings,),
    "cases.*.judge": judge_settings(),
    "cases.*.reader": reader_settings(),
    "cases.*.server": (SampleServer,),
    "cases.*.continuations": (Contrast,),
    "cases.*.attribution": (Settings,),
    "cases.*.sae_options": (LoadOptions,),
    "cases.*.dictionaries.*": (DictionarySettings,),
    "cases.*.template_options": (TEMPLATE,),
    "cases.*.judge.template_options": (TEMPLATE,),
    "cases.*.reader.template_options": (TEMPLATE,),
}


def judge_config(kinds: Sequence[type] | None = None) -> ConfigDict:
    """Returns every setting of every kind of judge, unset: None is its own default.

    Args:
      kinds: of settings; those of judges, or of readers.
    """
    config = ConfigDict()
    for settings in judge_settings() if kinds is None else kinds:
        # Kinds share some keys: the first one sets them.
        taken = (*SECRETS, *config)
        config.update(config_of(settings, leave_out=taken, unset=True))
    config.template_options = any_keys(OPTIONS)
    return config


def case(name: str) -> ConfigDict:
    """Returns one case; its inputs are left to the command line."""
    title, behaviour = TITLES[name]
    parts = {
        "attribution": config_of(Settings, leave_out=(*GIVEN, *SPEED)),
        "sae_options": config_of(LoadOptions),
        "template_options": any_keys(OPTIONS),
        "judge": judge_config(),
        "reader": judge_config(reader_settings()),
        "server": config_of(SampleServer),
    }
    made = config_of(CaseSettings, leave_out=("name",), **parts)
    made.update({"title": title, "behaviour": behaviour})
    made.judge.update({"kind": "openai", "rubric": name})
    return made


def get_config(cases: str = "misalignment") -> ConfigDict:
    """Returns the post's study: top 100 of Δ-attribution and Δ-activation, 100 random
    latents, both directions.

    Args:
      cases: misalignment, validation, or both joined with a comma.
    """
    config = config_of(StudySettings, leave_out=("cases",))
    config.sampling.max_new = 600
    config.cases = ConfigDict(
        {one_of("case", name, tuple(TITLES)): case(name) for name in cases.split(",")}
    )
    config.mesh = ""
    config.batch_size = 32
    speed = config_of(Settings)
    config.attribution = ConfigDict({name: speed[name] for name in SPEED})
    return config
