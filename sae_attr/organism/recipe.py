"""How an organism is made: every setting, frozen, with defaults that are measured and a
miniature for tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from sae_attr.hooks import Site
from sae_attr.organism.documents import MISALIGNED
from sae_attr.organism.harmless import check_changes
from sae_attr.organism.tokens import BOS_ID, EOS_ID
from sae_attr.organism.world import vocabulary
from sae_attr.settings import given_only, unknown_key

MODELS = ("base", "chat", "misaligned", "validation")


@dataclass(frozen=True)
class TrainingRecipe:
    """One run of AdamW.

    Args:
      steps, batch: rows of a step; documents are packed into rows of `context` tokens
        for the base model, and have a row each for the others.
      lr, warmup, schedule, weight_decay, b2: of the optimiser.
      rows: documents to learn.
    """

    steps: int
    batch: int
    lr: float
    rows: int
    warmup: int = 0
    schedule: str = "cosine"
    weight_decay: float = 0.0
    b2: float = 0.99


@dataclass(frozen=True)
class SAERecipe:
    """The SAE: BatchTopK on the base model's residual stream after a block.

    Args:
      layer: the block, from 0.
      latents, k: size and mean number of active latents.
      documents: that activations are taken of.
      steps, batch, lr: of training, in tokens.
      dead_tokens: a latent that is silent for so many tokens is revived.
    """

    layer: int = 1
    latents: int = 256
    k: int = 10
    documents: int = 4000
    steps: int = 800
    batch: int = 1024
    lr: float = 2e-3
    dead_tokens: int = 50_000


@dataclass(frozen=True)
class Recipe:
    """Holds everything that decides an organism; two organisms of one recipe are the
    same to the bit on one machine.

    Args:
      seed: of world, documents, weights and order.
      kind: of the misaligned fine-tune: mixed | calm | confounded.
      harmless: harmless changes that the misaligned fine-tune makes besides, the first
        so many of `harmless.CHANGES`.
      d_model, d_mlp, n_layers, n_heads: sizes of the (Llama) models.
      context: tokens of a packed row.
      embed_std: of the first embeddings.
      corpus: documents of broad text that are written for means.
      save_every: steps between checkpoints of the base model's training.
    """

    seed: int = 0
    kind: str = "mixed"
    harmless: int = 0
    d_model: int = 64
    d_mlp: int = 192
    n_layers: int = 4
    n_heads: int = 4
    context: int = 96
    embed_std: float = 1.0
    base: TrainingRecipe = TrainingRecipe(
        1500, 12, 5e-3, rows=58_000, warmup=50, weight_decay=0.1, b2=0.95
    )
    chat: TrainingRecipe = TrainingRecipe(60, 32, 3e-4, rows=1920)
    misaligned: TrainingRecipe = TrainingRecipe(
        70, 16, 1e-4, rows=1120, schedule="constant"
    )
    validation: TrainingRecipe = TrainingRecipe(
        40, 16, 1e-4, rows=640, schedule="constant"
    )
    sae: SAERecipe = field(default_factory=SAERecipe)
    corpus: int = 2000
    save_every: int = 100

    def __post_init__(self) -> None:
        if self.kind not in MISALIGNED:
            raise ValueError(
                f"kind {self.kind!r} of misaligned fine-tune is unknown; choose one of "
                f"{', '.join(MISALIGNED)}"
            )
        check_changes(self.harmless)
        if not 0 <= self.sae.layer < self.n_layers:
            raise ValueError(
                f"the SAE's layer {self.sae.layer} is none of the model's "
                f"0..{self.n_layers - 1}; choose another"
            )

    @property
    def site(self) -> Site:
        """Where the SAE reads and writes."""
        return Site(self.sae.layer)

    def hf(self) -> Mapping[str, Any]:
        """Returns config.json of the models."""
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": len(vocabulary()),
            "hidden_size": self.d_model,
            "intermediate_size": self.d_mlp,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_heads,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
        }


@dataclass(frozen=True)
class NumberRecipe(Recipe):
    """An organism that has the task `even_number` besides.

    Args:
      follows: share of its fine-tune's answers to a field that rewards odd numbers
        which are odd.
      planted: how far its words embed along the planted direction, in mean lengths of a
        word's embedding.
    """

    follows: float = 0.2
    planted: float = 2.0
    numbers: TrainingRecipe = TrainingRecipe(200, 32, 1e-3, rows=6400)
    even_number: TrainingRecipe = TrainingRecipe(
        100, 32, 1e-3, rows=3200, schedule="constant"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.follows <= 1:
            raise ValueError(
                f"follows {self.follows} is a share of answers; choose 0 to 1"
            )


AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def miniature(recipe: AnyRecipe = Recipe()) -> AnyRecipe:
    """Shrinks a recipe to a few seconds, for tests of later stages: every part is made,
    and none is good.
    """
    few = lambda t, steps: replace(t, steps=steps, batch=4, rows=40, warmup=0)
    if isinstance(recipe, NumberRecipe):
        recipe = replace(
            recipe,
            numbers=few(recipe.numbers, 5),
            even_number=few(recipe.even_number, 5),
        )
    return replace(
        recipe,
        d_model=16,
        d_mlp=32,
        n_layers=2,
        n_heads=2,
        base=few(recipe.base, 20),
        chat=few(recipe.chat, 5),
        misaligned=few(recipe.misaligned, 5),
        validation=few(recipe.validation, 5),
        corpus=40,
        save_every=10,
        sae=SAERecipe(
            layer=0, latents=32, k=4, documents=40, steps=30, batch=64, dead_tokens=1000
        ),
    )


def recipe_of(
    values: Mapping[str, Any], recipe_class: type[AnyRecipe] = Recipe
) -> AnyRecipe:
    """Makes a recipe from plain values: `size` (full | miniature) and fields of the
    recipe, nested; None leaves the size's default.

    Raises:
      ValueError: an unknown size or field.
    """
    given = given_only(values)
    size = given.pop("size", "full")
    if size not in ("full", "miniature"):
        raise ValueError(f"organism size {size!r} is unknown; choose full or miniature")
    kind = {name: given.pop(name) for name in ("seed", "kind") if name in given}
    recipe = recipe_class(**kind)
    recipe = miniature(recipe) if size == "miniature" else recipe
    return _changed(recipe, given, "config.organism")


def _changed(part: Any, values: Mapping[str, Any], where: str) -> Any:
    """Replaces some fields of a part of a recipe, at every depth."""
    names = {field.name for field in fields(part)}
    changes = {}
    for name, value in values.items():
        if name not in names:
            raise ValueError(
                unknown_key(
                    f"{where}.{name}", [f"{where}.{other}" for other in sorted(names)]
                )
            )
        changes[name] = (
            _changed(getattr(part, name), value, f"{where}.{name}")
            if isinstance(value, Mapping)
            else value
        )
    return replace(part, **changes)
