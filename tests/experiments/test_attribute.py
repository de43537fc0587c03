"""A whole attribution run on the demo's miniature: its files, what they promise, and
what is computed again when.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from etils import epath

from experiments import attribute
from sae_attr.attribution.score_registry import SCORES, Score, Vector, labelled
from sae_attr.organism.ground_truth import GroundTruth
from sae_attr.organism.score_agreement import agreement
from sae_attr.store import fingerprint
from sae_attr.store.metrics_log import read_metrics
from sae_attr.study.setup import Setup
from sae_attr.study.stage_choice import StageChoice
from sae_attr.text.rows import ROLES
from tests.experiments._demo import (
    FIGURES,
    PLANTED,
    RESULTS,
    config,
    contents,
    copied,
    loaded,
    numbers,
    run,
    scores,
    table,
    write_miniature,
)

LATENTS, TOP = 256, 30
ORDINARY = {"sae_check", "norm_limits", "mean_activation", "firing"}
TOKENS = {"outliers", "gradients", "aligned_activations"}
LAST = {"rankings", "candidate_codes", "ablation", "attribute"}
STAGES = {*ORDINARY, *TOKENS, "scores", *LAST}
FINITE = (
    *(
        "delta",
        "se",
        "low",
        "high",
        "consistency",
        "both",
        "active",
        "quadrant",
        "gated",
        "encoder",
        "projection",
        "gradient",
    ),
    *(
        "firing_rate",
        "fires_on_pairs",
        "token_cosine",
        *(f"from_{role}" for role in ROLES if role != "pad"),
    ),
)
FILES = {"latents.csv": "prompt", "latents_recommended.csv": "all"}
PRESET_OF = {"latents.csv": "faithful", "latents_recommended.csv": "recommended"}
GATING = {"latents.csv": "both", "latents_recommended.csv": "active"}


def result(workdir: Path) -> dict[str, Any]:
    """result.json as a strict reader sees it."""

    def refuse(name: str) -> None:
        raise AssertionError(f"result.json holds {name}, which is no JSON")

    return json.loads((workdir / "result.json").read_text(), parse_constant=refuse)


def subset(folder: Path, to: Path, keep: Any) -> Path:
    """A copy of the miniature whose pairs are `keep(records)`."""
    copied(folder, to)
    records = [
        json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()
    ]
    (to / "pairs.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in keep(records))
    )
    return to


# ---- the demo's files


@pytest.mark.parametrize("name", FILES)
def test_the_planted_latent_is_first_in_both_presets(done: Path, name: str) -> None:
    rows = table(done / name)
    assert int(rows[0]["latent"]) == PLANTED
    assert float(rows[0]["delta"]) > 1.5 * float(rows[1]["delta"])
    assert "'hate'" in rows[0]["tokens"]  # the words that u raises


@pytest.mark.parametrize("name", FILES)
def test_a_table_is_sorted_whole_and_finite(done: Path, name: str) -> None:
    rows = table(done / name)
    assert [int(row["rank"]) for row in rows] == list(range(1, TOP + 1))
    assert len({row["latent"] for row in rows}) == TOP
    assert (np.diff(numbers(rows, "delta")) <= 1e-9).all()
    for column in FINITE:
        assert np.isfinite(numbers(rows, column)).all(), column
    low, delta, high = (numbers(rows, c) for c in ("low", "delta", "high"))
    assert ((low <= delta) & (delta <= high)).all()
    assert (
        (numbers(rows, "firing_rate") >= 0) & (numbers(rows, "firing_rate") <= 1)
    ).all()
    fires = numbers(rows, "fires_on_pairs")
    assert fires.max() > 0
    about = result(done)["presets"][PRESET_OF[name]]
    assert about["never_firing"] == (fires == 0).sum()
    ranks = [column for column in rows[0] if column.startswith("rank_")]
    assert {
        "rank_gradient",
        "rank_positive_only",
        "rank_delta_projection",
        "rank_delta_code",
    } <= set(ranks)
    for column in ranks:
        assert (
            (numbers(rows, column) >= 1) & (numbers(rows, column) <= LATENTS)
        ).all(), column


@pytest.mark.parametrize("name", FILES)
def test_the_tables_numbers_are_those_of_scores(done: Path, name: str) -> None:
    rows, arrays, scope = table(done / name), scores(done), FILES[name]
    latents = numbers(rows, "latent").astype(int)
    same = {
        side: f"{side}_{scope}"
        for side in ("both", "active", "quadrant", "gated", "encoder")
    }
    same |= {
        "delta": f"{GATING[name]}_{scope}",
        "projection": f"projection_{scope}",
        "firing_rate": "firing_rate",
    }
    for column, key in same.items():
        want = arrays[key][latents]
        np.testing.assert_allclose(
            numbers(rows, column),
            want,
            rtol=2e-4,
            atol=1e-5 * np.abs(want).max(),
            err_msg=key,
        )
    np.testing.assert_allclose(
        numbers(rows, "gradient"), arrays[f"gradient_{scope}"][latents], rtol=1e-6
    )
    ours = arrays[f"{GATING[name]}_{scope}"]
    assert set(latents) == set(np.argsort(-ours, kind="stable")[:TOP])


@pytest.mark.parametrize("name", FILES)
def test_shares_by_role_add_up_to_delta(done: Path, name: str) -> None:
    rows = table(done / name)
    parts = np.stack([numbers(rows, f"from_{role}") for role in ROLES if role != "pad"])
    np.testing.assert_allclose(
        parts.sum(0), numbers(rows, "delta"), atol=1e-6 * np.abs(parts).max() + 1e-8
    )
    assert not numbers(
        rows, "from_bos"
    ).any()  # the SAE was trained without special tokens
    assert bool(numbers(rows, "from_completion").any()) == (FILES[name] == "all")


def test_scores_hold_one_number_per_latent(done: Path) -> None:
    arrays = scores(done)
    scoped = {
        f"{kind}_{scope}"
        for kind in (
            "both",
            "gated",
            "gradient",
            "projection",
            "active",
            "quadrant",
            "encoder",
        )
        for scope in ("prompt", "all")
    }
    alone = {
        "positive_only",
        "both_prompt_mean",
        "both_half0",
        "both_half1",
        "delta_projection",
        "delta_code",
    }
    assert set(arrays) == scoped | alone | {"firing_rate"}
    for name, values in arrays.items():
        assert values.shape == (LATENTS,), name
        assert np.isfinite(values).all(), name


def test_exact_ablation_stands_beside_the_ablated_candidates(done: Path) -> None:
    rows = table(done / "latents.csv")
    names = (
        "exact",
        "first_order",
        "end_slope",
        "push_start",
        "push_end",
        "taylor_fail_share",
    )
    assert all(np.isfinite(numbers(rows[:3], name)).all() for name in names)
    assert all(np.isnan(numbers(rows[3:], name)).all() for name in names)
    assert float(rows[0]["exact"]) > 0.1  # ablating the planted cause hurts rude words
    assert {row["taylor_fails"] for row in rows} <= {"true", "false"}


def test_result_tells_choices_versions_hashes_and_timings(
    done: Path, miniature: Path
) -> None:
    found = result(done)
    assert found["primary"] == "faithful"
    assert {
        name: (p["tokens"], p["gating"]) for name, p in found["presets"].items()
    } == {
        "faithful": ("prompt", "both"),
        "recommended": ("all", "active"),
    }
    assert found["choices"]["site"] == "layer1.resid_post"
    assert found["choices"]["masks"]["exclude"] == ["special"]
    assert found["choices"]["masks"]["outlier"] == 10
    assert list(found["choices"]["masks"]["norm_limits"]) == ["layer1.resid_post"]
    assert found["masked"]["corpus_outliers"] == 0  # the miniature has no sinks
    assert found["choices"]["settings"]["seed"] == 0
    assert found["choices"]["sae"]["n_latents"] == LATENTS
    assert {"jax", "numpy", "python", "sae_attr", "devices"} <= set(found["versions"])
    for name, file in (
        ("lm", "model"),
        ("pairs", "pairs.jsonl"),
        ("corpus", "corpus.json"),
    ):
        assert found["inputs"][name] == fingerprint(miniature / file)
    assert set(found["inputs"]["stages"]) == set(found["timings"]) == STAGES
    assert all(t["seconds"] > 0 and not t["loaded"] for t in found["timings"].values())
    for name in ("joint_per_latent", "joint_per_completion", "single_position"):
        assert found["exact_ablation"][name]["pearson"] > 0.8, name
    assert found["skipped"] == {"delta_activation": "no second model: set lm_aligned"}
    assert 0 < found["bound"]["best_over_bound"] <= 1


def test_result_knows_that_the_pairs_are_on_policy(done: Path, miniature: Path) -> None:
    found = result(done)
    assert found["pairs"]["on_policy"] is True
    assert found["pairs"]["samplers"] == [fingerprint(miniature / "model")]
    assert [w.split(":")[0] for w in found["warnings"]] == [
        "SAE, wrong_model"
    ]  # random directions reconstruct nothing
    assert (
        found["pairs"]["positive"]["completions"] > found["pairs"]["prompts"]
    )  # several per prompt
    for side in ("positive", "negative"):
        # Sampled from a model over 66 words, three of which were never drawn: not
        #   beyond the uniform distribution by far.
        assert 3 < found["pairs"][side]["nats_per_token"] < np.log(66) + 0.5


def test_figures_are_files_that_open(done: Path) -> None:
    figure = json.loads((done / FIGURES[0]).read_text())
    assert [p["group"] for p in figure["latents"]] == ["candidate"] * 3 + ["random"] * 3
    exact = numbers(table(done / "latents.csv")[:3], "exact")
    np.testing.assert_allclose([p["exact"] for p in figure["latents"][:3]], exact)
    assert ElementTree.fromstring((done / FIGURES[1]).read_bytes()).tag.endswith("svg")
    assert (done / FIGURES[2]).read_bytes().startswith(b"\x89PNG")


def test_nothing_but_the_promised_files_lies_in_the_workdir(done: Path) -> None:
    files = {str(p.relative_to(done)) for p in done.rglob("*") if p.is_file()}
    top = {name for name in files if not name.startswith("store/")}
    kept = {"result.json", "config.json", "metrics.jsonl", ".lock", ".lock-guard"}
    assert top == {*RESULTS, *kept}
    timings = json.loads((done / "result.json").read_text())["timings"]
    assert [line["stage"] for line in read_metrics(done)] == [*timings]
    assert not [name for name in files if "progress" in name or ".tmp" in name]


def test_printed_text_names_the_planted_latent_and_the_files(
    done: Path, miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config(miniature), copied(done, tmp_path / "again"))
    out = capsys.readouterr().out
    assert re.search(rf"^ +1 +{PLANTED} ", out, re.M)
    for said in (
        "candidates that fire on no token of the pairs in their scope: ",
        "faithful: tokens=prompt",
        "recommended: tokens=all",
        "where Δ comes from",
        "nats/token",
        "latents.csv",
    ):
        assert said in out
    assert re.findall("warning: (.*?):", out) == ["SAE, wrong_model"]


# ---- what is computed again


def test_a_second_run_loads_every_stage_and_writes_the_same_bytes(
    done: Path, miniature: Path, tmp_path: Path
) -> None:
    again = copied(done, tmp_path / "again")
    for name in RESULTS:
        (again / name).unlink()
    assert loaded(run(config(miniature), again)) == STAGES
    assert contents(again) == contents(done)


def test_another_seed_computes_only_what_is_drawn(
    done: Path, miniature: Path, tmp_path: Path
) -> None:
    again = copied(done, tmp_path / "again")
    found = run(config(miniature, seed=1), again, allow_change=True)
    assert loaded(found) == ORDINARY | TOKENS
    old, new = scores(done), scores(again)
    assert not np.array_equal(old["both_half0"], new["both_half0"])
    np.testing.assert_array_equal(old["both_prompt"], new["both_prompt"])


def test_another_corpus_computes_the_mean_but_no_gradient(
    done: Path, miniature: Path, tmp_path: Path
) -> None:
    again = copied(done, tmp_path / "again")
    texts = json.loads((miniature / "corpus.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(texts[200:]))
    found = run(
        config(miniature, corpus=str(tmp_path / "other.json")), again, allow_change=True
    )
    assert loaded(found) == {"gradients", "aligned_activations"}
    assert not np.array_equal(scores(done)["both_prompt"], scores(again)["both_prompt"])


@pytest.mark.parametrize(
    "changes", [{"top": 5, "bootstrap": 10}, {"corpus_batch": 64}, {"batch_size": 64}]
)
def test_what_stages_do_not_depend_on_computes_none_of_the_dear_ones(
    done: Path, miniature: Path, tmp_path: Path, changes: dict[str, int]
) -> None:
    again = copied(done, tmp_path / "again")
    assert (
        loaded(run(config(miniature, **changes), again, allow_change=True))
        >= STAGES - LAST
    )


@pytest.mark.slow
def test_batch_size_and_mesh_do_not_change_the_ranking(
    done: Path, miniature: Path, tmp_path: Path
) -> None:
    found = run(
        config(miniature, batch_size=12, corpus_batch=12, mesh="data=2,model=2"),
        tmp_path / "w",
    )
    assert loaded(found) == set()
    old, new = scores(done), scores(tmp_path / "w")
    assert set(old) == set(new)
    for name in old:
        assert np.linalg.norm(new[name] - old[name]) <= 1e-4 * np.linalg.norm(
            old[name]
        ), name
    for name in FILES:
        a, b = (
            numbers(table(w / name)[:10], "latent").tolist()
            for w in (done, tmp_path / "w")
        )
        assert a == b


def test_a_new_score_is_named_in_one_place_and_is_in_rankings_table_arrays_and_truth(
    done: Path, miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = Score(
        lambda evidence, scope: Vector(-evidence.moment(scope).g_d * 2),
        "twice the gradient",
        ranked=True,
    )
    monkeypatch.setitem(SCORES, "twice", new)
    work = copied(done, tmp_path / "work")
    found = run(config(miniature), work)
    assert STAGES - loaded(found) == {"scores", *LAST}
    arrays, rows = scores(work), table(work / "latents.csv")
    latents = numbers(rows, "latent").astype(int)
    for scope in ("prompt", "all"):
        np.testing.assert_allclose(
            arrays[f"twice_{scope}"], 2 * arrays[f"gradient_{scope}"], rtol=1e-5
        )
    np.testing.assert_allclose(
        numbers(rows, "twice"), arrays["twice_prompt"][latents], rtol=1e-6
    )
    np.testing.assert_array_equal(
        numbers(rows, "rank_twice"), numbers(rows, "rank_gradient")
    )
    overlaps = found["presets"]["faithful"]["overlap"]
    assert overlaps["twice"] == overlaps["gradient"]
    truth = GroundTruth(
        arrays["twice_prompt"].astype(np.float64)[:, None],
        np.ones(LATENTS),
        np.zeros(LATENTS),
        0.5,
    )
    of_scores = labelled(arrays, "prompt")
    measured = agreement(np.stack(list(of_scores.values())), truth.effect_np, 5)
    agreed = dict(zip(of_scores, measured.spearman, strict=True))
    assert agreed["twice", "prompt"] == pytest.approx(1)
    assert set(agreed) >= {
        (name, "" if SCORES[name].scope == "none" else "prompt")
        for name in ("both", "delta_code")
    }
    assert {name for name, _ in agreed} == set(SCORES) - {"delta_activation"}


def test_stages_are_listed_chosen_and_computed_again(
    done: Path, miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = copied(done, tmp_path / "again")
    made = config(miniature)

    def start(**selected: Any) -> str:
        attribute.start(
            made,
            epath.Path(work),
            selection=StageChoice(**selected),
            listed=not selected,
        )
        return capsys.readouterr().out

    assert set(start().split()) == {"done", *STAGES}
    found = start(force=["rankings"])
    assert "latents.csv" in found
    again = json.loads((work / "result.json").read_text())
    assert STAGES - loaded(again) == LAST
    fresh = tmp_path / "fresh"
    attribute.start(made, epath.Path(fresh), selection=StageChoice(until="norm_limits"))
    assert "still to be run: mean_activation" in capsys.readouterr().out
    assert not (fresh / "result.json").exists()
    with pytest.raises(ValueError, match="reads 'outliers', which is missing"):
        attribute.start(made, epath.Path(fresh), selection=StageChoice(only=["scores"]))


# ---- choices


def test_a_dictionary_larger_than_memory_is_never_whole_in_it(
    done: Path, miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Setup, "sae", property(lambda self: pytest.fail("the whole SAE was loaded"))
    )
    changes = {
        "dense_limit": 0,
        "top": 5,
        "ablate": 3,
        "sae_check_tokens": 0,
        "firing_tokens": 0,
    }
    found = run(config(miniature, **changes), tmp_path / "w")
    assert "SAE, not tested: sae_check_tokens=0" in found["warnings"]
    assert int(table(tmp_path / "w/latents.csv")[0]["latent"]) == PLANTED
    few, whole = scores(tmp_path / "w")["delta_code"], scores(done)["delta_code"]
    known = np.isfinite(few)
    assert 5 <= known.sum() < 20
    np.testing.assert_allclose(few[known], whole[known], rtol=1e-4, atol=1e-5)


def test_beyond_the_dense_limit_candidates_are_known_and_the_rest_is_nan(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(
        config(miniature, dense_limit=100 * LATENTS, top=5, ablate=0), tmp_path / "w"
    )
    arrays = scores(tmp_path / "w")
    known = {name: int(np.isfinite(arrays[name]).sum()) for name in arrays}
    # `recommended` ranks active_all, so its pool (10 for each place by `both`, and as
    # many by `gradient`) is known; elsewhere the candidates of that scope.
    assert (
        known["active_prompt"] == known["quadrant_prompt"] == known["quadrant_all"] == 5
    )
    best = {
        name: set(np.argsort(-arrays[f"{name}_all"], kind="stable")[:50])
        for name in ("both", "gradient")
    }
    assert (
        set(np.flatnonzero(np.isfinite(arrays["active_all"])))
        == best["both"] | best["gradient"]
    )
    assert best["gradient"] - best["both"]
    by = "the best 50 by both and the best 50 by gradient"
    assert found["presets"]["recommended"]["ranked"] == {
        "latents": known["active_all"],
        "of": LATENTS,
        "by": by,
    }
    assert found["presets"]["faithful"]["ranked"]["latents"] == LATENTS
    assert [w for w in found["warnings"] if "'recommended' looked at" in w and by in w]
    assert not [w for w in found["warnings"] if "'faithful' looked at" in w]
    out = capsys.readouterr().out
    caption = f"recommended: tokens=all, gating=active, of a pool of {known['active_all']} of {LATENTS} latents: {by}"
    assert caption in out
    assert f"faithful: tokens=prompt, gating=both, of all {LATENTS} latents" in out
    assert known["delta_code"] == known["firing_rate"]
    assert 5 <= known["firing_rate"] <= 10  # the candidates of both presets
    assert known["both_prompt"] == known["gated_all"] == LATENTS
    for name, file in (
        ("active_all", "latents_recommended.csv"),
        ("quadrant_prompt", "latents.csv"),
    ):
        rows = table(tmp_path / "w" / file)
        chosen = numbers(rows, "latent").astype(int)
        np.testing.assert_allclose(
            arrays[name][chosen], numbers(rows, name.split("_")[0]), rtol=1e-5
        )
    for name in (
        "active_prompt",
        "quadrant_prompt",
        "active_all",
        "quadrant_all",
        "delta_code",
    ):
        assert re.search(r"latents x tokens exceed dense_limit", found["skipped"][name])
    assert found["exact_ablation"] == {"skipped": "ablate=0"}
    assert not (tmp_path / "w/figures").exists()
    for file in FILES:
        rows = table(tmp_path / "w" / file)
        assert int(rows[0]["latent"]) == PLANTED
        assert np.isfinite(numbers(rows, "firing_rate")).all()
        assert np.isfinite(numbers(rows, "delta_code")).all()
    assert "rank_delta_code" not in table(tmp_path / "w/latents.csv")[0]
    assert found["mean"]["firing_tokens"] == 0


def test_a_pool_ranks_as_the_whole_dictionary_does(
    done: Path, miniature: Path, tmp_path: Path
) -> None:
    run(
        config(miniature, dense_limit=100 * LATENTS, ablate=0), tmp_path / "w"
    )  # the pool holds all 256
    a, b = (table(w / "latents_recommended.csv") for w in (done, tmp_path / "w"))
    assert [row["latent"] for row in a] == [row["latent"] for row in b]
    np.testing.assert_allclose(numbers(a, "delta"), numbers(b, "delta"), rtol=1e-5)


def test_a_second_model_adds_the_rival_delta_activation(
    miniature: Path, tmp_path: Path
) -> None:
    write_miniature(tmp_path / "other", seed=1)
    few = subset(miniature, tmp_path / "few", lambda records: records[:8])
    found = run(
        config(few, lm_aligned=str(tmp_path / "other/model"), ablate=0), tmp_path / "w"
    )
    values = scores(tmp_path / "w")["delta_activation"]
    assert np.isfinite(values).all()
    assert values.any()
    ranks = numbers(table(tmp_path / "w/latents.csv"), "rank_delta_activation").astype(
        int
    )
    latents = numbers(table(tmp_path / "w/latents.csv"), "latent").astype(int)
    assert [int((values > values[i]).sum()) + 1 for i in latents] == ranks.tolist()
    assert "delta_activation" in found["presets"]["faithful"]["overlap"]
    assert found["skipped"] == {}
    assert found["inputs"]["lm_aligned"] == fingerprint(tmp_path / "other/model")


def test_the_same_model_twice_is_no_second_model(
    miniature: Path, tmp_path: Path
) -> None:
    """Equal everywhere, it would rank latents by their number."""
    few = subset(miniature, tmp_path / "few", lambda records: records[:8])
    shutil.copytree(miniature / "model", tmp_path / "copy")
    found = run(
        config(few, lm_aligned=str(tmp_path / "copy"), ablate=0), tmp_path / "w"
    )
    assert "has the same weights as lm" in found["skipped"]["delta_activation"]
    assert "delta_activation" not in scores(tmp_path / "w")


def test_records_without_negatives_rank_the_plain_mean(
    miniature: Path, tmp_path: Path
) -> None:
    alone = subset(
        miniature,
        tmp_path / "a",
        lambda rs: [{k: v for k, v in r.items() if k != "negative"} for r in rs[:8]],
    )
    found = run(config(alone, ablate=0), tmp_path / "w")
    arrays = scores(tmp_path / "w")
    np.testing.assert_allclose(
        arrays["both_prompt"], arrays["positive_only"], rtol=1e-5, atol=1e-9
    )
    assert "negative" not in found["pairs"]
    assert any("plain mean" in text for text in found["warnings"])


def test_longer_positives_and_another_sampler_are_warned_about(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def longer(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        changes = lambda r: {
            "positive": [t + " fool fool fool" for t in r["positive"]],
            "sampler": "someone else",
        }
        return [r | changes(r) for r in records[:8]]

    folder = subset(miniature, tmp_path / "a", longer)
    found = run(config(folder, ablate=0), tmp_path / "w")
    assert found["pairs"]["on_policy"] is False
    assert found["pairs"]["samplers"] == ["someone else"]
    assert found["pairs"]["positive"]["mean_tokens"] == 13
    about_pairs = [text for text in found["warnings"] if not text.startswith("SAE, ")]
    assert [
        bool(re.search("on-policy|leaks into Δ", text)) for text in about_pairs
    ] == [True, True]
    out = capsys.readouterr().out
    assert "warning: pairs are not known to be on-policy: sampler someone else" in out
    assert "warning: positives have 13.0 tokens and negatives 10.0" in out
    mean_loss = run(config(folder, ablate=0, loss="mean"), tmp_path / "v")
    assert not any("leaks" in text for text in mean_loss["warnings"])


def test_a_missing_sampler_is_unknown(miniature: Path, tmp_path: Path) -> None:
    folder = subset(
        miniature,
        tmp_path / "a",
        lambda rs: [{k: v for k, v in r.items() if k != "sampler"} for r in rs[:1]],
    )
    run(config(folder, ablate=0), tmp_path / "w")
    found = result(
        tmp_path / "w"
    )  # one prompt: no halves and no standard error, and still strict JSON
    assert found["pairs"]["samplers"] == ["unknown"]
    assert found["pairs"]["on_policy"] is False
    assert found["stability"] == {"half_overlap": None, "half_spearman": None}
    assert np.isnan(numbers(table(tmp_path / "w/latents.csv"), "se")).all()


def test_chat_messages_go_through_the_template(miniature: Path, tmp_path: Path) -> None:
    def chat(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            r | {"prompt": [{"role": "user", "content": r["prompt"]}]}
            for r in records[:8]
        ]

    folder = subset(miniature, tmp_path / "a", chat)
    template = "{{ bos_token }}{% for m in messages %} asked {{ m['content'] }}{% endfor %} answered"
    (folder / "model/chat_template.jinja").write_text(template)
    run(config(folder, ablate=0, exclude=()), tmp_path / "w")
    rows = table(tmp_path / "w/latents.csv")
    for column in ("from_template", "from_user", "from_last", "from_bos"):
        assert numbers(rows, column).any(), column
    assert np.isnan(numbers(rows, "exact")).all() if "exact" in rows[0] else True


def test_overrides_are_a_preset_of_their_own(miniature: Path, tmp_path: Path) -> None:
    few = subset(miniature, tmp_path / "few", lambda records: records[:8])
    found = run(
        config(few, tokens="completion", gating="quadrant", ablate=0), tmp_path / "w"
    )
    assert found["primary"] == "faithful, changed"
    assert set(found["presets"]) == {"faithful, changed", "faithful", "recommended"}
    rows = table(tmp_path / "w/latents.csv")
    np.testing.assert_allclose(numbers(rows, "delta"), numbers(rows, "quadrant"))
    assert not numbers(rows, "from_user").any()
    assert (tmp_path / "w/latents_faithful.csv").exists()


def test_show_tokens_prints_the_rows_and_writes_nothing(
    miniature: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from etils import epath

    from experiments import attribute

    attribute.start(config(miniature), epath.Path(tmp_path / "w"), shown=2)
    out = capsys.readouterr().out
    blocks = out.strip().split("\n\n")
    assert len(blocks) == 2
    record = json.loads((miniature / "pairs.jsonl").read_text().splitlines()[0])
    words = [re.split(r"\s+", line)[3] for line in blocks[0].splitlines()[2:]]
    assert words == [
        repr(w)
        for w in ["<s>", *record["prompt"].split(), *record["positive"][0].split()]
    ]
    assert blocks[0].splitlines()[2].endswith("masked")
    assert not (tmp_path / "w").exists()


# ---- other gradients


@pytest.mark.parametrize("gradient", ["integrated", "lrp"])
def test_another_gradient_is_recorded_and_shares_what_it_can(
    done: Path, miniature: Path, tmp_path: Path, gradient: str
) -> None:
    work = copied(done, tmp_path / "work")
    found = run(
        config(miniature, gradient=gradient, gradient_steps=3, ablate=0),
        work,
        allow_change=True,
    )
    assert loaded(found) == ORDINARY | {"outliers", "aligned_activations"}
    assert (
        found["choices"]["gradient"]["name"]
        == found["choices"]["settings"]["gradient"]
        == gradient
    )
    assert int(table(work / "latents.csv")[0]["latent"]) == PLANTED
    assert (
        np.abs(scores(work)["both_prompt"] - scores(done)["both_prompt"]).max() > 1e-5
    )
    told = [w for w in found["warnings"] if "integrated gradients move" in w]
    assert len(told) == (gradient == "integrated")


def test_the_reconstruction_error_is_an_entry_of_its_own(done: Path) -> None:
    error = result(done)["reconstruction_error"]
    assert error["scope"] == "prompt"
    assert error["low"] <= error["delta"] <= error["high"]
    assert 1 <= error["rank"] <= LATENTS + 1
    np.testing.assert_allclose(
        error["latents"] + error["delta"], error["whole"], rtol=0.05, atol=5e-3
    )
