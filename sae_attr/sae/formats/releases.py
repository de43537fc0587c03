"""Published releases whose files leave something out: scale factors and traps, by the
name of their folder.

A folder keeps its name however it was reached (hub cache, clone, copy), so one table
serves every way. A folder that was renamed is not recognised, and the loader asks.
Source: SAELens 6.54 `pretrained_saes.yaml` (its norm_scaling_factor is in the table of
  the registry, its config_overrides here); the demo of ckkissane's crosscoder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sae_attr.sae.registry.table import scales

_CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
# Config keys that a release gets wrong or leaves out, by what its path ends in or
# holds.
_OVERRIDES: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        r"/mistral_7b_layer_(8|16|24)$",
        {"normalize_activations": "constant_norm_rescale"},
    ),  # JoshEngels
    (r"GPT2-Small-SAEs-Reformatted/", _CENTRED),  # jbloom, res-jb
    (r"GPT2-Small-Feature-Splitting-Experiment-Layer-8/", _CENTRED),  # jbloom
    (r"/sae_group_gpt2_blocks\.\d+\.hook_mlp_out_24576:v\d$", _CENTRED),  # tommmcgrath
)
# Scales of base and chat model: (part of the path, folder, scales).
_CROSSCODERS = (
    (
        "crosscoder-gemma-2-2b-model-diff",
        "blocks.14.hook_resid_pre",
        (0.2758961493232058, 0.24422852496546169),
    ),
)


def norm_scale(folder: Path) -> float | None:
    """Returns s = √d_in / E‖x‖ of a published SAE whose files leave it out, None where
    the folder is none of those: its own name tells, or with that of the folder above
    (`800M-Slimpajama-0-OpenR1-Math-220k/L5R`).
    """
    folder = folder.absolute()
    names = (folder.name, f"{folder.parent.name}/{folder.name}")
    return next((scales()[name] for name in names if name in scales()), None)


def overrides(folder: Path) -> dict[str, Any]:
    """Returns the config values that replace those of a published folder."""
    where = folder.absolute().as_posix()
    return {
        key: value
        for pattern, said in _OVERRIDES
        if re.search(pattern, where)
        for key, value in said.items()
    }


def crosscoder_scales(folder: Path) -> tuple[float, ...] | None:
    """Scales of the models of a published crosscoder, None where it is not one of the
    table.
    """
    where = folder.absolute().as_posix()
    return next(
        (s for repo, name, s in _CROSSCODERS if repo in where and where.endswith(name)),
        None,
    )
