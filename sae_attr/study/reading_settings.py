"""Settings of how latents are read: passages and tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    """What a study looks up for readers (docs/case_study.md, Reading the first latents).

    Args:
      passages, passage_tokens: top passages per latent, and how much corpus is
        searched; 0 leaves them out.
      interpreted: latents per method for which passages are looked for.
      logit_tokens: tokens of ordinary text over which the effect on the logits through
        the final norm is averaged; 0 leaves it out.
      shown: steered completions per latent and direction that the page shows.
    """

    passages: int = 4
    passage_tokens: int = 100_000
    interpreted: int = 20
    logit_tokens: int = 256
    shown: int = 2
