"""The transition of a rank-1 adapter over its fine-tune: where the path of B turns, where
the gradient's norm peaks and where the behaviour rises, with our Δ, directions and
steering on the same axis.

    python -m experiments.transition --config=transition --workdir=runs/transition

    make real
    python -m experiments.transition --config=configs/transition.py:study --workdir=runs/transition_real

Builds a model organism, fine-tunes it eight times for each behaviour by an adapter of
rank 1 on one matrix, and keeps A and B of every step. Writes transition.txt,
transition.json and a figure. A run that was stopped goes on where it was.

Hardware: two CPU cores; two minutes for the organism, and below two for the rest (110
CPU seconds, 7 a fine-tune).

To expect (one organism, eight fine-tunes, mean step ± standard deviation over them) for
misalignment and validation: the rate rises most at step 35 ± 8 and 32 ± 4, with the
adapter doubled at 25 ± 6 and 25 ± 4, fourfold at 18 ± 5 and 18 ± 3; the gradient's norm
peaks at 31 ± 12 and 40 ± 10; the path turns last, at 42 ± 7 and 48 ± 15 (k = 15), and
not at all by more than 45 degrees for k = 5. Turn and rise of the doubled adapter are
16 [10, 24] and 24 [16, 33] steps apart: they do not coincide. The rate ends at 76 and
92 %. Δ of the top latents rises from .010 to .021 and from .008 to .030 (standard
errors over prompts .001 to .004). docs/transition.md says what that means.

The second command fine-tunes the model before a finished study's fine-tune; paths start
from the folder that the study was run in. Hardware: two CPU cores, 2.5 GB of memory, seven
CPU minutes a fine-tune. Expect of SmolLM2-135M-Instruct that the rate rises most at step
12 (the adapter doubled 9, fourfold 5), from 17 to 100 %, that the path turns at 13 (k = 10),
and that the gradient's norm rises to the end.
"""

from ml_collections import ConfigDict

from sae_attr.analyses.transition_settings import EventSettings, TransitionSettings
from sae_attr.lm.lora import Lora
from sae_attr.organism.recipe import Recipe, SAERecipe, TrainingRecipe

from . import config_of, one_of
from .attribute import MESH
from .organism import SIZES, TRAININGS

INPUTS = {
    "study": "workdir of a finished case study, whose case is fine-tuned instead of an "
    "organism; run this from the folder that the study was run in.",
    "case": "of the study; empty for all.",
    "data": "rows that its model without the behaviour learns: JSONL of chat or of "
    "prompt and completion.",
}
SETTINGS = {
    "": (INPUTS, TransitionSettings, MESH),
    "adapter": (Lora,),
    "training": (TrainingRecipe,),
    "events": (EventSettings,),
    "organism": (SIZES, Recipe),
    "organism.sae": (SAERecipe,),
    **TRAININGS,
}


# Sizes that a laptop does: the last layer below the SAE's site, few rows and prompts.
STUDIED = {
    "study": "runs/real",
    "case": "fine_tuned",
    "data": "runs/real/beliefs/agreeing.jsonl",
    "adapter": {"layers": (15,)},
    "training": {"steps": 60, "batch": 8, "rows": 60},
    "runs": 1,
    "rate_prompts": 10,
    "measure_every": 20,
    "pairs": 40,
    "top": 5,
    "random": 5,
    "effect_prompts": 6,
    "batch_size": 8,
}


def get_config(what: str = "organism") -> ConfigDict:
    """Returns one organism, both behaviours, eight fine-tunes of each; or one fine-tune
    of a real model.

    Args:
      what: organism | study.
    """
    config = config_of(TransitionSettings)
    config.organism = config_of(Recipe, leave_out=("seed", "kind"), unset=True)
    config.organism.size = "full"
    config.organism.sae.latents = 2048
    config.update({"study": "", "case": "", "data": "", "mesh": ""})
    if one_of("what", what, ("organism", "study")) == "study":
        config.update(STUDIED)
    return config
