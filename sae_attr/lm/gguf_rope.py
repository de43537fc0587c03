"""How a GGUF file scales rotary positions, as the entry of a Hugging Face config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sae_attr.files.gguf_tensors import map_tensors
from sae_attr.lm.gguf_values import Values
from sae_attr.lm.rope import Rope

FREQUENCIES = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
_LLAMA3_LENGTH = 8192  # that Llama 3 was trained for before its frequencies were scaled


def rope_entry(values: Values, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{"rope_scaling": ...}`, empty where nothing is scaled.

    Args:
      config: head_dim, rope_theta and max_position_embeddings of the model.

    Raises:
      ValueError: a kind of scaling that is not read, or two kinds at once.
    """
    tensors = values.header.tensors
    kind = values.text("rope.scaling.type") or "none"
    factor = values.number("rope.scaling.factor") or values.number("rope.scale_linear")
    original = values.number("rope.scaling.original_context_length")
    if FREQUENCIES in tensors:
        if kind not in ("none", "llama3"):
            raise ValueError(
                f"{values.header.file} scales positions twice, by {FREQUENCIES} and by "
                f"rope.scaling.type {kind!r}; that is not read"
            )
        return {"rope_scaling": _by_frequency(values, config)}
    if SHORT in tensors or LONG in tensors:
        return {"rope_scaling": _long_rope(values)}
    if not factor or factor == 1:
        return {}
    if kind in ("none", "linear"):
        return {"rope_scaling": {"rope_type": "linear", "factor": float(factor)}}
    if kind == "yarn":
        return {"rope_scaling": _yarn(values, float(factor), original)}
    raise ValueError(
        f"{values.header.file}: rope.scaling.type {kind!r} is not read; known: linear, "
        "yarn, longrope with its tensors"
    )


def _vector(values: Values, name: str) -> np.ndarray:
    """A positive number for every frequency."""
    place = values.header.tensors.get(name)
    if place is None:
        raise ValueError(f"{values.header.file} lacks {name}; fetch it again")
    vector = np.asarray(map_tensors([place])[name], np.float64)
    if vector.ndim != 1 or not (np.isfinite(vector) & (vector > 0)).all():
        raise ValueError(
            f"{values.header.file}: {name} does not hold a positive number for every "
            "frequency; fetch it again"
        )
    return vector


def _by_frequency(values: Values, config: Mapping[str, Any]) -> dict[str, Any]:
    """The divisors of every frequency: Llama 3's rule where it gives them, else as they
    are.
    """
    divisors = _vector(values, FREQUENCIES)
    if 2 * len(divisors) == config["head_dim"] and divisors.max() > 1:
        rope = _llama3(divisors, config)
        plain = Rope(rope.dim, rope.theta).inv_freq()
        if np.allclose(plain / rope.inv_freq(), divisors, rtol=1e-5):
            return {
                "rope_type": "llama3",
                "factor": rope.factor,
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
                "original_max_position_embeddings": rope.original_len,
            }
    shares = divisors.tolist()
    return {
        "rope_type": "longrope",
        "short_factor": shares,
        "long_factor": shares,
        "attention_factor": 1.0,
        "original_max_position_embeddings": config["max_position_embeddings"],
    }


def _llama3(divisors: np.ndarray, config: Mapping[str, Any]) -> Rope:
    """Llama 3's rule with these divisors, its two frequency factors as they always are;
    the trained length follows from a divisor between the extremes.
    """
    dim, theta, factor = config["head_dim"], config["rope_theta"], divisors.max()
    length = _LLAMA3_LENGTH
    between = np.flatnonzero((divisors > 1.001) & (divisors < factor / 1.001))
    if len(between):
        k = between[0]
        share = (1 / divisors[k] - 1 / factor) / (1 - 1 / factor)
        wavelength = 2 * np.pi / Rope(dim, theta).inv_freq()[k]
        low, high = Rope.low_freq_factor, Rope.high_freq_factor
        length = round(float(wavelength * (low + share * (high - low))))
    return Rope(dim, theta, "llama3", float(factor), length)


def _long_rope(values: Values) -> dict[str, Any]:
    entry = {
        "rope_type": "longrope",
        "short_factor": _vector(values, SHORT).tolist(),
        "long_factor": _vector(values, LONG).tolist(),
    }
    attention = values.number("rope.scaling.attn_factor")
    return entry | ({"attention_factor": float(attention)} if attention else {})


def _yarn(values: Values, factor: float, original: int | None) -> dict[str, Any]:
    entry = {"rope_type": "yarn", "factor": factor}
    if original:
        entry["original_max_position_embeddings"] = original
    for key, name in (
        ("rope.scaling.yarn_beta_fast", "beta_fast"),
        ("rope.scaling.yarn_beta_slow", "beta_slow"),
        ("rope.scaling.attn_factor", "attention_factor"),
    ):
        if (value := values.number(key)) is not None:
            entry[name] = float(value)
    return entry
