"""A language model on these devices as a judge: its settings, and its greedy answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax

from sae_attr.judge.base import Judge
from sae_attr.judge.kinds import JudgeKind, Workplace
from sae_attr.judge.local_judge import LocalJudge
from sae_attr.judge.rubrics import Rubric
from sae_attr.lm.config_files import load_config
from sae_attr.lm.decode import check_finite
from sae_attr.lm.draw import Sampling
from sae_attr.lm.end_tokens import ending_ids, turn_ends
from sae_attr.lm.hf_folder import model_fingerprint, resolve_model
from sae_attr.lm.prompts import make_prompts
from sae_attr.lm.sample import generate
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import shard_batch, to_host
from sae_attr.text.chat import options_read, with_options
from sae_attr.text.encoding import encode_prompt
from sae_attr.text.pairs import Prompt
from sae_attr.text.tokenizer import decode
from sae_attr.text.tokenizer_folder import load_tokenizer


@dataclass(frozen=True)
class LocalSettings:
    """Settings of a judge that is a language model here.

    Args:
      lm: of local: folder or hub id of the model.
      dtype: of local: of its weights.
      batch_size: of local: answers at a time.
      reply_tokens: longest reply; None for what the rubric's answers need. A model that
        thinks before it answers needs more.
      template_options: of local: as in `attribution.Settings`.
      stop_ids: of local: ids that end an answer, in place of those that the model's
        files, tokenizer and template say.
    """

    lm: str = ""
    dtype: str = "float32"
    batch_size: int = 8
    reply_tokens: int = 300
    template_options: Mapping[str, Any] = field(default_factory=dict)
    stop_ids: tuple[int, ...] | None = None


class LocalAnswers:
    """Greedy answers of a language model to messages; its weights are loaded at the
    first call.

    Args:
      lm: folder or hub id, with a chat template; without one the messages' texts are
        joined by blank lines.
      max_new: longest answer in tokens.
      batch_size: answers at a time; as many more as the mesh's data axis divides.
      template_options: as for `chat.with_options`.
      stop_ids: ids that end an answer; None for those that the model's files, tokenizer
        and chat template state.

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
        self.lm = lm
        self.mesh = mesh
        self.max_new = max_new
        data = mesh.shape["data"]
        self.batch_size = -(-batch_size // data) * data
        self.dtype = dtype
        cfg = load_config(lm)
        self.family = cfg.family
        tokenizer = load_tokenizer(resolve_model(lm), embedding_rows=cfg.vocab)
        self.tok = with_options(tokenizer, template_options)
        ends = turn_ends(lm, self.tok, vocab=cfg.vocab)
        self.stop_ids = ending_ids(ends, stop_ids, vocab=cfg.vocab)
        self._loaded: Any = None

    @property
    def reading(self) -> dict[str, Any]:
        """The settings that decide the answers beside the model: how prompts are
        rendered, and which ids end an answer.
        """
        return {
            "template_options": options_read(self.tok),
            "stop_ids": list(self.stop_ids),
        }

    def __call__(self, prompts: Sequence[tuple[Mapping[str, Any], ...]]) -> list[str]:
        """Answers each prompt."""
        self._loaded = self._loaded or self._load()
        params, run = self._loaded
        ids = [self._encoded(prompt) for prompt in prompts]
        # Every batch has the same size, so that one compiled program serves all.
        padding: list[list[int]] = [[]] * (self.batch_size - len(ids))
        packed = make_prompts(ids + padding, multiple=64)
        keys_b = jax.random.split(jax.random.key(0), self.batch_size)  # unused: greedy
        batch = shard_batch((packed, keys_b), self.mesh)
        answers = to_host(run(params, *batch))
        names = [f"the judge's answer to prompt {b}" for b in range(len(ids))]
        check_finite(answers, [*names, *[None] * len(padding)])
        texts = []
        for b in range(len(ids)):
            row = answers.tokens_bn[b, : answers.length_b[b]].tolist()
            if row and row[-1] in self.stop_ids:
                row = row[:-1]
            texts.append(decode(self.tok, row))
        return texts

    def _encoded(self, messages: tuple[Mapping[str, Any], ...]) -> list[int]:
        prompt: Any = messages
        if not self.tok.chat_template:
            prompt = "\n\n".join(str(message["content"]) for message in messages)
        return encode_prompt(Prompt("", prompt), self.tok)

    def _load(self) -> tuple[Any, Any]:
        cfg, params = load_lm(self.lm, mesh=self.mesh, dtype=self.dtype)
        sampling = Sampling(
            temperature=0.0, max_new=self.max_new, stop_ids=self.stop_ids
        )
        run = jax.jit(
            lambda params, prompts, keys: generate(
                params, prompts, keys, cfg=cfg, sampling=sampling
            )
        )
        return params, run


def _open(
    local: LocalSettings, workplace: Workplace
) -> Callable[[Rubric | None], Judge]:
    answers = LocalAnswers(
        local.lm,
        workplace.mesh,
        max_new=local.reply_tokens,
        batch_size=local.batch_size,
        dtype=local.dtype,
        template_options=local.template_options,
        stop_ids=local.stop_ids,
    )
    # A model is its contents, as everywhere: a folder that was moved keeps its grades.
    contents = model_fingerprint(local.lm)
    model = {"name": f"{answers.family}-{contents[:8]}", "fingerprint": contents}
    settings = {
        "temperature": 0.0,
        "reply_tokens": local.reply_tokens,
        **answers.reading,
    }

    def judge(rubric: Rubric | None) -> Judge:
        assert rubric is not None
        return LocalJudge(
            model, rubric, answers, batch_size=local.batch_size, settings=settings
        )

    return judge


KIND = JudgeKind(
    "local",
    (LocalSettings,),
    _open,
    needs=("lm",),
    writes=True,
    quick=None,
    together=True,
)
