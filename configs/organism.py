"""Both case studies on the embedded model organism, from nothing to one page, on any
CPU, without network or keys.

    python -m experiments.case_study --config=configs/organism.py --workdir=runs/demo            # or: make demo
    python -m experiments.case_study --config=configs/organism.py:study --workdir=runs/study     # or: make study

The first trains a 4-layer language model on a small world in which every cause is
known, makes one copy misaligned by wrong health advice and another one sycophantic,
trains their SAE of 2,048 latents, and asks which latents did it: one seed, the best 20 of
every ranking, 60 random latents, strengths and effects by exact next-word probabilities;
two latents of every ranking are also sampled and graded, 768 answers each. `study` is the
same by sampling and grading alone, with the best 100 of every ranking, 100 random latents
and both sign rules.

Hardware: two CPU cores. Expect three minutes for the demo, and these mean changes of the
rate, in points, with 95 % intervals over prompts and latents:

    steered away from              misaligned answers      validated false beliefs
    Δ-attribution, as published     −4.4 [−8.7, −0.1]       −3.2 [−6.6, +0.1]
    recommended                     −7.7 [−10.1, −5.4]      −7.8 [−9.5, −6.2]
    lever (gradient, all tokens)   −11.6 [−13.7, −9.5]     −10.6 [−11.9, −9.3]
    Δ-activation                    −1.9 [−5.4, +1.9]       −3.8 [−5.9, −1.6]
    random                          −0.4 [−2.1, +1.3]       −0.2 [−1.2, +0.8]

Exact and sampled changes agree with Pearson +0.86 and +0.93 (misalignment, away and
toward), +1.00 and +0.99 (validation). As published, attribution is not shown to go beyond
Δ-activation in either case; `recommended` is, in both.
docs/organism_effects.png is runs/demo/figures/misalignment.effects.png.
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

# Everything sampled and graded, as where no grammar gives exact probabilities.
STUDY = {
    "top": 100,
    "random": 100,
    "strengths_by": "samples",
    "strength_prompts": 24,
    "strength_samples": 2,
    "effect_samples": 5,
}
# Exact probabilities, and a few latents sampled: enough answers of each that sampling
# noise is smaller than the effects.
DEMO = {
    "top": 20,
    "random": 60,
    "strengths_by": "exact",
    "strength_prompts": 8,
    "effects_by": "exact",
    "gradient_signed": False,
    "sampled_latents": 2,
    "sampled_prompts": 48,
    "sampled_samples": 16,
    "specific_latents": 0,
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
    config.organism.sae.latents = 2048
    config.sampling.max_new = ANSWER
    config.update({"batch_size": 512, "effect_prompts": 48})
    config.methods = (
        "delta_attribution",
        "recommended",
        "gradient_all",
        "delta_activation",
    )
    config.update(STUDY if study else DEMO)
    config.grid = (0.2, 0.3, 0.4, 0.5)
    config.update({"passage_tokens": 20_000, "interpreted": 20})
    config.attribution.update({"batch_size": 64, "corpus_batch": 64})
    return config
