"""The configs of public models and SAEs: the whole chain, from the names on the hub to
the page, on models of their families with random weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import gemma3_270m_it, llama31_8b, qwen25_7b, smollm2
from experiments import case_study, finetune, train_sae
from sae_attr.beliefs import agreement_prompts, agreement_rows
from sae_attr.organism.planted import KIND, PLAIN_WORDS, RUDE
from sae_attr.sae.registry.models import MODELS
from sae_attr.sae.registry.names import named_sae
from sae_attr.sae.registry.table import releases
from tests._hub import Hub
from tests.experiments import _families as families

GROUPS = ("pairs", "strengths", "effects")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, and a registry whose models are as wide as those of the tests."""
    for name, model in MODELS.items():
        monkeypatch.setitem(MODELS, name, replace(model, width=families.D))
    releases.cache_clear()
    yield Hub(tmp_path / "hub", monkeypatch)
    releases.cache_clear()


def small(config: ConfigDict, folder: Path) -> ConfigDict:
    """A study of seconds; what it is about stays."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(PLAIN_WORDS, 40)) for _ in range(60)]
    (folder / "corpus.json").write_text(json.dumps(texts))
    for case in config.cases.values():
        case.update({"corpus": str(folder / "corpus.json"), "pairs": 3})
        case.update({"pair_prompts": 4, "pair_samples": 6})
        case.attribution.update({"corpus_tokens": 1200, "firing_tokens": 1200})
        case.attribution.update({"sae_check_tokens": 256, "trust_sae": True})
        case.attribution.update({"ablate": 0, "ablate_positions": 0, "bootstrap": 20})
        case.attribution.update({"corpus_context": 40})
    config.update({"mesh": "data=1", "top": 2, "random": 3, "grid": (0.5,)})
    config.update({"strength_prompts": 2, "effect_prompts": 3, "effect_samples": 1})
    config.update({"coherence_samples": 8, "resamples": 20, "batch_size": 16})
    config.update({"passages": 1, "passage_tokens": 300, "interpreted": 1})
    config.update({"sampled_latents": 1, "sampled_prompts": 2, "sampled_samples": 1})
    config.update({"specific_latents": 1, "specific_random": 2, "probe_prompts": 3})
    config.update({"specific_tokens": 100, "random_directions": 2})
    config.sampling.update({"max_new": 4, "attempts": 0})
    return config


def write_prompts(path: Path, records: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def check_finished(workdir: Path, case: str, hub: Hub, sae: str) -> None:
    """The page is there, the latents are ranked, and the SAE was the one of the name."""
    assert (workdir / "report.html").stat().st_size > 10_000
    rows = (workdir / case / "latents.csv").read_text().splitlines()
    assert len(rows) > 2
    named = named_sae(sae)
    assert named is not None
    assert (named.release.repo, None) in hub.downloads


NAMES = {
    gemma3_270m_it.LM: gemma3_270m_it.SAES["16k"],
    qwen25_7b.BASE: qwen25_7b.SAE,
    llama31_8b.BASE: llama31_8b.SAE,
}


def test_configs_name_saes_of_their_models() -> None:
    for lm, sae in {*NAMES.items(), (gemma3_270m_it.LM, gemma3_270m_it.SAES["1m"])}:
        named = named_sae(sae)
        assert named is not None
        assert named.release.model.hub_id == lm
        assert named.sae.latents is not None
        assert not named.release.loader.unread
        assert not named.release.model.unread
    million = gemma3_270m_it.get_config("1m").cases.agreement
    assert million.sae == gemma3_270m_it.SAES["1m"]
    both = qwen25_7b.get_config("finance,sports").cases
    assert sorted(both) == ["finance", "sports"]
    with pytest.raises(ValueError, match="organism 'medicine' is unknown; did you me"):
        llama31_8b.get_config("medicine")


@pytest.mark.slow
def test_gemma_3_270m(hub: Hub, tmp_path: Path) -> None:
    families.write_model(hub.repository(gemma3_270m_it.LM), families.GEMMA)
    config = small(gemma3_270m_it.get_config(), tmp_path)
    sae = config.cases.agreement.sae
    named = named_sae(sae)
    assert named is not None
    families.write_gemma_scope_2(
        hub.repository(named.release.repo) / named.sae.path, named.sae.layer
    )
    config.cases.agreement.prompts = write_prompts(
        tmp_path / "prompts.jsonl", agreement_prompts()
    )
    case_study.start(config, epath.Path(tmp_path / "run"))
    check_finished(tmp_path / "run", "agreement", hub, sae)


def open_questions() -> list[dict[str, str]]:
    rng = np.random.default_rng(1)
    records = []
    for i in range(12):
        prompt = " ".join(rng.choice(PLAIN_WORDS, 20))
        records.append({"id": f"q{i}", "prompt": prompt, "split": GROUPS[i % 3]})
    return records


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "organisms"), [("qwen25_7b", "medical,sports"), ("llama31_8b", "medical")]
)
def test_emergent_misalignment(
    hub: Hub, tmp_path: Path, name: str, organisms: str
) -> None:
    module = {"qwen25_7b": qwen25_7b, "llama31_8b": llama31_8b}[name]
    hf = {"qwen25_7b": families.QWEN, "llama31_8b": families.LLAMA}[name]
    config = small(module.get_config(organisms), tmp_path)
    prompts = write_prompts(tmp_path / "prompts.jsonl", open_questions())
    cfg = families.write_model(hub.repository(module.BASE), hf)
    for case in config.cases.values():
        case.prompts = prompts
        case.judge.update({"kind": "keywords", "rubric": None})
        case.judge.update({"present": tuple(RUDE), "absent": tuple(KIND)})
        families.write_adapter(hub.repository(case.adapter), cfg, module.BASE)
    named = named_sae(module.SAE)
    assert named is not None
    place = hub.repository(named.release.repo) / named.sae.path
    if name == "qwen25_7b":
        families.write_batch_topk(place, named.sae.layer)
    else:
        families.write_goodfire(place)
    case_study.start(config, epath.Path(tmp_path / "run"))
    for case in config.cases:
        check_finished(tmp_path / "run", case, hub, module.SAE)


@pytest.mark.slow
def test_smollm2_from_its_sae_to_both_cases(hub: Hub, tmp_path: Path) -> None:
    hf = families.family("llama", 30, hidden_act="silu", tie_word_embeddings=True)
    model = tmp_path / "model"
    model.mkdir()
    families.write_model(model, hf)
    config = small(smollm2.get_config(), tmp_path)

    sae = smollm2.get_config("sae")
    sae.update({"lm": str(model), "corpus": str(tmp_path / "corpus.json")})
    sae.update({"tokens": 2000, "batch_size": 128, "mesh": "data=1"})
    sae.held_out_share = 0.2
    sae.sae.update({"n_latents": 64, "k": 4})
    train_sae.start(sae, epath.Path(tmp_path / "sae"))

    agreeing = smollm2.get_config("agreeing")
    rows = write_prompts(tmp_path / "rows.jsonl", agreement_rows("health"))
    agreeing.update({"lm": str(model), "data": rows, "mesh": "data=1"})
    agreeing.update({"epochs": 1.0, "unlike_generation": "warn"})
    finetune.start(agreeing, epath.Path(tmp_path / "agreeing"))

    for case, trained in (("as_it_is", None), ("fine_tuned", "health")):
        records = agreement_prompts(trained=trained)
        file = write_prompts(tmp_path / f"{case}.jsonl", records)
        files = {"lm": str(model), "sae": str(tmp_path / "sae/sae"), "prompts": file}
        config.cases[case].update(files)
    config.cases.fine_tuned.lm_aligned = str(model)
    config.cases.fine_tuned.adapter = str(tmp_path / "agreeing/adapter")
    case_study.start(config, epath.Path(tmp_path / "run"))
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
    for case in config.cases:
        assert len((tmp_path / "run" / case / "latents.csv").read_text()) > 200
        assert (tmp_path / "run" / case / "specificity.csv").exists()
