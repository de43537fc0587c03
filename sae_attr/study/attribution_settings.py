"""Every choice of an attribution run, with its default; all of them are recorded in the
result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sae_attr.attribution.presets import PRESETS, Preset
from sae_attr.lm.loss import check_loss
from sae_attr.lm.lrp import PLAIN, RULES, Rules, parse_rules
from sae_attr.study.input_files import InputFiles
from sae_attr.text.masks import Masks, check_exclude

DTYPES = ("float32", "bfloat16", "float64")


@dataclass(frozen=True, kw_only=True)
class Settings(InputFiles):
    """Sets what to study and how.

    Args:
      pairs: JSONL of `pairs.read_pairs`.
      site_in: what a transcoder encodes, where its file is silent or names another
        (ln2.hook_normalized is mlp_in before the norm's gain; here mlp_in is after it).
      preset: the primary ranking; the other preset is computed beside it from the same
        gradients.
      tokens, gating: override the primary preset's scope or sign gating, recorded as a
        departure.
      gradient: what stands for g_t: `plain`, `integrated` (joint form, along the
        primary preset's tokens), `lrp`, or single backward rules joined with +
        (`norm+attention`).
      gradient_steps: points of the line of integrated gradients.
      loss: L(C) is the sum over the completion's tokens, or the mean.
      exclude: tokens that count nowhere (δ, ā, firing rates, passages, the unit of
        steering), of "bos" and "special"; None: what the SAE was not trained on, and
        padding only where its file is silent.
      first_k: positions at the front of each text that count nowhere either; None: as
        the SAE was trained, else 0.
      outlier: tokens whose norm exceeds this many times the median norm of the corpus
        (attention sinks) count nowhere; 0 keeps them; None: as the SAE was trained, and
        10 where its file is silent.
      prepend_bos: None: as the SAE was trained, else as the tokenizer does.
      context: longest row; None: the model's.
      top: candidates per ranking.
      batch_size: rows per step.
      corpus_tokens, corpus_batch: how much ordinary text ā is averaged over, and texts
        per step.
      firing_tokens: how much of it firing rates are counted over; below 1,000 they are
        left out. With 0 and sae_check_tokens=0 the SAE is never in memory as a whole, so
        it may be larger than memory (gates that look at one latent at a time).
      corpus_context: tokens per text; None: what the SAE was trained with, at most the
        model's context.
      sae_check_tokens: ordinary text that the SAE check runs on before anything else;
        0 leaves the check out.
      trust_sae: go on with an SAE that fails its check; the findings are recorded.
      dense_limit: latents × tokens up to which `active`, `quadrant` and codes are
        computed for all latents.
      ablate: candidates whose exact ablation is run, and as many random latents beside
        them; 0 skips it.
      ablate_rows: completions used for that, whole prompts at a time; None: all.
      ablate_positions: sampled (latent, completion, position) triples for ablation at
        single positions.
      bootstrap: resamples over prompts.
      dtype, resid_dtype: of weights and of the residual stream.
      remat: recompute blocks in the backward pass (less memory).
      seed: of bootstrap, splits and random latents.
    """

    pairs: str
    site_in: str | None = None
    preset: str = "faithful"
    tokens: str | None = None
    gating: str | None = None
    gradient: str = "plain"
    gradient_steps: int = 10
    loss: str = "sum"
    exclude: tuple[str, ...] | None = None
    first_k: int | None = None
    outlier: float | None = None
    prepend_bos: bool | None = None
    context: int | None = None
    top: int = 100
    batch_size: int = 8
    corpus_tokens: int = 1_000_000
    corpus_batch: int = 16
    firing_tokens: int = 100_000
    corpus_context: int | None = None
    sae_check_tokens: int = 4096
    trust_sae: bool = False
    dense_limit: int = 2**32
    ablate: int = 20
    ablate_rows: int | None = 128
    ablate_positions: int = 256
    bootstrap: int = 1000
    dtype: str = "float32"
    resid_dtype: str | None = None
    remat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(
                f"preset {self.preset!r} is unknown; choose one of {', '.join(PRESETS)}"
            )
        check_loss(self.loss)
        _ = self.rules
        check_exclude(self.exclude or ())
        Masks(
            first_k=self.first_k or 0, outlier=self.outlier or None
        )  # raises where a number makes no sense
        for name in (
            "top",
            "batch_size",
            "corpus_tokens",
            "corpus_batch",
            "bootstrap",
            "gradient_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must be at least 1"
                )
        for name in (
            "ablate",
            "ablate_positions",
            "dense_limit",
            "sae_check_tokens",
            "firing_tokens",
        ):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}; it must not be negative"
                )
        for name in ("context", "corpus_context", "ablate_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(
                    f"{name} is {value}; it must be at least 1, or be left out"
                )
        for name in ("dtype", "resid_dtype"):
            value = getattr(self, name)
            if value not in (DTYPES if name == "dtype" else (*DTYPES, None)):
                raise ValueError(
                    f"{name} {value!r} is unknown; choose one of {', '.join(DTYPES)}"
                )
        self.presets()

    @property
    def rules(self) -> Rules:
        """The backward rules that `gradient` names; none for integrated gradients.
        Raises ValueError for another name.
        """
        if self.gradient == "integrated":
            return PLAIN
        try:
            return parse_rules(self.gradient)
        except ValueError as error:
            raise ValueError(
                f"gradient {self.gradient!r} is unknown; choose plain, integrated, lrp, "
                f"or rules of {', '.join(RULES)} joined with +"
            ) from error

    def presets(self) -> tuple[Preset, ...]:
        """Returns the primary preset, with the overrides in it, then the others."""
        base = PRESETS[self.preset]
        primary = Preset(
            base.name, self.tokens or base.tokens, self.gating or base.gating
        )
        others = dict(PRESETS)
        if primary == base:
            others.pop(self.preset)
        else:
            # Another ranking than the preset's, which is then among the others.
            primary = replace(primary, name=f"{base.name}, changed")
        return primary, *others.values()
