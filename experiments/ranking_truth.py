"""Scores every latent of the organism's SAE in every way and holds them against the
truth; see configs/ranking_truth.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.attribution.presets import decoder_rows
from sae_attr.attribution.score_table import labelled
from sae_attr.lm.weights import load_lm
from sae_attr.organism.build import Organism, build, organism_stages
from sae_attr.organism.exact import DECIDES, PromptPaths, prompt_paths
from sae_attr.organism.ground_truth import (
    GroundTruth,
    ablation_ground_truth,
    steering_ground_truth,
)
from sae_attr.organism.pair_sampling import organism_pairs
from sae_attr.organism.prompts import WorldPrompt, prompts
from sae_attr.organism.recipe import Recipe, recipe_of
from sae_attr.organism.score_agreement import agreement, agreement_rows
from sae_attr.report.tables import (
    columns_from_rows,
    csv_text,
    json_text,
    text_table,
)
from sae_attr.store import (
    Result,
    Store,
    fingerprint,
    own_workdir,
    run_stage,
    stage_keys,
    write_atomic,
)
from sae_attr.study.attribution_graph import attribution_stages, run_setup
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.setup import Setup
from sae_attr.study.stages.mean_activation import mean_of
from sae_attr.text.rows import SCOPES

from . import _common
from ._flags import CONFIG, WORKDIR

VERSIONS = {
    "truth.pairs": 1,
    "truth": 2,
}  # raised when the same config gives other numbers than before
STUDIED = {
    "misalignment": "misaligned",
    "validation": "validation",
}  # behaviour -> model that shows it
TRUTHS = ("away", "toward", "ablation")
IGNORED = ("mesh", "batch_size")  # where and how fast, not what

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """One seed, kind and behaviour, with its organism."""

    config: Any
    store: Store
    workdir: epath.Path
    mesh: Any
    recipe: Recipe
    behaviour: str
    organism: Organism

    @property
    def name(self) -> str:
        """Names its files."""
        return f"{self.behaviour}-{self.recipe.kind}-{self.recipe.seed}"

    @property
    def studied(self) -> str:
        """Folder of the model that shows the behaviour."""
        return getattr(self.organism, STUDIED[self.behaviour])

    def deciding(self, split: str, count: int) -> list[WorldPrompt]:
        """The first prompts of a split whose behaviour next-word probabilities decide."""
        found = prompts(self.organism.world, self.behaviour, split)
        return [prompt for prompt in found if prompt.kind == DECIDES[self.behaviour]][
            :count
        ]


def runs_of(config: Any, store: Store, workdir: epath.Path, mesh: Any) -> Iterable[Run]:
    """Every run, its organism built; validation, whose fine-tune has one kind, once a
    seed.
    """
    size = config.organism.to_dict()
    for seed in config.seeds:
        for behaviour in config.behaviours:
            for kind in (
                config.kinds if behaviour == "misalignment" else config.kinds[:1]
            ):
                recipe = recipe_of({**size, "seed": seed, "kind": kind})
                organism = build(recipe, store, mesh=mesh)
                yield Run(config, store, workdir, mesh, recipe, behaviour, organism)


# ---- stages --------------------------------------------------------------------------


def pair_stage(run: Run) -> tuple[str, Result]:
    """On-policy pairs as a file for the attribution, and the rates of the samples."""
    c = run.config

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        cfg, params = load_lm(run.studied, mesh=run.mesh)
        asked = run.deciding("pairs", c.pair_prompts)
        records, rates = organism_pairs(
            run.organism.world,
            params,
            asked,
            run.behaviour,
            cfg=cfg,
            samples=c.samples,
            count=c.pairs,
            sampler=fingerprint(run.studied),
            seed=run.recipe.seed,
        )
        if not records:
            raise ValueError(
                f"{run.name}: no prompt of {len(asked)} gave both sides "
                f"({dict(rates)}); ask more prompts"
            )
        return {}, {"records": records, "rates": dict(rates)}

    fields = {
        "behaviour": run.behaviour,
        "prompts": c.pair_prompts,
        "samples": c.samples,
        "pairs": c.pairs,
    }
    result = run_stage(
        run.store,
        "truth.pairs",
        VERSIONS["truth.pairs"],
        fields,
        {"model": _studied_key(run)},
        compute,
    )
    path = run.workdir / "pairs" / f"{run.name}.jsonl"
    write_atomic(
        path, "".join(json.dumps(record) + "\n" for record in result.meta["records"])
    )
    return str(path), result


def _studied_key(run: Run) -> str:
    return _part_key(run, STUDIED[run.behaviour])


def _part_key(run: Run, part: str) -> str:
    return stage_keys(organism_stages(run.recipe))[run.organism.stages[part]]


def scores_of(
    run: Run, pairs: str
) -> tuple[Setup, dict[tuple[str, str], np.ndarray], Any, str]:
    """Score and scope -> every latent's score, by the attribution's own stages; the
    study, the mean activation and its key.
    """
    c, o = run.config, run.organism
    scores: dict[tuple[str, str], np.ndarray] = {}
    base = Settings(
        lm=run.studied,
        lm_aligned=o.chat,
        sae=o.sae,
        pairs=pairs,
        corpus=o.corpus,
        corpus_tokens=c.corpus_tokens,
        firing_tokens=c.corpus_tokens,
        batch_size=c.batch_size,
        corpus_batch=c.batch_size,
        seed=run.recipe.seed,
        trust_sae=True,
    )
    study = Setup(base, run.store, run.mesh, progress=False)
    for scope in SCOPES:
        # The stages before the scores have no scope: they are computed once.
        scoped = replace(study, settings=replace(base, tokens=scope))
        results = run_setup(scoped, attribution_stages(scoped), until="scores")
        scores |= labelled(results["scores"].arrays, scope)
    mean_result = results["mean_activation"]
    mean = mean_of(mean_result)
    scores["random", ""] = np.random.default_rng(run.recipe.seed).normal(
        size=len(study.decoder)
    )
    return study, scores, mean, mean_result.key


def truth_stage(
    run: Run, study: Setup, mean: Any, mean_key: str
) -> dict[str, GroundTruth]:
    """What steering with every latent away and toward, and ablating it, really does."""
    c, site = run.config, study.site

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        world = run.organism.world
        dec_nd = np.asarray(decoder_rows(study.decoder, np.arange(len(study.decoder))))
        choose = prompt_paths(
            world, run.behaviour, run.deciding("strengths", c.strength_prompts)
        )
        score = prompt_paths(
            world, run.behaviour, run.deciding("effects", c.effect_prompts)
        )
        found = _truths(run, study, mean, dec_nd, choose, score)
        arrays = {
            f"{k}.{f}": getattr(t, f)
            for k, t in found.items()
            for f in ("effect_n", "strength_n", "loss_n")
        }
        return arrays, {"base": {name: truth.base for name, truth in found.items()}}

    fields = {
        "behaviour": run.behaviour,
        "grid": list(c.grid),
        "budget": c.budget,
        "site": str(site),
    }
    fields |= {
        "strength_prompts": c.strength_prompts,
        "effect_prompts": c.effect_prompts,
        "corpus": c.corpus_tokens,
    }
    inputs = {name: _part_key(run, name) for name in ("chat", "sae", "corpus")} | {
        "studied": _studied_key(run)
    }
    inputs |= {"mean": mean_key}
    result = run_stage(run.store, "truth", VERSIONS["truth"], fields, inputs, compute)
    get = lambda name, field: np.asarray(result.arrays[f"{name}.{field}"])
    return {
        name: GroundTruth(
            get(name, "effect_n"),
            get(name, "strength_n"),
            get(name, "loss_n"),
            result.meta["base"][name],
        )
        for name in TRUTHS
    }


def _truths(
    run: Run,
    study: Setup,
    mean: Any,
    dec_nd: np.ndarray,
    choose: PromptPaths,
    score: PromptPaths,
) -> Mapping[str, GroundTruth]:
    """Away and ablation on the studied model, toward on the chat model."""
    c, cfg, site = run.config, study.cfg, study.site
    steer = {"cfg": cfg, "site": site, "grid": tuple(c.grid), "budget": c.budget}
    _, aligned = load_lm(run.organism.chat, mesh=run.mesh)
    return {
        "away": steering_ground_truth(
            study.params, choose, score, dec_nd, mean.norm, sign=-1, **steer
        ),
        "toward": steering_ground_truth(
            aligned, choose, score, dec_nd, mean.norm, sign=1, **steer
        ),
        "ablation": ablation_ground_truth(
            study.params, score, dec_nd, mean.mean_d, cfg=cfg, site=site
        ),
    }


# ---- tables --------------------------------------------------------------------------


def rows_of(run: Run) -> tuple[list[Row], Row]:
    """One row per score, scope and truth; and facts about the run."""
    pairs, sampled = pair_stage(run)
    study, scores, mean, mean_key = scores_of(run, pairs)
    truths = truth_stage(run, study, mean, mean_key)
    about = {
        "behaviour": run.behaviour,
        "kind": run.recipe.kind,
        "seed": run.recipe.seed,
    }
    rows = [{**about, **row} for row in agreement_rows(scores, truths, run.config.top)]
    facts = {**about, "pairs": len(sampled.meta["records"]), "norm": mean.norm}
    facts |= {f"sampled_{name}": value for name, value in sampled.meta["rates"].items()}
    for name, found in truths.items():
        facts |= {
            f"{name}_base": found.base,
            f"{name}_max": float(found.effect_n.max()),
        }
        facts |= {f"{name}_unsteerable": int((found.strength_n == 0).sum())}
    facts["away_toward_spearman"] = agreement(
        truths["away"].effect_n, truths["toward"].effect_n
    )["spearman"]
    return rows, facts


def summary_rows(rows: Sequence[Row]) -> list[Row]:
    """Mean and standard deviation over seeds of every number."""
    keys = ("behaviour", "kind", "score", "scope", "truth")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    out = []
    for group, members in groups.items():
        numbers: Row = {"seeds": len(members)}
        for name in ("spearman", "recall", "effect", "best_effect"):
            values = np.array([member[name] for member in members], np.float64)
            numbers |= {
                name: float(values.mean()),
                f"{name}_sd": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            }
        out.append(dict(zip(keys, group, strict=True)) | numbers)
    return out


def table_text(summary: Sequence[Row], facts: Sequence[Row]) -> str:
    """Returns a table per behaviour and kind, a line per score and scope, and then what
    every run measured.
    """
    groups: dict[tuple[Any, Any], list[Row]] = {}
    for row in summary:
        groups.setdefault((row["behaviour"], row["kind"]), []).append(row)
    parts = [
        f"{behaviour}, {kind}, {rows[0]['seeds']} seeds: Spearman ± sd | recall | "
        f"mean effect of the top\n{_group_table(rows)}\n"
        for (behaviour, kind), rows in groups.items()
    ]
    return "\n".join([*parts, "runs", *map(_fact_line, facts)]) + "\n"


def _group_table(rows: Sequence[Row]) -> str:
    """Returns one behaviour's and kind's table: Spearman, recall and mean effect per
    truth.
    """
    names = dict.fromkeys(f"{row['score']} {row['scope']}" for row in rows)
    columns: dict[str, list[Any]] = {"score": [*names, "best possible"]}
    for truth in TRUTHS:
        mine = [row for row in rows if row["truth"] == truth]
        cells = [
            f"{row['spearman']:+.2f} ± {row['spearman_sd']:.2f} | {row['recall']:.2f} | "
            f"{row['effect']:+.3f}"
            for row in mine
        ]
        columns[truth] = [*cells, f"| 1.00 | {mine[0]['best_effect']:+.3f}"]
    return text_table(columns, right=TRUTHS)


def _fact_line(fact: Row) -> str:
    numbers = (
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in fact.items()
    )
    return " ".join(numbers)


def write(
    workdir: epath.Path, config: ConfigDict, rows: Sequence[Row], facts: Sequence[Row]
) -> str:
    """truth.csv, truth.json and truth.txt; returns the table."""
    summary = summary_rows(rows)
    text = table_text(summary, facts)
    content = {
        "rows": summary,
        "runs": list(facts),
        "config": config.to_dict(),
        "versions": _common.versions(),
    }
    write_atomic(workdir / "truth.csv", csv_text(columns_from_rows(rows)))
    write_atomic(workdir / "truth.json", json_text(content))
    write_atomic(workdir / "truth.txt", text)
    return text


def start(config: ConfigDict, workdir: epath.Path) -> None:
    """Runs everything under the workdir's lock; files are written anew after every run,
    so that a part is seen early.
    """
    mesh, store = parallel.make_mesh(str(config.mesh)), Store(workdir / "store")
    with own_workdir(workdir, config.to_dict(), ignore=IGNORED):
        rows: list[Row] = []
        facts: list[Row] = []
        for run in runs_of(config, store, workdir, mesh):
            found, about = rows_of(run)
            rows += found
            facts.append(about)
            text = write(workdir, config, rows, facts)
            logging.info("%s is done", run.name)
    print(f"{text}\nwrote to {workdir}: truth.csv, truth.json, truth.txt")


def main(argv: list[str]) -> None:
    """`start` with what the flags say."""
    _common.begin(argv, cluster=False)
    start(CONFIG.value, epath.Path(str(WORKDIR.value)))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
