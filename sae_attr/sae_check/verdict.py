"""The verdict on an SAE: does it fit the site that it declares, and if not, which mistake
of loading explains it?
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sae_attr.sae_check.bands import CheckBands
from sae_attr.sae_check.measure import SAEMeasurement, SiteFit
from sae_attr.sae_check.stated import StatedMetrics
from sae_attr.sae_check.variants import Variant
from sae_attr.site_names import parse_site


@dataclass(frozen=True)
class CheckFinding:
    """A number outside its band: a code, a sentence, and whether the SAE fails by it or
    it is only a warning.
    """

    code: str
    text: str
    fails: bool = True


@dataclass(frozen=True)
class SAECheck:
    """The whole check of an SAE.

    Args:
      measurement: what was measured.
      stated_metrics: what its files state.
      findings: what is outside its band, failures first.
      verdict: one sentence.
    """

    measurement: SAEMeasurement
    stated_metrics: StatedMetrics
    findings: tuple[CheckFinding, ...]
    verdict: str

    @property
    def passes(self) -> bool:
        """No finding fails."""
        return not any(finding.fails for finding in self.findings)


def judge_sae(
    measurement: SAEMeasurement,
    stated_metrics: StatedMetrics,
    *,
    counts_special: bool,
    bands: CheckBands | None = None,
) -> SAECheck:
    """Compares a measurement with bands and with what the SAE's files state.

    Args:
      counts_special: the run that will use the SAE counts BOS and other special tokens.
      bands: limits; None: the defaults.
    """
    bands = bands or CheckBands()
    causes = _causes(measurement, stated_metrics, bands)
    symptoms = _symptoms(measurement, stated_metrics, bands, explained=bool(causes))
    special = _special(measurement, stated_metrics, bands) if counts_special else ()
    # The sort is stable: failures first, the best explanation first among them.
    findings = sorted([*causes, *symptoms, *special], key=lambda f: not f.fails)
    verdict = _sentence(measurement, stated_metrics, findings)
    return SAECheck(measurement, stated_metrics, tuple(findings), verdict)


def _sentence(
    measurement: SAEMeasurement,
    stated_metrics: StatedMetrics,
    findings: Sequence[CheckFinding],
) -> str:
    if findings and findings[0].fails:
        return f"does not fit {measurement.site}: {findings[0].text}"
    metrics = measurement.metrics
    parts = [f"explained variance {metrics['explained_variance']:.2f}"]
    l0 = f"L0 {metrics['l0']:.1f}"
    if stated_metrics.l0 is not None:
        l0 += f" with {stated_metrics.l0:.4g} stated"
    parts += [l0, f"CE recovered {measurement.recovered['mean']:.2f}"]
    warnings = ""
    if findings:
        warnings = f"; {len(findings)} warning{'s' * (len(findings) > 1)}"
    return f"fits {measurement.site} ({', '.join(parts)}{warnings})"


# ---- mistakes that can be named ------------------------------------------------------


def _causes(
    measurement: SAEMeasurement, stated_metrics: StatedMetrics, bands: CheckBands
) -> list[CheckFinding]:
    """Finds mistakes that can be named: a variant or site that fits much better, a gate that
    lets all through, matrices of different latents.
    """
    here = measurement.sites[0]
    variants = [*measurement.variants]
    variants += [_moved(here, other) for other in measurement.sites[1:]]
    named = [v for v in variants if _names_a_mistake(v, measurement, bands)]
    best = max([v.explained_variance for v in named], default=here.explained_variance)
    # Within the tie all are shown: on a few tokens the order of near equals is noise.
    close = [v for v in named if v.explained_variance >= best - bands.tie]
    close.sort(key=lambda v: -v.explained_variance)
    findings = []
    for variant in close:
        text = _better(variant, here.explained_variance)
        findings.append(CheckFinding(variant.code, text))
    codes = {finding.code for finding in findings}
    gate = _gate(measurement, stated_metrics, bands, best)
    if gate and "gate_lost" not in codes:
        findings.append(gate)
    cosine = measurement.metrics["encoder_decoder_cosine"]
    if cosine < bands.min_cosine and "encoder_mismatch" not in codes:
        text = (
            "encoder columns and decoder rows have nothing to do with each other "
            f"(median cosine {cosine:.2f}): are the latents permuted or a matrix "
            "transposed?"
        )
        findings.append(CheckFinding("encoder_mismatch", text))
    return _one_a_code(findings)


def _names_a_mistake(
    variant: Variant, measurement: SAEMeasurement, bands: CheckBands
) -> bool:
    """Returns True if the variant explains so much more that its mistake was made."""
    gain, floor = bands.gains[variant.code], bands.min_explained_variance
    if variant.code == "scales_apart" and measurement.gate == "relu":
        gain = bands.shrinkage
    if variant.code in ("scale_off", "scales_apart"):
        floor = bands.min_scaled
    here = measurement.sites[0].explained_variance
    return variant.explained_variance >= max(here + gain, floor)


def _one_a_code(findings: Sequence[CheckFinding]) -> list[CheckFinding]:
    """Returns the best finding of each code, at the place of the code's last one."""
    by_code: dict[str, CheckFinding] = {}
    for finding in reversed(findings):
        by_code[finding.code] = finding
    return list(reversed(by_code.values()))


def _moved(here: SiteFit, other: SiteFit) -> Variant:
    """Returns another site as a variant."""
    read, write = parse_site(here.read), parse_site(here.write)
    other_read, other_write = parse_site(other.read), parse_site(other.write)
    if (read.point, write.point) != (other_read.point, other_write.point):
        words = (
            f"{other.site} instead of {here.site}: is it the site that the SAE was "
            "trained on?"
        )
    else:
        words = (
            f"layer {other_write.layer} instead of {write.layer}: is the hook off by "
            "one?"
        )
    return Variant("wrong_site", words, other.explained_variance)


def _better(variant: Variant, here: float) -> str:
    what, mark, question = variant.what.partition(":")
    numbers = f"({variant.explained_variance:.2f} against {here:.2f})"
    return f"it fits better with {what} {numbers}{mark}{question}"


def _gate(
    measurement: SAEMeasurement,
    stated_metrics: StatedMetrics,
    bands: CheckBands,
    best: float,
) -> CheckFinding | None:
    """Finds an L0 far above the stated one, or latents that only do harm: a top-k or a
    threshold that is not applied.
    """
    threshold = measurement.threshold_max
    if measurement.gate == "jumprelu" and threshold is not None and threshold <= 0:
        return CheckFinding(
            "gate_lost",
            "every threshold of its jumprelu gate is 0, which makes it a ReLU",
        )
    fewer = next((v for v in measurement.variants if v.code == "gate_lost"), None)
    # Fewer latents harm a wrong SAE less, which says nothing about its gate.
    if fewer is None or fewer.explained_variance < bands.min_explained_variance:
        return None
    active, here = measurement.metrics["l0"], measurement.sites[0].explained_variance
    near_best = best - 3 * bands.tie
    if fewer.explained_variance >= max(here + bands.gains["gate_lost"], near_best):
        question = f", L0 is {active:.1f}: is a top-k or threshold read as a ReLU?"
        return CheckFinding("gate_lost", _better(fewer, here) + question)
    if stated_metrics.l0 is None or active <= bands.l0_factor * stated_metrics.l0:
        return None
    if fewer.explained_variance >= max(here - 2 * bands.tie, near_best):
        text = (
            f"L0 is {active:.1f} and {stated_metrics.l0:.4g} was stated, while "
            f"{fewer.what} explain as much ({fewer.explained_variance:.2f} against "
            f"{here:.2f}): is a top-k or threshold read as a ReLU?"
        )
        return CheckFinding("gate_lost", text)
    return None


# ---- numbers that are off without a named cause --------------------------------------


def _symptoms(
    measurement: SAEMeasurement,
    stated_metrics: StatedMetrics,
    bands: CheckBands,
    *,
    explained: bool,
) -> Iterator[CheckFinding]:
    """Finds numbers outside their bands, which do not say why.

    Args:
      explained: a mistake was named already.
    """
    variance = measurement.metrics["explained_variance"]
    if not variance >= bands.min_explained_variance and not explained:
        yield CheckFinding(
            "wrong_model",
            f"it explains {variance:.2f} of the variance, no site nearby fits and no "
            "usual mistake of loading explains it: is it an SAE of this very model?",
        )
    yield from _off_stated(measurement, stated_metrics, bands)
    damage = measurement.loss["mean"] - measurement.loss["plain"]
    recovered = measurement.recovered["mean"]
    if damage >= bands.min_damage and not recovered >= bands.min_ce_recovered:
        yield CheckFinding(
            "ce_low",
            f"with the reconstruction spliced in only {recovered:.2f} of the loss is "
            "recovered",
        )
    yield from _latents_off(measurement, bands)


def _off_stated(
    measurement: SAEMeasurement, stated_metrics: StatedMetrics, bands: CheckBands
) -> Iterator[CheckFinding]:
    l0, stated_l0 = measurement.metrics["l0"], stated_metrics.l0
    factor = bands.l0_factor
    if stated_l0 is not None and not stated_l0 / factor <= l0 <= stated_l0 * factor:
        text = f"L0 is {l0:.1f} and {stated_l0:.4g} was stated"
        yield CheckFinding("l0_off", text)
    variance = measurement.metrics["explained_variance"]
    aim = stated_metrics.explained_variance
    if aim is not None and variance < aim - bands.max_below_stated:
        text = f"explained variance is {variance:.2f} and {aim:.2f} was stated"
        yield CheckFinding("below_stated", text)


def _latents_off(
    measurement: SAEMeasurement, bands: CheckBands
) -> Iterator[CheckFinding]:
    metrics, norms = measurement.metrics, measurement.metrics["decoder_norms"]
    tokens, latents = metrics["tokens"], metrics["latents"]
    # On few tokens most latents of a wide SAE have had no chance to fire.
    enough = tokens * metrics["l0"] >= bands.dead_tokens * latents
    if metrics["dead_share"] > bands.max_dead and enough:
        yield CheckFinding(
            "dead",
            f"{metrics['dead_share']:.0%} of the latents never fire on {tokens:,} tokens",
        )
    if norms["max"] > bands.max_norm_ratio * norms["median"] > 0:
        text = (
            f"decoder norms reach from {norms['min']:.3g} to {norms['max']:.3g}, the "
            f"median being {norms['median']:.3g}"
        )
        yield CheckFinding("norms_far", text, fails=False)


def _special(
    measurement: SAEMeasurement, stated_metrics: StatedMetrics, bands: CheckBands
) -> Iterator[CheckFinding]:
    """Finds special tokens (BOS) that the run counts and the SAE was not trained on."""
    if not measurement.special:
        return
    ratio = measurement.special["mse"] / max(measurement.metrics["mse"], 1e-30)
    reason = "its file is silent"
    if stated_metrics.excludes_special:
        reason = "its file says that it was trained without them"
    elif not ratio > bands.max_special_ratio:
        return
    yield CheckFinding(
        "bos_polluted",
        "special tokens (BOS) are counted, but the squared error on them is "
        f"{ratio:.1f} times that on others and {reason}: set exclude=special",
        fails=bool(stated_metrics.excludes_special),
    )
