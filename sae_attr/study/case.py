"""One case of a case study: a behaviour with its model, prompts and judge, loaded lazily."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from etils import epath

from sae_attr.comparison_records import Direction
from sae_attr.hooks import Edit, Site
from sae_attr.judge import Item, Judge
from sae_attr.lm.draw import Sampling
from sae_attr.lm.end_tokens import ending_ids
from sae_attr.lm.model import Params
from sae_attr.parallel import check_rows
from sae_attr.steering.groups import group_numbers
from sae_attr.store import Store
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.further_dictionaries import (
    FurtherDictionary,
    StudyLatents,
    further_dictionaries,
)
from sae_attr.study.input_files import InputFiles, file_fields
from sae_attr.study.judges import Reader
from sae_attr.study.settings import CaseSettings, StudySettings
from sae_attr.study.setup import Setup
from sae_attr.text.encoding import encode_prompt
from sae_attr.text.pairs import Prompt
from sae_attr.text.tokenizer import decode, encode


@dataclass(frozen=True, eq=False)
class ExactState:
    """Holds what exact rates of one model on some prompts start from.

    Args:
      arrays: what no edit changes; a pytree.
      measured_p: which prompts are measured.
      facts: about the model without an edit, plain values.
    """

    arrays: Any
    measured_p: np.ndarray
    facts: Mapping[str, Any] = field(default_factory=dict)


class ExactPrompts(Protocol):
    """Rates of a behaviour on some prompts by exact probabilities, nothing sampled."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the prompts, in the order of the rates."""
        ...

    def begin(self, params: Params, start: int) -> ExactState:
        """Runs what no edit changes: the layers before layer `start`."""
        ...

    def rates(
        self, params: Params, arrays: Any, edits: Mapping[Site, Edit]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns behaviour and coherence `[k, prompts]`; compiles what it runs.

        Args:
          arrays: of `begin`.
          edits: site -> edit on the tokens that the study steers; every array in them
            has the k conditions as its first axis.
        """
        ...


@dataclass(frozen=True, eq=False)
class Runtime:
    """Sets where and how fast a study runs: nothing here is part of a stage's key.

    Args:
      store: of the stages.
      workdir: of the run; `store` lies in it.
      mesh: of devices.
      batch_size: completions that are sampled at a time; a multiple of the mesh's data
        axis.
      progress: show bars.
      attribution: settings of every attribution that change its speed alone.
    """

    store: Store
    workdir: epath.Path
    mesh: jax.sharding.Mesh
    batch_size: int = 32
    progress: bool = True
    attribution: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_rows(self.batch_size, self.mesh, "batch_size")


@dataclass(frozen=True, eq=False)
class Case:
    """One case of a study; weights are loaded only if a stage must run.

    Args:
      settings, study: of the case, and what all cases share.
      files: a real model's, or those that the organism's build wrote.
      split_prompts: the prompts of each split.
      judge: grades its answers.
      runtime: where and how fast.
      exact: opens exact rates on some of its prompts.
      reader: describes its latents; None for nobody.
      file_stages: names of the stages that write the files; () where they were there
        before.
    """

    settings: CaseSettings
    study: StudySettings
    files: InputFiles
    split_prompts: Mapping[str, tuple[Prompt, ...]]
    judge: Judge
    runtime: Runtime
    exact: OpenExact
    reader: Reader | None = None
    file_stages: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the case in file and stage names."""
        return self.settings.name

    @property
    def pairs_file(self) -> epath.Path:
        """Where the pairs are written for the attribution, and for readers."""
        return self.runtime.workdir / "pairs" / f"{self.name}.jsonl"

    @functools.cached_property
    def setup(self) -> Setup:
        """Model, SAE and corpus at a site, and this case's own pairs."""
        values = file_fields(self.files) | {
            "lm_aligned": self.files.lm_aligned or None,
            "pairs": str(self.pairs_file),
            "dtype": self.study.dtype,
            "resid_dtype": self.study.resid_dtype,
            "top": self.study.top,
            "seed": self.study.seed,
        }
        # Speed first: what a case states wins over what the whole run states.
        values |= {**self.runtime.attribution, **self.settings.attribution}
        return Setup(
            Settings(**values),
            self.runtime.store,
            self.runtime.mesh,
            self.runtime.progress,
            f"cases.{self.name}.attribution.",
        )

    @functools.cached_property
    def dictionaries(self) -> tuple[FurtherDictionary, ...]:
        """Its further dictionaries; their files are read when first needed."""
        return further_dictionaries(self.settings.further_dictionaries, self.name)

    @functools.cached_property
    def latents(self) -> StudyLatents:
        """The latents of its SAE and of its further dictionaries, numbered through."""
        return StudyLatents(self.setup, self.dictionaries)

    # ---- models ----------------------------------------------------------------------

    @functools.cached_property
    def aligned_params(self) -> Params:
        """Weights of the model without the behaviour; where there is no second model,
        those of the only one.
        """
        if not self.files.lm_aligned:
            return self.setup.params
        return self.setup.model_files.load(self.files.lm_aligned)

    def params(self, direction: str) -> Params:
        """Returns the model that is steered: away, the one with the behaviour; toward,
        the one without.
        """
        # Only a model that shows the behaviour can lose it, and one that lacks it gain it.
        return self.setup.params if direction == "away" else self.aligned_params

    def steered_model(self, direction: Direction) -> str:
        """Returns what figures and tables call the model that `params` gives."""
        if not self.files.lm_aligned:
            return "the model"
        if direction == "away":
            return "the model with the behaviour"
        return "the model without it"

    @functools.cached_property
    def opened(self) -> dict[Any, Any]:
        """Exact rates by prompts, and what they start from."""
        return {}

    @functools.cached_property
    def texts(self) -> dict[str, Any]:
        """Encoded texts for and against the behaviour, by prompt."""
        return {}

    # ---- prompts and answers ---------------------------------------------------------

    def prompts(self, split: str) -> tuple[Prompt, ...]:
        """Returns the prompts of a split, as many as the settings take."""
        limits = {
            "pairs": self.settings.pair_prompts,
            "strengths": self.study.strength_prompts,
            "effects": self.study.effect_prompts,
        }
        limit = limits.get(split, self.study.probe_prompts)
        return self.split_prompts[split][:limit]

    def prompts_by_id(self, split: str) -> dict[str, Prompt]:
        """Returns the prompts of a split by their ids."""
        return {prompt.id: prompt for prompt in self.prompts(split)}

    def prompt_groups(self, ids: Sequence[str], split: str) -> np.ndarray | None:
        """Returns the number of the group of every prompt of a split; None where no
        prompt has one. A prompt without a group is one of its own.
        """
        by_id = self.prompts_by_id(split)
        if not any(prompt.group for prompt in by_id.values()):
            return None
        names = []
        for name in ids:
            group = by_id[name].group
            names.append(f"group {group}" if group else f"prompt {name}")
        return group_numbers(names)

    def prompt_ids(self, split: str) -> dict[str, list[int]]:
        """Returns a split's token ids by prompt id, as a completion's row begins; they
        are rendered once.
        """
        if split not in self._prompt_ids:
            setup = self.setup
            ids: dict[str, list[int]] = {}
            for prompt in self.prompts(split):
                ids[prompt.id] = encode_prompt(
                    prompt, setup.tokenizer, prepend_bos=setup.prepend_bos
                )
            self._prompt_ids[split] = ids
        return self._prompt_ids[split]

    @functools.cached_property
    def _prompt_ids(self) -> dict[str, dict[str, list[int]]]:
        """Token ids by split and prompt id."""
        return {}

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: the model's (or the settings' ids in their
        place), and the settings' texts.

        Raises ValueError for a stop text that is no single token, and an id that is
        none of the model's.
        """
        sampling = self.study.sampling
        vocab = self.setup.cfg.vocab
        ids = list(ending_ids(self.setup.ends, sampling.stop_ids, vocab=vocab))
        for text in sampling.stop:
            tokens, _ = encode(self.setup.tokenizer, text, add_bos=False)
            # Sampling compares each drawn token with the stop ids; it reads no text.
            if len(tokens) != 1:
                raise ValueError(
                    f"stop {text!r} is {len(tokens)} tokens; a completion is stopped "
                    "by a single one"
                )
            ids.append(tokens[0])
        return tuple(dict.fromkeys(ids))

    @functools.cached_property
    def sampling(self) -> Sampling:
        """Settings with which every completion is sampled."""
        sampling = self.study.sampling
        return Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new=sampling.max_new,
            stop_ids=self.stop_ids,
        )

    def text(self, ids: list[int]) -> str:
        """Returns a completion as the judge and readers see it."""
        return decode(self.setup.tokenizer, ids).strip()

    def item(self, name: str, prompt: Prompt, ids: list[int]) -> Item:
        """Returns a completion as a question to the judge."""
        return Item(id=name, prompt=prompt.prompt, completion=self.text(ids))


OpenExact = Callable[[Case, Sequence[Prompt]], ExactPrompts]
