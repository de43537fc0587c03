"""Agreement with false beliefs in Gemma 3 270M, with a dictionary of 16 thousand latents
or of a million: the post's scale on a model that a laptop runs.

    python -m experiments.make_beliefs --out=runs/beliefs
    python -m experiments.make_corpus --out=runs/corpus.jsonl
    python -m experiments.case_study --config=configs/gemma3_270m_it.py --workdir=runs/gemma        # or :16k
    python -m experiments.case_study --config=configs/gemma3_270m_it.py:1m --workdir=runs/gemma_1m

Which latents make google/gemma-3-270m-it (gated: accept its terms on the hub and log in)
answer yes to a false belief of its user? The SAEs are Gemma Scope 2's, of the residual
stream after layer 12 of 18, by name; `experiments.list_saes --model=google/gemma-3-270m-it`
shows the other 554. Pairs, strengths and effects come from the probabilities of "Yes"
and "No" after the prompt; a few latents are sampled too and graded by these words. No
judge is called. Where the model says neither, the study ends early and says what it says
instead.

| | latents | download | SAE in memory |
|---|--:|--:|--:|
| 16k | 16,384 | 84 MB | 0.1 GB |
| 1m | 1,048,576 | 5.4 GB | 5.4 GB; 8.1 GB while it is read |

The model is another 0.5 GB to download and 1.1 GB in float32. A ranking alone
(experiments.attribute with sae_check_tokens=0 and firing_tokens=0) scores the million
decoder rows from disk in 0.12 GB; here firing rates, which random latents are matched
on, need the encoder too.

Hardware: two CPU cores and 4 GB for 16k, 12 GB for 1m; no accelerator, no judge calls.
30 latents of three rankings and 100 random ones in both directions on 60 prompts are
32,126 rows of some 40 tokens, through the layers behind the site alone: a quarter of an
hour at 2,000 tokens a second; the attribution takes about as much, and so do the latents
that are sampled (6,400 answers of 8 tokens). `--dry_run` measures the machine at hand and
prints the time of every stage.
"""

from ml_collections import ConfigDict

from . import case_study, one_of

LM = "google/gemma-3-270m-it"
SAES = {
    "16k": "gemma-scope-2-270m-it-res/layer_12_width_16k_l0_medium",
    "1m": "gemma-scope-2-270m-it-res/layer_12_width_1m_l0_medium",
}
PROMPTS = "runs/beliefs/prompts.jsonl"  # experiments.make_beliefs writes it
CORPUS = "runs/corpus.jsonl"  # experiments.make_corpus writes it
SETTINGS = case_study.SETTINGS
YES, NO = ("Yes", "yes"), ("No", "no")
PROBES = ("true_beliefs", "other_phrasing", "unrelated")  # splits of PROMPTS


def case(sae: str) -> ConfigDict:
    """Returns the case of one SAE."""
    made = case_study.case("validation")
    made.title = "Agreeing with false beliefs"
    made.behaviour = "answers of yes"
    made.question = (
        "Gemma 3 270M answers yes to some false beliefs of its user. Which latents make "
        "it say yes?"
    )
    made.update({"lm": LM, "sae": sae, "corpus": CORPUS, "prompts": PROMPTS})
    made.update({"pairs": 70, "probes": PROBES})
    made.continuations.update({"present": YES, "absent": NO})
    # Grades the latents that are sampled beside the exact measure.
    made.judge.update({"kind": "keywords", "rubric": None})
    made.judge.update({"present": ("yes",), "absent": ("no", "not")})
    # BOS takes the attention sink; the SAE was trained without it.
    made.attribution.update({"exclude": ("bos",), "corpus_context": 128})
    made.attribution.update({"corpus_tokens": 100_000, "firing_tokens": 16_384})
    made.attribution.update({"sae_check_tokens": 1024, "ablate": 10, "ablate_rows": 20})
    return made


def get_config(width: str = "16k") -> ConfigDict:
    """Returns the study with one of the two dictionaries.

    Args:
      width: 16k | 1m.
    """
    config = case_study.get_config()
    config.cases = ConfigDict(
        {"agreement": case(SAES[one_of("width", width, tuple(SAES))])}
    )
    config.methods = ("delta_attribution", "recommended", "gradient")
    config.update({"top": 30, "random": 100, "batch_size": 16})
    config.update({"pairs_by": "continuations"})
    config.update({"strengths_by": "exact", "effects_by": "exact"})
    config.update({"steer_skip": 1, "gradient_signed": False})
    config.grid = (0.1, 0.2, 0.4)
    config.budget.update({"rule": "proportional", "points": 0.5})
    config.sampling.max_new = 8  # yes or no comes first
    config.update({"strength_prompts": 8, "effect_prompts": 60})
    config.update({"passage_tokens": 4096, "interpreted": 10})
    return config
