"""The check of a loaded SAE: many load without an error and compute something else.

measurement = measure_sae(params, sae, text, cfg=cfg, site=site, mesh=mesh)
stated = read_stated_metrics(path, sae.cfg)
check = judge_sae(measurement, stated, counts_special=False)
"""

from sae_attr.sae_check.bands import CheckBands
from sae_attr.sae_check.held_out import (
    HeldOut,
    HeldOutFit,
    collect_held_out,
    held_out_fit,
)
from sae_attr.sae_check.measure import (
    SAEMeasurement,
    SiteFit,
    measure_sae,
    measure_sample,
    splice,
)
from sae_attr.sae_check.sample import SitePair, TextSample, collect_sample
from sae_attr.sae_check.stated import StatedMetrics, read_stated_metrics
from sae_attr.sae_check.table import check_record, check_table
from sae_attr.sae_check.variants import Variant
from sae_attr.sae_check.verdict import CheckFinding, SAECheck, judge_sae

__all__ = [
    "CheckBands",
    "CheckFinding",
    "HeldOut",
    "HeldOutFit",
    "SAECheck",
    "SAEMeasurement",
    "SiteFit",
    "SitePair",
    "StatedMetrics",
    "TextSample",
    "Variant",
    "check_record",
    "check_table",
    "collect_held_out",
    "collect_sample",
    "held_out_fit",
    "judge_sae",
    "measure_sae",
    "measure_sample",
    "read_stated_metrics",
    "splice",
]
