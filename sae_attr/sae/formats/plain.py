"""Custom SAE files: an encoder, a decoder and biases under usual names, in whatever
wrapper, with no config to trust.

    x' = (x - mean) * norm_scale - b_dec?;   codes = gate(x' @ W_enc + b_enc);   y = (codes @ W_dec + b_dec) / norm_scale + mean

Shapes tell which way round the matrices lie; what no file tells (the gate, whether
b_dec is taken from the input) is asked for by name, all of it at once, and never
guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.files.torch_file import read_torch
from sae_attr.files.vectors import read_vector
from sae_attr.sae.config import NORMS, SAEConfig
from sae_attr.sae.formats import dictionary_learning
from sae_attr.sae.formats.checks import finite, positive, reject_options
from sae_attr.sae.formats.format import Format, WeightFile
from sae_attr.sae.formats.parts import LoadOptions, Parts, decoder_source
from sae_attr.sae.formats.plain_tensors import (
    ORIENTATIONS,
    Named,
    named,
    shapes_of,
    turned,
    wrappers,
)

GATES = ("relu", "topk", "jumprelu", "gated", "identity", "topk_raw", "abs_topk")
DECODER_NORMS = ("stored", "unit", "code", "select")
_RANKED = ("topk", "topk_raw", "abs_topk")
_GATED = ("b_gate", "b_mag", "r_mag")
_USES = {  # gate -> the tensors beside the matrices and their biases that it reads
    **dict.fromkeys(_RANKED, ("k",)), "jumprelu": ("threshold", "log_threshold"), "gated": _GATED,
}  # fmt: skip
_TRAINING = (
    "optim",
    "scheduler",
    "scaler",
    "rng",
)  # beginnings of what a checkpoint of training adds
_SHOWN = 8  # entries of a config or tensors, in a message
_OPTIONS = (
    "gate", "k", "threshold", "subtract_b_dec", "orientation", "mean", "decoder_norm", "norm", "norm_scale", "site",
    "inside", "ignore",
)  # fmt: skip


class _Source(NamedTuple):
    """A file with its tensors by what they are, and the options."""

    path: Path
    own: Named
    options: LoadOptions


def read(weights: Path, options: LoadOptions) -> Parts:
    """Reads the SAE in a custom file.

    Raises:
      ValueError: no encoder and decoder, or several; shapes that do not fit; a tensor
        that nothing is done with; whatever the file leaves open, with the options that
        settle it.
    """
    reject_options(options, "plain", _OPTIONS)
    _check_words(options)
    tensors = read_tensors(weights)
    source = _Source(
        weights, named(weights, tensors, _wrapper(weights, tensors, options)), options
    )
    matrices = turned(weights, source.own, options.get("orientation"))
    gate = options.get("gate", _stated_gate(source.own))
    open_questions = {
        **_gate_questions(source, gate),
        **_place_questions(source, matrices),
        **_rest_questions(source, gate),
    }
    if open_questions or matrices is None or gate is None:
        raise ValueError(_asked(source, open_questions))
    return _parts(source, gate, *matrices)


def _check_words(options: LoadOptions) -> None:
    """Options that take one of a few words."""
    allowed = {
        "gate": GATES,
        "orientation": tuple(ORIENTATIONS),
        "norm": NORMS,
        "decoder_norm": DECODER_NORMS,
    }
    for name, words in allowed.items():
        value = options.get(name)
        if value is not None and value not in words:
            batch = (
                "; a batch top-k is a jumprelu with the threshold that training ended "
                "with" * ("batch" in str(value))
            )
            raise ValueError(
                f"{name}={value!r}; the option takes {', '.join(words)}{batch}"
            )


def _wrapper(
    path: Path, tensors: Mapping[str, np.ndarray], options: LoadOptions
) -> str:
    """What stands before the names of the SAE that is meant."""
    there = wrappers(tensors)
    if "inside" in options:
        asked = options["inside"].rstrip(".")
        there = [prefix for prefix in there if prefix.rstrip(".") == asked]
    if len(there) == 1:
        return there[0]
    if there:
        raise ValueError(
            f"{path} holds {len(there)} SAEs; say which one with inside=, one of "
            f"{', '.join(map(repr, there))}"
        )
    shapes = (
        ", ".join(
            f"{name!r} {list(value.shape)}"
            for name, value in list(tensors.items())[:_SHOWN]
        )
        or "nothing"
    )
    raise ValueError(
        f"{path} holds no encoder and decoder under a usual "
        f"name{' there' if 'inside' in options else ''} (it holds {shapes}); "
        "name its tensors W_enc, W_dec, b_enc, b_dec, as docs/inputs.md shows in six "
        "lines"
    )


# ---- what is open --------------------------------------------------------------------


def _stated_gate(own: Named) -> str | None:
    """The gate that the tensors themselves leave no doubt about."""
    kinds = own.tensors.keys()
    if kinds >= {*_GATED}:
        return "gated"
    thresholds = kinds & {"threshold", "log_threshold"}
    return "jumprelu" if thresholds and "k" not in kinds else None


def _gate_questions(source: _Source, gate: str | None) -> dict[str, str]:
    options, kinds = source.options, source.own.tensors.keys()
    if gate is None:
        return {
            "gate": "relu, topk (with k=), jumprelu (with threshold=), identity, topk_raw or abs_topk"
        }
    if gate in _RANKED and "k" not in options and "k" not in kinds:
        return {"k": "how many latents are kept per token"}
    if (
        gate == "jumprelu"
        and "threshold" not in options
        and not kinds & {"threshold", "log_threshold"}
    ):
        return {"threshold": "the number that a pre-activation must exceed"}
    if gate == "gated" and not kinds >= {*_GATED}:
        raise ValueError(
            f"{source.path}: gate='gated' needs the tensors {', '.join(_GATED)}; there "
            f"is {shapes_of(source.own)}"
        )
    for name, gates in (("k", _RANKED), ("threshold", ("jumprelu",))):
        if name in options and gate not in gates:
            raise ValueError(
                f"option {name}= means nothing for gate={gate!r}; leave it out, or say "
                "another gate="
            )
    return {}


def _place_questions(source: _Source, matrices: Any) -> dict[str, str]:
    """How the matrices lie, and what the decoder's bias does."""
    own, out = source.own, {}
    if matrices is None:
        out["orientation"] = (
            "in_out for x @ W_enc and codes @ W_dec, out_in for those of torch's "
            "Linear, latents_first or latents_last"
        )
    bias = own.tensors.get("b_dec")
    same_width = matrices is None or matrices[0].shape[0] == matrices[1].shape[1]
    if (
        "subtract_b_dec" not in source.options
        and same_width
        and bias is not None
        and np.any(bias)
    ):
        name = own.names["b_dec"]
        out["subtract_b_dec"] = (
            f"True where the encoder reads x - {name}, False where it reads x"
        )
    return out


def _rest_questions(source: _Source, gate: str | None) -> dict[str, str]:
    """Tensors that nothing is done with: they may belong to the SAE, or not."""
    rest = _unused(source, gate)
    if not rest:
        return {}
    d = source.own.tensors["b_dec"].shape if "b_dec" in source.own.tensors else None
    what = ", ".join(
        f"{name!r} {list(value.shape)}" for name, value in list(rest.items())[:_SHOWN]
    )
    vectors = [
        name for name, value in rest.items() if value.ndim == 1 and value.shape == d
    ]
    mean = (
        f" (or mean={vectors[0]} where it is taken from the input and added to the "
        "output)"
        if vectors
        else ""
    )
    return {
        "ignore": f"names, with commas between, of tensors that are no part of the SAE: there is {what}{mean}"
    }


def _unused(source: _Source, gate: str | None) -> dict[str, np.ndarray]:
    own, options = source.own, source.options
    ignored = {name.strip() for name in options.get("ignore", "").split(",")} - {""}
    used = {options.get("mean"), *ignored}
    optional = {
        own.names[kind]: kind
        for kind in own.tensors
        if kind in ("k", "threshold", "log_threshold", *_GATED)
    }
    rest = dict(own.rest) | {
        name: own.tensors[kind]
        for name, kind in optional.items()
        if gate is not None and kind not in _USES.get(gate, ())
    }
    unknown = ignored - rest.keys()
    if unknown:
        raise ValueError(
            f"{source.path}: ignore= names {min(unknown)!r}, which is not among "
            f"{', '.join(rest) or 'its tensors'}"
        )
    return {
        name: value
        for name, value in rest.items()
        if name not in used and not name.lower().startswith(_TRAINING)
    }


def _asked(source: _Source, questions: Mapping[str, str]) -> str:
    """One message with everything that is open, and what the file says of itself."""
    asked = "; ".join(f"{name}= {what}" for name, what in questions.items())
    stated = _stated(source.path)
    hint = (
        f" Its own config, which nothing here understands, says {stated}."
        if stated
        else ""
    )
    if source.path.name in dictionary_learning.WEIGHTS:
        hint += " Where dictionary_learning wrote it, give its config.json or dict_class= instead."
    return (
        f"{source.path} is no known library's; it holds {shapes_of(source.own)}, and "
        f"leaves open: {asked}.{hint} Say them with "
        "fmt=plain (sae_format=plain and sae_options.NAME=VALUE of a config)"
    )


def _stated(path: Path) -> str:
    """Plain values that lie in a torch file beside the tensors, for the reader of a
    message alone.
    """
    if path.suffix in (".safetensors", ".npz"):
        return ""
    content, values = read_torch(path), []
    configs = (
        [value for value in content.values() if isinstance(value, dict)]
        if isinstance(content, dict)
        else []
    )
    for config in [content, *configs]:
        pairs = config.items() if isinstance(config, dict) else ()
        values += [
            f"{str(k)[:40]!r}: {v!r}"[:80]
            for k, v in pairs
            if isinstance(v, str | int | float | bool)
        ]
    return ", ".join(values[:_SHOWN])


# ---- parts ---------------------------------------------------------------------------


def _parts(source: _Source, gate: str, enc_dn: np.ndarray, dec_nm: np.ndarray) -> Parts:
    path, own, options = source
    (d, n), m = enc_dn.shape, dec_nm.shape[1]
    scale = positive("norm_scale", options.get("norm_scale", 1.0))
    mean_d = _mean(source, d)
    subtract = bool(options.get("subtract_b_dec", False)) and "b_dec" in own.tensors
    norm, rows = options.get("norm", "none"), options.get("decoder_norm", "stored")
    _check_combination(source, gate, subtract, mean_d, (d, m))
    b_dec_m = own.tensors.get("b_dec", np.zeros(m, np.float32)).astype(np.float32)
    vectors = {
        "enc_bias_n": own.tensors.get("b_enc", np.zeros(n, np.float32)),
        "dec_bias_m": b_dec_m / np.float32(scale) + (0 if mean_d is None else mean_d),
        **_gate_vectors(source, gate, n),
    }
    shifts = (
        () if mean_d is None else (mean_d * np.float32(scale) + b_dec_m * subtract,)
    )
    cfg = SAEConfig(
        d_in=d,
        d_out=m,
        n_latents=n,
        gate=gate,
        k=_k(source, gate, n),
        subtract_b_dec=subtract and mean_d is None,
        norm=norm,
        select_by_dec_norm=rows == "select",
        source="plain",
        architecture="plain",
        dtype=dec_nm.dtype.name,
        site=options.get("site"),
        expected_l0=_k(source, gate, n),
        folded=_folded(scale, mean_d, rows),
    )
    dec = decoder_source(dec_nm, norm_scale=scale, unit=rows in ("unit", "code"))
    return Parts(
        path,
        cfg,
        (dec,),
        (enc_dn,),
        vectors,
        scales=(scale,),
        shifts=shifts,
        fold_dec_norm=rows == "code",
    )


def _check_combination(
    source: _Source,
    gate: str,
    subtract: bool,
    mean_d: np.ndarray | None,
    widths: tuple[int, int],
) -> None:
    options, d, m = source.options, *widths
    if d != m and (subtract or mean_d is not None):
        raise ValueError(
            f"{source.path} reads {d} numbers and writes {m}: it has no "
            "subtract_b_dec= and no mean="
        )
    per_token = options.get("norm", "none") != "none"
    if per_token and (mean_d is not None or "norm_scale" in options):
        raise ValueError(
            f"norm={options.get('norm')!r} with mean= or norm_scale= is not defined; "
            "choose one"
        )
    rows = options.get("decoder_norm", "stored")
    if rows == "select" and gate not in _RANKED:
        raise ValueError(
            f"decoder_norm='select' with gate={gate!r}; only a top-k selects"
        )
    if rows in ("unit", "code") and "norm_scale" in options:
        raise ValueError(
            f"decoder_norm={rows!r} with norm_scale= is not defined; scale the file's "
            "decoder before"
        )
    if rows == "code" and gate == "gated":
        raise ValueError("decoder_norm='code' with gate='gated' is not defined")


def _mean(source: _Source, d: int) -> np.ndarray | None:
    """The vector of the option, from a tensor of the file or from another file."""
    place = source.options.get("mean")
    if place is None:
        return None
    if place in source.own.rest:
        value = source.own.rest[place]
        if value.shape != (d,):
            raise ValueError(
                f"{source.path}: mean={place!r} has shape {list(value.shape)}, but the "
                f"SAE reads {d} numbers"
            )
        return finite(source.path, place, value)
    if not Path(place).is_file():
        names = ", ".join(source.own.rest) or "none beside the SAE's"
        raise ValueError(
            f"mean={place!r} is neither a file nor a tensor of {source.path} (those "
            f"are {names})"
        )
    return read_vector(place, d)


def _k(source: _Source, gate: str, n: int) -> int | None:
    if gate not in _RANKED:
        return None
    stored = source.own.tensors.get("k")
    if (
        "k" not in source.options
        and stored is not None
        and (stored.size != 1 or not 1 <= stored.reshape(-1)[0] <= n)
    ):
        raise ValueError(
            f"{source.path}: k is {stored.tolist()!r:.40}, not a number of latents in "
            f"1..{n}; give k="
        )
    k = source.options["k"] if "k" in source.options else stored.reshape(-1)[0]  # type: ignore[union-attr]
    return int(k)


def _gate_vectors(source: _Source, gate: str, n: int) -> dict[str, np.ndarray]:
    tensors = source.own.tensors
    if gate == "gated":
        return {
            "gate_bias_n": tensors["b_gate"],
            "mag_bias_n": tensors["b_mag"],
            "mag_scale_n": tensors["r_mag"],
        }
    if gate != "jumprelu":
        return {}
    if "threshold" in source.options:
        return {"threshold_n": np.full(n, source.options["threshold"], np.float32)}
    stored = (
        tensors["threshold"]
        if "threshold" in tensors
        else np.exp(tensors["log_threshold"].astype(np.float32))
    )
    if stored.size not in (1, n):
        raise ValueError(
            f"{source.path}: the threshold has shape {list(stored.shape)}, not one "
            f"number or one for {n} latents"
        )
    return {"threshold_n": np.broadcast_to(stored.reshape(-1), (n,))}


def _folded(scale: float, mean_d: np.ndarray | None, rows: str) -> tuple[str, ...]:
    parts = {
        f"norm_scale={scale:g}": scale != 1,
        "mean": mean_d is not None,
        "decoder norm": rows in ("unit", "code"),
    }
    return tuple(name for name, there in parts.items() if there)


def _detect(file: WeightFile) -> bool:
    return bool(wrappers(file.stored))


FORMAT = Format("plain", read, _detect)
