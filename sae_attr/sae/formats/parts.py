"""The parts of an SAE that every format reader returns: a config, mapped tensors in one
orientation, and the folds still to be made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.files.row_source import RowSource, row_norms
from sae_attr.files.tensors import is_float
from sae_attr.sae.config import LOCAL_GATES, SAEConfig
from sae_attr.sae.model import SAE
from sae_attr.sae.temporal import Attention

_CHUNK = 8192  # rows per read where a whole dictionary is passed over


class LoadOptions(TypedDict, total=False):
    """Settings that a file leaves open; every loader takes them as keywords.

    Keys:
      norm_scale: s = sqrt(d_in) / E|x| of an SAE trained on scaled input whose file
        does not hold s; it is folded. One number, or one per model for a crosscoder.
      norm_scale_out: the same for the output of a transcoder.
      gate: "topk" or "jumprelu", against what the file would mean by itself; of a plain
        file, one of `plain.GATES`.
      k: latents per token for gate topk.
      threshold: one jumprelu threshold for every latent, where the file has none.
      dict_class: of a dictionary_learning file without its config.json.
      site: where the SAE reads, where the file is silent.
      layer, model: whose decoder rows stand for the latents of a crosscoder: a layer
        number or model name that the file gives, else the position from 0.
      code_normalization: of a crosscoder whose file does not hold
        code_normalization_id.
      pre_bias: whether a sparsify transcoder takes b_dec from its input, as those from
        before February 2025 did.
      centre: whether a SAELens SAE reads the residual stream less its mean over the
        channels, as TransformerLens' center_writing_weights makes it; the mean is then
        taken from what it reads and added to what it writes.
      affine: "in_out" or "out_in", the axes of a Gemma Scope 2 skip connection.
      subtract_b_dec: of a plain file, whether the decoder's bias is taken from the
        input.
      orientation: of a plain file whose shapes leave it open, how its matrices lie:
        "in_out" is x @ W_enc and codes @ W_dec, "out_in" that of torch's Linear layers,
        "latents_first" and "latents_last" have both [n, d] or both [d, n].
      mean: of a plain file, a vector that is taken from the input and added to the
        output: a file, or a tensor's name.
      norm: of a plain file, a norm per token of the input, see `SAEConfig`.
      decoder_norm: of a plain file, what the norms of the decoder's rows do: "stored"
        nothing, "unit" the decoder divides by them, "code" they are multiplied into
        codes and selection, "select" into the selection of a top-k alone.
      inside: of a plain file with several SAEs, what stands before the names of the one
        that is meant.
      ignore: of a plain file, names of tensors that are no part of the SAE, with commas
        between them.
    """

    norm_scale: float | Sequence[float]
    norm_scale_out: float
    gate: str
    k: int
    threshold: float
    dict_class: str
    site: str
    layer: int
    model: int | str
    code_normalization: str
    pre_bias: bool
    centre: bool
    affine: str
    subtract_b_dec: bool
    orientation: str
    mean: str
    norm: str
    decoder_norm: str
    inside: str
    ignore: str


@dataclass(frozen=True)
class Parts:
    """An SAE as its file has it, nothing read yet.

    Args:
      path: the weight file, for messages.
      cfg: final config; `folded` already names the folds below.
      decs: decoder rows `[n, d_out]` of every stream, with the folds that concern them.
      encs: encoder `[d_in, n]` of every stream (`[d_in, n / streams]` for a block
        encoder).
      vectors: the other fields of `SAE` by name, in final units but for the folds
        below.
      scales: factor of every stream's input, multiplied into the encoder; empty for
        none.
      shifts: `[d_in]` of every stream, taken from the scaled input and so folded into
        the encoder's bias; or empty.
      centre: the encoder reads its input less the mean over the channels, which is
        folded into it.
      attention: layers of a temporal SAE, by the fields of `temporal.Attention`.
      fold_dec_norm: encoder and its bias are multiplied by the norms of the decoder
        rows, which become unit.
      code_norm: from the rows' norms `[streams, n]` to what `threshold_n` is divided
        by.
    """

    path: Path
    cfg: SAEConfig
    decs: tuple[RowSource, ...]
    encs: tuple[np.ndarray, ...]
    vectors: dict[str, np.ndarray]
    scales: tuple[float, ...] = ()
    shifts: tuple[np.ndarray, ...] = ()
    centre: bool = False
    attention: tuple[dict[str, np.ndarray], ...] = ()
    fold_dec_norm: bool = False
    code_norm: Callable[[np.ndarray], np.ndarray] | None = None

    def __post_init__(self) -> None:
        """Shapes and dtypes that no reader may get wrong."""
        cfg, blocks = self.cfg, self.cfg.streams if self.cfg.block_encoder else 1
        if len(self.decs) != cfg.streams or len(self.encs) != cfg.streams:
            raise ValueError(
                f"{self.path}: {len(self.decs)} decoders, {len(self.encs)} encoders, "
                f"{cfg.streams} streams"
            )
        n, d_out = cfg.n_latents, cfg.streams * cfg.d_out
        for name, array, shape in (
            *(("the encoder", enc, (cfg.d_in, n // blocks)) for enc in self.encs),
            *(("the decoder", dec, (n, cfg.d_out)) for dec in self.decs),
            *(
                (name, value, self._shape(name, n, d_out))
                for name, value in self.vectors.items()
            ),
        ):
            if array.shape != shape:
                raise ValueError(
                    f"{self.path}: {name} has shape {list(array.shape)}, not "
                    f"{list(shape)}"
                )
            if not is_float(array.dtype):
                raise ValueError(
                    f"{self.path}: {name} holds {array.dtype}, not floating-point "
                    "weights"
                )

    def _shape(self, name: str, n: int, d_out: int) -> tuple[int, ...]:
        if name == "skip_dm":
            return self.cfg.streams * self.cfg.d_in, d_out
        if name == "dec_bias_m":
            return (d_out,)
        return (
            (self.cfg.streams, n)
            if name == "threshold_n" and self.cfg.decoupled
            else (n,)
        )

    @property
    def dec(self) -> RowSource:
        """Decoder rows of the only stream, or of the chosen one.

        Raises:
          ValueError: a crosscoder, and no stream is chosen.
        """
        stream = 0 if self.cfg.streams == 1 else self.cfg.stream
        if stream is None:
            names = ", ".join(self.cfg.stream_names) or f"0..{self.cfg.streams - 1}"
            raise ValueError(
                f"{self.path} is a crosscoder of {self.cfg.streams} streams ({names}), "
                "each with a decoder of its own; "
                "say whose rows stand for the latents with layer= or model="
            )
        return self.decs[stream]


def subset(parts: Parts, latents_k: np.ndarray) -> Parts:
    """Returns the parts of a few latents, of which alone anything is read.

    Raises:
      ValueError: a gate that compares latents, a crosscoder, or a latent outside
        `0..n-1`.
    """
    cfg = parts.cfg
    if cfg.gate not in LOCAL_GATES or cfg.streams > 1:
        what = f"{cfg.streams} streams"
        if cfg.streams == 1:
            what = f"a gate ({cfg.gate}) that compares latents"
        raise ValueError(
            f"{parts.path} has {what}, so a few of its latents are no SAE; load the "
            "whole"
        )
    if (
        latents_k.size == 0
        or not 0 <= latents_k.min() <= latents_k.max() < cfg.n_latents
    ):
        raise ValueError(
            f"latents {latents_k.tolist()[:3]}… do not lie in 0..{cfg.n_latents - 1} "
            f"of {parts.path}"
        )
    row = lambda v: None if v is None else np.asarray(v)[latents_k]
    (dec,), (enc_dn,) = parts.decs, parts.encs
    return replace(
        parts,
        cfg=replace(cfg, n_latents=len(latents_k)),
        decs=(RowSource(dec.matrix[latents_k], row(dec.scale_n), dec.unit),),
        encs=(enc_dn[:, latents_k],),
        vectors={
            k: v[latents_k] if k.endswith("_n") else v for k, v in parts.vectors.items()
        },
    )


def materialise(parts: Parts, dtype: str) -> SAE:
    """Reads, folds in float32 and casts to `dtype`.

    Raises:
      ValueError: NaN or infinity in a tensor.
    """
    # NaN and infinity, of the file or of a fold, are found at the end.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        tensors = _folded(parts)
        _check_finite(parts.path, tensors)
    attention = []
    for layer in parts.attention:
        _check_finite(parts.path, layer)
        attention.append(Attention(**_cast(dict(layer), dtype)))
    return SAE(**_cast(tensors, dtype), attention=tuple(attention), cfg=parts.cfg)


def _cast(arrays: dict[str, np.ndarray], dtype: str) -> dict[str, jax.Array]:
    """Casts arrays one after another and takes each out of the mapping, so that a large
    dictionary is there once, and one of its matrices twice.
    """
    cast = {}
    for name in list(arrays):
        array = jnp.asarray(arrays.pop(name), dtype=jnp.dtype(dtype))
        # A copy that still runs holds what it copies.
        cast[name] = array.block_until_ready()
    return cast


def _check_finite(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    for name, value in arrays.items():
        # One float64 sum is finite exactly where all its terms are, and needs no array
        # of booleans.
        if not np.isfinite(np.sum(value, dtype=np.float64)):
            raise ValueError(
                f"{path}: {name} holds NaN or infinity; fetch it again or use another "
                "SAE"
            )


def _folded(parts: Parts) -> dict[str, np.ndarray]:
    vectors = {name: _float32(value) for name, value in parts.vectors.items()}
    scales = parts.scales or (1.0,) * len(parts.encs)
    encs = [_float32(enc) for enc in parts.encs]
    if parts.shifts:
        vectors["enc_bias_n"] = _shifted(
            vectors["enc_bias_n"], parts.shifts, encs, parts.cfg.block_encoder
        )
    for enc, scale in zip(encs, scales, strict=True):
        if parts.centre:
            enc -= enc.mean(0)  # (x - mean) @ W = x @ (W - its mean over the channels)
        if scale != 1.0:
            enc *= np.float32(scale)
    decs = [dec.rows(0, len(dec)) for dec in parts.decs]
    enc_dn, dec_nm = (_joined(encs, 0), _joined(decs, 1))
    if parts.fold_dec_norm:
        norms_n = _norms(replace(parts.dec, unit=False))
        enc_dn *= norms_n
        vectors["enc_bias_n"] = vectors["enc_bias_n"] * norms_n
    if parts.code_norm is not None:
        norms = parts.code_norm(np.stack([row_norms(dec) for dec in decs]))
        # A row of zeros never passes a gate on code times norm, and no finite code
        # passes the largest float.
        most = np.finfo(np.float32).max
        quotient = np.where(norms > 0, vectors["threshold_n"] / norms, most)
        vectors["threshold_n"] = np.minimum(quotient, most).astype(np.float32)
    return {"enc_dn": enc_dn, "dec_nm": dec_nm, **vectors}


def decoder_source(
    dec_nm: np.ndarray,
    *,
    scale_n: np.ndarray | None = None,
    norm_scale: float = 1.0,
    unit: bool = False,
) -> RowSource:
    """Makes decoder rows with a per-row factor, the dataset-wise scale and unit norm, all
    applied as the rows are read.
    """
    if norm_scale != 1.0:
        factor = np.float32(1.0 / norm_scale)
        scale_n = (
            np.broadcast_to(factor, dec_nm.shape[:1])
            if scale_n is None
            else scale_n * factor
        )
    return RowSource(dec_nm, scale_n, unit)


def _joined(arrays: list[np.ndarray], axis: int) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)


def _shifted(
    bias_n: np.ndarray,
    shifts: Sequence[np.ndarray],
    encs: list[np.ndarray],
    apart: bool,
) -> np.ndarray:
    """The bias less what the shift of the input adds to the pre-activations, summed in
    float64.
    """
    taken = [
        np.asarray(shift, np.float64) @ enc
        for shift, enc in zip(shifts, encs, strict=True)
    ]
    return (bias_n - (np.concatenate(taken) if apart else sum(taken))).astype(
        np.float32
    )


def _float32(value: np.ndarray) -> np.ndarray:
    return np.array(value, dtype=np.float32, order="C", subok=False)


def _norms(source: RowSource) -> np.ndarray:
    starts = range(0, len(source), _CHUNK)
    return np.concatenate(
        [row_norms(source.rows(i, min(i + _CHUNK, len(source)))) for i in starts]
    )
