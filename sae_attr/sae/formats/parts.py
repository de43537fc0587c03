"""What every format reader produces: a config, mapped tensors in one orientation, and the folds still to be made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import jax.numpy as jnp
import numpy as np

from sae_attr.sae.model import SAE, SAEConfig
from sae_attr.tensorfiles import RowSource, row_norms

_CHUNK = 8192  # rows per read where a whole dictionary is passed over


class LoadOptions(TypedDict, total=False):
    """Answers to what a file leaves open; every loader takes them as keywords.

    Keys:
      norm_scale: s = sqrt(d_in) / E|x| of an SAE trained on scaled input whose file does not hold s; it is folded.
      gate: "topk" or "jumprelu", against what the file would mean by itself.
      k: latents per token for gate topk.
      threshold: one jumprelu threshold for every latent, where the file has none.
      dict_class: of a dictionary_learning file without its config.json.
      site: where the SAE reads, where the file is silent.
    """

    norm_scale: float
    gate: str
    k: int
    threshold: float
    dict_class: str
    site: str


@dataclass(frozen=True)
class Parts:
    """An SAE as its file has it, nothing read yet.

    Args:
      path: the weight file, for messages.
      cfg: final config; `folded` already names the folds below.
      dec: decoder rows `[n, m]`, with the folds that concern them.
      enc_dn: encoder `[d, n]`.
      vectors: the other fields of `SAE` by name.
      norm_scale: the encoder is multiplied by it, the decoder bias divided (as SAELens folds its scaling factor).
      fold_dec_norm: encoder and its bias are multiplied by the norms of the decoder rows, which become unit.
    """

    path: Path
    cfg: SAEConfig
    dec: RowSource
    enc_dn: np.ndarray
    vectors: dict[str, np.ndarray]
    norm_scale: float = 1.0
    fold_dec_norm: bool = False


def materialise(parts: Parts, dtype: str) -> SAE:
    """Reads, folds in float32 and casts to `dtype`.

    Raises:
      ValueError: NaN or infinity in a tensor.
    """
    dec_nm = parts.dec.rows(0, len(parts.dec))
    enc_dn = _float32(parts.enc_dn) * np.float32(parts.norm_scale)
    vectors = {name: _float32(value) for name, value in parts.vectors.items()}
    vectors["dec_bias_m"] = vectors["dec_bias_m"] / np.float32(parts.norm_scale)
    if parts.fold_dec_norm:
        norms_n = _norms(replace(parts.dec, unit=False))
        enc_dn *= norms_n
        vectors["enc_bias_n"] = vectors["enc_bias_n"] * norms_n
    tensors = {"enc_dn": enc_dn, "dec_nm": dec_nm, **vectors}
    for name, value in tensors.items():
        # One float64 sum is finite exactly where all its terms are, and needs no array of booleans.
        with np.errstate(invalid="ignore"):
            if not np.isfinite(np.sum(value, dtype=np.float64)):
                raise ValueError(f"{parts.path}: {name} holds NaN or infinity; fetch it again or use another SAE")
    return SAE(**{name: jnp.asarray(value, dtype=jnp.dtype(dtype)) for name, value in tensors.items()}, cfg=parts.cfg)


def decoder_source(dec_nm: np.ndarray, *, scale_n: np.ndarray | None, norm_scale: float, unit: bool) -> RowSource:
    """Decoder rows with a per-row factor, the dataset-wise scale and unit norm, all applied as the rows are read."""
    if norm_scale != 1.0:
        factor = np.float32(1.0 / norm_scale)
        scale_n = np.broadcast_to(factor, dec_nm.shape[:1]) if scale_n is None else scale_n * factor
    return RowSource(dec_nm, scale_n, unit)


def _float32(value: np.ndarray) -> np.ndarray:
    return np.array(value, dtype=np.float32, order="C", subok=False)


def _norms(source: RowSource) -> np.ndarray:
    starts = range(0, len(source), _CHUNK)
    return np.concatenate([row_norms(source.rows(i, min(i + _CHUNK, len(source)))) for i in starts])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      ValueError: the file is not valid JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object of settings")
    return value


def check_names(
    path: Path, kind: str, found: Iterable[str], wanted: Iterable[str], optional: Iterable[str] = ()
) -> None:
    """Compares tensor names with those that a kind of SAE has.

    Raises:
      ValueError: lists missing names with − and unexpected ones with +.
    """
    missing = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted) - set(optional))
    if missing or extra:
        lines = [f"  − {name} (missing)" for name in missing] + [f"  + {name} (unexpected)" for name in extra]
        listing = "\n".join(lines)
        raise ValueError(f"{path} does not hold the tensors of {kind}; is its config of another SAE?\n{listing}")


def check_shapes(
    path: Path, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], said: str
) -> None:
    """Compares tensor shapes with those that follow from the config.

    Args:
      path: the weight file.
      tensors: by name.
      shapes: expected, for some of the names.
      said: what the expectation comes from, for the message: "cfg.json says d_in=64, d_sae=512".

    Raises:
      ValueError: the first tensor of another shape.
    """
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            raise ValueError(
                f"{path}: {name} has shape {list(tensors[name].shape)}, but {said}, which needs {list(shape)}; "
                "config and weights are of different SAEs"
            )


def reject_options(options: LoadOptions, fmt: str, known: tuple[str, ...]) -> None:
    """Options that a format has no use for are an error and not ignored.

    Raises:
      TypeError: no such option at all.
      ValueError: an option of other formats.
    """
    for name in options:
        if name not in LoadOptions.__annotations__:
            raise TypeError(f"unknown option {name!r}; the options are {', '.join(LoadOptions.__annotations__)}")
        if name not in known:
            raise ValueError(f"option {name}= means nothing for a {fmt} file; it takes {', '.join(known)}")


def check_gate(gate: str) -> None:
    """The option `gate=` must be topk or jumprelu.

    Raises:
      ValueError: anything else.
    """
    if gate not in ("topk", "jumprelu"):
        raise ValueError(f"gate={gate!r}; the option takes 'topk' or 'jumprelu'")
