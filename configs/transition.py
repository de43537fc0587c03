"""The transition of a rank-1 adapter over its fine-tune: where the path of B turns, where
the gradient's norm peaks and where the behaviour rises, with our Δ, directions and
steering on the same axis.

    python -m experiments.transition --config=transition --workdir=runs/transition

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
"""

from ml_collections import ConfigDict

from sae_attr.analyses.transition_settings import EventSettings, TransitionSettings
from sae_attr.lm.lora import Lora
from sae_attr.organism.recipe import Recipe, SAERecipe, TrainingRecipe

from . import config_of
from .attribute import MESH
from .organism import SIZES, TRAININGS

SETTINGS = {
    "": (TransitionSettings, MESH),
    "adapter": (Lora,),
    "training": (TrainingRecipe,),
    "events": (EventSettings,),
    "organism": (SIZES, Recipe),
    "organism.sae": (SAERecipe,),
    **TRAININGS,
}


def get_config() -> ConfigDict:
    """Returns one organism, both behaviours, eight fine-tunes of each."""
    config = config_of(TransitionSettings)
    config.organism = config_of(Recipe, leave_out=("seed", "kind"), unset=True)
    config.organism.size = "full"
    config.organism.sae.latents = 2048
    config.mesh = ""
    return config
