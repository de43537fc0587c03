"""Published releases whose files leave something out: scale factors and traps, by the name of their folder.

A folder keeps its name however it was reached (hub cache, clone, copy), so one table serves every way. A folder that
was renamed is not recognised, and the loader asks.
Source: SAELens `pretrained_saes.yaml` (norm_scaling_factor, config_overrides); the demo of ckkissane's crosscoder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# s = sqrt(d_in) / E|x| of SAEs whose cfg.json says expected_average_only_in and does not hold s.
NORM_SCALES: dict[str, float] = {
    # jbloom/Gemma-2b-Residual-Stream-SAEs
    "gemma_2b_blocks.12.hook_resid_post_16384": 0.21381938399317255,
    # tommmcgrath/gpt2-small-mlp-out-saes
    "sae_group_gpt2_blocks.0.hook_mlp_out_24576:v1": 1.049317316132615,
    "sae_group_gpt2_blocks.1.hook_mlp_out_24576:v0": 2.3693984005104283,
    "sae_group_gpt2_blocks.2.hook_mlp_out_24576:v0": 1.6411934982190302,
    "sae_group_gpt2_blocks.3.hook_mlp_out_24576:v0": 1.8958522157897557,
    "sae_group_gpt2_blocks.4.hook_mlp_out_24576:v0": 1.81673478700627,
    "sae_group_gpt2_blocks.5.hook_mlp_out_24576:v0": 1.550234472245924,
    "sae_group_gpt2_blocks.6.hook_mlp_out_24576:v0": 1.3237742807210804,
    "sae_group_gpt2_blocks.7.hook_mlp_out_24576:v0": 1.1042905114723296,
    "sae_group_gpt2_blocks.8.hook_mlp_out_24576:v1": 0.9123762783479742,
    "sae_group_gpt2_blocks.9.hook_mlp_out_24576:v0": 0.6955335635232373,
    "sae_group_gpt2_blocks.10.hook_mlp_out_24576:v0": 0.3619728926727644,
    "sae_group_gpt2_blocks.11.hook_mlp_out_24576:v2": 0.2851548652550073,
}
# Config keys that a release gets wrong.
_OVERRIDES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"mistral_7b_layer_(8|16|24)", {"normalize_activations": "constant_norm_rescale"}),  # JoshEngels
)
# Scales of base and chat model: (part of the path, folder, scales).
_CROSSCODERS = (
    ("crosscoder-gemma-2-2b-model-diff", "blocks.14.hook_resid_pre", (0.2758961493232058, 0.24422852496546169)),
)


def norm_scale(folder: Path) -> float | None:
    """The scale of a published SAE, None where the folder is not one of the table."""
    return NORM_SCALES.get(folder.absolute().name)


def overrides(folder: Path) -> dict[str, Any]:
    """Config values that replace those of a published folder."""
    name = folder.absolute().name
    return {key: value for pattern, said in _OVERRIDES if re.fullmatch(pattern, name) for key, value in said.items()}


def crosscoder_scales(folder: Path) -> tuple[float, ...] | None:
    """Scales of the models of a published crosscoder, None where it is not one of the table."""
    where = folder.absolute().as_posix()
    return next((s for repo, name, s in _CROSSCODERS if repo in where and where.endswith(name)), None)
