"""Reads and writes the names of sites: ours, TransformerLens hooks, and module paths."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sae_attr.hooks import POINTS, Site

# Names after the layer's number -> point: first TransformerLens (blocks.L.<name>), then
# modules (layers.L.<name>).
_LENS_POINTS = {
    "hook_resid_pre": "resid_pre",
    "hook_in": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_mlp_in": "resid_mid",  # a copy of the residual stream before the norm, not what the MLP reads
    "hook_resid_post": "resid_post",
    "hook_out": "resid_post",
    "attn.hook_z": "attn_z",
    "hook_attn_out": "attn_out",
    "attn.hook_out": "attn_raw",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_post": "mlp_hidden",
    "hook_mlp_out": "mlp_out",
    "mlp.hook_out": "mlp_raw",
}
_MODULE_POINTS = {
    "": "resid_post",
    "input": "resid_pre",
    "input_layernorm.input": "resid_pre",
    "ln_1.input": "resid_pre",
    "ln_2": "mlp_in",
    "ln_2.input": "resid_mid",
    "pre_feedforward_layernorm": "mlp_in",
    "pre_feedforward_layernorm.input": "resid_mid",
    "post_feedforward_layernorm": "mlp_out",
    "post_feedforward_layernorm.input": "mlp_raw",
    "mlp.act": "mlp_hidden",
}
for _module, _last in (
    ("self_attn", "o_proj"),
    ("attention", "dense"),
    ("attn", "c_proj"),
):
    _MODULE_POINTS |= {
        _module: "attn_raw",
        f"{_module}.{_last}": "attn_raw",
        f"{_module}.{_last}.input": "attn_z",
    }
for _last in ("down_proj", "dense_4h_to_h", "c_proj"):
    _MODULE_POINTS |= {f"mlp.{_last}": "mlp_raw", f"mlp.{_last}.input": "mlp_hidden"}
for _module in ("mlp", "block_sparse_moe"):
    _MODULE_POINTS |= {_module: "mlp_raw", f"{_module}.input": "mlp_in"}
# One name, two places: the norm before the MLP in most models, the one behind attention
#   in Gemma 2 and 3 and OLMo 2.
_TWO_PLACES = {
    "post_attention_layernorm": {False: "mlp_in", True: "attn_out"},
    "post_attention_layernorm.input": {False: "resid_mid", True: "attn_raw"},
}
_WITHOUT_NORMS = {"attn_raw": "attn_out", "mlp_raw": "mlp_out"}


def parse_site(text: str, *, norms_behind: bool | None = None) -> Site:
    """Reads the site that a name means: `layer2.resid_post`, a TransformerLens hook, or
    a Hugging Face module path.

    `blocks.2.hook_resid_post`, `model.layers.2`, `transformer.h.2.output` and
    `layer2.resid_post` are all the same site. A module's path is its output, as a
    forward hook has it: `layers.2.mlp` is `mlp_raw`.

    Args:
      norms_behind: whether the model has norms behind its sublayers
        (`LMConfig.post_norm`), if that is known. Without them `attn_raw` and `mlp_raw`
        come back as `attn_out` and `mlp_out`, so that one activation has one name.

    Raises:
      ValueError: the name fits none of the three spellings, or means different places
        in different models.
    """
    for pattern, points in (
        (r"layer(\d+)\.(\w+)", {p: p for p in POINTS}),
        (r"blocks\.(\d+)\.(.+)", _LENS_POINTS),
        (r"(?:.*\.)?(?:layers|h)\.(\d+)(?:\.(.+))?", _MODULE_POINTS),
        (r"resid_post_layer_(\d+)()", _MODULE_POINTS),
    ):
        match = re.fullmatch(pattern, text)
        if match is None:
            continue
        layer, name = int(match[1]), match[2] or ""
        if points is _MODULE_POINTS:
            name = re.sub(r"\.?\boutput$", "", name)
        if points is _MODULE_POINTS and name in _TWO_PLACES:
            return Site(layer, _by_norms(text, layer, _TWO_PLACES[name], norms_behind))
        if name in points:
            return Site(layer, _one_name(points[name], norms_behind))
    raise ValueError(
        f"site {text!r} is not understood; write it as layer2.resid_post (points: "
        f"{', '.join(POINTS)}), "
        "as a TransformerLens hook such as blocks.2.hook_resid_post, or as a module "
        "path such as model.layers.2"
    )


def _by_norms(
    text: str, layer: int, places: Mapping[bool, str], norms_behind: bool | None
) -> str:
    if norms_behind is None:
        raise ValueError(
            f"site {text!r} is layer{layer}.{places[True]} in models with norms behind "
            "their sublayers (Gemma 2 and 3, "
            f"OLMo 2) and layer{layer}.{places[False]} in the others; write the one "
            "that is meant"
        )
    return places[norms_behind]


def _one_name(point: str, norms_behind: bool | None) -> str:
    return _WITHOUT_NORMS.get(point, point) if norms_behind is False else point


def lens_name(site: Site) -> str:
    """Returns the site's name in TransformerLens, as SAELens writes it into its files:
    the inverse of `parse_site`.
    """
    suffix = next(
        suffix for suffix, point in _LENS_POINTS.items() if point == site.point
    )
    return f"blocks.{site.layer}.{suffix}"
