"""How the claims' figures and sentences call scores, designs, sources and effects."""

from __future__ import annotations

from collections.abc import Mapping

SCORE_NAMES: Mapping[str, str] = {
    "both_prompt": "Δ as published",
    "active_all": "Δ recommended",
    "gradient_all": "lever (gradient)",
}
# What a score is meant to find: Δ as published what acted, the others what steers.
OWN_EFFECT: Mapping[str, str] = {
    "both_prompt": "ablation",
    "active_all": "away",
    "gradient_all": "away",
}
CHANGE_NAMES: Mapping[str, str] = {
    **SCORE_NAMES,
    "delta_activation_prompt": "Δ-activation, prompts",
    "delta_activation_completion": "Δ-activation, answers",
}
DESIGN_NAMES: Mapping[str, str] = {
    "pairs": "pairs",
    "shuffled": "shuffled partners",
    "positives": "positives alone",
}
EFFECT_NAMES: Mapping[str, str] = {
    "away": "fall when steered away",
    "ablation": "fall when ablated",
}
SOURCE_NAMES: Mapping[str, str] = {
    "on_policy": "the studied model",
    "prefilled": "first phrase written",
    "base": "the base model",
    "chat": "the aligned model",
    "written": "the generator",
}
REPEATED_NAMES: Mapping[str, str] = {
    "spearman": "Spearman with all other pairs",
    "overlap": "share of the top 20 of all other pairs",
}
