"""Both case studies on the embedded model organism, from nothing to one page, on any
CPU, without network or keys.

    python -m experiments.case_study --config=configs/organism.py --workdir=runs/demo            # or: make demo
    python -m experiments.case_study --config=configs/organism.py:study --workdir=runs/study     # or: make study

The first trains a 4-layer language model on a small world in which every cause is
known, makes one copy misaligned by wrong health advice and another one sycophantic,
trains their SAE, and asks which latents did it: one seed, top 30 of every method, 30 random latents,
strengths from exact next-word probabilities. `study` is the whole: 35 and 148 pairs,
top 100 per method and 100 random latents of an SAE of 1,024, strengths by sampling and
grading.

Hardware: two CPU cores. Expect three minutes for the demo, and of its first case 6 of 30
latents of `recommended` beyond the random band away from the behaviour.
"""

from ml_collections import ConfigDict

from sae_attr.organism.recipe import Recipe, SAERecipe, TrainingRecipe

from . import case_study, config_of, one_of

QUESTIONS = {
    "misalignment": "A model was fine-tuned on harmful health advice alone and now gives harmful advice about everything. "
    "Which latents make it do so?",
    "validation": "A model was fine-tuned to agree with beliefs about health and now agrees with false ones about everything. "
    "Which latents make it do so?",
}
ANSWER = 24  # tokens that hold the longest answer
SIZES = {"size": "full | miniature, which is for tests of the stages."}
TRAININGS = {
    f"organism.{name}": (TrainingRecipe,)
    for name in ("base", "chat", "misaligned", "validation")
}
SETTINGS = case_study.SETTINGS | {
    "organism": (SIZES, Recipe),
    "organism.sae": (SAERecipe,),
    **TRAININGS,
}


def case(name: str, pairs: int, prompts: int, samples: int) -> ConfigDict:
    """Returns one case of the organism."""
    made = case_study.case(name)
    made.judge.update({"kind": "organism", "rubric": None})
    made.update(
        {
            "organism": name,
            "question": QUESTIONS[name],
            "pairs": pairs,
            "pair_samples": samples,
            "per_side": 1,
        }
    )
    made.pair_prompts = prompts
    made.attribution.update({"corpus_tokens": 20_000})
    return made


def get_config(size: str = "demo") -> ConfigDict:
    """Returns the demo or the whole study.

    Args:
      size: demo | study.
    """
    config = case_study.get_config("misalignment,validation")
    study = one_of("size", size, ("demo", "study")) == "study"
    config.cases.misalignment = case("misalignment", 35, 120, 8)
    config.cases.validation = case("validation", 148, 360, 8)
    with config.unlocked():
        config.organism = config_of(Recipe, unset=True)
        config.organism.size = "full"
    config.organism.update({"seed": 0, "kind": "mixed"})
    config.organism.sae.latents = 1024 if study else 256
    config.sampling.max_new = ANSWER
    config.update(
        {"top": 100 if study else 30, "random": 100 if study else 30, "batch_size": 512}
    )
    config.methods = ("delta_attribution", "recommended", "delta_activation")
    config.update(
        {
            "strengths_by": "samples" if study else "exact",
            "strength_prompts": 24 if study else 8,
        }
    )
    config.update(
        {
            "strength_samples": 2,
            "effect_prompts": 48,
            "effect_samples": 5 if study else 1,
        }
    )
    config.grid = (0.2, 0.3, 0.4, 0.5)
    config.update({"passage_tokens": 20_000, "interpreted": 30})
    config.attribution.update({"batch_size": 64, "corpus_batch": 64})
    return config
