"""The stages of an attribution run: mean → gradients → firing rates → scores; each stored under what it depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.activations import MeanActivation, mean_activation
from sae_attr.attribution.codes import code_rivals
from sae_attr.attribution.corpus import (
    CodeStatistics,
    code_statistics,
)
from sae_attr.attribution.encoder import encoder_prompt_scores
from sae_attr.attribution.integrated import Path
from sae_attr.attribution.merged import MergedTokens, merge, prompt_scores
from sae_attr.attribution.scores import Moment, best_direction, quadratic_form, score_dictionary
from sae_attr.attribution.settings import Preset
from sae_attr.attribution.statistics import halves
from sae_attr.attribution.study import Study
from sae_attr.attribution.table import (
    TokenTable,
    gradient_batches,
    table_from_batches,
    table_moment,
    token_weights,
)
from sae_attr.fitness import Measured, Promise, Verdict, judge, measure, promised, record, table
from sae_attr.parallel import from_main
from sae_attr.sae.model import unit_decoder
from sae_attr.store import Result, digest


def fitness_stage(study: Study) -> tuple[Measured, Promise, Verdict, Result]:
    """The self-test of the SAE at the site: what was measured is stored, the verdict on it is made anew."""
    promise = promised(study.settings.sae, study.sae_cfg)

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        measured = measure(
            study.params, study.sae, study.text_work(study.settings.fitness_tokens), cfg=study.cfg, site=study.site,
            read=study.read_site, mesh=study.mesh, expected_l0=promise.l0, masks=study.tested_masks,
        )  # fmt: skip
        return {}, {"measured": measured.to_dict()}

    fields = {**study.model_fields(), "prepend_bos": study.prepend_bos, "context": study.corpus_context}
    fields |= {"tokens": study.settings.fitness_tokens, "expected_l0": promise.l0, "read": str(study.read_site)}
    fields["masks"] = study.tested_masks.to_dict()
    inputs = {"lm": study.lm_key, "corpus": study.corpus_key, "sae": study.sae_key}
    result = study.stage("fitness", fields, inputs, compute)
    measured = Measured.from_dict(result.meta["measured"])
    verdict = judge(measured, promise, counts_special=not study.exclude)
    return measured, promise, verdict, result


def self_test(study: Study) -> tuple[dict[str, Any], list[Result]]:
    """The SAE's self-test as `fitness.record` has it, and its stage; only a reason where it is left out.

    Raises:
      ValueError: the SAE fails it, and `trust_sae` is not set.
    """
    if not study.settings.fitness_tokens:
        return {"skipped": "fitness_tokens=0"}, []
    if study.sae_cfg.no_token_codes:
        return {"skipped": study.sae_cfg.no_token_codes}, []
    measured, promise, verdict, result = fitness_stage(study)
    if not verdict.passes and not study.settings.trust_sae:
        raise ValueError(
            f"the SAE {study.settings.sae} {verdict.sentence}\n{table(measured, promise, verdict)}\n"
            f"load it rightly (site, sae_options, exclude), or go on all the same with {study.flag('trust_sae')}=True"
        )
    return {"trusted": study.settings.trust_sae, **record(measured, promise, verdict)}, [result]


def mean_stage(study: Study) -> tuple[MeanActivation, Result]:
    """ā over the corpus."""

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        mean = mean_activation(
            study.params, study.corpus_work(), cfg=study.cfg, site=study.site, mesh=study.mesh, limits=study.limits,
            progress=study.progress,
        )  # fmt: skip
        return {"mean_d": mean.mean_d}, {"norm": mean.norm, "tokens": mean.tokens, "outliers": mean.outliers}

    inputs = {"lm": study.lm_key, "corpus": study.corpus_key}
    result = study.stage("mean", study.corpus_fields(), inputs, compute)
    numbers = {name: result.meta[name] for name in ("norm", "tokens", "outliers")}
    return MeanActivation(np.asarray(result.arrays["mean_d"]), **numbers), result


def gradient_stage(study: Study, mean: MeanActivation, mean_key: str) -> tuple[TokenTable, Result]:
    """Activations and gradients of every token of every completion; continues at the next batch after a kill."""
    rows = study.rows
    s, integrated = study.settings, study.settings.gradient == "integrated"
    path = Path(mean.mean_d, study.where(rows, s.presets()[0].tokens), s.gradient_steps) if integrated else None

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        work = study.batched(rows)
        names = [shard_name(batch.tokens_bt.shape, i) for i, (batch, _) in enumerate(work)]
        done = agreed(progress.done(), names)
        todo = [(name, item) for name, item in zip(names, work, strict=True) if name not in done]
        results = gradient_batches(
            study.params, [item for _, item in todo], cfg=study.cfg, site=study.site, mesh=study.mesh, loss=s.loss,
            remat=s.remat, rules=s.rules, path=path, read=study.read_site,
        ) if todo else iter(())  # fmt: skip
        bar = tqdm(total=len(work), initial=len(done), desc="gradients", unit="batch", disable=not study.progress)
        fresh: dict[str, Any] = {}
        for (name, _), arrays in zip(todo, results, strict=True):
            progress.add(name, arrays)
            if not study.store.writer:
                fresh[name] = arrays  # only the writer has files to read back
            bar.update()
        bar.close()
        table = table_from_batches(rows, (fresh.get(name) or progress.get(name)[0] for name in names))
        arrays = {"acts_kd": table.acts_kd, "grads_kd": table.grads_kd, "nll_r": table.nll_r}
        return arrays | ({} if table.inputs_kd is None else {"inputs_kd": table.inputs_kd}), {"batches": len(work)}

    fields = {**study.model_fields(), "loss": s.loss, "rows": _rows_key(study), "gradient": sorted(s.rules)}
    inputs = {"lm": study.lm_key}
    if study.read_site != study.site:
        fields["read"] = str(study.read_site)
    if integrated:
        line = {"steps": s.gradient_steps, "scope": s.presets()[0].tokens, "masks": study.masks.to_dict()}
        fields, inputs = {**fields, "gradient": line}, {**inputs, "mean": mean_key}
    result = study.stage("gradients", fields, inputs, compute)
    start_r = np.cumsum([0, *(len(row.ids) for row in rows)])
    a = result.arrays
    nll_r = np.asarray(a["nll_r"])
    return TokenTable(rows, a["acts_kd"], a["grads_kd"], start_r, nll_r, a.get("inputs_kd")), result


def shard_name(shape: tuple[int, ...], index: int) -> str:
    """Names a finished batch; with its shape, so that a run with another batch size does not take it for its own."""
    return f"{shape[0]}x{shape[1]}-{index}"


def agreed(done: set[str], names: Sequence[str]) -> set[str]:
    """Which of the names process 0 found done: processes that see a file at different times must not part ways."""
    return {name for name in names if from_main(name in done)}


def _rows_key(study: Study) -> str:
    return digest([[row.ids, row.n_prompt, row.pair, row.side] for row in study.encoded.rows])


def firing_stage(study: Study) -> tuple[CodeStatistics, Result]:
    """The SAE over `firing_tokens` corpus positions, fewer where the dense limit asks; NaN below 1,000."""
    n, positions = study.sae_cfg.n_latents, study.firing_positions

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if positions < 1000:
            sizes = {"rate_n": n, "mean_n": n, "error_m": study.sae_cfg.d_out}
            return {name: np.full(size, np.nan, np.float32) for name, size in sizes.items()}, {"tokens": 0}
        found = code_statistics(
            study.params, study.corpus_work(positions), study.sae, cfg=study.cfg, site=study.site,
            read=study.read_site, mesh=study.mesh, limits=study.limits, progress=study.progress,
        )  # fmt: skip
        return {k: getattr(found, k) for k in ("rate_n", "mean_n", "error_m")}, {"tokens": found.tokens}

    inputs = {"lm": study.lm_key, "corpus": study.corpus_key, "sae": study.sae_key}
    result = study.stage("firing", {**study.corpus_fields(), "positions": positions}, inputs, compute)
    arrays = {k: np.asarray(v) for k, v in result.arrays.items()}
    return CodeStatistics(**arrays, tokens=result.meta["tokens"]), result


# ---- scores of the whole dictionary --------------------------------------------------------------------------------------


def score_stage(
    study: Study, table: TokenTable, mean: MeanActivation, codes: CodeStatistics, inputs: Mapping[str, str]
) -> Result:
    """Every score of every latent, in one pass over the dictionary, and the numbers that concern the whole ranking.

    Arrays `[n]`: `both`, `gated`, `gradient`, `projection` for each scope that a preset uses, `positive_only`,
    `both_prompt_mean`, `both_half0`, `both_half1` for the primary scope; `delta_projection`; and, as far as the dense limit
    allows, `active`, `quadrant`, `encoder`, `delta_code`, `delta_activation` (absent otherwise, and named in
    `meta["skipped"]`).
    """

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        arrays, meta = _dictionary_pass(study, table, mean)
        skipped: dict[str, str] = {}
        for scope in _scopes(study):
            merged = merge(table, scope, study.exclude)
            arrays.update(_dense_sides(study, merged, mean, scope, skipped))
            arrays.update(_encoder(study, merged, codes, scope, skipped))
        arrays.update(code_rivals(study, table, skipped))
        return arrays, {**meta, "skipped": skipped}

    s = study.settings
    fields = {
        "masks": study.masks.to_dict(),
        "dense_limit": s.dense_limit,
        "seed": s.seed,
        "scopes": _scopes(study),
        "rows": _rows_key(study),
    }
    aligned = {"lm_aligned": study.aligned_key} if s.lm_aligned else {}
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


def _encoder(
    study: Study, merged: MergedTokens, codes: CodeStatistics, scope: str, skipped: dict[str, str]
) -> dict[str, np.ndarray]:
    """Δ′ of all latents, from the SAE's codes."""
    cost = len(study.decoder) * len(merged.acts_jd)
    if not codes.tokens or cost > study.settings.dense_limit:
        limit = f"{cost:.3g} latents x tokens exceed dense_limit {study.settings.dense_limit:.3g}"
        unknown = study.sae_cfg.no_token_codes or "the codes' means are unknown: too few firing_tokens"
        skipped[f"encoder_{scope}"] = limit if codes.tokens else unknown
        return {}
    return {f"encoder_{scope}": encoder_prompt_scores(merged, study.sae, codes.mean_n).mean(0).astype(np.float32)}


def _dense_sides(
    study: Study, merged: MergedTokens, mean: MeanActivation, scope: str, skipped: dict[str, str]
) -> dict[str, np.ndarray]:
    """`active` and `quadrant` of all latents, which are no quadratic forms: token by token, in chunks of latents."""
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


def preset_scores(study: Study, preset: Preset, scores: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """A preset's score of every latent, or None where the dense limit left it out."""
    values = scores.get(f"{preset.sides}_{preset.tokens}")
    return None if values is None else np.asarray(values)
