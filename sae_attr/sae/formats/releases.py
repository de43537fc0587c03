"""Published releases whose files leave something out: scale factors and traps, by the
name of their folder.

A folder keeps its name however it was reached (hub cache, clone, copy), so one table
serves every way. A folder that was renamed is not recognised, and the loader asks.
Source: SAELens 6.54 `pretrained_saes.yaml` (norm_scaling_factor, config_overrides); the
  demo of ckkissane's crosscoder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# s = sqrt(d_in) / E|x| of SAEs whose cfg.json says expected_average_only_in and does
# not hold s.
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
# s of layers 0 to 31 of fnlp/Llama-Scope-R1-Distill, whose config.json says
# dataset-wise and no average norm.
_R1_DISTILL: dict[str, tuple[float, ...]] = {
    "800M-Slimpajama-0-OpenR1-Math-220k": (
        53.52995402, 37.07457227, 26.80127195, 20.25878584, 16.35620324, 13.77273091, 11.80264262, 10.34562208,
        9.527112198, 8.722802554, 8.187374613, 7.681409438, 7.011470965, 6.507851835, 6.075830839, 5.529329507,
        5.041257657, 4.543060255, 4.136073768, 3.818677844, 3.499766209, 3.114875162, 2.858677637, 2.614362023,
        2.406593266, 2.218554051, 2.038628827, 1.86640549, 1.691474301, 1.530389056, 1.33786422, 1.096302573,
    ),
    "400M-Slimpajama-400M-OpenR1-Math-220k": (
        53.97673033, 36.76995793, 26.86329549, 20.47352236, 16.49143388, 13.90252921, 11.95918589, 10.45468508,
        9.625849753, 8.705443147, 8.088498908, 7.4495784, 6.801449054, 6.331711239, 5.7028423, 5.318041374,
        4.796393474, 4.333554094, 3.938683907, 3.584045063, 3.412285044, 2.993018847, 2.754871784, 2.52819427,
        2.326851187, 2.101068655, 1.936118938, 1.778466008, 1.663504954, 1.448853213, 1.157008764, 1.041978,
    ),
    "0-Slimpajama-800M-OpenR1-Math-220k": (
        54.30879109, 36.49473031, 26.96126387, 20.522102, 16.67733544, 14.06750504, 12.0343387, 10.49566282,
        9.683004157, 8.679730501, 7.988383972, 7.237531144, 6.69444885, 6.048985807, 5.493592992, 4.970860531,
        4.541887866, 4.111292885, 3.731900947, 3.446421844, 3.161416331, 2.860026055, 2.636157171, 2.4287398,
        2.240597877, 2.034659099, 1.843005463, 1.655442326, 1.477070443, 1.336154324, 1.138745421, 0.926395749,
    ),
}  # fmt: skip
# Scales of base and chat model: (part of the path, folder, scales).
_CROSSCODERS = (
    (
        "crosscoder-gemma-2-2b-model-diff",
        "blocks.14.hook_resid_pre",
        (0.2758961493232058, 0.24422852496546169),
    ),
)


def norm_scale(folder: Path) -> float | None:
    """Returns the scale of a published SAE, None where the folder is not one of the table."""
    return NORM_SCALES.get(folder.absolute().name)


def r1_distill_scale(folder: Path) -> float | None:
    """Returns s of an SAE of Llama-Scope-R1-Distill, by set and layer
    (`800M-Slimpajama-0-OpenR1-Math-220k/L5R`); else None.
    """
    layer = re.fullmatch(r"L(\d+)R", folder.absolute().name)
    scales = _R1_DISTILL.get(folder.absolute().parent.name, ())
    return scales[int(layer[1])] if layer and int(layer[1]) < len(scales) else None


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
