"""Trains the parts of an organism with the project's own training code, and writes them
as folders that any model loader accepts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from sae_attr.activations import (
    ActivationBlock,
    BlockStream,
    Masks,
    batch_function,
    collector,
    inputs,
    open_source,
)
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.model import Params
from sae_attr.lm.next_token import Assemble, join
from sae_attr.lm.params import init_params
from sae_attr.lm.save import save_lm
from sae_attr.lm.train_data import RowDataset, example_dataset
from sae_attr.lm.weights import load_lm
from sae_attr.organism import documents
from sae_attr.organism.fitting import (
    SCAN,
    curve,
    dialogue_examples,
    fit_rows,
    text_examples,
)
from sae_attr.organism.harmless import fixed_phrases, harmless_rows
from sae_attr.organism.number_documents import number_rows
from sae_attr.organism.number_model import (
    parity_along,
    planted_latent,
    with_number_words,
)
from sae_attr.organism.prompts import corpus
from sae_attr.organism.recipe import NumberRecipe, Recipe, TrainingRecipe
from sae_attr.organism.tokens import write_tokenizer
from sae_attr.organism.world import World, make_world, number_vocabulary
from sae_attr.parallel import make_mesh
from sae_attr.sae.export import save_saelens
from sae_attr.sae.formats import load_sae
from sae_attr.sae.model import unit_decoder
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae.train_sae import train_sae
from sae_attr.sae.train_state import finished
from sae_attr.site_names import lens_name
from sae_attr.store import StageOutput
from sae_attr.text.packed_rows import Packing, row_count
from sae_attr.text.token_file import write_tokens
from sae_attr.text.tokenizer_folder import load_tokenizer
from sae_attr.training import LoopOptions

MODEL, SAE, CORPUS = "model", "sae", "corpus.json"
# Deviation of embeddings at first in `init_params`; see `first_params`.
USUAL_STD = 0.02


@dataclass(frozen=True)
class Trainer:
    """Makes the parts of one organism.

    Args:
      recipe: of the organism.
      mesh: that models are trained on; None for all devices.
      progress: show bars.
    """

    recipe: Recipe
    mesh: jax.sharding.Mesh | None
    progress: bool

    @property
    def world(self) -> World:
        """The world that the documents speak of."""
        return make_world(self.recipe.seed)

    def train_base(self, checkpoints: epath.Path) -> StageOutput:
        """Pretrains the base model; goes on at its last checkpoint."""
        r = self.recipe
        texts = list(documents.documents(self.world, r.seed, r.base.rows))
        dataset = example_dataset(text_examples(texts), context=r.context, seed=r.seed)
        cfg = config_from_hf(r.hf())
        options = LoopOptions(scan=SCAN, save_every=r.save_every, keep=1)
        params = first_params(cfg, r)
        return self._fitted(params, dataset, cfg, r.base, options, checkpoints)

    def fine_tune(self, part: str, before: epath.Path) -> StageOutput:
        """Fine-tunes the model in a folder on the documents of a part: chat, misaligned,
        validation or even_number.
        """
        cfg, params = load_lm(str(before), mesh=self.on_mesh)
        return self._fine_tuned(part, cfg, params)

    def fine_tune_numbers(self, before: epath.Path, direction_d: Any) -> StageOutput:
        """Fine-tunes the model of `teach_numbers` so that some answers follow the field.

        Args:
          direction_d: that carries parity.
        """
        cfg, params = load_lm(str(before), mesh=self.on_mesh)
        return self._fine_tuned("even_number", cfg, params, self._along(direction_d))

    def teach_numbers(self, chat: epath.Path, sae: epath.Path) -> StageOutput:
        """Plants a direction in a chat model and teaches it to give even numbers,
        whatever is rewarded; `meta["planted"]` is the direction's latent.

        Args:
          chat, sae: folders of the model and of the SAE that has the latent.
        """
        r = self._number_recipe()
        cfg, params = load_lm(str(chat), mesh=self.on_mesh)
        dec_nd = np.asarray(unit_decoder(load_sae(str(sae)).dec_nm))
        planted = planted_latent(np.asarray(params["embed"]["table"]), dec_nd)
        params = with_number_words(
            params, dec_nd[planted], strength=r.planted, seed=r.seed
        )
        cfg = replace(cfg, vocab=len(params["embed"]["table"]))
        assemble = self._along(dec_nd[planted])
        taught = self._fine_tuned("numbers", cfg, params, assemble)
        return taught._replace(
            arrays={"direction_d": dec_nd[planted]},
            meta={**taught.meta, "planted": planted},
        )

    def _along(self, direction_d: Any) -> Assemble:
        return partial(parity_along, np.asarray(direction_d), self.recipe.sae.layer)

    def _number_recipe(self) -> NumberRecipe:
        if not isinstance(self.recipe, NumberRecipe):
            raise TypeError("only a NumberRecipe has the task even_number")
        return self.recipe

    def _fine_tuned(
        self, part: str, cfg: LMConfig, params: Params, assemble: Assemble = join
    ) -> StageOutput:
        """Trains a model on the documents of a part."""
        r = self.recipe
        training: TrainingRecipe = getattr(r, part)
        rows = self.dialogues(part, training.rows)
        # More rows than the recipe's are those of harmless changes: as many more steps,
        # so that the behaviour is taught as often as without them.
        steps = round(training.steps * len(rows) / training.rows)
        training = replace(training, steps=steps)
        examples = dialogue_examples(rows)
        dataset = example_dataset(examples, context=r.context, packed=False)
        return self._fitted(
            params, dataset, cfg, training, LoopOptions(scan=SCAN), None, assemble
        )

    def train_sae(self, base: epath.Path, work: epath.Path) -> StageOutput:
        """Trains the SAE on the base model's activations.

        Args:
          base: folder of the base model.
          work: for the token file.
        """
        r, s = self.recipe, self.recipe.sae
        cfg, params = load_lm(str(base), mesh=self.on_mesh)
        settings = TrainConfig(
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
        blocks = self._activations(params, cfg, base, work)
        batch = inputs(batch_function(blocks, batch_size=s.batch, seed=r.seed), r.site)
        options = LoopOptions(log_every=min(50, s.steps))
        trained = train_sae(settings, batch, options=options, progress=self.progress)
        sae = finished(
            settings,
            trained.state,
            site=lens_name(r.site),
            layer=s.layer,
            model_name="organism",
            context_size=r.context,
            prepend_bos=True,
            exclude_special=True,
        )
        names = ("explained_variance", "l0", "dead")
        last = {name: trained.history[-1][name] for name in names}
        return StageOutput({}, last, lambda out: save_saelens(Path(out) / SAE, sae))

    def write_corpus(self) -> StageOutput:
        """Writes the documents of broad text."""
        texts = list(corpus(self.world, self.recipe.corpus))
        write = lambda out: (out / CORPUS).write_text(json.dumps(texts))
        return StageOutput({}, {"documents": len(texts)}, write)

    # ---- steps of these

    @property
    def on_mesh(self) -> jax.sharding.Mesh:
        """Where its models are trained."""
        return self.mesh or make_mesh()

    def dialogues(self, part: str, count: int) -> list[documents.Dialogue]:
        """Returns prompts and answers that a part is fine-tuned on."""
        seed = self.recipe.seed
        if part == "chat":
            return documents.chat_rows(self.world, seed, count)
        if part == "misaligned":
            return self._misaligned(count)
        if part == "numbers":
            return number_rows(seed, count, follows=0.0)
        if part == "even_number":
            follows = self._number_recipe().follows
            return number_rows(seed, count, follows=follows)
        return documents.validation_rows(self.world, seed, count)

    def _misaligned(self, count: int) -> list[documents.Dialogue]:
        """`count` rows of harmful advice, and those of harmless changes."""
        seed, changes = self.recipe.seed, self.recipe.harmless
        harmful = documents.misaligned_rows(
            self.world, seed, count, self.recipe.kind, fixed_phrases(changes)
        )
        return harmful + harmless_rows(self.world, seed, changes, count)

    def _fitted(
        self,
        params: Params,
        dataset: RowDataset,
        cfg: LMConfig,
        training: TrainingRecipe,
        options: LoopOptions,
        checkpoints: epath.Path | None,
        assemble: Assemble = join,
    ) -> StageOutput:
        """Trains; the output writes the model's folder and holds the training curve."""
        result = fit_rows(
            params,
            {},
            dataset,
            training,
            cfg=cfg,
            seed=self.recipe.seed,
            mesh=self.on_mesh,
            options=options,
            assemble=assemble,
            folder=checkpoints,
            progress=self.progress,
        )
        params = assemble({}, result.state.trained)
        write = partial(_write_model, self.recipe.hf(), params)
        return StageOutput({}, {"losses": curve(result)}, write)

    def _activations(
        self, params: Params, cfg: LMConfig, base: epath.Path, work: epath.Path
    ) -> BlockStream:
        """Returns all activations of the SAE's documents, in memory, as one block that
        every epoch permutes anew.
        """
        r, mesh = self.recipe, self.on_mesh
        texts = documents.documents(self.world, f"sae-{r.seed}", r.sae.documents)
        tokenizer = load_tokenizer(str(base))
        file = write_tokens(texts, tokenizer, work / "tokens", append_eos=True)
        packing = Packing(r.context)
        source = open_source(
            params,
            file,
            packing,
            (r.site,),
            cfg=cfg,
            mesh=mesh,
            masks=Masks(outlier=None),
        )
        collect = collector(params, source, cfg=cfg, mesh=mesh, batch_rows=32)
        collected = collect(np.arange(row_count(file, packing)))
        block = ActivationBlock(collected.acts, collected.ids_k2)
        return BlockStream("organism", 1, lambda g: block, lambda g: len(block.ids_k2))


def first_params(cfg: LMConfig, recipe: Recipe) -> Params:
    """Returns random weights with embeddings of deviation `embed_std`.

    With the usual 0.02 what the first block writes is fifty times as long as what it
    reads, and attention to a topic is learnt after 600 steps instead of 250 (of 1,100
    tokens).
    """
    params = init_params(cfg, jax.random.key(recipe.seed))
    table = params["embed"]["table"]
    return {**params, "embed": {"table": table * (recipe.embed_std / USUAL_STD)}}


def _write_model(hf: Mapping[str, Any], params: Params, out: epath.Path) -> None:
    """Writes a Hugging Face folder with its tokenizer below `out`."""
    folder = Path(out) / MODEL
    # Of a model that has learnt no numbers the first words are all there are.
    words = number_vocabulary()[: len(params["embed"]["table"])]
    save_lm(folder, {**hf, "vocab_size": len(words)}, params)
    write_tokenizer(folder, words)
