"""Ranks every latent of an SAE by what it did to a completion; see configs/attribute.py for the command."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict

from experiments import _common
from experiments._flags import CONFIG, WORKDIR
from experiments.check_sae import self_test
from sae_attr import parallel
from sae_attr.attribution.candidates import (
    ablated_rows,
    ablation_stage,
    ablation_summary,
    candidate_columns,
    preset_ranking,
    rivals,
    stability,
)
from sae_attr.attribution.ranking import Ranking, overlap, random_matched, rank
from sae_attr.attribution.settings import Preset, Settings
from sae_attr.attribution.stages import firing_stage, gradient_stage, mean_stage, score_stage
from sae_attr.attribution.study import Study
from sae_attr.attribution.table import TokenTable
from sae_attr.data import Row, shown_tokens
from sae_attr.figures import ablation_figure, render
from sae_attr.report import csv_text, latent_table, legend, origin_table
from sae_attr.store import Store, claim_workdir, fingerprint, lock_workdir, write_atomic

SHOW_TOKENS = flags.DEFINE_integer("show_tokens", 0, "Print exactly what is scored of this many rows, and stop.")
ALLOW_CHANGE = flags.DEFINE_bool("allow_config_change", False, "Use a workdir that was made with another config.")
PLAIN = ("mesh", "batch_size", "corpus_batch", "remat", "trust_sae")  # where and how fast, not what


def settings_of(config: ConfigDict) -> Settings:
    """`Settings` from the config; a ValueError names what is missing or unknown."""
    values = {k: v for k, v in config.to_dict().items() if k != "mesh"}
    absent = [k for k in ("lm", "sae", "pairs", "corpus") if not values.get(k)]
    if absent:
        raise ValueError(f"the config lacks {', '.join(absent)}; add " + " ".join(f"--config.{k}=PATH" for k in absent))
    if values["exclude"] is not None:
        values["exclude"] = tuple(values["exclude"])
    values["sae_options"] = {k: v for k, v in values["sae_options"].items() if v is not None}
    return Settings(**values)


def run(study: Study, workdir: epath.Path) -> dict[str, Any]:
    """All stages and files of one attribution run; returns what result.json holds."""
    fitness, fitness_results = self_test(study)
    mean, mean_result = mean_stage(study)
    table, gradient_result = gradient_stage(study)
    rates_n, firing_result = firing_stage(study)
    keys = {"mean": mean_result.key, "gradients": gradient_result.key}
    score_result = score_stage(study, table, mean, keys)
    scores = score_result.arrays
    presets = study.settings.presets()
    rankings = {preset.name: preset_ranking(study, preset, table, mean, scores) for preset in presets}
    primary = rankings[presets[0].name]
    others = rivals(study, scores, rates_n, primary)
    results = [*fitness_results, mean_result, gradient_result, firing_result, score_result]

    exact: dict[str, Any] = {"skipped": "ablate=0"}
    ablated: dict[int, dict[str, Any]] = {}
    files: dict[str, bytes | str] = {}
    if study.settings.ablate:
        ablation_result, chosen, exact_columns, exact = _ablate(study, primary, rates_n, mean, keys)
        results.append(ablation_result)
        ablated = {int(i): {k: v[j] for k, v in exact_columns.items()} for j, i in enumerate(chosen)}
        files.update(_figure(chosen, exact_columns, exact, ablation_result.arrays, study.settings.ablate))

    about: dict[str, Any] = {}
    dense = dict(scores)
    for preset in presets:
        rest = {**{k: v for k, v in rankings.items() if k != preset.name}, **others}
        columns, about[preset.name] = candidate_columns(
            study, rankings[preset.name], preset, table, mean, scores, rates_n, rest
        )
        _fill_dense(dense, preset, rankings[preset.name], columns)
        columns = _with_exact(columns, ablated)
        name = "latents.csv" if preset is presets[0] else f"latents_{preset.name}.csv"
        files[name] = csv_text(columns)
        if parallel.is_main():
            print(f"\n{preset.name}: tokens={preset.tokens}, sides={preset.sides}\n{latent_table(columns)}")
            print(f"\nwhere Δ comes from\n{origin_table(columns)}")
    if parallel.is_main():
        print(f"\n{legend(presets[0].tokens if ablated else None)}")

    summary = {
        "primary": presets[0].name,
        "presets": {p.name: {"tokens": p.tokens, "sides": p.sides, **about[p.name]} for p in presets},
        "stability": stability(scores, study.settings.top),
        "prompt_mean_overlap": overlap(
            rank("a", scores[f"both_{presets[0].tokens}"], study.settings.top),
            rank("b", scores["both_prompt_mean"], study.settings.top),
        ),
        "sae_fitness": fitness,
        "bound": {k: score_result.meta[k] for k in ("bound", "best_over_bound")},
        "exact_ablation": exact,
        "pairs": _pair_facts(study, table),
        "mean": {"tokens": mean.tokens, "norm": mean.norm, "firing_tokens": firing_result.meta["tokens"]},
        "skipped": score_result.meta["skipped"],
        "choices": _choices(study),
        "inputs": {**_inputs(study), "stages": {r.key.split("-")[0]: r.key for r in results}},
        "versions": _common.versions(),
    }
    summary["warnings"] = _warnings(study, summary["pairs"], fitness)
    timings = {r.key.split("-")[0]: {"seconds": round(r.seconds, 3), "loaded": r.cached} for r in results}
    dense = {k: np.asarray(v) for k, v in dense.items() if k != "best_direction_d"} | {"firing_rate": rates_n}
    files["scores.npz"] = _common.npz_bytes(dense)
    files["result.json"] = _common.json_text({**summary, "timings": timings})
    for name, content in files.items():
        if parallel.is_main():
            write_atomic(workdir / name, content)
    return {**summary, "timings": timings, "files": list(files)}


def _fill_dense(dense: dict[str, Any], preset: Preset, ranking: Ranking, columns: Mapping[str, np.ndarray]) -> None:
    """Arrays that the dense limit left out, in place: what is known of candidates (and of the pool), NaN elsewhere."""
    known = {side: (ranking.latents_k, columns[side]) for side in ("active", "quadrant")}
    if preset.sides in known:
        known[preset.sides] = (np.arange(len(ranking.scores_n)), ranking.scores_n)
    for side, (latents, values) in known.items():
        name = f"{side}_{preset.tokens}"
        if name not in dense or np.isnan(dense[name]).any():
            array = np.array(dense.get(name, np.full(len(ranking.scores_n), np.nan, np.float32)))
            array[latents] = np.where(np.isfinite(values), values, array[latents])
            dense[name] = array
    dense.setdefault("delta_code", np.full(len(ranking.scores_n), np.nan, np.float32))


def _inputs(study: Study) -> dict[str, str]:
    """Hashes of everything that was read."""
    s = study.settings
    found = {"lm": study.lm_key, "sae": study.sae_key, "pairs": fingerprint(s.pairs), "corpus": fingerprint(s.corpus)}
    return found | ({"lm_aligned": study.aligned_key} if s.lm_aligned else {})


def _ablate(study: Study, primary: Ranking, rates_n: np.ndarray, mean: Any, keys: Mapping[str, str]) -> tuple:
    """Exact ablation of the best candidates and of as many random latents of like firing rate."""
    preset, count = study.settings.presets()[0], study.settings.ablate
    best = primary.latents_k[:count]
    control = random_matched("control", rates_n, best, count, study.key(6), avoid=primary.latents_k)
    chosen = np.concatenate([best, control.latents_k])
    result = ablation_stage(study, chosen, mean, preset, {**keys, "sae": study.sae_key, "lm": study.lm_key})
    rows = ablated_rows(study.encoded.rows, study.settings.ablate_rows)
    columns, about = ablation_summary(rows, result.arrays)
    return (
        result,
        chosen,
        columns,
        {**about, "rows": len(rows), "scope": preset.tokens, "matched": control.options["matched"]},
    )


def _with_exact(columns: dict[str, np.ndarray], ablated: Mapping[int, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Adds the exact ablation of those candidates that have one."""
    names = next(iter(ablated.values()), {})
    out = dict(columns)
    for name in names:
        empty = False if name == "taylor_fails" else np.nan
        out[name] = np.array([ablated.get(int(i), {}).get(name, empty) for i in columns["latent"]])
    return out


def _figure(chosen: np.ndarray, columns: Any, about: Any, arrays: Any, count: int) -> dict[str, bytes]:
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
        k: np.asarray(arrays[f"single_{s}"]).tolist() for k, s in (("first_order", "first_order"), ("exact", "dloss"))
    }
    correlations = {"joint": about["joint_per_latent"], "single": about["single_position"]}
    numbers = {"latents": points, "single": single, "correlations": correlations}
    rendered = render(ablation_figure(numbers), numbers)
    return {f"figures/attribution_vs_ablation.{suffix}": data for suffix, data in rendered.items()}


def _pair_facts(study: Study, table: TokenTable) -> dict[str, Any]:
    """Counts, lengths and nats per token of both sides, and where the completions came from."""
    facts: dict[str, Any] = {"prompts": len(study.pairs), "straddling_tokens": study.encoded.straddling}
    for side, name in ((1, "positive"), (-1, "negative")):
        chosen = [r for r, row in enumerate(table.rows) if row.side == side]
        lengths = np.array([len(table.rows[r].ids) - table.rows[r].n_prompt for r in chosen])
        if len(chosen):
            facts[name] = {
                "completions": len(chosen),
                "mean_tokens": float(lengths.mean()),
                "nats_per_token": float(table.nll_r[chosen].sum() / lengths.sum()),
            }
    samplers = sorted({pair.sampler or "unknown" for pair in study.pairs})
    facts["samplers"] = samplers
    facts["on_policy"] = samplers == [study.lm_key]
    return facts


def _warnings(study: Study, facts: Mapping[str, Any], fitness: Mapping[str, Any]) -> list[str]:
    """What a reader of the ranking must know about SAE and pairs."""
    out = [f"SAE, {f['code']}: {f['text']}" for f in fitness.get("findings", ())]
    scopes = {preset.tokens for preset in study.settings.presets()}
    if not facts["on_policy"]:
        out.append(
            f"pairs are not known to be on-policy: sampler {', '.join(facts['samplers'])}, model {study.lm_key}; the method "
            "expects completions that the studied model itself sampled"
        )
    sides = [facts[s]["mean_tokens"] for s in ("positive", "negative") if s in facts]
    if len(sides) == 2 and study.settings.loss == "sum" and scopes - {"prompt"} and abs(sides[0] / sides[1] - 1) > 0.1:
        out.append(
            f"positives have {sides[0]:.1f} tokens and negatives {sides[1]:.1f}: with a summed loss and completion tokens in "
            "the scope this difference leaks into Δ; compare with loss=mean"
        )
    if "negative" not in facts:
        out.append("no record has a negative: this is the plain mean of δ, not a difference")
    return out


def _choices(study: Study) -> dict[str, Any]:
    """Everything that the method leaves open, as it was chosen here."""
    return {
        "site": str(study.site),
        "excluded_tokens": sorted(study.exclude) or "padding only",
        "prepend_bos": "as the tokenizer does" if study.prepend_bos is None else study.prepend_bos,
        "decoder_rows": "scaled to unit norm",
        "mean": "mean activation of the studied model over the corpus, same mask as δ",
        "order": "mean over a completion's tokens, difference within the prompt, mean over prompts; signed, descending",
        "context": study.context,
        "corpus_context": study.corpus_context,
        "sae": vars(study.sae_cfg),
        "settings": vars(study.settings),
    }


def _show(rows: list[Row], study: Study, count: int) -> None:
    for row in rows[:count]:
        print(shown_tokens(row, study.tokenizer, exclude=study.exclude), end="\n\n")


def start(config: ConfigDict, workdir: epath.Path, *, show: int = 0, allow_change: bool = False) -> None:
    """Checks every input, then runs all stages under the workdir's lock, and prints what a reader must know.

    Args:
      config: as configs/attribute.py makes it.
      workdir: for results and for what a killed run continues from.
      show: print what is scored of this many rows, and stop.
      allow_change: use a workdir that was made with another config.
    """
    settings, mesh = settings_of(config), parallel.make_mesh(str(config.mesh))
    study = Study(settings, Store(workdir / "store", writer=parallel.is_main()), mesh, parallel.is_main())
    first = parallel.from_main(not (workdir / "config.json").exists())  # a later run may need no weights at all
    study.check(weights=first and not show)
    rows = study.encoded.rows
    logging.info(
        "%d prompts, %d completions, %d latents at %s", len(study.pairs), len(rows), len(study.decoder), study.site
    )
    if show:
        _show(rows, study, show)
        return
    with lock_workdir(workdir) if parallel.is_main() else contextlib.nullcontext():
        if parallel.is_main():
            claim_workdir(workdir, config.to_dict(), ignore=PLAIN, allow_change=allow_change)
        summary = run(study, workdir)
    if parallel.is_main():
        print(_common.summary_text(summary))
        for text in summary["warnings"]:
            print(f"warning: {text}")
        print(f"\nwrote to {workdir}: {', '.join(sorted(summary['files']))}")


def main(argv: list[str]) -> None:
    """`start` with what the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}")
    parallel.start_distributed()
    parallel.enable_compile_cache()
    workdir = epath.Path(str(WORKDIR.value))
    start(CONFIG.value, workdir, show=SHOW_TOKENS.value, allow_change=ALLOW_CHANGE.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
