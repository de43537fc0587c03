"""The tensors of a file that somebody wrote by hand: which is the encoder, which the
decoder, and which way round they lie.

Names are those that people give, in any wrapper (`state_dict.`, `model.`, `module.`);
shapes decide what they can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sae_attr.files.tensors import is_float

# What people call them; those of torch's Linear layers are stored as [out, in], always.
NAMES: dict[str, tuple[str, ...]] = {
    "enc": (
        "W_enc", "w_enc", "encoder.weight", "enc.weight", "encoder.0.weight", "encoder_linear.weight", "encoder", "enc",
        "W_encoder", "encoder.W", "W_E",
    ),
    "dec": (
        "W_dec", "w_dec", "decoder.weight", "dec.weight", "decoder.0.weight", "decoder_linear.weight", "decoder", "dec",
        "W_decoder", "decoder.W", "W_D",
    ),
    "b_enc": (
        "b_enc", "encoder.bias", "enc.bias", "encoder.0.bias", "encoder_linear.bias", "enc_bias", "encoder_bias",
        "bias_enc", "latent_bias", "encoder.b", "b_E", "b_encoder",
    ),
    "b_dec": (
        "b_dec", "decoder.bias", "dec.bias", "decoder.0.bias", "decoder_linear.bias", "dec_bias", "decoder_bias",
        "bias_dec", "pre_bias", "b_pre", "bias", "decoder.b", "b_D", "b_decoder",
    ),
    "threshold": ("threshold", "thresholds", "theta", "jumprelu_threshold"),
    "log_threshold": ("log_threshold", "log_jumprelu_threshold"),
    "k": ("k",),
    "b_gate": ("b_gate", "gate_bias"),
    "b_mag": ("b_mag", "mag_bias"),
    "r_mag": ("r_mag",),
}  # fmt: skip
_MATRICES = ("enc", "dec")
ORIENTATIONS = {
    "in_out": (False, False),
    "out_in": (True, True),
    "latents_first": (True, False),
    "latents_last": (False, True),
}
"""Option -> whether the encoder `[d, n]` and the decoder `[n, d]` are stored the other
way round.
"""


@dataclass(frozen=True)
class Named:
    """Tensors by what they are, and the rest.

    Args:
      tensors: by the keys of `NAMES`.
      names: what the file calls them.
      rest: every other tensor of the file, by its name there.
    """

    tensors: Mapping[str, np.ndarray]
    names: Mapping[str, str]
    rest: Mapping[str, np.ndarray]


def wrappers(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the prefixes of the names of an encoder and a decoder: "" or "state_dict."
    and the like; one for each SAE.
    """
    by_kind = [_prefixes(tensors, NAMES[kind]) for kind in _MATRICES]
    return sorted(by_kind[0] & by_kind[1])


def _prefixes(tensors: Mapping[str, np.ndarray], names: tuple[str, ...]) -> set[str]:
    out = set()
    for full, value in tensors.items():
        for name in names:
            if value.ndim == 2 and (full == name or full.endswith(f".{name}")):
                out.add(full[: -len(name)])
    return out


def named(path: Path, tensors: Mapping[str, np.ndarray], prefix: str) -> Named:
    """Sorts the tensors behind a prefix by their roles.

    Raises:
      ValueError: two names for one thing, or weights that are no floating-point
        numbers.
    """
    names: dict[str, str] = {}
    for kind, spellings in NAMES.items():
        there = [prefix + name for name in spellings if prefix + name in tensors]
        if kind in _MATRICES:
            there = [name for name in there if tensors[name].ndim == 2]
        if len(there) > 1:
            raise ValueError(
                f"{path} has {' and '.join(there)}, either of which may be its {kind}; "
                "remove or rename one"
            )
        if there:
            names[kind] = there[0]
    for kind, name in names.items():
        if kind != "k" and not is_float(tensors[name].dtype):
            raise ValueError(
                f"{path}: {name} holds {tensors[name].dtype}, not floating-point "
                "weights"
            )
    rest = {
        name: value for name, value in tensors.items() if name not in names.values()
    }
    return Named({kind: tensors[name] for kind, name in names.items()}, names, rest)


def turned(
    path: Path, own: Named, asked: str | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the encoder `[d, n]` and the decoder `[n, m]`; None where shapes leave
    open which way round they lie.

    Args:
      path: for messages.
      own: the tensors.
      asked: one of `ORIENTATIONS`, or None.

    Raises:
      ValueError: no way round fits the shapes, or not the one that is asked for.
    """
    fitting = [
        name
        for name, (enc, dec) in ORIENTATIONS.items()
        if _fits(own, enc, dec, transcoder=False)
    ]
    if (
        not fitting and "b_enc" in own.tensors
    ):  # its size tells the latents, so that the other axis may be any width
        fitting = [
            name
            for name, (enc, dec) in ORIENTATIONS.items()
            if _fits(own, enc, dec, transcoder=True)
        ]
    if not fitting:
        raise ValueError(
            f"{path}: {shapes_of(own)} fit each other no way round: an encoder is [d, "
            "n], a decoder [n, d], their biases "
            "[n] and [d], each matrix either way"
        )
    if asked is not None and asked not in fitting:
        raise ValueError(
            f"{path}: orientation={asked!r} does not fit {shapes_of(own)}; what fits: "
            f"{', '.join(fitting)}"
        )
    if asked is None:
        fitting = (
            [name for name in fitting if name == "out_in"]
            if _is_linear(own)
            else fitting
        )
    if asked is None and len(fitting) != 1:
        return None
    enc, dec = ORIENTATIONS[asked or fitting[0]]
    enc_dn, dec_nm = own.tensors["enc"], own.tensors["dec"]
    return (enc_dn.T if enc else enc_dn), (dec_nm.T if dec else dec_nm)


def _is_linear(own: Named) -> bool:
    """Both are weights of torch's Linear layers, which leave nothing open."""
    return all(own.names[kind].endswith(".weight") for kind in _MATRICES)


def _fits(own: Named, turn_enc: bool, turn_dec: bool, *, transcoder: bool) -> bool:
    d, n = own.tensors["enc"].shape[:: -1 if turn_enc else 1]
    n_dec, m = own.tensors["dec"].shape[:: -1 if turn_dec else 1]
    sizes = {"b_enc": n, "b_gate": n, "b_mag": n, "r_mag": n, "b_dec": m}
    biases = [
        own.tensors[kind].shape == (size,)
        for kind, size in sizes.items()
        if kind in own.tensors
    ]
    return n == n_dec and (transcoder or d == m) and all(biases)


def shapes_of(own: Named) -> str:
    """Names and shapes, for messages."""
    return ", ".join(
        f"{name} {list(own.tensors[kind].shape)}" for kind, name in own.names.items()
    )
