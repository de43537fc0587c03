"""Judges from plain settings: behind a server, a local language model, or the
organism's grader.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

import jax
from etils import epath

from sae_attr.judge import (
    Asking,
    Budget,
    CoherentOnly,
    Judge,
    KeywordJudge,
    LocalJudge,
    OpenAIJudge,
    Patience,
    Server,
    cached,
    load_rubric,
)
from sae_attr.lm.ends import ending_ids, turn_ends
from sae_attr.lm.sample import Sampling, check_finite, generate, make_prompts
from sae_attr.lm.weights import load_config, load_lm, resolve_model
from sae_attr.parallel import shard_batch, to_host
from sae_attr.settings import given_only
from sae_attr.store import fingerprint
from sae_attr.text.chat import options_read, with_options
from sae_attr.text.encoding import encode_prompt
from sae_attr.text.pairs import Prompt
from sae_attr.text.tokenizer import decode, load_tokenizer


@dataclass(frozen=True)
class JudgeSettings:
    """Fields of a judge beside those of `Server`, `Asking` and `Patience`.

    Args:
      kind: openai (any compatible server) | local (a language model here) | keywords |
        organism (the embedded world's grader).
      rubric: what is graded: a name of sae_attr/judge/rubrics or a .toml file.
      coherence: a second rubric; answers are graded by `rubric` only where they are
        coherent by this one.
      reply_tokens: longest reply; None for what the rubric's answers need. A model that
        thinks before it answers needs more.
      max_calls, max_tokens: budget over all runs of a workdir; None for none.
      lm: of local: folder or hub id of the model.
      dtype: of local: of its weights.
      batch_size: of local: answers at a time.
      template_options: of local: as in `attribution.Settings`.
      stop_ids: of local: ids that end an answer, in place of those that the model's
        files, tokenizer and template say.
      present, absent: of keywords: words that count for and against the behaviour.
    """

    kind: str = "openai"
    rubric: str | None = None
    coherence: str | None = None
    reply_tokens: int | None = None
    max_calls: int | None = None
    max_tokens: int | None = None
    lm: str | None = None
    dtype: str = "float32"
    batch_size: int = 8
    template_options: Mapping[str, Any] = field(default_factory=dict)
    stop_ids: tuple[int, ...] | None = None
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


def _names(kind: Any, *leave_out: str) -> set[str]:
    return {f.name for f in fields(kind)} - set(leave_out)


KEYS = {
    "openai": _names(Server, "api_key") | _names(Asking, "max_tokens") | _names(Patience)
    | {"reply_tokens", "max_calls", "max_tokens"},
    "local": {"lm", "reply_tokens", "dtype", "batch_size", "template_options", "stop_ids"},
}  # fmt: skip


def open_judge(
    spec: Mapping[str, Any], folder: epath.Path, mesh: jax.sharding.Mesh
) -> Judge:
    """A judge whose grades are kept in a folder, so that nothing is graded twice.

    Args:
      spec: `kind` (openai | local | keywords), `rubric` (a name or a .toml file) and,
        for answers that are graded only where they are coherent, `coherence` (a second
        rubric). Of openai `base_url`, `model` and the fields of `judge.Asking`,
        `Patience` and `Budget` (`max_calls`, `max_tokens`, over all runs of the
        folder); of local `lm`, `reply_tokens`, `dtype`, `batch_size`; of keywords
        `present` and `absent`, lists of words. None stands for the default.

    Raises:
      ValueError: an unknown kind, key or rubric, or a missing one.
    """
    given = given_only(spec)
    if given.get("kind") == "keywords":
        return KeywordJudge(
            tuple(given.get("present", ())), tuple(given.get("absent", ()))
        )
    kind = given.pop("kind", None)
    rubric = given.pop("rubric", None)
    coherence = given.pop("coherence", None)
    if kind not in KEYS:
        raise ValueError(
            f"judge kind {kind!r} is unknown; choose openai, local or keywords"
        )
    if unknown := set(given) - KEYS[kind]:
        raise ValueError(
            f"judge {kind} has no {sorted(unknown)[0]!r}; it knows "
            f"{', '.join(sorted(KEYS[kind]))}"
        )
    needed = {"openai": ("model", "base_url"), "local": ("lm",)}[kind]
    if absent := [
        name
        for name in (*needed, "rubric")
        if not {**given, "rubric": rubric}.get(name)
    ]:
        raise ValueError(
            f"judge {kind} lacks {', '.join(absent)}; give judge.{absent[0]}"
        )
    make = {"openai": _openai, "local": _local}[kind](given, folder, mesh)
    judge = cached(make(str(rubric)), folder)
    return (
        CoherentOnly(judge, cached(make(str(coherence)), folder))
        if coherence
        else judge
    )


def _openai(
    given: Mapping[str, Any], folder: epath.Path, mesh: jax.sharding.Mesh
) -> Any:
    key = os.environ.get("OPENAI_API_KEY", "none")
    part = lambda kind, *leave_out: {
        name: given[name] for name in _names(kind, *leave_out) if name in given
    }
    server = Server(**part(Server, "api_key"), api_key=key)
    asking = Asking(**part(Asking, "max_tokens"), max_tokens=given.get("reply_tokens"))
    patience = Patience(**part(Patience))
    budget = Budget(
        given.get("max_calls"), given.get("max_tokens"), ledger=folder / "spent"
    )
    return lambda rubric: OpenAIJudge(
        server, load_rubric(rubric), asking, patience, budget
    )


def _local(
    given: Mapping[str, Any], folder: epath.Path, mesh: jax.sharding.Mesh
) -> Any:
    batch = int(given.get("batch_size", 8))
    longest = int(given.get("reply_tokens", 300))
    model = {
        "name": str(given["lm"]),
        "fingerprint": fingerprint(resolve_model(given["lm"])),
    }
    answers = LocalAnswers(
        given["lm"],
        mesh,
        max_new=longest,
        batch_size=batch,
        dtype=given.get("dtype", "float32"),
        template_options=given.get("template_options", {}),
        stop_ids=given.get("stop_ids"),
    )
    settings = {"temperature": 0.0, "reply_tokens": longest, **answers.reading}
    return lambda rubric: LocalJudge(
        model, load_rubric(rubric), answers, batch_size=batch, settings=settings
    )


class LocalAnswers:
    """Greedy answers of a language model to messages; its weights are loaded at the
    first call.

    Args:
      lm: folder or hub id, with a chat template; without one the messages' texts are
        joined by blank lines.
      max_new: longest answer in tokens.
      batch_size: answers at a time.
      template_options: as for `chat.with_options`.
      stop_ids: what ends an answer; None for what the model's files, tokenizer and chat
        template say.

    Raises:
      ValueError: files that cannot be read, options that the template does not read,
        ids that are none of the model's.
    """

    def __init__(
        self,
        lm: str,
        mesh: jax.sharding.Mesh,
        *,
        max_new: int,
        batch_size: int,
        dtype: str,
        template_options: Mapping[str, Any] = MappingProxyType({}),
        stop_ids: Sequence[int] | None = None,
    ) -> None:
        self.lm, self.mesh, self.max_new, self.batch_size, self.dtype = (
            lm,
            mesh,
            max_new,
            batch_size,
            dtype,
        )
        vocab = load_config(lm).vocab
        self.tok = with_options(
            load_tokenizer(resolve_model(lm), embedding_rows=vocab), template_options
        )
        self.stop_ids = ending_ids(
            turn_ends(lm, self.tok, vocab=vocab), stop_ids, vocab=vocab
        )
        self._loaded: Any = None

    @property
    def reading(self) -> dict[str, Any]:
        """What decides the answers beside the model: how prompts are rendered, and what
        ends an answer.
        """
        return {
            "template_options": options_read(self.tok),
            "stop_ids": list(self.stop_ids),
        }

    def __call__(self, prompts: Sequence[tuple[Mapping[str, Any], ...]]) -> list[str]:
        """One answer per prompt."""
        self._loaded = self._loaded or self._load()
        (params, run), tok = self._loaded, self.tok
        asked = [
            p if tok.chat_template else "\n\n".join(str(m["content"]) for m in p)
            for p in prompts
        ]
        ids = [encode_prompt(Prompt("", p), tok) for p in asked]
        packed = make_prompts(ids + [[]] * (self.batch_size - len(ids)), multiple=64)
        keys_b = jax.random.split(jax.random.key(0), self.batch_size)  # unused: greedy
        made = jax.tree.map(
            to_host, run(params, *shard_batch((packed, keys_b), self.mesh))
        )
        check_finite(
            made,
            [
                f"the judge's answer to prompt {b}" if b < len(ids) else None
                for b in range(self.batch_size)
            ],
        )
        tokens_bn, length_b = made.tokens_bn, made.length_b
        said = [[int(i) for i in tokens_bn[b, : length_b[b]]] for b in range(len(ids))]
        return [
            decode(tok, row[:-1] if row and row[-1] in self.stop_ids else row)
            for row in said
        ]

    def _load(self) -> tuple[Any, Any]:
        cfg, params = load_lm(self.lm, mesh=self.mesh, dtype=self.dtype)
        how = Sampling(temperature=0.0, max_new=self.max_new, stop_ids=self.stop_ids)
        run = jax.jit(
            lambda params, prompts, keys: generate(
                params, prompts, keys, cfg=cfg, sampling=how
            )
        )
        return params, run
