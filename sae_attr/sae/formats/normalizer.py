"""The input normaliser that science-of-finetuning's fork of dictionary_learning keeps
in its state dicts.

    x' = (x - mean) * global_scale[stream];   y = y' / (global_scale + 1e-8) + mean;   NaN means: no normaliser

One scale per stream and not the deviation of each dimension; both maps are affine, so
they fold exactly. Source: `NormalizableMixin` of the fork, and the reference goldens of
the tests.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sae_attr.files.row_source import RowSource
from sae_attr.sae.formats.parts import Parts

KEYS = ("target_rms", "activation_mean", "activation_std", "activation_global_scale")
_EPS = 1e-8


def fold(parts: Parts, tensors: dict[str, np.ndarray], *, twice: bool = False) -> Parts:
    """Returns parts that read and write the site's own units; the same ones without a
    normaliser.

    Args:
      parts: as the state dict has it, nothing folded; `subtract_b_dec` becomes part of
        the encoder's bias.
      tensors: the state dict.
      twice: the input is normalised two times over and the output once, as a decoupled
        crosscoder does.

    Raises:
      ValueError: some statistics are missing, NaN in part, or of another shape.
    """
    # target_rms alone is no normaliser: it is what the scale was computed from.
    if not set(KEYS[1:]) & set(tensors):
        return parts
    statistics = _statistics(parts, tensors)
    if statistics is None:
        return parts
    all_means, scale_s = statistics
    cfg = parts.cfg
    means_sd = all_means.reshape(cfg.streams, -1)
    biases_sm = np.asarray(parts.vectors["dec_bias_m"]).reshape(cfg.streams, -1)
    decs, scales, shifts, biases = [], [], [], []
    for dec, mean_d, bias_m, s in zip(parts.decs, means_sd, biases_sm, scale_s):
        # ((x - m) s - m) s = x s² - m s² - m s
        shift_d = mean_d * s * (1 + s * twice)
        shifts.append(shift_d + bias_m * cfg.subtract_b_dec)
        scales.append(float(s ** (1 + twice)))
        # The way out divides by s + 1e-8, not by s: so does the library.
        biases.append(bias_m / (s + _EPS) + mean_d)
        decs.append(_scaled(dec, float(1 / (s + _EPS))))
    # Computed in float64, as the statistics are, and rounded once.
    dec_bias_m = np.concatenate(biases).astype(np.float32)
    folded = (*cfg.folded, "input normaliser")
    return replace(
        parts,
        cfg=replace(cfg, subtract_b_dec=False, folded=folded),
        decs=tuple(decs),
        vectors=parts.vectors | {"dec_bias_m": dec_bias_m},
        scales=tuple(scales),
        shifts=tuple(shifts),
    )


def _scaled(dec: RowSource, factor: float) -> RowSource:
    # A factor and not a product: the matrix stays on disk until its rows are read.
    scale_n = np.broadcast_to(np.float32(factor), (len(dec),))
    return RowSource(dec.matrix, scale_n, dec.unit)


def _statistics(
    parts: Parts, tensors: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns mean `[streams * d]` and scale `[streams]` of the input; None where
    training never set them.
    """
    path, streams = parts.path, parts.cfg.streams
    missing = [key for key in KEYS[1:] if key not in tensors]
    if missing:
        raise ValueError(
            f"{path}: the normaliser lacks {', '.join(missing)}; save the whole state "
            "dict"
        )
    flat = [np.asarray(tensors[key], np.float64).reshape(-1) for key in KEYS[1:]]
    mean_d, std_d, scale_s = flat
    width = streams * parts.cfg.d_in
    if (mean_d.size, std_d.size, scale_s.size) != (width, width, streams):
        raise ValueError(
            f"{path}: the normaliser has sizes {mean_d.size}, {std_d.size}, "
            f"{scale_s.size}, not the SAE's"
        )
    # The library fills its buffers with NaN until it has seen activations.
    is_nan = np.isnan(np.concatenate([mean_d, std_d]))
    if is_nan.all():
        return None
    if is_nan.any():
        raise ValueError(
            f"{path}: activation_mean or activation_std is NaN in part; fetch the file "
            "again"
        )
    is_finite = np.isfinite(mean_d).all() and np.isfinite(scale_s).all()
    if not is_finite or not (scale_s > 0).all():
        raise ValueError(
            f"{path}: the normaliser's mean or scale is not finite and positive; fetch "
            "the file again"
        )
    return mean_d, scale_s
