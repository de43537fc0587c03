"""The files of the studied model: config, weights, tokenizer, and their names."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax

from sae_attr.lm.config import LMConfig
from sae_attr.lm.config_files import load_config
from sae_attr.lm.end_tokens import Ends, turn_ends
from sae_attr.lm.gguf_weights import quantisation_of
from sae_attr.lm.hf_folder import model_fingerprint, resolve_model
from sae_attr.lm.model import Params
from sae_attr.lm.weights import load_lm
from sae_attr.store import digest
from sae_attr.study.attribution_settings import Settings
from sae_attr.text.chat import with_options
from sae_attr.text.tokenizer import Tokenizer
from sae_attr.text.tokenizer_folder import folder_template, load_tokenizer


def adapted_fingerprint(lm: str, adapter: str | None) -> str:
    """Returns what names a model, with an adapter that is merged into it, by its files'
    contents.
    """
    name = model_fingerprint(lm)
    return digest([name, model_fingerprint(adapter)]) if adapter else name


@dataclass(frozen=True, eq=False)
class ModelFiles:
    """The studied model, with its adapter; each file is read when first needed."""

    settings: Settings
    mesh: jax.sharding.Mesh
    progress: bool = True

    @functools.cached_property
    def cfg(self) -> LMConfig:
        """The model's config, before its weights are read."""
        resid = self.settings.resid_dtype or (
            "float64" if self.settings.dtype == "float64" else "float32"
        )
        return load_config(self.settings.lm, resid_dtype=resid, mesh=self.mesh)

    @functools.cached_property
    def params(self) -> Params:
        """The model's weights on the mesh."""
        return self.load(self.settings.lm, adapter=self.settings.adapter)

    def load(self, path: str, *, adapter: str | None = None) -> Params:
        """Weights of a model of the studied architecture, with an adapter merged into
        them.
        """
        cfg, params = load_lm(
            path,
            mesh=self.mesh,
            dtype=self.settings.dtype,
            resid_dtype=self.cfg.resid_dtype,
            adapter=adapter,
            progress=self.progress,
        )
        self.same_architecture(path, cfg)
        return params

    def same_architecture(self, path: str, cfg: LMConfig) -> None:
        """Raises ValueError if another model's config differs from the studied one's in
        more than its special tokens.
        """
        # A fine-tuned model may have been given other special tokens.
        unlike: dict[str, Any] = {"bos_id": None, "eos_id": None, "resid_dtype": ""}
        if replace(cfg, **unlike) != replace(self.cfg, **unlike):
            raise ValueError(
                f"{path} and {self.settings.lm} have different configs; both must be "
                "the same architecture"
            )

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, with the template options of the settings; an
        adapter's own chat template goes before.
        """
        tok = load_tokenizer(
            resolve_model(self.settings.lm), embedding_rows=self.cfg.vocab
        )
        template = (
            folder_template(resolve_model(self.settings.adapter))
            if self.settings.adapter
            else None
        )
        if template is not None:
            tok = replace(tok, chat_template=template)
        return with_options(tok, self.settings.template_options)

    @functools.cached_property
    def ends(self) -> Ends:
        """The ids that end a completion of the model, by what says so."""
        return turn_ends(self.settings.lm, self.tokenizer, vocab=self.cfg.vocab)

    @functools.cached_property
    def key(self) -> str:
        """Names the model, with its adapter, by its files' contents: pairs that it
        sampled carry it as their sampler.
        """
        return adapted_fingerprint(self.settings.lm, self.settings.adapter)

    @functools.cached_property
    def aligned_key(self) -> str:
        """Names the second model of Δ-activation by its files' contents."""
        return model_fingerprint(str(self.settings.lm_aligned))

    @functools.cached_property
    def quantisation(self) -> dict[str, dict[str, int]]:
        """Counts of tensors by their type in the file, for each of `lm` and `lm_aligned`
        that is a GGUF: its weights are dequantised, so results are about the model that
        llama.cpp runs and not the one that was quantised.
        """
        counts = {}
        for name in ("lm", "lm_aligned"):
            path = getattr(self.settings, name)
            if path and (types := quantisation_of(path)):
                counts[name] = types
        return counts

    @property
    def no_second_model(self) -> str:
        """Why no other model stands beside the studied one: none is given, or the same
        is given twice; "" where one does.
        """
        if not self.settings.lm_aligned:
            return "no second model: set lm_aligned"
        if self.aligned_key == self.key:
            return f"lm_aligned ({self.settings.lm_aligned}) has the same weights as lm: give another model, or none"
        return ""
