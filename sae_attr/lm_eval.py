"""A model class for lm-eval, with steering: `import sae_attr.lm_eval` registers it as
`sae_attr`.

    import lm_eval
    import sae_attr.lm_eval

    lm_eval.simple_evaluate(model="sae_attr", tasks=["arc_easy"],
        model_args="lm=MODEL,sae=SAE,latent=77,strength=-20")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sae_attr.files.vectors import read_vectors
from sae_attr.hooks import Add, Edit, Site, Within
from sae_attr.lm.draw import Sampling
from sae_attr.lm.end_tokens import ending_ids, turn_ends
from sae_attr.lm.hf_folder import resolve_model
from sae_attr.lm.prompts import make_prompts
from sae_attr.lm.sample import generate
from sae_attr.lm.sites import check_site
from sae_attr.lm.weights import load_lm
from sae_attr.sae.formats import load_sae
from sae_attr.sae.model import unit_decoder
from sae_attr.settings import settings_from
from sae_attr.site_names import parse_site
from sae_attr.steering.continuation_scores import continuation_scores
from sae_attr.text.chat import render
from sae_attr.text.tokenizer import adds_bos, decode, encode
from sae_attr.text.tokenizer_folder import load_tokenizer

try:
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import (  # pyright: ignore[reportMissingImports]
        register_model,
    )
    from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
        get_rolling_token_windows,
        make_disjoint_window,
    )
except ImportError as error:
    raise ImportError(
        f"sae_attr.lm_eval is a class for lm-eval, which cannot be imported ({error}); "
        "install it: pip install 'sae_attr[lm_eval]'",
        name="lm_eval",
    ) from error

MAX_NEW = 256  # tokens of a completion where a task states none


@dataclass(frozen=True)
class Steering:
    """A direction that is added to the residual stream at every token.

    Args:
      sae, latent: whose unit decoder row is the direction; or
      vectors, vector: a file of `read_vectors` and a name in it, scaled to length 1.
      site: where; None: where the SAE writes.
      strength: length of what is added; 0 is the model as it is, bit for bit.
      skip: tokens at the start of every row that are left alone.
    """

    sae: str = ""
    latent: int | None = None
    vectors: str = ""
    vector: str = ""
    site: str | None = None
    strength: float = 0.0
    skip: int = 0

    def direction(self) -> tuple[np.ndarray, str]:
        """Reads the unit direction `[d]` and the name of its site.

        Raises:
          ValueError: not exactly one of an SAE's latent and a vector, a latent or name
            that does not exist, no site.
        """
        if bool(self.sae) == bool(self.vectors):
            raise ValueError(
                "steering takes sae= and latent=, or vectors= and vector=; give one"
            )
        if self.sae:
            return self._of_latent()
        named = read_vectors(self.vectors)
        if self.vector not in named:
            raise ValueError(
                f"{self.vectors} has no vector {self.vector!r}; it has "
                f"{', '.join(named)}"
            )
        if self.site is None:
            raise ValueError("a vector needs site=, such as site=layer15.resid_post")
        vector_d = np.asarray(named[self.vector], np.float32)
        if vector_d.ndim != 1 or not vector_d.any():
            raise ValueError(f"vector {self.vector!r} is no direction [d]")
        return vector_d / np.linalg.norm(vector_d), self.site

    def _of_latent(self) -> tuple[np.ndarray, str]:
        sae = load_sae(self.sae)
        count = sae.cfg.n_latents
        if self.latent is None or not 0 <= self.latent < count:
            raise ValueError(
                f"latent={self.latent} is none of the SAE's 0..{count - 1}"
            )
        site = self.site or sae.cfg.site_out or sae.cfg.site
        if site is None:
            raise ValueError("the SAE's file names no site; give site=")
        return np.asarray(unit_decoder(sae.dec_nm)[self.latent]), site


def steering_edits(steering: Steering, cfg: Any) -> dict[Site, Edit] | None:
    """Returns the edits of a steering; None at strength 0, where not even the program
    differs from that of the model as it is.
    """
    if steering.strength == 0:
        return None
    direction_d, name = steering.direction()
    site = parse_site(name)
    check_site(cfg, site)
    width = cfg.width(site.point)
    if len(direction_d) != width:
        raise ValueError(
            f"the direction has {len(direction_d)} numbers, and {site} has {width}"
        )
    add = Add(jnp.asarray(direction_d), float(steering.strength))
    return {site: Within(add, steering.skip)}


@register_model("sae_attr")
class SteeredLM(LM):
    """A language model of this library as lm-eval evaluates one.

    Args:
      lm: whatever `load_lm` reads.
      batch_size: rows that are computed together.
      max_length: tokens of a row at most; None: the model's, at most 2,048.
      dtype: of the weights.
      steering: fields of `Steering`.

    Raises:
      ValueError: what `load_lm` or `Steering.direction` refuse.
    """

    def __init__(
        self,
        lm: str,
        batch_size: int | str = 8,
        max_length: int | None = None,
        dtype: str = "float32",
        device: str | None = None,  # lm-eval passes one; jax has its own
        max_batch_size: int | None = None,
        **steering: Any,
    ) -> None:
        super().__init__()
        self.cfg, self.params = load_lm(lm, dtype=dtype, progress=False)
        self.tokenizer = load_tokenizer(
            resolve_model(lm), embedding_rows=self.cfg.vocab
        )
        settings = settings_from(Steering, steering, where="model_args")
        self.edits = steering_edits(settings, self.cfg)
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 8
        self.max_length = max_length or min(self.cfg.max_len, 2048)
        ends = turn_ends(lm, self.tokenizer, vocab=self.cfg.vocab)
        self.end_ids = ending_ids(ends, vocab=self.cfg.vocab)
        self.name = lm

    @property
    def tokenizer_name(self) -> str:
        """Returns the model's name, which lm-eval keeps its caches by."""
        return self.name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Writes messages through the model's chat template."""
        return render(self.tokenizer, chat_history, add_generation_prompt)

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Returns log-probability of each continuation and whether it is the greedy
        one.
        """
        rows = [self._row(*request.args) for request in requests]
        return [(score.logp, score.greedy) for score in self._scores(rows)]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the log-probability of each text, in windows where it is long."""
        rows, owners = [], []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self._encode(request.args[0], add_bos=False),
                prefix_token=self._first_id(),
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in windows:
                rows.append(make_disjoint_window(window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, score in zip(owners, self._scores(rows), strict=True):
            totals[number] += score.logp
        return totals

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[str]:
        """Completes each context until one of its stop texts, greedily unless its
        request says otherwise.
        """
        groups: dict[Sampling, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self._sampling(request.args[1]), []).append(number)
        texts = [""] * len(requests)
        for sampling, members in groups.items():
            for start in range(0, len(members), self.batch_size):
                numbers = members[start : start + self.batch_size]
                contexts = [requests[i].args[0] for i in numbers]
                done = self._complete(contexts, sampling, numbers)
                for i, text in zip(numbers, done, strict=True):
                    texts[i] = _until(text, _stops(requests[i].args[1]))
        return texts

    # ---- parts

    def _encode(self, text: str, add_bos: bool) -> list[int]:
        return encode(self.tokenizer, text, add_bos=add_bos)[0]

    def _first_id(self) -> int:
        """The token in front of a text that has no context."""
        for token in (self.tokenizer.bos_id, self.tokenizer.eos_id):
            if token is not None:
                return token
        raise ValueError(
            f"{self.tokenizer.path} has neither BOS nor EOS to begin a text with"
        )

    def _row(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both, cut at the left where they are too long."""
        if not context:
            first = [self._first_id()]
            ids = self._encode(continuation, add_bos=False)
            return first, ids[1:] if ids[:1] == first and len(ids) > 1 else ids
        # Spaces belong to the word that follows: words are tokens with their space.
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        bos = adds_bos(self.tokenizer)
        before = self._encode(stripped, add_bos=bos)
        both = self._encode(stripped + continuation, add_bos=bos)
        if not before:
            before, both = [self._first_id()], [self._first_id(), *both]
        cut = max(0, len(both) - self.max_length)
        if cut >= len(before):
            raise ValueError(
                f"a continuation of {len(both) - len(before)} tokens does not fit "
                f"max_length={self.max_length}"
            )
        return both[cut : len(before)], both[len(before) :]

    def _scores(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[Any]:
        return continuation_scores(
            self.params,
            rows,
            cfg=self.cfg,
            edits=self.edits,
            batch_size=self.batch_size,
        )

    def _sampling(self, options: Mapping[str, Any]) -> Sampling:
        temperature = float(options.get("temperature") or 0.0)
        if not options.get("do_sample", temperature > 0):
            temperature = 0.0
        return Sampling(
            temperature=temperature,
            top_p=float(options.get("top_p") or 1.0),
            max_new=int(options.get("max_gen_toks") or MAX_NEW),
            stop_ids=self.end_ids,
        )

    def _complete(
        self, contexts: Sequence[str], sampling: Sampling, numbers: Sequence[int]
    ) -> list[str]:
        room = self.max_length - sampling.max_new
        if room < 1:
            raise ValueError(
                f"{sampling.max_new} new tokens leave no room for a prompt in "
                f"max_length={self.max_length}"
            )
        bos = adds_bos(self.tokenizer)
        rows = [self._encode(text, add_bos=bos)[-room:] for text in contexts]
        rows = [row or [self._first_id()] for row in rows]
        # One batch size, and so few compilations.
        empty: list[list[int]] = [[]] * (self.batch_size - len(rows))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(0), jnp.asarray([*numbers, *[0] * len(empty)], jnp.uint32)
        )
        done = _generate(
            self.params,
            make_prompts([*rows, *empty], multiple=32),
            keys,
            edits=self.edits,
            cfg=self.cfg,
            sampling=sampling,
        )
        texts = []
        for ids, length in zip(
            np.asarray(done.tokens_bn), np.asarray(done.length_b), strict=True
        ):
            kept = [int(i) for i in ids[:length] if int(i) not in self.end_ids]
            texts.append(decode(self.tokenizer, kept))
        return texts[: len(rows)]


@partial(jax.jit, static_argnames=("cfg", "sampling"))
def _generate(
    params: Any, prompts: Any, keys_b: Any, *, edits: Any, cfg: Any, sampling: Sampling
) -> Any:
    return generate(params, prompts, keys_b, cfg=cfg, sampling=sampling, edits=edits)


def _stops(options: Mapping[str, Any]) -> list[str]:
    until = options.get("until") or []
    return [until] if isinstance(until, str) else [text for text in until if text]


def _until(text: str, stops: Sequence[str]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text
