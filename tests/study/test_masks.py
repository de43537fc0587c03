"""Attention sinks count nowhere: not in ā, the unit of steering, firing rates, mean
codes or δ.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

from sae_attr.activations import CorpusBatch, Masks, norm_limits
from sae_attr.attribution import firing_rates, mean_activation
from sae_attr.attribution.latent_statistics import code_statistics
from sae_attr.hooks import Site
from sae_attr.interpret import top_passages
from sae_attr.lm.model import Params
from sae_attr.parallel import make_mesh
from sae_attr.sae.model import SAE, SAEConfig
from sae_attr.store import Store
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.attribution_stages import (
    attribution_stages,
    corpus_limits,
    ordinary_mean,
    run_setup,
)
from sae_attr.study.sae_files import training_masks
from sae_attr.study.setup import Setup
from sae_attr.study.stages.outliers import masked_rows
from sae_attr.text.masks import masks_from
from sae_attr.text.rows import scope_mask
from tests.attribution._tiny import VOCAB, llama, off, random_params
from tests.miniatures import llama_config, llama_tensors, write_lines, write_tokenizer

pytestmark = pytest.mark.usefixtures("quick")

CFG, SITE, SINK = llama(), Site(1), 7
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(8, VOCAB, (4, 12)).astype(np.int32)
TOKENS[:, 0] = SINK
VALID = np.ones_like(TOKENS, bool)
WORK: list[CorpusBatch] = [CorpusBatch(TOKENS, VALID, VALID)]
BARE: list[CorpusBatch] = [CorpusBatch(TOKENS, VALID, TOKENS != SINK)]
WHERE = {"cfg": CFG, "mesh": make_mesh("data=1")}


def with_sink() -> Params:
    """A model in which one token's activation is some hundred times as long as the
    others'.
    """
    params = random_params(CFG)
    return {**params, "embed": {"table": params["embed"]["table"].at[SINK].mul(300)}}


def some_sae() -> SAE:
    enc, dec = (
        RNG.standard_normal(shape).astype(np.float32) for shape in ((16, 9), (9, 16))
    )
    return SAE(
        jnp.asarray(enc),
        jnp.zeros(9),
        jnp.asarray(dec),
        jnp.zeros(16),
        cfg=SAEConfig(16, 16, 9),
    )


def test_a_sink_counts_in_no_statistic_of_the_corpus() -> None:
    params, sae = with_sink(), some_sae()
    limits = norm_limits(params, WORK, 10.0, sites=(SITE,), **WHERE)
    mean, want = (
        mean_activation(params, w, site=SITE, limits=limits, **WHERE)
        for w in (WORK, BARE)
    )
    assert (mean.outliers, mean.tokens) == (4, 44)
    assert off(mean.mean_d, want.mean_d) < 1e-6
    assert mean.norm == pytest.approx(want.norm)
    assert (
        mean_activation(params, WORK, site=SITE, **WHERE).norm > 5 * mean.norm
    )  # what a sink does to the unit
    codes, bare = (
        code_statistics(params, w, sae, site=SITE, limits=limits, **WHERE)
        for w in (WORK, BARE)
    )
    np.testing.assert_allclose(codes.rate_n, bare.rate_n)
    np.testing.assert_allclose(codes.mean_n, bare.mean_n, rtol=1e-5)
    rates, tokens = firing_rates(params, WORK, sae, site=SITE, limits=limits, **WHERE)
    np.testing.assert_allclose(rates, bare.rate_n)
    assert tokens == codes.tokens == 44


def test_no_outliers_no_limits() -> None:
    assert norm_limits(with_sink(), WORK, None, sites=(SITE,), **WHERE) == {}
    limits = norm_limits(random_params(CFG), WORK, 10.0, sites=(SITE,), **WHERE)
    assert (
        mean_activation(
            random_params(CFG), WORK, site=SITE, limits=limits, **WHERE
        ).outliers
        == 0
    )


def test_passages_are_different_texts_and_no_sinks() -> None:
    params, sae = with_sink(), some_sae()
    limits = norm_limits(params, WORK, 10.0, sites=(SITE,), **WHERE)
    twice: list[CorpusBatch] = [*WORK, *WORK]
    latents = np.arange(9)
    shown = top_passages(
        params,
        sae,
        twice,
        latents,
        site=SITE,
        limits=limits,
        window=3,
        count=4,
        **WHERE,
    )
    loose = top_passages(
        params, sae, twice, latents, site=SITE, window=3, count=4, **WHERE
    )
    assert any(p.ids[p.at] == SINK for passages in loose for p in passages)
    assert sum(map(len, shown)) > 9
    for passages in (*shown, *loose):
        assert len({p.ids[: p.at + 1] for p in passages}) == len(passages)
        assert [p.code for p in passages] == sorted(
            (p.code for p in passages), reverse=True
        )
        for p in passages:
            assert len(p.codes) == len(p.ids)
            assert p.codes[p.at] == p.code
    assert not any(p.ids[p.at] == SINK for passages in shown for p in passages)


@pytest.fixture
def study(tmp_path: Path) -> Setup:
    """Character model whose letter Z is a sink, two pairs and a text that begins with
    it.
    """
    write_tokenizer(tmp_path / "lm")
    vocab = json.loads((tmp_path / "lm/tokenizer.json").read_text())["model"]["vocab"]
    config = llama_config(vocab=len(vocab))
    tensors = llama_tensors(config)
    tensors["model.embed_tokens.weight"][vocab["Z"]] *= 500
    (tmp_path / "lm/config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "lm/model.safetensors")
    pair = {"prompt": "Zabc Z", "positive": "deZ", "negative": "f"}
    write_lines(tmp_path / "pairs.jsonl", pair, {**pair, "prompt": "ghi"})
    (tmp_path / "corpus.json").write_text(
        json.dumps(["Zthe quick brown fox", "Zjumps over the lazy dog"])
    )
    files = {"lm": "lm", "sae": "sae", "pairs": "pairs.jsonl", "corpus": "corpus.json"}
    paths = {key: str(tmp_path / name) for key, name in files.items()}
    return Setup(
        Settings(**paths, site="layer1.resid_post"),
        Store(epath.Path(tmp_path / "store")),
        make_mesh("data=1"),
        stated_sae=SAEConfig(16, 16, 9),
    )


def test_a_study_masks_sinks_of_pairs_and_corpus_alike(
    study: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert study.masks == Masks(frozenset())
    write_lines(tmp_path / "sae")  # its contents are named, never read
    stages = attribution_stages(study)
    only = ("norm_limits", "outliers", "mean_activation")
    results = run_setup(study, stages, only=only)
    rows = masked_rows(study, results["outliers"])
    texts = {row.pair: "Zabc Z" if row.pair == 0 else "ghi" for row in rows}
    for row in rows:
        text = texts[row.pair] + ("deZ" if row.side > 0 else "f")
        sinks = [letter == "Z" for letter in text]
        assert row.masked is not None
        assert row.masked[-len(sinks) :].tolist() == sinks
        assert scope_mask(row, "all")[-len(sinks) :].tolist() == [
            not sink for sink in sinks
        ]
    mean = ordinary_mean(study)
    assert mean.outliers == 2
    limits = corpus_limits(study)
    assert 10 * mean.norm > limits[study.site] > 5 * mean.norm
    again = replace(study)
    nothing = property(
        lambda self: pytest.fail("a second run loads; it computes nothing")
    )
    monkeypatch.setattr(Setup, "params", nothing)
    results = run_setup(again, attribution_stages(again), only=only)
    assert [row.masked.tolist() for row in masked_rows(again, results["outliers"])] == [
        row.masked.tolist() for row in rows
    ]


def test_masks_of_a_study(study: Setup) -> None:
    said = Masks(frozenset({"bos"}), first_k=2, outlier=None)
    assert training_masks(SAEConfig(16, 16, 9, exclude_special=True)) == Masks(
        frozenset({"special"})
    )
    assert (
        training_masks(SAEConfig(16, 16, 9, exclude_special=True, masks=said)) == said
    )
    assert masks_from(json.loads(json.dumps(said.to_dict()))) == said
    with pytest.raises(
        ValueError, match=r"outlier is 0.5; give a multiple of the median norm above 1"
    ):
        Settings(lm="lm", sae="sae", pairs="pairs", corpus="corpus", outlier=0.5)
    for wrong in (
        "bos",
        {"exclude": "bos"},
        {"exclude": ["eos"]},
        {"first_k": True},
        {"rule": 1},
    ):
        with pytest.raises(ValueError, match=r"masks are|exclude 'eos' is unknown"):
            masks_from(wrong)
