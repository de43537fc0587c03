"""The SAE check as a table, and as plain values."""

from __future__ import annotations

from typing import Any

from sae_attr.report.tables import text_table
from sae_attr.sae_check.measure import SAEMeasurement
from sae_attr.sae_check.stated import StatedMetrics
from sae_attr.sae_check.verdict import SAECheck
from sae_attr.text.masks import count_text


def check_record(check: SAECheck) -> dict[str, Any]:
    """Returns the whole check as plain values, for result.json."""
    return {
        "verdict": check.verdict,
        "passes": check.passes,
        "findings": [vars(finding) for finding in check.findings],
        "stated": vars(check.stated_metrics),
        "measured": check.measurement.to_dict(),
    }


def check_table(check: SAECheck) -> str:
    """Returns metrics, sites, losses, the best variants, findings and the verdict as
    lines of text.
    """
    measurement = check.measurement
    variants = []
    for variant in measurement.variants[:3]:
        variants.append(f"{variant.what} {variant.explained_variance:.3f}")
    lines = [
        _site_table(measurement),
        "",
        f"{measurement.site}: {count_text(measurement.masked)}",
        *_metric_lines(measurement, check.stated_metrics),
        *_loss_lines(measurement),
        f"variants: {'; '.join(variants)}",
    ]
    for finding in check.findings:
        mark = "!" if finding.fails else " "
        lines.append(f"{mark} {finding.code}: {finding.text}")
    return "\n".join([*lines, check.verdict])


def _metric_lines(
    measurement: SAEMeasurement, stated_metrics: StatedMetrics
) -> list[str]:
    metrics, norms = measurement.metrics, measurement.metrics["decoder_norms"]
    aims = "nothing" if stated_metrics.l0 is None else f"L0 {stated_metrics.l0:.4g}"
    if stated_metrics.explained_variance is not None:
        aims += f", explained variance {stated_metrics.explained_variance:.3f}"
    return [
        f"on the other {metrics['tokens']:,} tokens: explained variance "
        f"{metrics['explained_variance']:.4f}, L0 {metrics['l0']:.2f}, mse "
        f"{metrics['mse']:.4g}, {metrics['dead_share']:.1%} of "
        f"{metrics['latents']:,} latents never fired; stated: {aims}",
        f"decoder norms {norms['min']:.3g} to {norms['max']:.3g}, median "
        f"{norms['median']:.3g}; median cosine of encoder and decoder "
        f"{metrics['encoder_decoder_cosine']:.2f}",
    ]


def _loss_lines(measurement: SAEMeasurement) -> list[str]:
    losses = [f"{name} {nats:.4f}" for name, nats in measurement.loss.items()]
    recovered = []
    for name, share in measurement.recovered.items():
        recovered.append(f"{name} ablation {share:.3f}")
    return [
        f"loss, nats per token: {', '.join(losses)}",
        "recovered, (L_ablated - L_sae) / (L_ablated - L_plain): "
        + ", ".join(recovered),
    ]


def _site_table(measurement: SAEMeasurement) -> str:
    """Returns metrics at every site, on the tokens that count and on all."""
    sites = measurement.sites
    with_bos = [site.explained_variance_with_special for site in sites]
    columns = {
        "site": [site.site for site in sites],
        "expl.var": [site.explained_variance for site in sites],
        "L0": [site.l0 for site in sites],
        "mse": [site.mse for site in sites],
        "ev w. BOS": with_bos,
        "L0 w. BOS": [site.l0_with_special for site in sites],
    }
    formats = {
        "expl.var": ".3f",
        "L0": ".1f",
        "mse": ".4g",
        "ev w. BOS": ".3f",
        "L0 w. BOS": ".1f",
    }
    return text_table(columns, formats)
