"""What a page holds of latents that are to be read."""

from __future__ import annotations

from dataclasses import dataclass

from sae_attr.comparison_records import LatentName
from sae_attr.report.description_records import Description


@dataclass(frozen=True)
class ShadedPassage:
    """Tokens of a text with how active a latent is on each.

    Args:
      tokens: as the tokenizer writes them.
      levels: of each token, 0 (not active) to 4 (as active as anywhere in the passage).
      at: index of the most active one.
      gap: what stands between two tokens: nothing where they bring their own spaces.
    """

    tokens: tuple[str, ...]
    levels: tuple[int, ...]
    at: int
    gap: str = " "


@dataclass(frozen=True)
class TokenEffect:
    """A token, and the change of its logit in nats per mean norm of the residuals before
    the final norm.
    """

    token: str
    change: float


@dataclass(frozen=True)
class LatentReading:
    """One of the first latents of a method, to be read.

    Args:
      methods: those that selected it.
      tokens: its nearest unembedding tokens.
      raised, lowered: tokens whose logits it changes most when it is added before the
        final norm.
      descriptions: what a reader wrote of it.
      is_control: it is a random latent, read in the same way.
      address: of its page on Neuronpedia; "" where it has none.
      passages: top-activating passages of the corpus, each text once.
      note: a sentence on where it is active.
    """

    latent: LatentName
    methods: tuple[str, ...]
    tokens: tuple[str, ...]
    passages: tuple[ShadedPassage, ...]
    note: str = ""
    raised: tuple[TokenEffect, ...] = ()
    lowered: tuple[TokenEffect, ...] = ()
    address: str = ""
    descriptions: tuple[Description, ...] = ()
    is_control: bool = False
