"""Checks that every format reader makes, with messages that name the two things that
disagree.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sae_attr.files.tensors import is_float
from sae_attr.files.text import check_pointer, printable
from sae_attr.sae.formats.parts import LoadOptions
from sae_attr.sae.formats.schema import WHOLE, brief, check_kinds
from sae_attr.text.masks import Masks, masks_from

_LARGEST = 1 << 20  # bytes of a config
_LISTED = 12  # names in a message


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of settings.

    Raises:
      ValueError: the file is not valid JSON, or not an object; a setting of another
        kind (see `schema`).
    """
    check_pointer(path)
    try:
        text = (
            path.read_text(encoding="utf-8")
            if path.stat().st_size <= _LARGEST
            else "too long"
        )
        value = json.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # what is no text, no JSON, or a number of too many digits
        raise ValueError(
            f"{path} is not JSON ({str(error)[:200]}); fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(
            f"{path} holds a {type(value).__name__}, not an object of settings"
        )
    check_kinds(path, value)
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """Reads a JSON object; empty where there is no file."""
    return read_json(path) if path.is_file() else {}


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping of plain values; empty for an empty file.

    Raises:
      ValueError: no YAML, a mapping of nothing, or tags that would make objects; a
        setting of another kind.
    """
    check_pointer(path)
    try:
        text = (
            path.read_text(encoding="utf-8")
            if path.stat().st_size <= _LARGEST
            else "too long"
        )
        if any(
            isinstance(token, yaml.AliasToken)
            for token in yaml.scan(text, Loader=yaml.SafeLoader)
        ):
            raise ValueError(
                "it has aliases, of which a few bytes make values without end"
            )
        value = yaml.safe_load(text) or {}
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(
            f"{path} is not YAML of plain values ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(
            f"{path} holds a {type(value).__name__}, not an object of settings"
        )
    named = {key: entry for key, entry in value.items() if isinstance(key, str)}
    check_kinds(path, named)
    return named


def stated_masks(where: Path | str, raw: Mapping[str, Any]) -> Masks | None:
    """Returns the `masks` of an SAE's training, None where its file does not say.

    Raises:
      ValueError: they are of another shape; names the file.
    """
    if raw.get("masks") is None:
        return None
    try:
        return masks_from(raw["masks"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def integer(
    path: Path, raw: Mapping[str, Any], key: str, default: int | None = None
) -> int:
    """Returns a whole number of a config, at least 0.

    Raises:
      ValueError: missing without a default, or anything else.
    """
    value = raw.get(key, default)
    if not WHOLE.fits(value):
        raise ValueError(
            f"{path}: {key} is {brief(value)} in the config, which should be a whole "
            "number; is it of this SAE?"
        )
    return int(value)  # type: ignore[arg-type]


def positive(name: str, value: Any) -> float:
    """Returns a scale or factor: a finite number above 0.

    Raises:
      ValueError: anything else.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not (math.isfinite(value) and value > 0)
    ):
        raise ValueError(
            f"{name} is {brief(value)}, not a positive number; give the right one as "
            "norm_scale="
        )
    return float(value)


def escaped(text: str) -> str:
    """Returns a message in which the control characters that names in a file may hold
    are shown as Python writes them; line ends stay.
    """
    return "\n".join([printable(line) for line in text.split("\n")])


_WEIGHTS = (
    "threshold",
    "scaling_factor",
    "topk_threshold",
    "W_skip",
    "activation_function.threshold",
)  # optional ones


def check_names(
    path: Path,
    kind: str,
    tensors: Mapping[str, np.ndarray],
    required: Iterable[str],
    optional: Iterable[str] = (),
) -> None:
    """Compares tensor names with those that a kind of SAE has, and checks that weights
    are floating-point numbers.

    Raises:
      ValueError: lists missing names with − and unexpected ones with +; or a tensor of
        whole numbers.
    """
    required = tuple(required)
    missing = sorted(set(required) - set(tensors))
    extra = sorted(set(tensors) - set(required) - set(optional))
    if missing or extra:
        lines = [f"  − {name} (missing)" for name in missing[:_LISTED]]
        lines += [f"  + {name} (unexpected)" for name in extra[:_LISTED]]
        left_out = len(missing) + len(extra) - len(lines)
        listing = "\n".join([*lines, *[f"  and {left_out} more"] * (left_out > 0)])
        raise ValueError(
            f"{path} does not hold the tensors of {kind}; is its config of another "
            "SAE? (a file of "
            f"your own: fmt=plain)\n{listing}"
        )
    for name in (*required, *_WEIGHTS):
        if name not in tensors or name == "group_sizes":
            continue
        dtype = tensors[name].dtype
        if not is_float(dtype):
            raise ValueError(
                f"{path}: {name} holds {dtype}, not floating-point weights"
            )


def check_shapes(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
) -> None:
    """Compares tensor shapes with those that follow from the config.

    Args:
      path: the weight file.
      tensors: by name.
      shapes: expected, for some of the names.
      source: of the expectation, for the message: "cfg.json says d_in=64,
        d_sae=512".

    Raises:
      ValueError: the first tensor of another shape.
    """
    for name, shape in shapes.items():
        if name in tensors and tensors[name].shape != shape:
            raise ValueError(
                f"{path}: {name} has shape {list(tensors[name].shape)}, but {source}, "
                f"which needs {list(shape)}; "
                "config and weights are of different SAEs"
            )


def matrix_shape(
    path: Path, tensors: Mapping[str, np.ndarray], name: str, ndim: int = 2
) -> tuple[int, ...]:
    """Returns the shape of a tensor that must have `ndim` axes.

    Raises:
      ValueError: it has not.
    """
    shape = tensors[name].shape
    if len(shape) != ndim:
        raise ValueError(
            f"{path}: {name} has shape {list(shape)}, not {ndim} axes; is it an SAE?"
        )
    return shape


_OPTION_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("pre_bias", "centre", "subtract_b_dec"), (bool,)),
    **dict.fromkeys(("norm_scale_out", "threshold"), (int, float)),
    **dict.fromkeys(
        ("gate", "dict_class", "site", "code_normalization", "affine", "orientation", "mean", "norm", "decoder_norm", "inside",
         "ignore"), (str,),
    ),
    "k": (int,), "norm_scale": (int, float, tuple, list), "layer": (int, str), "model": (int, str),
}  # fmt: skip


def check_options(options: LoadOptions) -> None:
    """Checks that every option is one of `LoadOptions`, with a value of its kind.

    Raises:
      TypeError: no such option at all.
      ValueError: a value of another kind; k below 1; a threshold that is not finite.
    """
    for name, value in options.items():
        if name not in LoadOptions.__annotations__:
            raise TypeError(
                f"unknown option {name!r}; the options are "
                f"{', '.join(LoadOptions.__annotations__)}"
            )
        kinds = _OPTION_KINDS[name]
        if not isinstance(value, kinds) or (
            isinstance(value, bool) and bool not in kinds
        ):
            raise ValueError(
                f"option {name}={value!r} is to be "
                f"{' or '.join(kind.__name__ for kind in kinds)}"
            )
    if options.get("k", 1) < 1:
        raise ValueError(f"option k={options.get('k')} keeps no latent; give 1 or more")
    if not math.isfinite(options.get("threshold", 0.0)):
        raise ValueError(f"option threshold={options.get('threshold')} is not finite")


def finite(path: Path, name: str, value: np.ndarray) -> np.ndarray:
    """Returns a small tensor as float32.

    Raises:
      ValueError: NaN, infinity, or a number beyond float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.asarray(value, np.float32)
    if not np.isfinite(out).all():
        raise ValueError(
            f"{path}: {name} holds NaN or infinity; fetch it again or use another SAE"
        )
    return out


def reject_options(options: LoadOptions, fmt: str, known: tuple[str, ...]) -> None:
    """Checks that a format has a use for every option: none is ignored.

    Raises:
      ValueError: an option of other formats.
    """
    for name in options:
        if name not in known:
            raise ValueError(
                f"option {name}= means nothing for a {fmt} file; it takes "
                f"{', '.join(known)}"
            )


def check_gate(gate: str) -> None:
    """Checks that the option `gate=` is topk or jumprelu.

    Raises:
      ValueError: anything else.
    """
    if gate not in ("topk", "jumprelu"):
        raise ValueError(f"gate={gate!r}; the option takes 'topk' or 'jumprelu'")


def pick_stream(
    path: Path, names: tuple[str, ...], streams: int, options: LoadOptions
) -> int | None:
    """Returns the position of the stream that `layer=` or `model=` names, None where
    neither is given.

    Raises:
      ValueError: both are given, or no such stream.
    """
    if "layer" in options and "model" in options:
        raise ValueError(
            f"{path}: layer={options['layer']} and model={options['model']}; a "
            "crosscoder takes one of them"
        )
    stream = options.get("layer", options.get("model"))
    if stream is None:
        return None
    if str(stream) in names:
        return names.index(str(stream))
    if isinstance(stream, str) and stream.isdigit():  # a position from a command line
        stream = int(stream)
    # A layer number that the file does not have must not be taken for a position.
    numbered = bool(names) and all(name.isdigit() for name in names)
    is_position = isinstance(stream, int) and not isinstance(stream, bool)
    if numbered or not is_position or not 0 <= int(stream) < streams:
        choices = ", ".join(names) or f"0..{streams - 1}"
        raise ValueError(
            f"{path}: layer= or model= is {stream!r}, but the crosscoder has {choices}"
        )
    return int(stream)


def one_layer(value: Any) -> int | None:
    """Returns the layer that a config states; None where it states none, or several."""
    return None if value is None or isinstance(value, list) else int(value)


def layer_of(name: str | None) -> int | None:
    """Returns the block index in a hook's or module's name, None where there is none."""
    pattern = r"(?:^|[._/])(?:blocks|layers?|h)[._]?(\d+)(?:[._/]|$)"
    match = re.search(pattern, name or "")
    return int(match[1]) if match else None
