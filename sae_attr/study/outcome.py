"""A whole attribution run as one value: every ranking with its statistics, and what a
reader must know about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sae_attr.activations import MeanActivation
from sae_attr.attribution.ranking import Ranking, overlap, random_matched, rank
from sae_attr.attribution.table import TokenTable
from sae_attr.sae.config import LOCAL_GATES
from sae_attr.store import Result, fingerprint
from sae_attr.study.attribution_settings import Preset
from sae_attr.study.attribution_stages import (
    check_sae,
    firing_stage,
    gradient_stage,
    mean_stage,
    score_stage,
)
from sae_attr.study.candidates import (
    ablated_rows,
    ablation_stage,
    ablation_summary,
    candidate_columns,
    preset_ranking,
    reconstruction_error,
    rivals,
    stability,
)
from sae_attr.study.codes import RIVALS, code_stage
from sae_attr.study.evidence import Evidence
from sae_attr.study.score_table import SCORES, key_of
from sae_attr.study.setup import Setup
from sae_attr.text.rows import scope_mask

Columns = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run found.

    `columns`: per preset, one array per statistic, one entry per candidate, best first
      (the primary preset is the first key).
    `scores`: name -> `[n]`, NaN where a score was not computed. `ablation`: numbers of
      the figure, None without ablation.
    `summary`: what result.json holds beside versions.
    """

    rankings: dict[str, Ranking]
    columns: dict[str, Columns]
    scores: dict[str, np.ndarray]
    ablation: dict[str, Any] | None
    summary: dict[str, Any]


def compute(setup: Setup) -> Outcome:
    """Runs every stage that is not stored yet, and puts the results together.

    Raises:
      ValueError: the SAE fails its check, and the settings do not trust it.
    """
    check, check_results = check_sae(setup)
    mean, mean_result = mean_stage(setup)
    table, gradient_result = gradient_stage(setup, mean, mean_result.key)
    codes, firing_result = firing_stage(setup)
    rates_n = codes.rate_n
    keys = {"mean": mean_result.key, "gradients": gradient_result.key}
    evidence = Evidence(setup, table, mean, codes)
    score_result = score_stage(evidence, {**keys, "firing": firing_result.key})
    results = [
        *check_results,
        mean_result,
        gradient_result,
        firing_result,
        score_result,
    ]
    scores, presets = dict(score_result.arrays), setup.settings.presets()
    rankings = {
        preset.name: preset_ranking(evidence, preset, scores) for preset in presets
    }
    chosen = np.unique(
        np.concatenate([ranking.latents_k for ranking in rankings.values()])
    )
    skipped = dict(score_result.meta["skipped"])
    by_limit = score_result.meta["by_limit"]
    whole_rates_n = rates_n  # rates of candidates alone would draw "random" latents among the candidates
    rates_n, code_results = _fill_codes(
        setup, table, chosen, scores, rates_n, skipped, by_limit, keys
    )
    others = rivals(setup, scores, whole_rates_n, rankings[presets[0].name])
    ablated, exact, figure, ablation_results = _ablate(
        setup, rankings[presets[0].name], whole_rates_n, mean, keys
    )
    columns: dict[str, Columns] = {}
    about: dict[str, Any] = {}
    for preset in presets:
        rest = {**{k: v for k, v in rankings.items() if k != preset.name}, **others}
        ranking = rankings[preset.name]
        found, facts = candidate_columns(
            evidence, ranking, preset, scores, rates_n, rest
        )
        _fill_candidates(scores, preset, ranking, found)
        columns[preset.name] = _with_exact(found, ablated)
        about[preset.name] = {**ranking.options, **facts}
    results += [*code_results, *ablation_results]
    scores.pop("best_direction_d")
    scores["firing_rate"] = rates_n
    facts = _pair_facts(setup, table)
    summary = {
        "primary": presets[0].name,
        "presets": about,
        "stability": stability(scores, setup.settings.top),
        "prompt_mean_overlap": _prompt_mean_overlap(
            scores, presets[0], setup.settings.top
        ),
        "sae_check": check,
        "bound": {k: score_result.meta[k] for k in ("bound", "best_over_bound")},
        "exact_ablation": exact,
        "reconstruction_error": reconstruction_error(evidence, presets[0], scores),
        "pairs": facts,
        "mean": {
            "tokens": mean.tokens,
            "norm": mean.norm,
            "firing_tokens": firing_result.meta["tokens"],
        },
        "masked": _masked(setup, table, mean),
        "skipped": skipped,
        "choices": choices(setup),
        "inputs": {
            **_inputs(setup),
            "stages": {r.key.split("-")[0]: r.key for r in results},
        },
        "warnings": [*_warnings(setup, facts, check), *_pool_warnings(about)],
        "timings": {
            r.key.split("-")[0]: {"seconds": round(r.seconds, 3), "loaded": r.cached}
            for r in results
        },
    }
    return Outcome(rankings, columns, scores, figure, summary)


def _masked(setup: Setup, table: TokenTable, mean: MeanActivation) -> dict[str, int]:
    """How many tokens the masks left out: of the corpus for their norm, of prompts and
    completions for any reason.
    """
    kept = sum(
        int(scope_mask(row, "all", exclude=setup.exclude).sum()) for row in table.rows
    )
    sinks = sum(int(row.masked.sum()) for row in table.rows if row.masked is not None)
    tokens = len(table.acts_kd)
    return {
        "corpus_outliers": mean.outliers,
        "tokens": tokens,
        "left_out": tokens - kept,
        "first_and_outliers": sinks,
    }


def _prompt_mean_overlap(
    scores: Mapping[str, np.ndarray], primary: Preset, top: int
) -> float:
    """How much of the top stays if a is measured from the prompts' own mean instead of
    ordinary text's.
    """
    ours = rank("corpus", scores[f"both_{primary.tokens}"], top)
    return overlap(ours, rank("prompts", scores["both_prompt_mean"], top))


def _fill_codes(
    setup: Setup,
    table: TokenTable,
    chosen: np.ndarray,
    scores: dict[str, np.ndarray],
    rates_n: np.ndarray,
    skipped: dict[str, str],
    by_limit: Sequence[str],
    keys: Mapping[str, str],
) -> tuple[np.ndarray, list[Result]]:
    """Codes that the dense limit left out: computed for the candidates where the gate
    allows it, NaN elsewhere.
    """
    wanted = [name for name in RIVALS if name in by_limit]
    if setup.sae_cfg.no_token_codes:
        skipped["firing_rate"] = setup.sae_cfg.no_token_codes
    elif not np.isfinite(rates_n).any() and setup.settings.firing_tokens:
        wanted.append("firing_rate")
        skipped["firing_rate"] = (
            "fewer than 1,000 positions within dense_limit "
            f"{setup.settings.dense_limit:.3g}"
        )
    results: list[Result] = []
    if wanted and setup.sae_cfg.gate in LOCAL_GATES:
        results.append(code_stage(setup, table, chosen, wanted, keys))
    for name in [n for n in ("delta_code",) if setup.sae_cfg.no_token_codes]:
        scores[name] = np.full(setup.sae_cfg.n_latents, np.nan, np.float32)
    for name in wanted:
        values_n = np.full(setup.sae_cfg.n_latents, np.nan, np.float32)
        if results:
            values_n[chosen] = results[0].arrays[name]
            skipped[name] += "; computed for the candidates"
        else:
            skipped[name] += f"; a {setup.sae_cfg.gate} code needs all latents"
        rates_n = values_n if name == "firing_rate" else rates_n
        scores[name] = values_n
    return rates_n, results


def _ablate(
    setup: Setup,
    primary: Ranking,
    rates_n: np.ndarray,
    mean: Any,
    keys: Mapping[str, str],
) -> tuple[
    dict[int, dict[str, Any]], dict[str, Any], dict[str, Any] | None, list[Result]
]:
    """Exact ablation of the best candidates and of as many random latents of like
    firing rate.

    Returns per latent its columns, the summary, the figure's numbers and the stage.
    """
    preset, count = setup.settings.presets()[0], setup.settings.ablate
    if not count:
        return {}, {"skipped": "ablate=0"}, None, []
    best = primary.latents_k[:count]
    control = random_matched(
        "control", rates_n, best, count, setup.key(6), avoid=primary.latents_k
    )
    chosen = np.concatenate([best, control.latents_k])
    result = ablation_stage(
        setup, chosen, mean, preset, {**keys, "sae": setup.sae_key, "lm": setup.lm_key}
    )
    rows = ablated_rows(setup.rows, setup.settings.ablate_rows)
    columns, about = ablation_summary(rows, result.arrays)
    ablated = {
        int(i): {k: v[j] for k, v in columns.items()} for j, i in enumerate(chosen)
    }
    exact = {
        **about,
        "rows": len(rows),
        "scope": preset.tokens,
        "matched": control.options["matched"],
    }
    return (
        ablated,
        exact,
        _figure_numbers(chosen, len(best), columns, about, result.arrays),
        [result],
    )


def _figure_numbers(
    chosen: np.ndarray, count: int, columns: Columns, about: Any, arrays: Any
) -> dict[str, Any]:
    """What `figures.ablation_figure` draws."""
    points = [
        {
            "latent": int(latent),
            "group": "candidate" if j < count else "random",
            "first_order": float(columns["first_order"][j]),
            "exact": float(columns["exact"][j]),
        }
        for j, latent in enumerate(chosen)
    ]
    single = {
        ours: np.asarray(arrays[f"single_{theirs}"]).tolist()
        for ours, theirs in _SINGLE
    }
    return {
        "latents": points,
        "single": single,
        "correlations": {
            "joint": about["joint_per_latent"],
            "single": about["single_position"],
        },
    }


_SINGLE = (("first_order", "first_order"), ("exact", "dloss"))


def _with_exact(columns: Columns, ablated: Mapping[int, Mapping[str, Any]]) -> Columns:
    """Adds the exact ablation of those candidates that have one."""
    names = next(iter(ablated.values()), {})
    out = dict(columns)
    for name in names:
        empty = False if name == "taylor_fails" else np.nan
        out[name] = np.array(
            [ablated.get(int(i), {}).get(name, empty) for i in columns["latent"]]
        )
    return out


def _fill_candidates(
    scores: dict[str, np.ndarray],
    preset: Preset,
    ranking: Ranking,
    columns: Mapping[str, np.ndarray],
) -> None:
    """Arrays that the dense limit left out, in place: what is known of candidates (and
    of the pool), NaN elsewhere.
    """
    n = len(ranking.scores_n)
    known = {
        name: (ranking.latents_k, columns[name])
        for name, score in SCORES.items()
        if score.per_prompt is not None
    }
    known[preset.sides] = (np.arange(n), ranking.scores_n)
    for name, (latents, values) in known.items():
        key = key_of(name, preset.tokens)
        if key not in scores or np.isnan(scores[key]).any():
            array = np.array(scores.get(key, np.full(n, np.nan, np.float32)))
            array[latents] = np.where(np.isfinite(values), values, array[latents])
            scores[key] = array


def _pair_facts(setup: Setup, table: TokenTable) -> dict[str, Any]:
    """Counts, lengths and nats per token of both sides, and where the completions came
    from.
    """
    facts: dict[str, Any] = {
        "prompts": len(setup.pairs),
        "straddling_tokens": setup.encoded.straddling,
    }
    for side, name in ((1, "positive"), (-1, "negative")):
        chosen = [r for r, row in enumerate(table.rows) if row.side == side]
        lengths = np.array(
            [len(table.rows[r].ids) - table.rows[r].n_prompt for r in chosen]
        )
        if len(chosen):
            facts[name] = {
                "completions": len(chosen),
                "mean_tokens": float(lengths.mean()),
                "nats_per_token": float(table.nll_r[chosen].sum() / lengths.sum()),
            }
    samplers = sorted({pair.sampler or "unknown" for pair in setup.pairs})
    facts["samplers"] = samplers
    facts["on_policy"] = samplers == [setup.lm_key]
    return facts


def _warnings(
    setup: Setup, facts: Mapping[str, Any], check: Mapping[str, Any]
) -> list[str]:
    """What a reader of the ranking must know about SAE and pairs."""
    out = [f"SAE, {f['code']}: {f['text']}" for f in check.get("findings", ())]
    if "skipped" in check:
        out.append(f"SAE, not tested: {check['skipped']}")
    scopes = {preset.tokens for preset in setup.settings.presets()}
    if not facts["on_policy"]:
        out.append(
            "pairs are not known to be on-policy: sampler "
            f"{', '.join(facts['samplers'])}, model {setup.lm_key}; the method "
            "expects completions that the studied model itself sampled"
        )
    sides = [facts[s]["mean_tokens"] for s in ("positive", "negative") if s in facts]
    if (
        len(sides) == 2
        and setup.settings.loss == "sum"
        and scopes - {"prompt"}
        and abs(sides[0] / sides[1] - 1) > 0.1
    ):
        out.append(
            f"positives have {sides[0]:.1f} tokens and negatives {sides[1]:.1f}: with "
            "a summed loss and completion tokens in "
            "the scope this difference leaks into Δ; compare with loss=mean"
        )
    if setup.settings.gradient == "integrated" and len(scopes) > 1:
        scope = setup.settings.presets()[0].tokens
        out.append(
            "integrated gradients move the positions of the primary preset's scope "
            f"{scope!r}; presets of other scopes use "
            "the same gradients"
        )
    if "negative" not in facts:
        out.append(
            "no record has a negative: this is the plain mean of δ, not a difference"
        )
    return out


def _pool_warnings(presets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader must know about rankings that did not look at every latent."""
    out = []
    for name, about in presets.items():
        ranked = about["ranked"]
        if ranked["latents"] < ranked["of"]:
            out.append(
                f"ranking {name!r} looked at {ranked['latents']:,} of {ranked['of']:,} "
                f"latents ({ranked['by']}), because its "
                "score of all of them exceeds dense_limit; with a larger dense_limit "
                "it looks at all"
            )
    return out


def choices(setup: Setup) -> dict[str, Any]:
    """Everything that the method leaves open, as it was chosen here."""
    return {
        "site": str(setup.site),
        "encoded_site": str(setup.read_site),
        "gradient": _gradient(setup),
        "masks": {
            **setup.masks.to_dict(),
            "norm_limits": {str(site): limit for site, limit in setup.limits.items()},
        },
        "prepend_bos": "as the tokenizer does"
        if setup.prepend_bos is None
        else setup.prepend_bos,
        "decoder_rows": "scaled to unit norm",
        "mean": "mean activation of the studied model over the corpus, same mask as δ",
        "order": "mean over a completion's tokens, difference within the prompt, mean over prompts; signed, descending",
        "context": setup.context,
        "corpus_context": setup.corpus_context,
        "sae": vars(setup.sae_cfg),
        "settings": vars(setup.settings),
    }


def _gradient(setup: Setup) -> dict[str, Any]:
    """What stood for g_t in δ."""
    s = setup.settings
    if s.gradient == "integrated":
        scope = s.presets()[0].tokens
        return {
            "name": "integrated",
            "form": "joint",
            "steps": s.gradient_steps,
            "rule": "midpoint",
            "moved": scope,
        }
    return {"name": s.gradient, "backward_rules": sorted(s.rules)}


def _inputs(setup: Setup) -> dict[str, str]:
    """Hashes of everything that was read."""
    s = setup.settings
    found = {
        "lm": setup.lm_key,
        "sae": setup.sae_key,
        "pairs": fingerprint(s.pairs),
        "corpus": fingerprint(s.corpus),
    }
    found |= (
        {"sae_source": setup.sae_files.source}
        if setup.sae_files.source != s.sae
        else {}
    )  # the commit that was read
    return found | ({"lm_aligned": setup.aligned_key} if s.lm_aligned else {})
