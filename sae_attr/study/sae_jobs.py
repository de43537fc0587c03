"""SAEs to be trained from one pass of a language model, and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_attr.activations import SIDE_BY_SIDE
from sae_attr.hooks import Site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.sites import site_named
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae_check import SitePair
from sae_attr.settings import settings_from
from sae_attr.study.two_model_data import join_of


@dataclass(frozen=True)
class SAETrainingSettings:
    """Sets what is trained on.

    Args:
      lm: a Hugging Face folder or hub id.
      adapter: folder or hub id of a PEFT LoRA adapter, which is merged into `lm`.
      lm_base: the model that `lm` was fine-tuned from, read on the same tokens: the
        objectives crosscoder and crosscoder_l1 reconstruct both, any other one the
        difference lm - lm_base.
      corpus: text, or a folder that `write_tokens` made.
      site: where the SAE reads, for instance layer2.resid_post; several, separated by
        commas, get an SAE each.
      site_out: where a transcoder writes.
      tokens: that are trained on; more than the corpus has: several epochs.
      batch_size: tokens a step.
      column: of tables.
      split: of dataset folders.
      append_eos: to documents.
      prepend_bos: to documents; None: as the tokenizer does.
      max_tokens: of the corpus.
      held_out_share: of the rows, at the end; they are what the results are measured
        on.
      eval_tokens: held-out tokens that are measured.
      cache: activations on disk, no more than `tokens` need; False: the model runs while
        the SAE trains.
      buffer_tokens: that are shuffled.
      shard_tokens: of a file of the cache.
      batch_rows: rows of a forward pass.
      act_dtype: of cached activations: float32 | bfloat16 | float16.
      dtype: of the language model.
      seed: of weights and order.
    """

    lm: str | None = None
    adapter: str | None = None
    lm_base: str | None = None
    corpus: str | None = None
    site: str | None = None
    site_out: str | None = None
    tokens: int = 10_000_000
    batch_size: int = 4096
    column: str = "text"
    split: str | None = None
    append_eos: bool = False
    prepend_bos: bool | None = None
    max_tokens: int | None = None
    held_out_share: float = 0.05
    eval_tokens: int = 8192
    cache: bool = True
    buffer_tokens: int = 1 << 18
    shard_tokens: int = 1 << 16
    batch_rows: int = 16
    act_dtype: str = "float32"
    dtype: str = "float32"
    seed: int = 0


@dataclass(frozen=True)
class SAEJob:
    """One SAE to train: the sites that it reads and stands for, and its settings."""

    sites: SitePair
    cfg: TrainConfig

    @property
    def target(self) -> Site | None:
        """Returns the other site of a transcoder."""
        return self.sites.write if self.cfg.transcoder else None


def sae_jobs(
    settings: SAETrainingSettings, sae: Mapping[str, Any], cfg: LMConfig
) -> list[SAEJob]:
    """Returns the SAEs that the settings describe, in the order of their sites.

    Args:
      sae: fields of `TrainConfig`, less those that follow from the settings.
      cfg: of the language model.

    Raises:
      ValueError: sites or sizes that cannot be.
    """
    names = str(settings.site).split(",")
    sites = [site_named(cfg, name.strip()) for name in names]
    if len(set(sites)) < len(sites) or (len(sites) > 1 and settings.site_out):
        raise ValueError(
            f"site={settings.site!r}, site_out={settings.site_out!r}: each site once, "
            "and one for a transcoder"
        )
    if settings.tokens < settings.batch_size or settings.batch_size < 1:
        raise ValueError(
            f"{settings.tokens} tokens are no batch of {settings.batch_size}; give "
            "more tokens"
        )
    join = join_of(str(sae.get("objective", TrainConfig.objective)), settings.lm_base)
    if join and settings.site_out:
        raise ValueError(
            f"site_out={settings.site_out!r} with lm_base: two models are compared at "
            "one site; leave one of the two out"
        )
    models = 2 if join == SIDE_BY_SIDE else 1
    jobs = []
    for read in sites:
        write = read
        if settings.site_out:
            write = site_named(cfg, settings.site_out)
        fields = {
            **sae,
            "d_in": models * cfg.width(read.point),
            "d_out": models * cfg.width(write.point),
            "transcoder": read != write,
            "streams": models,
            "steps": settings.tokens // settings.batch_size,
            "seed": settings.seed,
        }
        train_cfg = settings_from(TrainConfig, fields, where="config.sae")
        jobs.append(SAEJob(SitePair(read, write), train_cfg))
    return jobs
