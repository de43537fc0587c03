"""What an engine without the SAE needs to set a latent's activation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sae_attr.sae.model import SAE, code_rows
from sae_attr.steering.interventions import check_clamp

GATES = ("relu", "identity", "jumprelu")


class ExportedLatent(NamedTuple):
    """A latent as an engine takes it.

    Args:
      arrays: decoder row and encoder column by the end of their names, float32 `[d]`.
      parameters: bias and gate of its activation: `gate(x . encoder + bias)`.
    """

    arrays: Mapping[str, np.ndarray]
    parameters: Mapping[str, Any]


def check_exportable(sae: SAE) -> None:
    """Raises ValueError for an SAE whose activations are no function of one encoder
    column and the token alone.
    """
    check_clamp(sae)
    cfg = sae.cfg
    if cfg.gate not in GATES or cfg.norm != "none":
        raise ValueError(
            f"mode clamp with gate {cfg.gate} and norm {cfg.norm}: an exported sweep "
            f"states gates {', '.join(GATES)} without a norm per token alone; sample it "
            "here, or use mode add"
        )


def exported_latent(sae: SAE, latent: int) -> ExportedLatent:
    """Returns a latent of an SAE that `check_exportable` passes."""
    encoder_d = np.asarray(sae.enc_dn[:, latent], np.float32)
    bias = float(sae.enc_bias_n[latent])
    if sae.cfg.subtract_b_dec:
        bias -= float(np.asarray(sae.dec_bias_m, np.float32) @ encoder_d)
    parameters: dict[str, Any] = {"bias": bias, "gate": sae.cfg.gate}
    if sae.threshold_n is not None:
        parameters["threshold"] = float(sae.threshold_n[latent])
    decoder_d = np.asarray(code_rows(sae)[latent], np.float32)
    return ExportedLatent({"": decoder_d, ".encoder": encoder_d}, parameters)
