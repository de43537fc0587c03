"""Bands, named findings and one sentence: does the SAE fit where it is said to fit, and
if not, what was probably done?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from sae_attr.sae_check.measure import Measured, SiteFit
from sae_attr.sae_check.variants import Repair
from sae_attr.site_names import parse_site

GAINS = {
    "scale_off": 0.05, "scales_apart": 0.05, "wrong_site": 0.03, "decoder_norms": 0.03, "norm_missing": 0.025,
    "encoder_mismatch": 0.02, "norm_gain": 0.02, "gate_lost": 0.01, "b_dec_input": 0.01,
    "gate_norms": 0.01,
}  # fmt: skip


@dataclass(frozen=True)
class Bands:
    """What an SAE must keep to; the defaults let every honestly loaded SAE of the
    tests' fixtures pass.

    Args:
      min_explained_variance: at the declared site, non-special tokens.
      gains: by code, how much more variance a neighbouring site or a repair must
        explain to name a mistake. The wrong setting of b_dec never gains.
      shrinkage: the gain for code scales_apart where the gate is a plain relu: an L1
        penalty shrinks codes, so that scaling them honestly gains (0.055 for one of the
        tests' fixtures).
      min_scaled: what a change of scale must reach to be believed: some scale mends a
        little of any wrong SAE.
      tie: findings this close to the best one are all named.
      l0_factor: L0 may be this many times the promised one, or that fraction of it.
        Training aims (`target_l0`) are missed by factors of almost 2.
      max_below_promise: how far explained variance may lie below a promised one.
      min_ce_recovered: against mean ablation; not asked where ablation costs less than
        `min_damage` nats.
      min_cosine: median cosine of encoder and decoder of a latent.
      max_dead: share of latents without a firing, asked only if tokens x L0 is
        `dead_tokens` times the latents.
      max_norm_ratio: largest decoder norm over the median one; only a warning.
      max_special_ratio: squared error on special tokens over that on others, where the
        run counts special tokens.
    """

    min_explained_variance: float = 0.5
    gains: Mapping[str, float] = field(default_factory=lambda: dict(GAINS))
    shrinkage: float = 0.12
    min_scaled: float = 0.7
    tie: float = 0.01
    l0_factor: float = 2.5
    max_below_promise: float = 0.05
    min_ce_recovered: float = 0.5
    min_damage: float = 0.05
    min_cosine: float = 0.1
    max_dead: float = 0.95
    dead_tokens: float = 20.0
    max_norm_ratio: float = 10.0
    max_special_ratio: float = 3.0


@dataclass(frozen=True)
class Promise:
    """What file, path or caller say about the SAE; None where they are silent."""

    l0: float | None = None
    explained_variance: float | None = None
    excludes_special: bool | None = None


@dataclass(frozen=True)
class Finding:
    """Something outside a band: a code, a sentence, and whether the SAE fails by it or
    the reader is only told.
    """

    code: str
    text: str
    fails: bool = True


@dataclass(frozen=True)
class Verdict:
    """One sentence, the findings behind it, and whether all is well."""

    sentence: str
    findings: tuple[Finding, ...]

    @property
    def passes(self) -> bool:
        """No finding fails."""
        return not any(f.fails for f in self.findings)


def judge(
    measured: Measured,
    promise: Promise,
    *,
    counts_special: bool,
    bands: Bands | None = None,
) -> Verdict:
    """The verdict on a measurement.

    Args:
      promise: what was said about the SAE.
      counts_special: the run that will use the SAE counts BOS and other special tokens.
      bands: limits; None: the defaults.
    """
    bands = bands or Bands()
    causes = _causes(measured, promise, bands)
    rest = [
        *_rest(measured, promise, bands, bool(causes)),
        *_special(measured, promise, bands, counts_special),
    ]
    findings = tuple(sorted([*causes, *rest], key=lambda f: not f.fails))
    m = measured.metrics
    if findings and findings[0].fails:
        return Verdict(f"does not fit {measured.site}: {findings[0].text}", findings)
    promised = "" if promise.l0 is None else f" with {promise.l0:.4g} promised"
    warned = f"; {len(findings)} warning{'s' * (len(findings) > 1)}" if findings else ""
    explained = (
        f"explained variance {m['explained_variance']:.2f}, L0 {m['l0']:.1f}{promised}"
    )
    return Verdict(
        f"fits {measured.site} ({explained}, CE recovered "
        f"{measured.recovered['mean']:.2f}{warned})",
        findings,
    )


def _causes(measured: Measured, promise: Promise, bands: Bands) -> list[Finding]:
    """Mistakes that can be named: what fits much better, a gate that lets all through,
    matrices of different latents.
    """
    here, m = measured.sites[0].explained_variance, measured.metrics
    better = [
        *measured.repairs,
        *(_as_repair(measured.sites[0], s) for s in measured.sites[1:]),
    ]
    floor = {"scale_off": bands.min_scaled, "scales_apart": bands.min_scaled}
    gains = {
        **bands.gains,
        **({"scales_apart": bands.shrinkage} if measured.gate == "relu" else {}),
    }
    named = [
        r
        for r in better
        if r.explained_variance >= here + gains[r.code]
        and r.explained_variance >= floor.get(r.code, bands.min_explained_variance)
    ]
    best = max([r.explained_variance for r in named], default=here)
    close = sorted(
        (r for r in named if r.explained_variance >= best - bands.tie),
        key=lambda r: -r.explained_variance,
    )
    found = [Finding(r.code, _better(r, here)) for r in close]
    if (gate := _gate(measured, promise, bands, best)) and all(
        f.code != "gate_lost" for f in found
    ):
        found.append(gate)
    if m["encoder_decoder_cosine"] < bands.min_cosine and all(
        f.code != "encoder_mismatch" for f in found
    ):
        found.append(
            Finding(
                "encoder_mismatch",
                "encoder columns and decoder rows have nothing to do with each other "
                "(median cosine "
                f"{m['encoder_decoder_cosine']:.2f}): are the latents permuted or a "
                "matrix transposed?",
            )
        )
    return list({f.code: f for f in reversed(found)}.values())[::-1]


def _as_repair(here: SiteFit, other: SiteFit) -> Repair:
    ours, theirs = (
        [parse_site(name) for name in (fit.read, fit.write)] for fit in (here, other)
    )
    if [site.point for site in ours] != [site.point for site in theirs]:
        words = f"{other.site} instead of {here.site}: is it the site that the SAE was trained on?"
    else:
        words = f"layer {theirs[1].layer} instead of {ours[1].layer}: is the hook off by one?"
    return Repair("wrong_site", words, other.explained_variance)


def _better(repair: Repair, here: float) -> str:
    what, mark, question = repair.what.partition(":")
    return f"it fits better with {what} ({repair.explained_variance:.2f} against {here:.2f}){mark}{question}"


def _gate(
    measured: Measured, promise: Promise, bands: Bands, best: float
) -> Finding | None:
    """L0 far above what was promised, or latents that only do harm: a top-k or a
    threshold that is not applied.
    """
    active, here = measured.metrics["l0"], measured.sites[0].explained_variance
    if (
        measured.gate == "jumprelu"
        and measured.threshold_max is not None
        and measured.threshold_max <= 0
    ):
        return Finding(
            "gate_lost",
            "every threshold of its jumprelu gate is 0, which makes it a ReLU",
        )
    kept = next((r for r in measured.repairs if r.code == "gate_lost"), None)
    if kept is None or kept.explained_variance < bands.min_explained_variance:
        return None  # fewer latents harm a wrong SAE less, which says nothing about its gate
    far = promise.l0 is not None and active > bands.l0_factor * promise.l0
    if kept.explained_variance >= max(
        here + bands.gains["gate_lost"], best - 3 * bands.tie
    ):
        return Finding(
            "gate_lost",
            _better(kept, here)
            + f", L0 is {active:.1f}: is a top-k or threshold read as a ReLU?",
        )
    if far and kept.explained_variance >= max(
        here - 2 * bands.tie, best - 3 * bands.tie
    ):
        return Finding(
            "gate_lost",
            f"L0 is {active:.1f} and {promise.l0:.4g} was promised, while {kept.what} "
            "explain as much "
            f"({kept.explained_variance:.2f} against {here:.2f}): is a top-k or "
            "threshold read as a ReLU?",
        )
    return None


def _rest(
    measured: Measured, promise: Promise, bands: Bands, named: bool
) -> Iterator[Finding]:
    """What is out of its band without telling why."""
    m, norms = measured.metrics, measured.metrics["decoder_norms"]
    value = m["explained_variance"]
    if not value >= bands.min_explained_variance and not named:
        yield Finding(
            "wrong_model",
            f"it explains {value:.2f} of the variance, no site nearby fits and nothing "
            "that is usually loaded wrongly mends "
            "it: is it an SAE of this very model?",
        )
    if (
        promise.l0 is not None
        and not promise.l0 / bands.l0_factor <= m["l0"] <= promise.l0 * bands.l0_factor
    ):
        yield Finding(
            "l0_off", f"L0 is {m['l0']:.1f} and {promise.l0:.4g} was promised"
        )
    if (
        promise.explained_variance is not None
        and value < promise.explained_variance - bands.max_below_promise
    ):
        yield Finding(
            "below_promise",
            f"explained variance is {value:.2f} and {promise.explained_variance:.2f} "
            "was promised",
        )
    damage = measured.loss["mean"] - measured.loss["plain"]
    recovered = measured.recovered["mean"]
    if damage >= bands.min_damage and not recovered >= bands.min_ce_recovered:
        yield Finding(
            "ce_low",
            f"with the reconstruction spliced in only {recovered:.2f} of the loss is "
            "recovered",
        )
    if (
        m["dead_share"] > bands.max_dead
        and m["tokens"] * m["l0"] >= bands.dead_tokens * m["latents"]
    ):
        yield Finding(
            "dead",
            f"{m['dead_share']:.0%} of the latents never fire on {m['tokens']:,} "
            "tokens",
        )
    if norms["max"] > bands.max_norm_ratio * norms["median"] > 0:
        text = f"decoder norms reach from {norms['min']:.3g} to {norms['max']:.3g}, the median being {norms['median']:.3g}"
        yield Finding("norms_far", text, fails=False)


def _special(
    measured: Measured, promise: Promise, bands: Bands, counts_special: bool
) -> Iterator[Finding]:
    """BOS and other special tokens that the run counts and the SAE was not trained on."""
    if not (counts_special and measured.special):
        return
    ratio = measured.special["mse"] / max(measured.metrics["mse"], 1e-30)
    if promise.excludes_special or ratio > bands.max_special_ratio:
        said = (
            "its file says that it was trained without them"
            if promise.excludes_special
            else "its file is silent"
        )
        yield Finding(
            "bos_polluted",
            "special tokens (BOS) are counted, but the squared error on them is "
            f"{ratio:.1f} times that on others and "
            f"{said}: set exclude=special",
            fails=bool(promise.excludes_special),
        )
