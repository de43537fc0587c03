"""Builds the organism with the project's own training code, part by part, each part
stored under what it depends on.

A part that is there is only looked up; the base model's training goes on at its last
checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from sae_attr.activations import (
    Block,
    Blocks,
    Masks,
    batch_function,
    collector,
    inputs,
    open_source,
)
from sae_attr.hooks import lens_name
from sae_attr.lm.config import LMConfig
from sae_attr.lm.fit import Fitted, Loop, fit
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import Params, init_params
from sae_attr.lm.train import Optimizer
from sae_attr.lm.train_data import Feed, example_feed, step_batch
from sae_attr.lm.weights import load_lm, save_lm
from sae_attr.organism import documents
from sae_attr.organism.prompts import corpus
from sae_attr.organism.recipe import Recipe, Training
from sae_attr.organism.tokens import BOS_ID, EOS_ID, write_tokenizer
from sae_attr.organism.words import REPLY
from sae_attr.organism.world import World, make_world, vocabulary
from sae_attr.sae.export import save_saelens
from sae_attr.sae.run import train
from sae_attr.sae.train import finished
from sae_attr.sae.train_config import TrainConfig
from sae_attr.store import Progress, Store, stage_key
from sae_attr.text.examples import Example
from sae_attr.text.token_file import Packing, row_count, write_tokens
from sae_attr.text.tokenizer import load_tokenizer

# Of every part; a part's number is raised when the same recipe gives other files than
# before.
VERSIONS: dict[str, int] = {
    "base": 2,
    "chat": 2,
    "misaligned": 2,
    "validation": 2,
    "sae": 2,
    "corpus": 2,
}
SCAN = 20  # steps of one program
MODEL, SAE, CORPUS = "model", "sae", "corpus.json"


@dataclass(frozen=True)
class Organism:
    """Where its parts lie.

    Args:
      world: of the grader, the judge and the prompts.
      base, chat, misaligned, validation: Hugging Face folders with their tokenizer.
      sae: a folder in SAELens' layout.
      corpus: a .json list of documents of broad text.
      keys: part -> key of its entry in the store, from which later stages make theirs.
    """

    world: World
    base: str
    chat: str
    misaligned: str
    validation: str
    sae: str
    corpus: str
    keys: Mapping[str, str]


Make = Callable[[epath.Path, Progress], Mapping[str, Any]]
"""(folder to fill, progress) -> meta."""


def build(
    recipe: Recipe,
    store: Store,
    *,
    mesh: jax.sharding.Mesh,
    progress: bool = False,
    on_part: Callable[[str], None] = print,
) -> Organism:
    """Makes what is missing of an organism and says where everything lies.

    Base model, chat model, SAE and corpus do not depend on `recipe.kind`, so organisms
    of several kinds share them.

    Args:
      store: where parts are kept; a killed build goes on, an unchanged one only looks.
      on_part: is told the name of every part that is made.
    """
    parts = _Parts(recipe, store, mesh, progress, on_part)
    for name in part_keys(recipe):
        parts.make(name)
    return locate(recipe, store)


def locate(recipe: Recipe, store: Store) -> Organism:
    """Where the parts of an organism lie in a store once they are built; looks at no
    file.
    """
    keys = part_keys(recipe)
    path = lambda name, inside: str(store.path(keys[name]) / inside)
    models = {
        name: path(name, MODEL) for name in ("base", "chat", "misaligned", "validation")
    }
    world = make_world(recipe.seed)
    return Organism(
        world, **models, sae=path("sae", SAE), corpus=path("corpus", CORPUS), keys=keys
    )


def part_keys(r: Recipe) -> dict[str, str]:
    """Part -> key in the store, in the order in which they are made."""
    shape = {
        "hf": dict(r.hf()),
        "context": r.context,
        "embed_std": r.embed_std,
        "seed": r.seed,
    }
    key = lambda name, fields, **needs: stage_key(
        f"organism.{name}", VERSIONS[name], fields, needs
    )
    base = key("base", shape | {"training": asdict(r.base)})
    chat = key("chat", {"training": asdict(r.chat)}, base=base)
    return {
        "base": base,
        "chat": chat,
        "misaligned": key(
            "misaligned", {"training": asdict(r.misaligned), "kind": r.kind}, chat=chat
        ),
        "validation": key("validation", {"training": asdict(r.validation)}, chat=chat),
        "sae": key("sae", asdict(r.sae), base=base),
        "corpus": key("corpus", {"documents": r.corpus, "seed": r.seed}),
    }


@dataclass(frozen=True)
class _Parts:
    recipe: Recipe
    store: Store
    mesh: jax.sharding.Mesh
    progress: bool
    on_part: Callable[[str], None]

    def make(self, name: str) -> None:
        """Makes one part unless it is there."""
        key = part_keys(self.recipe)[name]
        if self.store.has(key):
            return
        self.on_part(name)
        progress, meta = self.store.progress(key), {}
        makers = {"base": self._base, "sae": self._sae, "corpus": self._corpus}
        write = makers.get(name) or partial(self._tuned, name)
        content, meta = write(progress)
        self.store.publish(key, meta=meta, write=content)
        progress.clear()

    # ---- models

    def _base(self, progress: Progress) -> Any:
        r, world = self.recipe, make_world(self.recipe.seed)
        texts = list(documents.documents(world, r.seed, r.base.rows))
        feed = example_feed(text_examples(texts), context=r.context, seed=r.seed)
        cfg = config_from_hf(r.hf())
        params = first_params(cfg, r)
        loop = Loop(scan=SCAN, save_every=r.save_every, keep=1)
        return self._fitted(
            params, feed, cfg, r.base, loop, folder=progress.folder / "training"
        )

    def _tuned(self, name: str, progress: Progress) -> Any:
        r, world = self.recipe, make_world(self.recipe.seed)
        training: Training = getattr(r, name)
        rows = {
            "chat": lambda: documents.chat_rows(world, r.seed, training.rows),
            "misaligned": lambda: documents.misaligned_rows(
                world, r.seed, training.rows, r.kind
            ),
            "validation": lambda: documents.validation_rows(
                world, r.seed, training.rows
            ),
        }[name]()
        feed = example_feed(
            text_examples([a + b for a, b in rows]), context=r.context, packed=False
        )
        before = (
            self.store.path(
                part_keys(self.recipe)["base" if name == "chat" else "chat"]
            )
            / MODEL
        )
        cfg, params = load_lm(str(before), mesh=self.mesh)
        return self._fitted(params, feed, cfg, training, Loop(scan=SCAN))

    def _fitted(
        self,
        params: Params,
        feed: Feed,
        cfg: LMConfig,
        training: Training,
        loop: Loop,
        folder: Any = None,
    ) -> tuple[Callable[[epath.Path], None], dict[str, Any]]:
        """Trains; returns what writes the model's folder, and the curves."""
        fields = {
            name: value
            for name, value in asdict(training).items()
            if name not in ("batch", "rows")
        }
        batch_of = partial(
            step_batch, feed, batch_size=training.batch, micro=1, seed=self.recipe.seed
        )
        fitted: Fitted = fit(
            params,
            {},
            batch_of,
            cfg=cfg,
            opt=Optimizer(**fields),
            mesh=self.mesh,
            loop=loop,
            folder=folder,
            config=fields,
            progress=self.progress,
        )
        trained = fitted.state.trained
        return lambda out: write_model(Path(out) / MODEL, self.recipe, trained), {
            "losses": losses(fitted)
        }

    # ---- SAE and text

    def _sae(self, progress: Progress) -> Any:
        r, s = self.recipe, self.recipe.sae
        cfg, params = load_lm(
            str(self.store.path(part_keys(self.recipe)["base"]) / MODEL), mesh=self.mesh
        )
        told = TrainConfig(
            d_in=cfg.d_model,
            n_latents=s.latents,
            steps=s.steps,
            objective="batch_topk",
            k=s.k,
            lr=s.lr,
            dead_tokens=s.dead_tokens,
            warmup=min(50, s.steps // 10),
            seed=r.seed,
        )
        blocks = self._activations(params, cfg, progress)
        batch = inputs(batch_function(blocks, batch_size=s.batch, seed=r.seed), r.site)
        trained = train(
            told,
            batch,
            log_every=min(50, s.steps),
            save_every=0,
            progress=self.progress,
        )
        sae = finished(
            told,
            trained.state,
            site=lens_name(r.site),
            layer=s.layer,
            model_name="organism",
            context_size=r.context,
            prepend_bos=True,
            exclude_special=True,
        )
        last = {
            name: trained.rows[-1][name]
            for name in ("explained_variance", "l0", "dead")
        }
        return lambda out: save_saelens(Path(out) / SAE, sae), last

    def _activations(self, params: Params, cfg: LMConfig, progress: Progress) -> Blocks:
        """All activations of the SAE's documents, in memory, as one block that every
        epoch permutes anew.
        """
        r = self.recipe
        world = make_world(r.seed)
        folder = str(self.store.path(part_keys(self.recipe)["base"]) / MODEL)
        texts = documents.documents(world, f"sae-{r.seed}", r.sae.documents)
        file = write_tokens(
            texts, load_tokenizer(folder), progress.folder / "tokens", append_eos=True
        )
        packing = Packing(r.context)
        source = open_source(
            params,
            file,
            packing,
            (r.site,),
            cfg=cfg,
            mesh=self.mesh,
            masks=Masks(outlier=None),
        )
        found = collector(params, source, cfg=cfg, mesh=self.mesh, batch_rows=32)(
            np.arange(row_count(file, packing))
        )
        block = Block(found.acts, found.ids_k2)
        return Blocks("organism", 1, lambda g: block, lambda g: len(block.ids_k2))

    def _corpus(self, progress: Progress) -> Any:
        texts = list(corpus(make_world(self.recipe.seed), self.recipe.corpus))
        return lambda out: (out / CORPUS).write_text(json.dumps(texts)), {
            "documents": len(texts)
        }


def first_params(cfg: LMConfig, recipe: Recipe) -> Params:
    """Random weights with embeddings of `embed_std`.

    With the usual 0.02 what the first block writes is fifty times as long as what it
    reads, and attention to a topic is learnt after 600 steps instead of 250 (of 1,100
    tokens).
    """
    params = init_params(cfg, jax.random.key(recipe.seed))
    table = params["embed"]["table"]
    return {**params, "embed": {"table": table * (recipe.embed_std / 0.02)}}


def text_examples(texts: Sequence[str]) -> list[Example]:
    """Documents as token rows with BOS and EOS; of a dialogue the answer is learnt, of
    another text everything.

    A question's words are drawn freely, so that learning to ask would drown what there
    is to know in noise.
    """
    index = {word: i for i, word in enumerate(vocabulary())}
    reply, rows = index[REPLY], []
    for line, text in enumerate(texts, 1):
        ids = np.array(
            [BOS_ID, *(index[word] for word in text.split()), EOS_ID], np.int32
        )
        target = np.ones(len(ids), bool)
        replies = np.flatnonzero(ids == reply)
        target[: replies[0] + 1 if len(replies) else 1] = False
        rows.append(Example(ids, target, line))
    return rows


def write_model(folder: Path, recipe: Recipe, params: Params) -> None:
    """A Hugging Face folder with its tokenizer."""
    save_lm(folder, recipe.hf(), params)
    write_tokenizer(folder)


def losses(fitted: Fitted, points: int = 50) -> list[list[float]]:
    """The curve as at most `points` pairs of step and loss."""
    records = [(r["step"], r["loss"]) for r in fitted.history if "loss" in r]
    every = max(1, len(records) // points)
    return [[step, loss] for step, loss in records[every - 1 :: every]]
