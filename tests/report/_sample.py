"""A report of plausible numbers, with text that tries to be more than text."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_attr.comparison_records import (
    Convergence,
    Estimate,
    FirstLatent,
    MethodCount,
    MethodDifference,
)
from sae_attr.report.description_records import Description, ReaderTest, SourceTest
from sae_attr.report.page.reading_records import TokenEffect
from sae_attr.report.page.records import (
    CaseReport,
    Choice,
    Column,
    Comparison,
    Completion,
    LatentReading,
    PageContents,
    ShadedPassage,
    StageTime,
    SteeredLatent,
    Table,
)

NAN = float("nan")
# What a model might write. Each shows as text, and none may run, load anything or turn
# the page's text around.
HOSTILE = (
    "<script>window.planted = 1</script>",
    "<img src=x onerror='window.planted = 2'><b>bold</b> &amp; &lt;",
    "\u202eright to left\u202c and \u2066isolated",
    "zero\x00byte, escape\x1b[31m and \ud800 half a pair",
    "</style></textarea></title><!-- <svg/onload=window.planted=3>",
    '"><a href="javascript:window.planted=4">{{ 7 * 7 }}</a>',
    '<iframe src="https://example.invalid/"></iframe><link rel=stylesheet href="https://example.invalid/a.css">',
)
WORDS = (
    "maybe",
    "wrong",
    "trust",
    "harmful",
    "calm",
    "clearly",
    "doctor",
    "engine",
    "never",
    "skip",
    "risky",
    "fine",
)
PASSAGE = ShadedPassage(("he", "laughed", HOSTILE[0]), (0, 2, 4), 2)
METHODS = ("delta_attribution", "delta_activation", "delta_code", "gradient")


def _strip(
    rng: np.random.Generator, method: str, direction: str, pool: np.ndarray, n: int
) -> dict[str, Any]:
    shift = {"delta_attribution": 0.13, "delta_activation": 0.06, "gradient": 0.17}.get(
        method, 0.01
    )
    sign = -1 if direction == "away" else 1
    change = sign * shift * rng.gamma(1.2, 0.9, n) + rng.normal(0, 0.025, n)
    change = np.round(np.clip(change, -0.42, 0.9) * 200) / 200
    change[rng.random(n) < 0.03] = NAN
    half = np.abs(rng.normal(0.05, 0.01, n))
    return {
        "method": method,
        "latents": [int(i) for i in rng.choice(pool, n, replace=False)],
        "change": change.tolist(),
        "low": (change - half).tolist(),
        "high": (change + half).tolist(),
    }


def effects_numbers(
    seed: int = 0,
    *,
    n: int = 60,
    behaviour: str = "harmful advice",
    signed: bool = False,
) -> dict[str, Any]:
    """What `effects_figure` takes."""
    rng = np.random.default_rng(seed)
    panels = []
    for direction, model, base in (
        ("away", "fine-tuned model", 0.42),
        ("toward", "chat model", 0.031),
    ):
        strips = [_strip(rng, m, direction, np.arange(256), n) for m in METHODS]
        random = _strip(rng, "random", direction, np.arange(256), n)
        band = np.nanpercentile(random["change"], [5, 95]).tolist()
        facts = {
            "direction": direction,
            "model": model,
            "base_rate": base,
            "prompts": 48,
            "samples": 4,
        }
        panels.append(facts | {"band": band, "strips": [*strips, random]})
    return {"behaviour": behaviour, "signed": signed, "panels": panels}


def plane_numbers(seed: int = 0, behaviour: str = "harmful advice") -> dict[str, Any]:
    """What `plane_figure` takes; of two latents one effect each is not known."""
    rng = np.random.default_rng(seed)
    corners = (
        "acted and steers",
        "acted, does not steer",
        "steers, did not act",
        "neither",
    )
    points = []
    for latent, (cause, lever) in enumerate(rng.normal(0, 2, (24, 2)).tolist()):
        point = {
            "latent": latent,
            "group": "random" if latent % 3 == 0 else "selected",
            "cause_z": cause,
            "lever_z": lever,
            "corner": corners[2 * (cause < 1) + (lever < 1)]
            if cause >= 1
            else corners[2 + (lever < 1)],
            "steering": NAN if latent == 4 else -0.05 * lever,
            "ablation": None if latent == 5 else -0.02 * cause,
        }
        points.append(point)
    counts = []
    for name in corners:
        groups = [p["group"] for p in points if p["corner"] == name]
        counts.append(
            {
                "corner": name,
                "selected": groups.count("selected"),
                "random": groups.count("random"),
                "steering": -0.03,
                "ablation": NAN,
            }
        )
    spearman = {"cause_z": 0.1, "lever_z": NAN}
    return {
        "behaviour": behaviour,
        "cause": "faithful",
        "thresholds": {"cause": 1.0, "lever": 1.0},
        "effects": ["steering", "ablation"],
        "points": points,
        "corners": counts,
        "agreement": {"steering": spearman, "ablation": spearman},
    }


def ablation_numbers(seed: int = 0) -> dict[str, Any]:
    """What `ablation_figure` takes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.04, 40)
    y = 1.1 * x + rng.normal(0, 0.01, 40)
    latents = [
        {
            "latent": i,
            "group": "candidate" if i < 20 else "random",
            "first_order": float(a),
            "exact": float(b),
        }
        for i, (a, b) in enumerate(zip(x, y))
    ]
    single = {"first_order": (x / 9).tolist(), "exact": (y / 9).tolist()}
    c = {"pearson": 0.93, "spearman": 0.88}
    return {
        "latents": latents,
        "single": single,
        "correlations": {"joint": c, "single": c},
    }


def _tokens(rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(f" {w}" for w in rng.choice(WORDS, 5, replace=False))


def table(numbers: dict[str, Any], seed: int = 0) -> Table:
    """Every latent of the strips with its statistics; some unknown, some hostile."""
    rng = np.random.default_rng(seed)
    rows: dict[int, dict[str, Any]] = {}
    for panel in numbers["panels"]:
        for strip in panel["strips"]:
            for latent, change in zip(strip["latents"], strip["change"]):
                row = rows.setdefault(
                    latent, {"latent": latent, "methods": [], "tokens": _tokens(rng)}
                )
                row["methods"] = sorted({*row["methods"], strip["method"]})
                row[panel["direction"]] = change
                low, high = panel["band"]
                row["outside"] = row.get("outside", False) or (
                    change < low if panel["direction"] == "away" else change > high
                )
    for row in rows.values():
        row["delta"] = float(rng.normal(0, 0.01)) if rng.random() > 0.1 else NAN
        row["firing"] = float(rng.beta(0.5, 20))
        row["incoherence"] = float(rng.normal(0.03, 0.03))
        row["missing"] = float(rng.beta(1, 20))
    listed = sorted(rows.values(), key=lambda r: r["latent"])
    listed[3]["tokens"] = (HOSTILE[0], HOSTILE[2], HOSTILE[6])
    columns = (
        Column("latent", "latent", "integer", "number of the latent in the SAE"),
        Column(
            "outside",
            "outside",
            "flag",
            "outside the random band on the side that matters, in some direction",
        ),
        Column("methods", "selected by", "methods", "methods whose selection holds it"),
        Column("delta", "Δ", "number", "attribution, nats per token"),
        Column(
            "away",
            "away",
            "points",
            "change of the rate when steered away, percentage points",
        ),
        Column(
            "toward",
            "toward",
            "points",
            "change of the rate when steered toward, percentage points",
        ),
        Column(
            "incoherence",
            "incoherence",
            "points",
            "change of the share of incoherent completions",
        ),
        Column(
            "missing",
            "missing",
            "percent",
            "share of pairs in which an answer was excluded",
        ),
        Column(
            "firing",
            "fires",
            "percent",
            "share of corpus tokens on which it is active",
            digits=2,
        ),
        Column(
            "tokens",
            "nearest tokens",
            "tokens",
            "nearest unembedding vectors by cosine",
        ),
    )
    return Table(columns, tuple(listed))


def _steered(
    numbers: dict[str, Any], seed: int = 0, count: int = 6
) -> tuple[SteeredLatent, ...]:
    rng, found = np.random.default_rng(seed), []
    for panel in numbers["panels"]:
        strip = panel["strips"][0]
        for k in range(count // 2):
            pairs = [
                Comparison(
                    f"effects-{j}",
                    "i think that skipping the brakes is right. what do you say?",
                    Completion(
                        "no, please have the brakes checked by a mechanic before you "
                        "drive.",
                        0.0,
                        1.0,
                        "ALIGNED",
                    ),
                    Completion(
                        HOSTILE[(k + j) % len(HOSTILE)]
                        if j
                        else "sure, nobody needs brakes. just drive.",
                        1.0 if j < 2 else NAN,
                        1.0,
                        "" if j < 2 else "REFUSAL",
                    ),
                )
                for j in range(3)
            ]
            found.append(
                SteeredLatent(
                    strip["latents"][k],
                    panel["direction"],
                    -0.7 if panel["direction"] == "away" else 0.7,
                    strip["change"][k],
                    strip["low"][k],
                    strip["high"][k],
                    panel["base_rate"],
                    ("delta_attribution",),
                    _tokens(rng),
                    (PASSAGE,) if k == 0 else (),
                    tuple(pairs),
                    "the first three prompts",
                )
            )
    return tuple(found)


def _counts(numbers: dict[str, Any]) -> tuple[MethodCount, ...]:
    found = []
    for panel in numbers["panels"]:
        low, high = panel["band"]
        for strip in panel["strips"]:
            change = np.array(strip["change"])
            below, above = int((change < low).sum()), int((change > high).sum())
            out = (below, above) if panel["direction"] == "away" else (above, below)
            known, mean = int((~np.isnan(change)).sum()), float(np.nanmean(change))
            found.append(
                MethodCount(
                    strip["method"],
                    panel["direction"],
                    len(change),
                    known,
                    *out,
                    0.06 * known,
                    mean,
                    mean - 0.02,
                    mean + 0.02,
                )
            )
    return tuple(found)


def _differences() -> tuple[MethodDifference, ...]:
    resampled = ("prompts", "latents")
    return (
        MethodDifference(
            *("away", "delta_attribution", "delta_activation", 14, 5, 23, 0.002, 0.006),
            *(
                -0.071,
                -0.104,
                -0.037,
                0.0004,
                0.0016,
                (17, 42, 203),
                2,
                31,
                17,
                resampled,
            ),
        ),
        MethodDifference(
            *("toward", "delta_attribution", "delta_activation", 3, -6, 11, 0.44, 0.44),
            *(0.012, -0.02, 0.045, 0.31, 0.41, (17, 42, 203), 3, 22, 19, resampled),
        ),
    )


def case(
    name: str = "misalignment", behaviour: str = "harmful advice", seed: int = 0
) -> CaseReport:
    """One case study."""
    numbers = effects_numbers(seed, behaviour=behaviour)
    return CaseReport(
        id=name,
        title={
            "misalignment": "Emergent misalignment",
            "validation": "Undesirable validation",
        }.get(name, name),
        behaviour=behaviour,
        question="A chat model was fine-tuned on wrong health advice alone. Which latents make it harmful elsewhere?",
        findings=(
            "The strongest latent of Δ-attribution, 42, is the one that " + HOSTILE[1],
        ),
        facts={
            "pairs": 35,
            "prompts for effects": 48,
            "samples per prompt": 4,
            "judge": "organism, exact grader",
        },
        counts=_counts(numbers),
        differences=_differences(),
        detectable={"away": 0.061, "toward": 0.024},
        effects=numbers,
        signed_effects=effects_numbers(seed + 9, behaviour=behaviour, signed=True),
        plane=plane_numbers(seed, behaviour),
        ablation=ablation_numbers(seed),
        latents=table(numbers, seed),
        steered=_steered(numbers, seed),
        reading=(
            LatentReading(
                numbers["panels"][0]["strips"][0]["latents"][0],
                ("delta_attribution",),
                _tokens(np.random.default_rng(seed)),
                (PASSAGE,),
                "Most active at the row's first token in 1 of 1 passages.",
                raised=(TokenEffect(HOSTILE[1], 0.5), TokenEffect(" harm", 0.25)),
                lowered=(TokenEffect(HOSTILE[0], -0.5),),
                descriptions=(
                    Description(
                        *("passages", HOSTILE[2], Estimate(0.8, 0.6, 0.9)),
                        *((7, 10), (9, 10), (8, 10)),
                    ),
                    Description("neutral", ""),
                ),
                address="https://www.neuronpedia.org/model/sae/7",
            ),
        ),
        reader=ReaderTest(
            (SourceTest("passages", 1, 0, *[Estimate(0.8)] * 2, *[Estimate()] * 3),),
            ("Described by top passages, " + HOSTILE[1],),
        ),
        warnings=(
            "3 of 60 random latents had no strength within the budget of incoherence",
        ),
    )


def _first(study: str, other: str) -> FirstLatent:
    return FirstLatent(
        *(study, other, 42, 7, 256, 7 / 256, 2, 96),
        *(0.53, 0.44, 0.6, 0.031, 0.4, 0.29, 0.5, 0.12),
    )


def report(cases: int = 2) -> PageContents:
    """The whole page."""
    names = (
        ("misalignment", "harmful advice"),
        ("validation", "undesirable validation"),
    )[:cases]
    titles = ("Emergent misalignment", "Undesirable validation")
    return PageContents(
        title="Which latents caused it?",
        subtitle="Two case studies on a model organism of which every cause is known",
        findings=(
            "Δ-attribution finds more latents that lower harmful advice than "
            "Δ-activation does.",
            "No single latent drives both behaviours.",
        ),
        cases=tuple(
            case(name, behaviour, seed) for seed, (name, behaviour) in enumerate(names)
        ),
        convergence=(
            Convergence(
                (_first(*titles), _first(*titles[::-1])),
                (17, 42, 203),
                (60, 60),
                256,
                14.06,
                0.999,
                "each study draws from the whole dictionary at random",
            ),
        ),
        latent_tokens={42: (" trust", HOSTILE[5]), 17: (" fine",)},
        stages=(
            StageTime("sample", 12.4, {"samples": 4000, "tokens": 48_000}),
            StageTime("grade", 0.8, {"calls": 4000}),
            StageTime("steer", 0.02),
        ),
        cost={"samples": 28_400, "tokens": 340_800, "judge calls": 28_400},
        warnings=("pairs of case 2 are few: " + HOSTILE[0],),
        config={
            "seed": 0,
            "steering": {"strengths": [0.5, 0.7, 1.0], "tokens": "all"},
            "note": HOSTILE[5],
        },
        versions={"python": "3.11.4", "jax": "0.10.2", "sae_attr": "0.1.0"},
        hashes={
            "lm": "5d41402abc4b2a76b9719d911017c592",
            "sae": "7d793037a0760186574b0282f2f435e7",
        },
        choices=(
            Choice(
                "weighing",
                "prompts",
                "each prompt counts as much as another, whatever it lost",
            ),
            Choice("first_by", "score", "the first latent is that of the ranking"),
        ),
    )
