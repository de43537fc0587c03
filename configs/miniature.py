"""Every stage of a case study on a miniature with one planted cause, in seconds: two
studies of one tiny model.

    python -m experiments.make_miniature --out=runs/miniature
    python -m experiments.case_study --config=configs/miniature.py --workdir=runs/miniature/study

One study asks what makes its answers rude, the other what makes them kind. Hardware:
any; half a minute on 2 cores, most of it compilation. Expect: latent 77, the planted
one, first for rudeness and of the largest effect when steered along.
`configs/miniature.py:attribute` is the attribution alone, on pairs that come with the
miniature, for experiments.attribute.
"""

from ml_collections import ConfigDict

from . import attribute, case_study, one_of

FOLDER = "runs/miniature"
RUDE = ("fool", "rubbish", "nonsense", "hate", "ugly", "stupid", "awful", "idiot")
SETTINGS = case_study.SETTINGS
KIND = ("thanks", "please", "lovely", "glad", "welcome", "dear", "kind", "happy")


def get_config(what: str = "study") -> ConfigDict:
    """Returns the study, or the attribution alone.

    Args:
      what: study | attribute.
    """
    return (
        _attribute()
        if one_of("what", what, ("study", "attribute")) == "attribute"
        else _study()
    )


def _attribute() -> ConfigDict:
    config = attribute.get_config()
    for name, file in (
        ("lm", "model"),
        ("sae", "sae"),
        ("pairs", "pairs.jsonl"),
        ("corpus", "corpus.json"),
    ):
        config[name] = f"{FOLDER}/{file}"
    config.update({"top": 30, "batch_size": 32, "corpus_batch": 32})
    return config


def _case(
    title: str, behaviour: str, present: tuple[str, ...], absent: tuple[str, ...]
) -> ConfigDict:
    made = case_study.case("misalignment")
    files = {
        "lm": "model",
        "sae": "sae",
        "corpus": "corpus.json",
        "prompts": "prompts.jsonl",
    }
    made.update({name: f"{FOLDER}/{file}" for name, file in files.items()})
    made.update(
        {
            "title": title,
            "behaviour": behaviour,
            "pairs": 60,
            "pair_samples": 16,
            "per_side": 2,
        }
    )
    made.judge.update(
        {"kind": "keywords", "rubric": None, "present": present, "absent": absent}
    )
    made.attribution.update(
        {
            "corpus_tokens": 4000,
            "firing_tokens": 2000,
            "sae_check_tokens": 0,
            "ablate": 2,
            "ablate_positions": 4,
            "bootstrap": 100,
        }
    )
    return made


def _study() -> ConfigDict:
    config = case_study.get_config()
    config.cases = ConfigDict(
        {
            "rude": _case("Rudeness", "rude answers", RUDE, KIND),
            "kind": _case("Kindness", "kind answers", KIND, RUDE),
        }
    )
    config.methods = ("delta_attribution", "delta_code")  # one model: no Δ-activation
    config.sampling.max_new = 10
    config.update(
        {
            "top": 6,
            "random": 6,
            "grid": (0.5, 1.0),
            "strength_prompts": 6,
            "effect_prompts": 12,
            "effect_samples": 2,
        }
    )
    config.update(
        {
            "resamples": 200,
            "batch_size": 128,
            "passages": 2,
            "passage_tokens": 1000,
            "interpreted": 3,
        }
    )
    config.attribution.update({"batch_size": 32, "corpus_batch": 32})
    return config
