"""The card of an exported SAE: README.md of its repository on the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from sae_attr.files.hub import public_name
from sae_attr.sae.config import SAEConfig

TAGS = ("sparse-autoencoder", "mechanistic-interpretability")


@dataclass(frozen=True)
class CardFacts:
    """Holds what a card says beside the SAE's own config.

    Args:
      repo: "owner/name".
      license: as the hub spells it, such as apache-2.0.
      layout: of the SAE, which is also the name of its folder; "" where only directions
        are exported.
      base_model: hub id of the language model; "" where it is not known.
      files: that are uploaded.
      metrics: name -> number, measured on held-out text.
    """

    repo: str
    license: str
    layout: str = ""
    base_model: str = ""
    files: Sequence[str] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


def model_card(cfg: SAEConfig, facts: CardFacts) -> str:
    """Returns the card as Markdown with the hub's metadata in front."""
    metadata: dict[str, Any] = {"license": facts.license, "tags": list(TAGS)}
    if facts.base_model:
        metadata["base_model"] = facts.base_model
    if facts.layout == "saelens":
        metadata["library_name"] = "saelens"
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
        f"# {facts.repo.rpartition('/')[2]}",
        _table(_description(cfg, facts)),
    ]
    if facts.metrics:
        numbers = {name: f"{value:.4g}" for name, value in facts.metrics.items()}
        parts += ["## Measured on held-out text", _table(numbers)]
    if facts.layout:
        parts += ["## Loading", _loading(facts)]
    files = "\n".join(f"* `{name}`" for name in facts.files)
    parts += ["## Files", files]
    return "\n\n".join(parts) + "\n"


def _description(cfg: SAEConfig, facts: CardFacts) -> dict[str, str]:
    model = facts.base_model or public_name(cfg.model_name) or "not stated"
    rows = {
        "language model": _code(model),
        "reads": _code(cfg.site or "not stated"),
        "latents": f"{cfg.n_latents:,}, of width {cfg.d_in}",
        "gate": _code(cfg.gate),
    }
    if cfg.site_out not in (None, cfg.site):
        rows["writes"] = _code(str(cfg.site_out))
    if cfg.k:
        rows["k"] = str(cfg.k)
    if cfg.expected_l0:
        rows["active latents a token"] = f"{cfg.expected_l0:.4g}"
    if cfg.context_size:
        rows["context of training"] = f"{cfg.context_size} tokens"
    return rows


def _loading(facts: CardFacts) -> str:
    name = facts.repo
    lines = [
        "```python",
        "from sae_attr import load_sae",
        "",
        f'sae = load_sae("hf://{name}/{facts.layout}")',
        "```",
    ]
    if facts.layout == "saelens":
        lines += [
            "",
            "```python",
            "from sae_lens import SAE",
            "",
            f'sae = SAE.from_pretrained("{name}", "{facts.layout}")',
            "```",
        ]
    return "\n".join(lines)


def _table(rows: Mapping[str, str]) -> str:
    lines = ["| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(lines)


def _code(text: str) -> str:
    """A text of a file in the type of code; what would end it, or the cell, is taken
    out.
    """
    plain = "".join(c for c in text if c.isprintable() and c not in "`|")
    return f"`{plain}`"
