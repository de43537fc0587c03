"""A case study: settings together with the models, prompts and judge that they name,
looked at when first needed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from sae_attr.hooks import Add
from sae_attr.judge import Item, Judge, ask_one, tells_coherence
from sae_attr.lm.ends import ending_ids
from sae_attr.lm.model import Params
from sae_attr.lm.sample import Sampling
from sae_attr.lm.weights import load_config, resolve_model
from sae_attr.parallel import shard_batch, to_host
from sae_attr.steering import Row, sweep
from sae_attr.steering.coherence import logp_per_token
from sae_attr.store import Store, fingerprint
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.attribution_stages import check_sae
from sae_attr.study.candidates import decoder_rows
from sae_attr.study.samples import UNSTEERED, Answer, Arms, Rows
from sae_attr.study.settings import CaseSettings, StudySettings
from sae_attr.study.setup import Setup
from sae_attr.text.batching import batches
from sae_attr.text.encoding import encode_prompt
from sae_attr.text.pairs import Prompt
from sae_attr.text.rows import COMPLETION, TokenRow, is_special, scope_mask
from sae_attr.text.tokenizer import decode, encode


@dataclass(frozen=True, eq=False)
class Runtime:
    """Where and how fast a study runs, not what: nothing here is part of a stage's key.

    Args:
      workdir: of the run; `store` lies in it.
      batch_size: completions that are sampled at a time; a multiple of the mesh's data
        axis.
      progress: show bars.
      judges: case name -> judge.
    """

    store: Store
    workdir: epath.Path
    mesh: jax.sharding.Mesh
    batch_size: int = 32
    progress: bool = True
    attribution: Mapping[str, Any] = field(default_factory=dict)


ExactRates = Callable[..., tuple[np.ndarray, np.ndarray]]
"""(params, prompts, edits, cfg, rows) -> behaviour and coherence `[rows, prompts]` from
next-word probabilities.
"""


@dataclass(frozen=True)
class Source:
    """The files of a case: a real model's, or those that the organism's build wrote;
    fields as in `CaseSettings`.

    `lm_aligned`: "" where there is no second model. `exact`: rates by probabilities,
      which only the organism's grammar allows. `stages`: names of the stages that write
      these files; () where they were there before.
    """

    lm: str
    lm_aligned: str
    sae: str
    corpus: str
    prompts: Mapping[str, tuple[Prompt, ...]]
    adapter: str | None = None
    sae_format: str = "auto"
    sae_options: Mapping[str, Any] = field(default_factory=dict)
    site: str | None = None
    column: str = "text"
    split: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    exact: ExactRates | None = None
    stages: tuple[str, ...] = ()

    def fingerprints(self) -> dict[str, Any]:
        """Names of the files' contents, and how they are read."""
        local = lambda path: path if path.startswith("hf://") else fingerprint(path)
        models: dict[str, Any] = {"lm": fingerprint(resolve_model(self.lm))}
        models["lm_aligned"] = (
            fingerprint(resolve_model(self.lm_aligned)) if self.lm_aligned else None
        )
        adapter = fingerprint(resolve_model(self.adapter)) if self.adapter else None
        how = {
            "sae_format": self.sae_format,
            "sae_options": dict(self.sae_options),
            "site": self.site,
        }
        how |= {"column": self.column, "split": self.split}
        return {
            **models,
            "adapter": adapter,
            "sae": local(self.sae),
            "corpus": fingerprint(self.corpus),
            **how,
        }


@dataclass(frozen=True, eq=False)
class Case:
    """One case of a study with its files; weights are loaded only if a stage must run."""

    settings: CaseSettings
    study: StudySettings
    source: Source
    judge: Judge
    runtime: Runtime

    @property
    def pairs_file(self) -> epath.Path:
        """Where the pairs are written for the attribution, and for readers."""
        return self.runtime.workdir / "pairs" / f"{self.settings.name}.jsonl"

    @functools.cached_property
    def attribution(self) -> Setup:
        """The attribution run of this case on its own pairs."""
        files = {k: getattr(self.source, k) for k in _FILES}
        fields = {
            **files,
            "lm_aligned": self.source.lm_aligned or None,
            "pairs": str(self.pairs_file),
            "dtype": self.study.dtype,
            "resid_dtype": self.study.resid_dtype,
        }
        fields |= {
            "top": self.study.top,
            "seed": self.study.seed,
            **self.runtime.attribution,
            **self.settings.attribution,
        }
        keys_at = f"cases.{self.settings.name}.attribution."
        return Setup(
            Settings(**fields),
            self.runtime.store,
            self.runtime.mesh,
            self.runtime.progress,
            keys_at,
        )

    @functools.cached_property
    def aligned_params(self) -> Params:
        """Weights of the model without the behaviour; where there is no second model,
        those of the only one.
        """
        if not self.source.lm_aligned:
            return self.attribution.params
        return self.attribution.model_files.load(self.source.lm_aligned)

    def params(self, direction: str) -> Params:
        """Steering away is done to the model with the behaviour, steering toward to the
        one without.
        """
        return self.attribution.params if direction == "away" else self.aligned_params

    def prompts(self, split: str) -> tuple[Prompt, ...]:
        """The prompts of a split, as many as the settings take."""
        limits = {
            "pairs": self.settings.pair_prompts,
            "strengths": self.study.strength_prompts,
            "effects": self.study.effect_prompts,
        }
        return self.source.prompts[split][: limits[split]]

    def declared_prompts(self, split: str) -> list[Any]:
        """A split's prompts as a stage's key has them: the ids that are sampled from;
        the organism's follow from its recipe.
        """
        if self.settings.organism is not None:
            return []
        return [
            [p.id, ids]
            for p, ids in zip(self.prompts(split), self.prompt_ids(split), strict=True)
        ]

    def declared_stops(self) -> list[int]:
        """The ids that end a completion as a stage's key has them; the organism's
        follow from its recipe.
        """
        given = self.study.sampling.stop_ids or ()
        return (
            list(given) if self.settings.organism is not None else list(self.stop_ids)
        )

    def prompt_ids(self, split: str) -> list[list[int]]:
        """Token ids of a split's prompts, as a completion's row begins; rendered once."""
        if split not in self._prompt_ids:
            study = self.attribution
            encoded = [
                encode_prompt(p, study.tokenizer, prepend_bos=study.prepend_bos)
                for p in self.prompts(split)
            ]
            self._prompt_ids[split] = encoded
        return self._prompt_ids[split]

    @functools.cached_property
    def _prompt_ids(self) -> dict[str, list[list[int]]]:
        """Token ids of prompts by split."""
        return {}

    @functools.cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion: the model's (or the settings' ids in their
        place), and the settings' texts.

        Raises ValueError for a stop text that is no single token, and an id that is
        none of the model's.
        """
        study = self.attribution
        tok, given = study.tokenizer, self.study.sampling.stop_ids
        ids = list(ending_ids(study.ends, given, vocab=study.cfg.vocab))
        for text in self.study.sampling.stop:
            found, _ = encode(tok, text, add_bos=False)
            if len(found) != 1:
                raise ValueError(
                    f"stop {text!r} is {len(found)} tokens; a completion is stopped by "
                    "a single one"
                )
            ids.append(found[0])
        return tuple(dict.fromkeys(ids))

    def can_score(self, ids: Sequence[int]) -> bool:
        """Returns whether the attribution can score a completion: it has a token, and
        one that counts in every scope.

        A completion's last token has no gradient, so where only the completion's own
        tokens count it needs another one.
        """
        if not len(ids):
            return False
        study = self.attribution
        if all(preset.tokens != "completion" for preset in study.settings.presets()):
            return True
        roles = np.full(len(ids), COMPLETION)
        special = is_special(ids, study.tokenizer)
        return bool(
            scope_mask((roles, special), "completion", exclude=study.exclude)[:-1].any()
        )

    def text(self, ids: list[int]) -> str:
        """A completion as the judge and readers see it."""
        return decode(self.attribution.tokenizer, ids).strip()

    def item(self, split: str) -> Any:
        """`(id, prompt number, token ids) -> Item` for the judge."""
        prompts = self.prompts(split)
        return lambda name, p, ids: Item(
            id=name, prompt=prompts[p].prompt, completion=self.text(ids)
        )

    @functools.cached_property
    def sampling(self) -> Sampling:
        """How every completion is sampled."""
        s = self.study.sampling
        return Sampling(
            temperature=s.temperature,
            top_p=s.top_p,
            max_new=s.max_new,
            stop_ids=self.stop_ids,
        )

    def directions(self, arms: Arms) -> np.ndarray:
        """Unit decoder rows of the arms `[k, d]`; zeros for the model as it is."""
        study, steered = self.attribution, arms.latents_k != UNSTEERED
        rows_kd = np.zeros((len(arms), study.cfg.width(study.site.point)), np.float32)
        if steered.any():
            latents, place = np.unique(arms.latents_k[steered], return_inverse=True)
            rows_kd[steered] = np.asarray(decoder_rows(study.decoder, latents))[place]
        return rows_kd

    def exact(
        self, direction: str, split: str, arms: Arms, norm: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Behaviour and coherence of every arm and prompt `[k, p]` by exact
        probabilities, all tokens steered.
        """
        if self.source.exact is None:
            raise ValueError(
                f"case {self.settings.name} has no exact rates; set "
                "strengths_by=samples"
            )
        rows_kd = self.directions(arms)
        strengths_k = norm * arms.strengths_k.astype(np.float32)
        batch, site = self.runtime.batch_size, self.attribution.site
        out: list[Any] = []
        for start in range(0, len(arms), batch):
            part = np.arange(start, start + batch) % len(
                arms
            )  # the last batch repeats arms: one compiled shape
            edit = Add(jnp.asarray(rows_kd[part]), jnp.asarray(strengths_k[part]))
            out.append(
                [
                    to_host(x)[: len(arms) - start]
                    for x in self._exact(split)(self.params(direction), {site: edit})
                ]
            )
        behaviour, coherent = (np.concatenate(x) for x in zip(*out, strict=True))
        return behaviour, coherent

    def _exact(self, split: str) -> Any:
        """The compiled program of exact rates on a split's prompts."""
        if split not in self._programs:
            exact = self.source.exact
            prompts = self.prompts(split)
            rows = self.runtime.batch_size
            cfg = self.attribution.cfg
            assert exact is not None  # self.exact
            self._programs[split] = jax.jit(
                lambda params, edits: exact(params, prompts, edits, cfg=cfg, rows=rows)
            )
        return self._programs[split]

    @functools.cached_property
    def _programs(self) -> dict[str, Any]:
        """Programs by split: both directions run the same."""
        return {}

    @property
    def measures_coherence(self) -> bool:
        """Whether coherence of sampled answers is measured by log-probability, since
        the judge does not tell it.
        """
        by = self.study.coherence_by
        if self.study.strengths_by == "exact" or by == "judge":
            return False
        return by == "logp" or not tells_coherence(self.judge)

    def logp_per_token(
        self,
        direction: str,
        split: str,
        prompts: Sequence[int],
        ids: Sequence[Sequence[int]],
    ) -> np.ndarray:
        """Mean log-probability of completions under the unsteered model of a direction,
        float64 `[r]` in nats per token.

        Args:
          prompts: number of every completion's prompt in the split.
          ids: token ids; a completion without any gets NaN.
        """
        prompt_ids = self.prompt_ids(split)
        rows = [
            _row(prompt_ids[p], completion)
            for p, completion in zip(prompts, ids, strict=True)
        ]
        out = np.full(len(rows), np.nan)
        size = self.runtime.batch_size
        for batch, index_b in batches(
            rows, batch_size=size, context=self.attribution.cfg.max_len
        ):
            logp_b = to_host(
                logp_per_token(
                    self.params(direction),
                    shard_batch(batch, self.runtime.mesh),
                    cfg=self.attribution.cfg,
                )
            )
            out[index_b[index_b >= 0]] = logp_b[index_b >= 0]
        return out

    def check(self) -> None:
        """Looks at the files of a real model, before anything is computed: configs,
        SAE, tokenizer, prompts, stop texts.

        Raises:
          ValueError: files that do not fit each other, a prompt that leaves no room for
            an answer or of which no token counts in the attribution, a judge that does
            not tell coherence where it is to.
        """
        study = self.attribution
        _ = study.site, study.decoder, self.stop_ids
        if self.source.lm_aligned:
            study.model_files.same_architecture(
                self.source.lm_aligned,
                load_config(self.source.lm_aligned, mesh=self.runtime.mesh),
            )
        next(iter(study.corpus.texts()))
        by_judge = self.study.strengths_by == "samples" and not self.measures_coherence
        if by_judge and not tells_coherence(self.judge):
            raise ValueError(no_coherence(self))
        for split in self.source.prompts:
            self._check_lengths(split)
        self._check_scopes()

    def _check_lengths(self, split: str) -> None:
        """Raises ValueError for a prompt whose longest answer would not fit the model,
        or the attribution's context.
        """
        ids = self.prompt_ids(split)
        prompts = self.prompts(split)
        max_new = self.study.sampling.max_new
        longest = max(range(len(ids)), key=lambda i: len(ids[i]))
        limits = {"the model's": self.attribution.cfg.max_len}
        if split == "pairs":
            limits["the attribution's context of"] = self.attribution.context
        for whose, limit in limits.items():
            if len(ids[longest]) + max_new > limit:
                raise ValueError(
                    f"prompt {prompts[longest].id!r} has {len(ids[longest])} tokens, "
                    f"which with sampling.max_new={max_new} "
                    f"exceeds {whose} {limit}; shorten it, or lower "
                    "--config.sampling.max_new"
                )

    def _check_scopes(self) -> None:
        """Raises ValueError for a prompt for pairs of which no token would count in a
        preset's scope.
        """
        study = self.attribution
        special_excluded = "special" in self.attribution.exclude
        if all(preset.tokens != "prompt" for preset in study.settings.presets()):
            return
        for prompt, ids in zip(
            self.prompts("pairs"), self.prompt_ids("pairs"), strict=True
        ):
            if special_excluded and is_special(ids, study.tokenizer).all():
                raise ValueError(
                    f"prompt {prompt.id!r} has special tokens alone, of which none "
                    "counts in the attribution; fill it in, or "
                    f"exclude less ({study.flag('exclude')})"
                )

    def try_out(self, *, judge: bool) -> None:
        """Runs what is cheap beside sampling and would end the study later: the SAE's
        check, one question to the judge.

        The check is stored, so that the attribution only loads it.

        Args:
          judge: whether answers are still to be graded.

        Raises:
          ValueError: the SAE does not fit its site, or the judge's reply cannot be
            read.
        """
        check_sae(self.attribution)
        if judge:
            ask_one(self.judge)

    def answer(self, direction: str, split: str, arms: Arms, norm: float) -> Answer:
        """Samples completions of a split's prompts under arms, at most `batch_size`
        rows a call: one compiled program for all.

        Args:
          norm: the unit of strengths, the site's mean norm.
        """
        study, names = self.attribution, [p.id for p in self.prompts(split)]
        ids = dict(zip(names, self.prompt_ids(split), strict=True))
        vectors = dict(zip(arms.latents_k.tolist(), self.directions(arms)))
        key = jax.random.fold_in(jax.random.key(self.study.seed), 11)

        def row_of(k: int, p: int, s: int, attempt: int) -> Row:
            latent, strength = int(arms.latents_k[k]), float(arms.strengths_k[k])
            return Row(
                names[p],
                s,
                latent,
                strength,
                direction,
                self.study.steer_tokens,
                attempt=attempt,
            )

        def answer(rows: Rows) -> list[list[int]]:
            made = sweep(
                self.params(direction),
                [row_of(*row) for row in rows.tuples()],
                ids,
                vectors,
                key,
                cfg=study.cfg,
                site=study.site,
                mesh=self.runtime.mesh,
                batch_size=self.runtime.batch_size,
                sampling=self.sampling,
                unit=norm,
            )
            return [list(done.ids) for batch in made for done in batch]

        return answer


def no_coherence(case: Case) -> str:
    """Says what to do where nothing tells whether answers are coherent."""
    name = case.settings.name
    return (
        f"the judge of case {name} does not say whether answers are coherent, which "
        "strengths are chosen by; set "
        "--config.coherence_by=logp, or add a rubric for it, "
        f"--config.cases.{name}.judge.coherence=coherence"
    )


def _row(prompt: Sequence[int], completion: Sequence[int]) -> TokenRow:
    """A prompt with its completion, for its log-probability alone: roles do not matter."""
    ids = np.array([*prompt, *completion], np.int32)
    nothing = np.zeros(len(ids), np.int8)
    return TokenRow(
        ids, len(prompt), nothing, nothing.astype(bool), pair=0, side=1, completion=0
    )


_FILES = (
    "lm",
    "adapter",
    "lm_aligned",
    "sae",
    "sae_format",
    "sae_options",
    "site",
    "corpus",
    "column",
    "split",
    "template_options",
)


def plain(settings: Any, *leave_out: str) -> dict[str, Any]:
    """Fields of a settings dataclass as plain values, for a stage's key."""
    return {k: v for k, v in dataclasses.asdict(settings).items() if k not in leave_out}
