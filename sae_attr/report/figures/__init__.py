"""Figures of results: functions of their numbers, saved as SVG, PNG and JSON."""

from sae_attr.report.figures.ablation import ablation_figure
from sae_attr.report.figures.dense import dense_figure
from sae_attr.report.figures.drawing import Draw, Drawing, draw_anew, render
from sae_attr.report.figures.effects import effects_figure
from sae_attr.report.figures.mitigation import mitigation_figure
from sae_attr.report.figures.plane import plane_figure
from sae_attr.report.figures.roles import roles_figure
from sae_attr.report.figures.training import loss_figure, sae_training_figure
from sae_attr.report.figures.transition import transition_figure

__all__ = [
    "Draw",
    "Drawing",
    "ablation_figure",
    "dense_figure",
    "draw_anew",
    "effects_figure",
    "loss_figure",
    "mitigation_figure",
    "plane_figure",
    "render",
    "roles_figure",
    "sae_training_figure",
    "transition_figure",
]
