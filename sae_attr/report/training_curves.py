"""Files of a finished training: the curves as CSV, and the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sae_attr.report.figures import (
    Drawing,
    loss_figure,
    render,
    sae_training_figure,
)
from sae_attr.report.tables import columns_from_rows, csv_text

Files = dict[str, bytes | str]
LM_COLUMNS = ("step", "loss", "targets", "grad_norm", "lr")
SAE_LINES = ("step", "explained_variance", "l0", "dead")
HELD_OUT_LINES = ("explained_variance", "l0", "dead_share", "ce_recovered")


def lm_curve_files(history: Sequence[Mapping[str, float]]) -> Files:
    """Returns curves.csv, held_out.csv (where a held-out loss was measured) and
    figures/loss.*, by file name.

    Args:
      history: of `lm.train_lm`.
    """
    steps = [record for record in history if "loss" in record]
    curves = {name: [record[name] for record in steps] for name in LM_COLUMNS}
    evaluated = [record for record in history if "eval_loss" in record]
    held_out = {
        "step": [record["step"] for record in evaluated],
        "loss": [record["eval_loss"] for record in evaluated],
    }
    numbers = {
        "train": {"step": curves["step"], "loss": curves["loss"]},
        "held_out": held_out,
    }
    files: Files = {}
    for suffix, content in render(Drawing(loss_figure, numbers)).items():
        files[f"figures/loss.{suffix}"] = content
    files["curves.csv"] = csv_text(curves)
    if evaluated:
        files["held_out.csv"] = csv_text(held_out)
    return files


def sae_curve_files(
    history: Sequence[Mapping[str, float]], density: Mapping[str, Any]
) -> Files:
    """Returns curves.csv and figures/training.*, by file name.

    Args:
      history: of `sae.train_sae`; records of evaluated steps have `held_out_*`.
      density: of firing rates at the end: edges, counts, dead.
    """
    # Steps that were not evaluated lack the held-out numbers: NaN stands there.
    columns: dict[str, np.ndarray] = {}
    for name, values in columns_from_rows(history).items():
        columns[name] = np.array(values)
    evaluated = [record for record in history if "held_out_l0" in record]
    held_out = {"step": [record["step"] for record in evaluated]}
    for name in HELD_OUT_LINES:
        held_out[name] = [record[f"held_out_{name}"] for record in evaluated]
    numbers = {
        "train": {name: columns[name].tolist() for name in SAE_LINES},
        "held_out": held_out,
        "density": dict(density),
    }
    files: Files = {"curves.csv": csv_text(columns)}
    for suffix, content in render(Drawing(sae_training_figure, numbers)).items():
        files[f"figures/training.{suffix}"] = content
    return files
