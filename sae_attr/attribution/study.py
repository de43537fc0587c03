"""The stages of an attribution run: mean → gradients → firing rates → scores; each is stored under what it depends on."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.attribution.corpus import (
    CorpusBatch,
    MeanActivation,
    firing_rates,
    limited,
    mean_activation,
    site_acts,
    weighted_codes,
)
from sae_attr.attribution.scores import Moment, best_direction, check_width, quadratic_form, score_dictionary
from sae_attr.attribution.settings import Preset, Settings
from sae_attr.attribution.statistics import halves
from sae_attr.attribution.table import (
    TokenTable,
    gradient_batches,
    merge,
    prompt_scores,
    table_from_batches,
    table_moment,
    token_weights,
)
from sae_attr.data import Encoded, batches, corpus_batches, corpus_mask, encode_pairs
from sae_attr.hooks import Site, parse_site
from sae_attr.lm.config import LMConfig
from sae_attr.lm.model import Params, check_site
from sae_attr.lm.weights import load_config, load_lm, resolve_model
from sae_attr.pairs import Pair, read_pairs
from sae_attr.parallel import from_main, shard_batch
from sae_attr.sae.formats import load_sae, open_decoder, read_config
from sae_attr.sae.model import SAE, encode, unit_decoder
from sae_attr.store import Result, Store, digest, fingerprint, run_stage
from sae_attr.tensorfiles import RowSource
from sae_attr.textfiles import read_corpus
from sae_attr.tokenizer import Tokenizer, load_tokenizer

CODE_VERSION = 1  # raised when a stage's code gives other numbers than before


@dataclass(frozen=True, eq=False)
class Study:
    """Settings with what they name: files are looked at when first asked for, weights loaded only if a stage must run.

    Raises ValueError from the properties for inputs that do not fit each other.
    """

    settings: Settings
    store: Store
    mesh: jax.sharding.Mesh
    progress: bool = True

    @functools.cached_property
    def cfg(self) -> LMConfig:
        """The model's config, before its weights are read."""
        resid = self.settings.resid_dtype or ("float64" if self.settings.dtype == "float64" else "float32")
        return load_config(self.settings.lm, resid_dtype=resid)

    @functools.cached_property
    def params(self) -> Params:
        """The model's weights on the mesh."""
        return self._load(self.settings.lm)

    def _load(self, path: str) -> Params:
        cfg, params = load_lm(
            path, mesh=self.mesh, dtype=self.settings.dtype, resid_dtype=self.cfg.resid_dtype, progress=self.progress
        )
        if replace(cfg, bos_id=None, eos_id=None) != replace(self.cfg, bos_id=None, eos_id=None):
            raise ValueError(
                f"{path} and {self.settings.lm} have different configs; both must be the same architecture"
            )
        return params

    @functools.cached_property
    def sae_cfg(self) -> Any:
        """The SAE's config."""
        cfg = read_config(self.settings.sae, self.settings.sae_format, **self.settings.sae_options)
        if cfg.site_out not in (None, cfg.site):
            raise ValueError(f"{self.settings.sae} is a transcoder to {cfg.site_out}; only SAEs of one site are ranked")
        check_width(cfg.d_out, self.cfg.width(self.site_of(cfg).point))
        return cfg

    def site_of(self, sae_cfg: Any) -> Site:
        """The site that is studied: the settings', or the one that the SAE's file names."""
        name = self.settings.site or sae_cfg.site
        if name is None:
            raise ValueError(
                f"{self.settings.sae} does not say where it reads; set site, for instance layer2.resid_post"
            )
        site = parse_site(name)
        check_site(self.cfg, site)
        return site

    @functools.cached_property
    def site(self) -> Site:
        """The studied site, checked against the model and the SAE."""
        return self.site_of(self.sae_cfg)

    @functools.cached_property
    def sae(self) -> SAE:
        """The whole SAE in memory, for codes."""
        return load_sae(self.settings.sae, fmt=self.settings.sae_format, **self.settings.sae_options)

    @functools.cached_property
    def decoder(self) -> RowSource:
        """Decoder rows, read from disk as they are needed."""
        return open_decoder(self.settings.sae, fmt=self.settings.sae_format, **self.settings.sae_options)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return load_tokenizer(resolve_model(self.settings.lm))

    @functools.cached_property
    def exclude(self) -> frozenset[str]:
        """Tokens that count neither in δ nor in ā: the settings', else what the SAE was not trained on."""
        if self.settings.exclude is not None:
            return frozenset(self.settings.exclude)
        return frozenset({"special"} if self.sae_cfg.exclude_special else ())

    @functools.cached_property
    def prepend_bos(self) -> bool | None:
        """Whether rows begin with BOS: the settings', else the SAE's training, else the tokenizer's habit (None)."""
        asked = self.settings.prepend_bos if self.settings.prepend_bos is not None else self.sae_cfg.prepend_bos
        return asked if self.tokenizer.bos_id is not None else None

    @functools.cached_property
    def context(self) -> int:
        """The longest row that is accepted."""
        return min(self.settings.context or self.cfg.max_len, self.cfg.max_len)

    @functools.cached_property
    def pairs(self) -> list[Pair]:
        """The records."""
        return read_pairs(self.settings.pairs)

    @functools.cached_property
    def encoded(self) -> Encoded:
        """Token rows of all completions."""
        return encode_pairs(
            self.pairs, self.tokenizer, context=self.context, path=self.settings.pairs, prepend_bos=self.prepend_bos
        )

    @functools.cached_property
    def lm_key(self) -> str:
        """Names the model by its files' contents: pairs that it sampled carry it as their sampler."""
        return fingerprint(resolve_model(self.settings.lm))

    @functools.cached_property
    def sae_key(self) -> str:
        """Names the SAE by its files' contents and how they were read."""
        local = not self.settings.sae.startswith("hf://")
        name = fingerprint(self.settings.sae) if local else self.settings.sae
        return digest([name, self.settings.sae_format, dict(self.settings.sae_options)])

    def model_fields(self) -> dict[str, Any]:
        """What activations depend on, beside the files."""
        return {"site": str(self.site), "dtype": self.settings.dtype, "resid_dtype": self.cfg.resid_dtype}

    def key(self, number: int) -> jax.Array:
        """The random key of one purpose."""
        return jax.random.fold_in(jax.random.key(self.settings.seed), number)

    def stage(self, name: str, fields: Mapping[str, Any], inputs: Mapping[str, str], fn: Any) -> Result:
        """Loads or computes a stage; with several hosts all compute or none."""
        return run_stage(self.store, name, CODE_VERSION, fields, inputs, fn, agree=from_main)

    def corpus_work(self) -> Iterator[CorpusBatch]:
        """Corpus batches with the run's one mask rule."""
        texts = read_corpus(self.settings.corpus)
        work = corpus_batches(
            texts, self.tokenizer, context=self.corpus_context, batch_size=self.settings.corpus_batch,
            prepend_bos=self.prepend_bos, max_tokens=self.settings.corpus_tokens,
        )  # fmt: skip
        for tokens_bt, valid_bt, special_bt in work:
            yield (
                tokens_bt,
                valid_bt,
                corpus_mask(tokens_bt, valid_bt, special_bt, self.tokenizer, exclude=self.exclude),
            )

    @functools.cached_property
    def corpus_context(self) -> int:
        """Tokens per corpus text."""
        return min(self.settings.corpus_context or self.sae_cfg.context_size or self.context, self.context)

    def corpus_fields(self) -> dict[str, Any]:
        """What corpus statistics depend on, beside the files; the batch size is not among it."""
        s = self.settings
        masks = {"exclude": sorted(self.exclude), "prepend_bos": self.prepend_bos, "context": self.corpus_context}
        return {**self.model_fields(), **masks, "tokens": s.corpus_tokens}


def mean_stage(study: Study) -> tuple[MeanActivation, Result]:
    """ā over the corpus."""

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        mean = mean_activation(
            study.params, study.corpus_work(), cfg=study.cfg, site=study.site, mesh=study.mesh, progress=study.progress
        )
        return {"mean_d": mean.mean_d}, {"norm": mean.norm, "tokens": mean.tokens}

    inputs = {"lm": study.lm_key, "corpus": fingerprint(study.settings.corpus)}
    result = study.stage("mean", study.corpus_fields(), inputs, compute)
    return MeanActivation(np.asarray(result.arrays["mean_d"]), result.meta["norm"], result.meta["tokens"]), result


def gradient_stage(study: Study) -> tuple[TokenTable, Result]:
    """Activations and gradients of every token of every completion; continues at the next batch after a kill."""
    rows = study.encoded.rows
    s = study.settings

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        work = batches(rows, batch_size=s.batch_size, context=study.context)
        done = progress.done()
        todo = [(i, item) for i, item in enumerate(work) if str(i) not in done]
        results = gradient_batches(
            study.params, [item for _, item in todo], cfg=study.cfg, site=study.site, mesh=study.mesh, loss=s.loss,
            remat=s.remat,
        ) if todo else iter(())  # fmt: skip
        bar = tqdm(total=len(work), initial=len(done), desc="gradients", unit="batch", disable=not study.progress)
        fresh: dict[int, Any] = {}
        for (i, _), arrays in zip(todo, results, strict=True):
            progress.add(str(i), arrays)
            if not study.store.writer:
                fresh[i] = arrays  # only the writer has files to read back
            bar.update()
        bar.close()
        table = table_from_batches(rows, (fresh.get(i) or progress.get(str(i))[0] for i in range(len(work))))
        return {"acts_kd": table.acts_kd, "grads_kd": table.grads_kd, "nll_r": table.nll_r}, {"batches": len(work)}

    fields = {**study.model_fields(), "loss": s.loss, "batch_size": s.batch_size, "rows": _rows_key(study)}
    result = study.stage("gradients", fields, {"lm": study.lm_key}, compute)
    start_r = np.cumsum([0, *(len(row.ids) for row in rows)])
    a = result.arrays
    return TokenTable(rows, a["acts_kd"], a["grads_kd"], start_r, np.asarray(a["nll_r"])), result


def _rows_key(study: Study) -> str:
    return digest([[row.ids, row.n_prompt, row.pair, row.side] for row in study.encoded.rows])


def firing_stage(study: Study) -> tuple[np.ndarray, Result]:
    """Firing rates `[n]` over `firing_tokens` corpus positions, fewer where the dense limit asks; NaN below 1,000."""
    n, s = study.sae_cfg.n_latents, study.settings
    positions = min(s.dense_limit // n, s.firing_tokens, s.corpus_tokens)

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if positions < 1000:
            return {"rate_n": np.full(n, np.nan, np.float32)}, {"tokens": 0}
        rate_n, tokens = firing_rates(
            study.params, limited(study.corpus_work(), positions), study.sae, cfg=study.cfg, site=study.site,
            mesh=study.mesh, progress=study.progress,
        )  # fmt: skip
        return {"rate_n": rate_n}, {"tokens": tokens}

    inputs = {"lm": study.lm_key, "corpus": fingerprint(study.settings.corpus), "sae": study.sae_key}
    result = study.stage("firing", {**study.corpus_fields(), "positions": positions}, inputs, compute)
    return np.asarray(result.arrays["rate_n"]), result


# ---- scores of the whole dictionary --------------------------------------------------------------------------------------


def score_stage(study: Study, table: TokenTable, mean: MeanActivation, inputs: Mapping[str, str]) -> Result:
    """Every score of every latent, in one pass over the dictionary, and the numbers that concern the whole ranking.

    Arrays `[n]`: `both`, `gated`, `gradient`, `projection` for each scope that a preset uses, `positive_only`,
    `both_prompt_mean`, `both_half0`, `both_half1` for the primary scope; `delta_projection`; and, as far as the dense limit
    allows, `active`, `quadrant`, `delta_code`, `delta_activation` (absent otherwise, and named in `meta["skipped"]`).
    """

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        arrays, meta = _dictionary_pass(study, table, mean)
        skipped: dict[str, str] = {}
        for scope in _scopes(study):
            arrays.update(_dense_sides(study, table, mean, scope, skipped))
        arrays.update(_code_rivals(study, table, skipped))
        return arrays, {**meta, "skipped": skipped}

    s = study.settings
    fields = {
        "exclude": sorted(study.exclude),
        "dense_limit": s.dense_limit,
        "seed": s.seed,
        "scopes": _scopes(study),
        "rows": _rows_key(study),
    }
    aligned = {"lm_aligned": fingerprint(resolve_model(s.lm_aligned))} if s.lm_aligned else {}
    return study.stage("scores", fields, {**inputs, "sae": study.sae_key, **aligned}, compute)


def _scopes(study: Study) -> list[str]:
    """Token scopes that a preset uses, the primary one first."""
    return list(dict.fromkeys(preset.tokens for preset in study.settings.presets()))


def _dictionary_pass(
    study: Study, table: TokenTable, mean: MeanActivation
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    forms: dict[str, Any] = {}
    vectors: dict[str, Any] = {}
    mean_d = jnp.asarray(mean.mean_d, jnp.float32)
    for scope in _scopes(study):
        w_k = token_weights(table.rows, scope, study.exclude)
        m = table_moment(table, w_k)
        forms[f"both_{scope}"] = quadratic_form(m, mean_d)
        vectors[f"gradient_{scope}"] = -m.g_d
        vectors[f"projection_{scope}"] = _mean_acts(table, np.abs(w_k) / np.abs(w_k).sum()) - mean_d
    primary = _scopes(study)[0]
    w_k = token_weights(table.rows, primary, study.exclude)
    side_k = np.repeat([row.side for row in table.rows], np.diff(table.start_r))
    forms["positive_only"] = quadratic_form(table_moment(table, np.where(side_k > 0, w_k, 0)), mean_d)
    whole = table_moment(table, w_k)
    prompt_k = token_weights(table.rows, "prompt", study.exclude)
    prompt_mean_d = _mean_acts(table, np.abs(prompt_k) / np.abs(prompt_k).sum())
    forms["both_prompt_mean"] = quadratic_form(whole, prompt_mean_d)
    for name, m in _half_moments(study, table, w_k):
        forms[name] = quadratic_form(m, mean_d)
    completion_k = token_weights(table.rows, "completion", study.exclude)
    vectors["delta_projection"] = _mean_acts(table, completion_k)
    arrays = score_dictionary(study.decoder, forms, vectors, mesh=study.mesh, progress=study.progress)
    for scope in _scopes(study):
        arrays[f"gated_{scope}"] = np.where(arrays[f"gradient_{scope}"] > 0, arrays[f"both_{scope}"], 0)
    bound, direction_d = best_direction(whole, mean_d)
    arrays["best_direction_d"] = np.asarray(direction_d)
    best = float(arrays[f"both_{primary}"].max())
    return arrays, {"bound": float(bound), "best_over_bound": best / float(bound)}


def _mean_acts(table: TokenTable, weights_k: np.ndarray) -> jax.Array:
    """Σ_k w_k a_k, float64 on the host, a block at a time."""
    total_d = np.zeros(table.acts_kd.shape[1])
    for start in range(0, len(weights_k), 65536):
        part = slice(start, start + 65536)
        total_d += weights_k[part] @ np.asarray(table.acts_kd[part], np.float64)
    return jnp.asarray(total_d, jnp.float32)


def _half_moments(study: Study, table: TokenTable, w_k: np.ndarray) -> Iterator[tuple[str, Moment]]:
    """Moments of two random halves of the prompts, each a mean over its own prompts; none with fewer than two."""
    prompts = sorted({row.pair for row in table.rows})
    if len(prompts) < 2:
        return
    first = halves(len(prompts), study.key(1))
    in_first = dict(zip(prompts, first, strict=True))
    half_k = np.repeat([in_first[row.pair] for row in table.rows], np.diff(table.start_r))
    for i, mask in enumerate((half_k, ~half_k)):
        share = (first if i == 0 else ~first).mean()
        yield f"both_half{i}", table_moment(table, np.where(mask, w_k, 0) / share)


def _dense_sides(
    study: Study, table: TokenTable, mean: MeanActivation, scope: str, skipped: dict[str, str]
) -> dict[str, np.ndarray]:
    """`active` and `quadrant` of all latents, which are no quadratic forms: token by token, in chunks of latents."""
    merged = merge(table, scope, study.exclude)
    n, cost = len(study.decoder), len(study.decoder) * len(merged.acts_jd)
    if cost > study.settings.dense_limit:
        for sides in ("active", "quadrant"):
            skipped[f"{sides}_{scope}"] = (
                f"{cost:.3g} latents x tokens exceed dense_limit {study.settings.dense_limit:.3g}"
            )
        return {}
    out = {f"{sides}_{scope}": np.empty(n, np.float32) for sides in ("active", "quadrant")}
    chunk = min(n, 1024)
    for start in tqdm(range(0, n, chunk), desc=f"sides, {scope}", unit="chunk", disable=not study.progress):
        rows_cd = study.decoder.rows(start, min(start + chunk, n))
        dec_cd = unit_decoder(jnp.pad(jnp.asarray(rows_cd), ((0, chunk - len(rows_cd)), (0, 0))))
        for sides in ("active", "quadrant"):
            scores_pc = prompt_scores(merged, dec_cd, jnp.asarray(mean.mean_d, jnp.float32), sides=sides)
            out[f"{sides}_{scope}"][start : start + len(rows_cd)] = scores_pc.mean(0)[: len(rows_cd)]
    return out


def _code_rivals(study: Study, table: TokenTable, skipped: dict[str, str]) -> dict[str, np.ndarray]:
    """`delta_code` within the model and `delta_activation` between two: differences of mean codes, signed."""
    n = study.sae_cfg.n_latents
    block = max(1, min(4096, 2**25 // n))
    encode_fn = functools.partial(encode, study.sae)
    weights = {
        "delta_code": token_weights(table.rows, "completion", study.exclude),
        "delta_activation": np.abs(token_weights(table.rows, "prompt", study.exclude)),
    }
    out: dict[str, np.ndarray] = {}
    for name, w_k in weights.items():
        cost = n * int((w_k != 0).sum())
        if name == "delta_activation" and not study.settings.lm_aligned:
            skipped[name] = "no second model: set lm_aligned"
        elif cost > study.settings.dense_limit:
            skipped[name] = f"{cost:.3g} latents x tokens exceed dense_limit {study.settings.dense_limit:.3g}"
        elif name == "delta_code":
            out[name] = weighted_codes(encode_fn, table.acts_kd, w_k, block=block).astype(np.float32)
        else:
            w_k = w_k / w_k.sum()
            ours = weighted_codes(encode_fn, table.acts_kd, w_k, block=block)
            theirs = weighted_codes(encode_fn, _aligned_acts(study, table), w_k, block=block)
            out[name] = (ours - theirs).astype(np.float32)
    return out


def _aligned_acts(study: Study, table: TokenTable) -> np.ndarray:
    """The second model's activations on the same tokens, `[k, d]`."""
    params = study._load(str(study.settings.lm_aligned))
    step = jax.jit(lambda p, b: site_acts(p, b.tokens_bt, b.valid_bt, cfg=study.cfg, site=study.site))
    acts_kd = np.empty_like(table.acts_kd)
    for batch, row_b in batches(table.rows, batch_size=study.settings.batch_size, context=study.context):
        acts_btd = np.asarray(step(params, shard_batch(batch, study.mesh)))
        for b, row in enumerate(row_b):
            if row >= 0:
                acts_kd[table.tokens_of(row)] = acts_btd[b, : len(table.rows[row].ids)]
    return acts_kd


def preset_scores(study: Study, preset: Preset, scores: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """A preset's score of every latent, or None where the dense limit left it out."""
    values = scores.get(f"{preset.sides}_{preset.tokens}")
    return None if values is None else np.asarray(values)
