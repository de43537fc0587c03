"""The kinds of the settings in SAE configs, by name: one table, since libraries mean the
same by the same name.

A config is a file from elsewhere. Text where a number belongs, NaN, a nested value, a
boolean given as a string: each would be misread, or fail deep in the arithmetic. Here it fails
with the file, the key and the kind of value that the key takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_TEXT = 1000  # characters of a name
MAX_WHOLE = 2**40  # no width, layer or length is larger
_BRIEF = 60  # characters of a value, in a message


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Args:
      what: in words.
      fits: whether a value is that.
      optional: null counts as absent.
    """

    what: str
    fits: Callable[[Any], bool]
    optional: bool = True


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= MAX_WHOLE if isinstance(value, int) else math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return _is_number(value) and value == int(value) and 0 <= value <= MAX_WHOLE


def _is_yes_or_no(value: Any) -> bool:
    return isinstance(value, bool)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_whole, value))


TEXT = Kind("text of one line", _is_text)
KIND = Kind("the name of a kind", _is_text, optional=False)
WHOLE = Kind("a whole number of at least 0", _is_whole)
NUMBER = Kind(
    "a finite number of at least 0", lambda value: _is_number(value) and value >= 0
)
FINITE = Kind("a finite number", _is_number)
YES_OR_NO = Kind("true or false", _is_yes_or_no)
SETTING = Kind("true or false", _is_yes_or_no, optional=False)
IDS = Kind(
    "true, false or a list of token ids",
    lambda value: _is_yes_or_no(value) or _is_ids(value),
)
LAYERS = Kind(
    "a layer, or a list of layers", lambda value: _is_whole(value) or _is_ids(value)
)
SETTINGS = Kind("an object of settings", lambda value: isinstance(value, Mapping))

KINDS: dict[str, Kind] = {
    **dict.fromkeys((
        "hook_name", "hook_name_out", "hook_point", "hook_point_in", "hook_point_out", "hf_hook_point_in",
        "hf_hook_point_out", "feature_input_hook", "feature_output_hook", "act_name", "submodule_name", "model_name",
        "lm_name", "model", "dict_class", "code_normalization", "norm_activation", "dtype", "reshape_activations",
    ), TEXT),
    **dict.fromkeys((
        "architecture", "activation", "activation_fn", "activation_fn_str", "activation_function", "act_fn", "type",
        "sae_type", "sae_diff_type",
    ), KIND),
    **dict.fromkeys((
        "context_size", "ctx_len", "seq_len", "hook_layer", "hook_point_layer", "hook_head_index",
        "hook_point_head_index", "k", "top_k", "kval_topk", "max_iterations",
    ), WHOLE),
    **dict.fromkeys(("l0", "target_l0", "jump_relu_threshold"), NUMBER),
    "residual_threshold": FINITE,
    **dict.fromkeys(("prepend_bos", "remove_bos", "finetuning_scaling_factor", "has_whitening"), YES_OR_NO),
    **dict.fromkeys((
        "apply_b_dec_to_input", "rescale_acts_by_decoder_norm", "skip_connection", "transcode", "signed", "multi_topk",
        "normalize_decoder", "use_decoder_bias", "use_glu_encoder", "sparsity_include_decoder_norm",
        "apply_decoder_bias_to_pre_encoder", "tied_weights", "stop_on_duplicate_support", "affine_connection",
        "center_writing_weights",
    ), SETTING),
    **dict.fromkeys(("exclude_special_tokens", "exclude_tokens"), IDS),
    "layer": LAYERS,
    **dict.fromkeys((
        "metadata", "activation_fn_kwargs", "dataset_average_activation_norm", "model_from_pretrained_kwargs",
    ), SETTINGS),
}  # fmt: skip
_INSIDE = (
    "metadata",
    "trainer",
    "buffer",
    "activation_fn_kwargs",
    "model_from_pretrained_kwargs",
    "sae",
    "llm",
)


def check_kinds(path: Path, config: Mapping[str, Any], above: str = "") -> None:
    """Checks every key that the table knows, in the parts of a config too.

    Raises:
      ValueError: a value of another kind; says the file, the key and what it is to be.
    """
    for key, value in config.items():
        kind = KINDS.get(key)
        absent = value is None and (kind is None or kind.optional)
        if kind is not None and not absent and not kind.fits(value):
            raise ValueError(
                f"{path}: {above}{key} is {brief(value)} in the config, which should "
                f"be {kind.what}; is it of this SAE?"
            )
        if key in _INSIDE and isinstance(value, Mapping):
            check_kinds(path, value, f"{above}{key}.")


def brief(value: Any) -> str:
    """Returns a value for a message, on one line and cut where it is long."""
    text = (
        ascii(value)
        if not isinstance(value, str) or not value.isprintable()
        else repr(value)
    )
    return text if len(text) <= _BRIEF else f"{text[:_BRIEF]}…"
