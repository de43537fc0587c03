"""The self-test of a loaded SAE: many load without an error and compute something else.

measured = measure(params, sae, text, cfg=cfg, site=site, mesh=mesh)
verdict = judge(measured, promised(path, sae.cfg), counts_special=False)
"""

from sae_attr.sae_check.held_out import (
    HeldOut,
    HeldOutFit,
    collect_held_out,
    held_out_fit,
)
from sae_attr.sae_check.measure import (
    Measured,
    SiteFit,
    measure,
    measure_sample,
    splice,
)
from sae_attr.sae_check.sample import Place, Sample, collect
from sae_attr.sae_check.stated import promised
from sae_attr.sae_check.table import record, table
from sae_attr.sae_check.variants import Repair
from sae_attr.sae_check.verdict import Bands, Finding, Promise, Verdict, judge

__all__ = [
    "Bands",
    "Finding",
    "HeldOut",
    "HeldOutFit",
    "Measured",
    "Place",
    "Promise",
    "Repair",
    "Sample",
    "SiteFit",
    "Verdict",
    "collect",
    "collect_held_out",
    "held_out_fit",
    "judge",
    "measure",
    "measure_sample",
    "promised",
    "record",
    "splice",
    "table",
]
