"""The self-test as a table for people."""

from __future__ import annotations

from typing import Any

from sae_attr.report.tables import text_table
from sae_attr.sae_check.measure import Measured
from sae_attr.sae_check.verdict import Promise, Verdict
from sae_attr.text.masks import count_text


def record(measured: Measured, promise: Promise, verdict: Verdict) -> dict[str, Any]:
    """Everything about the self-test as plain values, for result.json."""
    found = {
        "verdict": verdict.sentence,
        "passes": verdict.passes,
        "findings": [vars(f) for f in verdict.findings],
    }
    return {**found, "promised": vars(promise), "measured": measured.to_dict()}


def table(measured: Measured, promise: Promise, verdict: Verdict) -> str:
    """Metrics, sites, losses, the best repairs, findings and the verdict as lines of
    text.
    """
    m, norms = measured.metrics, measured.metrics["decoder_norms"]
    said = "nothing" if promise.l0 is None else f"L0 {promise.l0:.4g}"
    said += (
        ""
        if promise.explained_variance is None
        else f", explained variance {promise.explained_variance:.3f}"
    )
    lines = [
        _site_table(measured),
        "",
        f"{measured.site}: {count_text(measured.masked)}",
        f"on the other {m['tokens']:,} tokens: explained variance "
        f"{m['explained_variance']:.4f}, L0 {m['l0']:.2f}, "
        f"mse {m['mse']:.4g}, {m['dead_share']:.1%} of {m['latents']:,} latents never "
        f"fired; promised: {said}",
        f"decoder norms {norms['min']:.3g} to {norms['max']:.3g}, median "
        f"{norms['median']:.3g}; median cosine of encoder and "
        f"decoder {m['encoder_decoder_cosine']:.2f}",
        "loss, nats per token: "
        + ", ".join(f"{k} {v:.4f}" for k, v in measured.loss.items()),
        "recovered, (L_ablated - L_sae) / (L_ablated - L_plain): "
        + ", ".join(f"{k} ablation {v:.3f}" for k, v in measured.recovered.items()),
        "variants: "
        + "; ".join(
            f"{r.what} {r.explained_variance:.3f}" for r in measured.repairs[:3]
        ),
        *(f"{'! ' if f.fails else '  '}{f.code}: {f.text}" for f in verdict.findings),
        verdict.sentence,
    ]
    return "\n".join(lines)


def _site_table(measured: Measured) -> str:
    """Returns how the SAE does at every site, on the tokens that count and on all."""
    sites = measured.sites
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
