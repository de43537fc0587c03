"""The stages of an attribution run: mean → gradients → firing rates → scores; each
stored under what it depends on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from sae_attr.activations import MeanActivation, mean_activation
from sae_attr.attribution.corpus import CodeStatistics, code_statistics
from sae_attr.attribution.integrated import Path
from sae_attr.attribution.scores import (
    Moment,
    best_direction,
    quadratic_form,
    score_dictionary,
)
from sae_attr.attribution.statistics import halves
from sae_attr.attribution.table import (
    TokenTable,
    gradient_batches,
    table_from_batches,
    table_moment,
)
from sae_attr.parallel import from_main
from sae_attr.sae_check import (
    SAECheck,
    SAEMeasurement,
    check_record,
    check_table,
    judge_sae,
    measure_sae,
    read_stated_metrics,
)
from sae_attr.store import Result, digest
from sae_attr.study.attribution_settings import Preset
from sae_attr.study.evidence import Evidence
from sae_attr.study.score_table import (
    SCORES,
    Derived,
    Form,
    Made,
    Vector,
    key_of,
    score_versions,
)
from sae_attr.study.setup import Setup
from sae_attr.study.skipped import Skipped


def sae_check_stage(setup: Setup) -> tuple[SAECheck, Result]:
    """Checks the SAE at its site: the measurement is stored, its verdict is not."""
    stated_metrics = read_stated_metrics(setup.settings.sae, setup.sae_cfg)

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        measurement = measure_sae(
            setup.params,
            setup.sae,
            setup.corpus.unmasked(setup.settings.sae_check_tokens),
            cfg=setup.cfg,
            site=setup.site,
            read=setup.read_site,
            mesh=setup.mesh,
            stated_l0=stated_metrics.l0,
            masks=setup.tested_masks,
        )
        return {}, {"measured": measurement.to_dict()}

    fields = {
        **setup.model_fields(),
        "prepend_bos": setup.prepend_bos,
        "context": setup.corpus_context,
        "tokens": setup.settings.sae_check_tokens,
        "stated_l0": stated_metrics.l0,
        "read": str(setup.read_site),
        "masks": setup.tested_masks.to_dict(),
    }
    inputs = {"lm": setup.lm_key, "corpus": setup.corpus_key, "sae": setup.sae_key}
    result = setup.stage("sae-check", fields, inputs, compute)
    measurement = SAEMeasurement.from_dict(result.meta["measured"])
    counts_special = not setup.exclude
    return judge_sae(measurement, stated_metrics, counts_special=counts_special), result


def check_sae(setup: Setup) -> tuple[dict[str, Any], list[Result]]:
    """Returns the SAE check as `sae_check.check_record` has it, and its stage; only a
    reason where it is left out.

    Raises:
      ValueError: the SAE fails it, and `trust_sae` is not set.
    """
    if not setup.settings.sae_check_tokens:
        return {"skipped": "sae_check_tokens=0"}, []
    if setup.sae_cfg.no_token_codes:
        return {"skipped": setup.sae_cfg.no_token_codes}, []
    check, result = sae_check_stage(setup)
    if not check.passes and not setup.settings.trust_sae:
        raise ValueError(
            f"the SAE {setup.settings.sae} {check.verdict}\n{check_table(check)}\n"
            "correct how it is loaded (site, sae_options, exclude), or go on all the "
            f"same with {setup.flag('trust_sae')}=True"
        )
    return {"trusted": setup.settings.trust_sae, **check_record(check)}, [result]


def mean_stage(setup: Setup) -> tuple[MeanActivation, Result]:
    """ā over the corpus."""

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        mean = mean_activation(
            setup.params,
            setup.corpus.batches(),
            cfg=setup.cfg,
            site=setup.site,
            mesh=setup.mesh,
            limits=setup.limits,
            progress=setup.progress,
        )
        return {"mean_d": mean.mean_d}, {
            "norm": mean.norm,
            "tokens": mean.tokens,
            "outliers": mean.outliers,
        }

    inputs = {"lm": setup.lm_key, "corpus": setup.corpus_key}
    result = setup.stage("mean", setup.corpus_fields(), inputs, compute)
    numbers = {name: result.meta[name] for name in ("norm", "tokens", "outliers")}
    return MeanActivation(np.asarray(result.arrays["mean_d"]), **numbers), result


def gradient_stage(
    setup: Setup, mean: MeanActivation, mean_key: str
) -> tuple[TokenTable, Result]:
    """Activations and gradients of every token of every completion; continues at the
    next batch after a kill.
    """
    rows = setup.rows
    s, integrated = setup.settings, setup.settings.gradient == "integrated"
    path = (
        Path(mean.mean_d, setup.where(rows, s.presets()[0].tokens), s.gradient_steps)
        if integrated
        else None
    )

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        work = setup.batched(rows)
        names = [
            shard_name(batch.tokens_bt.shape, i) for i, (batch, _) in enumerate(work)
        ]
        done = agreed(progress.done(), names)
        todo = [
            (name, item)
            for name, item in zip(names, work, strict=True)
            if name not in done
        ]
        results = (
            gradient_batches(
                setup.params,
                [item for _, item in todo],
                cfg=setup.cfg,
                site=setup.site,
                mesh=setup.mesh,
                loss=s.loss,
                remat=s.remat,
                rules=s.rules,
                path=path,
                read=setup.read_site,
            )
            if todo
            else iter(())
        )
        bar = tqdm(
            total=len(work),
            initial=len(done),
            desc="gradients",
            unit="batch",
            disable=not setup.progress,
        )
        fresh: dict[str, Any] = {}
        for (name, _), arrays in zip(todo, results, strict=True):
            progress.add(name, arrays)
            if not setup.store.writer:
                fresh[name] = arrays  # only the writer has files to read back
            bar.update()
        bar.close()
        table = table_from_batches(
            rows, (fresh.get(name) or progress.get(name)[0] for name in names)
        )
        arrays = {
            "acts_kd": table.acts_kd,
            "grads_kd": table.grads_kd,
            "nll_r": table.nll_r,
        }
        return arrays | (
            {} if table.inputs_kd is None else {"inputs_kd": table.inputs_kd}
        ), {"batches": len(work)}

    fields = {
        **setup.model_fields(),
        "loss": s.loss,
        "rows": _rows_key(setup),
        "gradient": sorted(s.rules),
    }
    inputs = {"lm": setup.lm_key}
    if setup.read_site != setup.site:
        fields["read"] = str(setup.read_site)
    if integrated:
        line = {
            "steps": s.gradient_steps,
            "scope": s.presets()[0].tokens,
            "masks": setup.masks.to_dict(),
        }
        fields, inputs = {**fields, "gradient": line}, {**inputs, "mean": mean_key}
    result = setup.stage("gradients", fields, inputs, compute)
    start_r = np.cumsum([0, *(len(row.ids) for row in rows)])
    a = result.arrays
    nll_r = np.asarray(a["nll_r"])
    return TokenTable(
        rows, a["acts_kd"], a["grads_kd"], start_r, nll_r, a.get("inputs_kd")
    ), result


def shard_name(shape: tuple[int, ...], index: int) -> str:
    """Names a finished batch; with its shape, so that a run with another batch size
    does not take it for its own.
    """
    return f"{shape[0]}x{shape[1]}-{index}"


def agreed(done: set[str], names: Sequence[str]) -> set[str]:
    """Which of the names process 0 found done: processes that see a file at different
    times must not part ways.
    """
    return {name for name in names if from_main(name in done)}


def _rows_key(setup: Setup) -> str:
    return digest(
        [[row.ids, row.n_prompt, row.pair, row.side] for row in setup.encoded.rows]
    )


def firing_stage(setup: Setup) -> tuple[CodeStatistics, Result]:
    """The SAE over `firing_tokens` corpus positions, fewer where the dense limit asks;
    NaN below 1,000.
    """
    n, positions = setup.sae_cfg.n_latents, setup.firing_positions

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if positions < 1000:
            sizes = {"rate_n": n, "mean_n": n, "error_m": setup.sae_cfg.d_out}
            return {
                name: np.full(size, np.nan, np.float32) for name, size in sizes.items()
            }, {"tokens": 0}
        found = code_statistics(
            setup.params,
            setup.corpus.batches(positions),
            setup.sae,
            cfg=setup.cfg,
            site=setup.site,
            read=setup.read_site,
            mesh=setup.mesh,
            limits=setup.limits,
            progress=setup.progress,
        )
        return {k: getattr(found, k) for k in ("rate_n", "mean_n", "error_m")}, {
            "tokens": found.tokens
        }

    inputs = {"lm": setup.lm_key, "corpus": setup.corpus_key, "sae": setup.sae_key}
    result = setup.stage(
        "firing", {**setup.corpus_fields(), "positions": positions}, inputs, compute
    )
    arrays = {k: np.asarray(v) for k, v in result.arrays.items()}
    return CodeStatistics(**arrays, tokens=result.meta["tokens"]), result


# ---- scores of the whole dictionary --------------------------------------------------


def score_stage(evidence: Evidence, inputs: Mapping[str, str]) -> Result:
    """Computes every score of `SCORES` for every latent, in one pass over the
    dictionary, and what concerns all of them.

    Arrays `[n]` by `key_of`, as far as the dense limit allows; `meta["skipped"]` names
    the others, and `meta["by_limit"]` those of them that candidates can have. Beside
    them `both_prompt_mean`, `both_half0` and `both_half1` of the primary scope.
    """
    setup = evidence.setup

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        made = {
            key_of(name, scope): SCORES[name].make(evidence, scope)
            for name, scope in _scored(setup)
        }
        skipped = {
            key: value for key, value in made.items() if isinstance(value, Skipped)
        }
        arrays, meta = _dictionary_pass(evidence, made)
        why = {key: value.why for key, value in skipped.items()}
        return arrays, {
            **meta,
            "skipped": why,
            "by_limit": [key for key, value in skipped.items() if value.by_limit],
        }

    s = setup.settings
    fields = {
        "masks": setup.masks.to_dict(),
        "dense_limit": s.dense_limit,
        "seed": s.seed,
        "scopes": _scopes(setup),
        "rows": _rows_key(setup),
        "scores": score_versions(),
    }
    aligned = {"lm_aligned": setup.aligned_key} if s.lm_aligned else {}
    return setup.stage(
        "scores", fields, {**inputs, "sae": setup.sae_key, **aligned}, compute
    )


def _scopes(setup: Setup) -> list[str]:
    """Token scopes that a preset uses, the primary one first."""
    return list(dict.fromkeys(preset.tokens for preset in setup.settings.presets()))


def _scored(setup: Setup) -> list[tuple[str, str]]:
    """Every score with each scope that it has: scope by scope, so that a scope's tokens
    are merged once.
    """
    scopes = _scopes(setup)
    each = [name for name, score in SCORES.items() if score.scope == "each"]
    others = [name for name, score in SCORES.items() if score.scope != "each"]
    return [
        *((name, scope) for scope in scopes for name in each),
        *((name, scopes[0]) for name in others),
    ]


def _dictionary_pass(
    evidence: Evidence, made: Mapping[str, Made]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores forms and vectors in one pass over the decoder's rows, then adds what is
    derived of them.
    """
    setup, mean_d, primary = evidence.setup, evidence.mean_d, _scopes(evidence.setup)[0]
    forms = {
        key: value.matrix_dd for key, value in made.items() if isinstance(value, Form)
    }
    vectors = {
        key: value.vector_d for key, value in made.items() if isinstance(value, Vector)
    }
    whole, prompt_k = evidence.moment(primary), evidence.weights("prompt")
    prompt_mean_d = evidence.mean_acts(np.abs(prompt_k) / np.abs(prompt_k).sum())
    forms["both_prompt_mean"] = quadratic_form(whole, prompt_mean_d)
    for name, moment in _half_moments(setup, evidence.table, evidence.weights(primary)):
        forms[name] = quadratic_form(moment, mean_d)
    arrays = score_dictionary(
        setup.decoder, forms, vectors, mesh=setup.mesh, progress=setup.progress
    )
    arrays |= {
        key: value for key, value in made.items() if isinstance(value, np.ndarray)
    }
    for key, value in made.items():
        if isinstance(value, Derived):
            arrays[key] = value.of(arrays)
    bound, direction_d = best_direction(whole, mean_d)
    arrays["best_direction_d"] = np.asarray(direction_d)
    best = float(arrays[f"both_{primary}"].max())
    return arrays, {"bound": float(bound), "best_over_bound": best / float(bound)}


def _half_moments(
    setup: Setup, table: TokenTable, w_k: np.ndarray
) -> Iterator[tuple[str, Moment]]:
    """Moments of two random halves of the prompts, each a mean over its own prompts;
    none with fewer than two.
    """
    prompts = sorted({row.pair for row in table.rows})
    if len(prompts) < 2:
        return
    first = halves(len(prompts), setup.key(1))
    in_first = dict(zip(prompts, first, strict=True))
    half_k = np.repeat(
        [in_first[row.pair] for row in table.rows], np.diff(table.start_r)
    )
    for i, mask in enumerate((half_k, ~half_k)):
        share = (first if i == 0 else ~first).mean()
        yield f"both_half{i}", table_moment(table, np.where(mask, w_k, 0) / share)


def preset_scores(
    preset: Preset, scores: Mapping[str, np.ndarray]
) -> np.ndarray | None:
    """Returns a preset's score of every latent, or None where the dense limit left it
    out.
    """
    values = scores.get(key_of(preset.sides, preset.tokens))
    return None if values is None else np.asarray(values)
