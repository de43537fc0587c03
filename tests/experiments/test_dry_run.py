"""`--dry_run` of every experiment: it says what a run needs, writes nothing, and ends
with status 1 where a run would fail.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from etils import epath
from ml_collections import ConfigDict

from configs import gemma3_270m_it, llama31_8b, qwen25_7b
from configs import judge_agreement as agreement_config
from configs import miniature as configs
from configs import organism as organism_config
from configs import ranking_truth as truth_config
from configs import steer as steer_config
from configs import train_sae as train_sae_config
from experiments import (
    _dry_run,
    attribute,
    case_study,
    check_sae,
    finetune,
    judge_agreement,
    pretrain,
    rank_sites,
    ranking_truth,
    steer,
    train_sae,
)
from sae_attr.beliefs import agreement_prompts
from sae_attr.files.hub import download
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.parallel import make_mesh
from sae_attr.sae.registry.names import named_sae
from sae_attr.study.dry_run.addresses import model_stand_in
from sae_attr.study.dry_run.report import DryRun
from sae_attr.study.dry_run.training_report import sae_training_memory
from sae_attr.study.sae_jobs import SAETrainingSettings, sae_jobs
from tests._hub import Hub
from tests.experiments import (
    _demo,
    test_judge_agreement,
    test_rank_sites,
    test_training,
)
from tests.experiments import _families as families
from tests.miniatures import llama_config, write_lines

RATES = _dry_run.rates_of_flags(("2000", "100"), "data=1")


def study_config(folder: Path, **changes: Any) -> ConfigDict:
    made = configs.get_config("study")
    for case in made.cases.values():
        for name in ("lm", "sae", "corpus", "prompts"):
            case[name] = case[name].replace(configs.FOLDER, str(folder))
    made.update({"mesh": "data=1", **changes})
    return made


def test_a_study(miniature: Path, tmp_path: Path) -> None:
    config = study_config(miniature)
    report = case_study.dry_run(config, epath.Path(tmp_path / "study"), RATES)
    assert report.faults == []
    assert list(tmp_path.iterdir()) == []
    text = report.text()
    for words in ("rude: models", "rude: SAE", "kind.steer.away", "missing"):
        assert words in text
    assert "everything fits" in text


def test_faults_are_listed_and_the_rest_is_shown(
    miniature: Path, tmp_path: Path
) -> None:
    config = study_config(miniature)
    config.sampling.max_new = 100_000
    config.cases.rude.judge = {"kind": "openai", "rubric": "validation", "model": "m"}
    config.cases.rude.judge.base_url = "http://127.0.0.1:9/v1"
    report = case_study.dry_run(config, epath.Path(tmp_path / "study"), RATES)
    assert any("exceeds the model's" in fault for fault in report.faults)
    assert any("its judge" in fault for fault in report.faults)
    assert "rude: memory" in report.text()
    assert "a run would fail" in report.text()
    assert list(tmp_path.iterdir()) == []


def test_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as good:
        _dry_run.end(DryRun())
    with pytest.raises(SystemExit) as bad:
        _dry_run.end(DryRun(faults=["no room"]))
    assert (good.value.code, bad.value.code) == (0, 1)
    assert "- no room" in capsys.readouterr().out


@pytest.mark.parametrize("numbers", [("1",), ("a", "2"), ("0", "1"), ("1", "2", "3")])
def test_rates_that_cannot_be(numbers: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="two numbers above 0"):
        _dry_run.rates_of_flags(numbers, "")


def test_a_study_by_exact_probabilities(miniature: Path, tmp_path: Path) -> None:
    config = study_config(miniature)
    config.update({"pairs_by": "continuations", "strengths_by": "exact"})
    config.update({"effects_by": "exact", "sampled_latents": 0})
    for case in config.cases.values():
        case.continuations.update({"present": (" thanks",), "absent": (" hate",)})
    report = case_study.dry_run(config, epath.Path(tmp_path / "study"), RATES)
    assert report.faults == []
    text = report.text()
    assert "exact tokens" in text
    assert "rude.rates.away" in text
    assert "keys and values of conditions" in text
    # Nothing is graded, so nobody is asked.
    assert "judge of" not in text
    assert "completions are sampled" not in text
    config.sampled_latents = 1
    report = case_study.dry_run(config, epath.Path(tmp_path / "study"), RATES)
    assert "judge of" in report.text()
    assert "completions are sampled" in report.text()


def test_an_organism_that_is_still_to_be_made(tmp_path: Path) -> None:
    config = organism_config.get_config()
    config.organism.size = "miniature"
    report = case_study.dry_run(config, epath.Path(tmp_path / "study"), RATES)
    assert report.faults == []
    assert list(tmp_path.iterdir()) == []
    text = report.text()
    for words in ("each of base, chat", "organism.base", "misalignment.gradients"):
        assert words in text


def test_the_evaluation_of_scores(tmp_path: Path) -> None:
    config = truth_config.get_config()
    config.organism.size = "miniature"
    config.seeds = (0,)
    text = dry(ranking_truth, config, tmp_path / "w")
    for words in ("validation-mixed-0-256.ground_truth", "scores.prompt", "0.sae.2048"):
        assert words in text


# ---- other experiments ---------------------------------------------------------------


def dry(program: Any, config: ConfigDict, workdir: Path) -> str:
    """The text of a dry run without faults that left nothing behind."""
    # Beside a workdir that several tests share others may write at this moment.
    folder = workdir if workdir.exists() else workdir.parent
    before = sorted(folder.rglob("*"))
    report = program.dry_run(config, epath.Path(workdir), RATES)
    assert report.faults == []
    assert sorted(folder.rglob("*")) == before
    return report.text()


def test_an_attribution_and_what_of_it_is_done(
    miniature: Path, done: Path, tmp_path: Path
) -> None:
    config = _demo.config(miniature)
    text = dry(attribute, config, tmp_path / "w")
    for words in ("gradients", "tokens of", "SAE decoder", "12 missing"):
        assert words in text
    finished = dry(attribute, config, done)
    assert "of 12 stages: 12 done" in finished
    assert [line.split() for line in finished.splitlines() if "to do" in line] == [
        ["to", "do", "0.00", "s"]
    ]


def test_several_saes(miniature: Path, tmp_path: Path) -> None:
    sae = miniature / "random_sae"
    saes = f"{sae},{sae}?site=layer0.resid_post"
    text = dry(rank_sites, test_rank_sites.settings(miniature, saes), tmp_path / "w")
    assert "SAE decoder at layer0.resid_post" in text
    # One pass for the gradients of both, down to the lower.
    assert "layer0.resid_post gradients" in text
    assert "layer1.resid_post gradients" not in text


def test_a_check(miniature: Path, tmp_path: Path) -> None:
    config = _demo.config(miniature)
    text = dry(check_sae, config, tmp_path / "w")
    assert "sae_check" in text
    config.sae_check_tokens = 0
    with pytest.raises(ValueError, match="nothing to check"):
        check_sae.dry_run(config, epath.Path(tmp_path / "w"), RATES)


def test_a_sweep(miniature: Path, tmp_path: Path) -> None:
    config = steer_config.get_config()
    prompts = write_lines(tmp_path / "p.jsonl", {"prompt": "hi"}, {"prompt": "so it"})
    config.update({"lm": str(miniature / "model"), "sae": str(miniature / "sae")})
    config.update({"prompts": str(prompts), "latents": (3, 4), "mesh": "data=1"})
    text = dry(steer, config, tmp_path / "w")
    # Two latents at two strengths and none, on two prompts.
    assert [
        line for line in text.splitlines() if "completions  " in line and " 10 " in line
    ]
    assert "the sweep" in text


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return test_training.write_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_fine_tune(base: Path, tmp_path: Path, method: str) -> None:
    config = test_training.finetuning(base, method=method, epochs=2.0)
    text = dry(finetune, config, tmp_path / "w")
    assert "rows through the chat template" in text
    assert "gradient and moments" in text
    assert ("adapter" in text) == (method == "lora")


def test_a_training_that_was_stopped(base: Path, tmp_path: Path) -> None:
    config = test_training.pretraining(base)
    assert "missing" in dry(pretrain, config, tmp_path / "w")
    test_training.run(pretrain, config, tmp_path / "w")
    text = dry(pretrain, config, tmp_path / "w")
    assert [line.split()[-1] for line in text.splitlines() if "training  " in line] == [
        "done"
    ]


def test_a_training_of_saes(base: Path, tmp_path: Path) -> None:
    config = train_sae_config.get_config()
    config.update({"lm": str(base / "model"), "corpus": str(base / "corpus.json")})
    config.update({"site": "layer0.resid_post,layer1.resid_post", "mesh": "data=1"})
    config.update({"tokens": 32 * 60, "batch_size": 32, "context": 32})
    config.sae.update({"n_latents": 32, "k": 4})
    text = dry(train_sae, config, tmp_path / "w")
    for words in ("training at layer1.resid_post", "activations on disk", "corpus"):
        assert words in text


def test_a_training_on_two_models_counts_both() -> None:
    cfg, mesh = config_from_hf(llama_config(n_layers=2, d=16, vocab=40)), make_mesh("")

    def held(objective: str, lm_base: str | None) -> dict[str, int]:
        settings = SAETrainingSettings(lm="tuned", lm_base=lm_base, tokens=8192)
        settings = replace(settings, site="layer1.resid_post")
        jobs = sae_jobs(settings, {"objective": objective, "n_latents": 32}, cfg)
        parts = sae_training_memory(settings, jobs, cfg, mesh, context=32)
        return {part.what: part.bytes for part in parts}

    one, both = held("batch_topk", None), held("crosscoder", "before")
    difference = held("batch_topk", "before")
    for of_two in (both, difference):
        assert of_two["weights of the model before"] == one["weights of the model"]
        assert of_two["activations of a batch"] == 2 * one["activations of a batch"]
    assert both["shuffled tokens"] == 2 * one["shuffled tokens"]
    assert difference["shuffled tokens"] == one["shuffled tokens"]


def test_judges_that_are_compared(tmp_path: Path) -> None:
    pytest.importorskip("openai")
    config = agreement_config.get_config()
    config.update({"published": str(test_judge_agreement.write_published(tmp_path))})
    config.update({"mesh": "data=1", "judges": "http://127.0.0.1:9/v1#m"})
    report = judge_agreement.dry_run(config, epath.Path(tmp_path / "w"), RATES)
    assert len(report.faults) == 1
    assert "m: its judge" in report.faults[0]
    config.judges = ""
    assert "judge calls" in dry(judge_agreement, config, tmp_path / "w")
    config.published = None
    with pytest.raises(ValueError, match="lacks published"):
        judge_agreement.dry_run(config, epath.Path(tmp_path / "w"), RATES)


# ---- what lies on the hub ------------------------------------------------------------


@pytest.fixture
def hub(miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with the miniature's model, and its SAE in a folder."""
    made = Hub(tmp_path / "hub", monkeypatch)
    shutil.copytree(miniature / "model", made.repository("o/model"), dirs_exist_ok=True)
    shutil.copytree(miniature / "sae", made.repository("o/saes") / "at/one")
    return made


def test_weights_on_the_hub_are_counted_and_not_fetched(
    miniature: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _demo.config(miniature)
    config.update({"lm": "o/model", "sae": "hf://o/saes/at/one"})
    config.site = "layer1.resid_post"
    with pytest.raises(SystemExit) as ended:
        _dry_run.run_dry(
            attribute.dry_run, config, epath.Path(tmp_path / "w"), ("2000", "100")
        )
    out = capsys.readouterr().out
    assert ended.value.code == 0, out
    assert [
        name for name in hub.fetched if name.endswith((".safetensors", ".npz"))
    ] == []
    assert "downloads of a run" in out
    assert "model.safetensors" in out
    assert "at/one/sae_weights.safetensors" in out
    # As many latents as the size of the weights leaves.
    count = json.loads((miniature / "sae/cfg.json").read_text())["d_sae"]
    row = next(line for line in out.splitlines() if line.startswith("hf://o/saes"))
    assert abs(int(row.split()[3].replace(",", "")) - count) <= 2
    assert not (tmp_path / "w").exists()


def test_a_model_that_is_here_already_stays_where_it_is(hub: Hub) -> None:
    download("o/model", None, files=["*"])
    assert model_stand_in("o/model") is None


def test_an_sae_of_which_nothing_says_the_site(
    miniature: Path, hub: Hub, tmp_path: Path
) -> None:
    config = _demo.config(miniature)
    config.sae = "hf://o/saes/at/one"
    with pytest.raises(ValueError, match="set site"):
        _dry_run.without_weights(config, tmp_path)


# ---- public models at their own size -------------------------------------------------

QWEN = families.QWEN | {
    "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
    "intermediate_size": 18944, "vocab_size": 152_064,
}  # fmt: skip
LLAMA = families.LLAMA | {
    "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "vocab_size": 128_256,
}  # fmt: skip
GEMMA = families.GEMMA | {
    "hidden_size": 640, "num_attention_heads": 4, "head_dim": 256,
    "intermediate_size": 2048, "vocab_size": 262_144,
}  # fmt: skip


def hole(path: Path, size: int) -> None:
    """A file of zeros that takes no room."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def write_public(hub: Hub, hf: dict[str, Any], tiny: dict[str, Any], lm: str) -> None:
    """A model's config at its own size, a tokenizer of words, and no weights."""
    folder = hub.repository(lm)
    families.write_model(folder, tiny | {"num_hidden_layers": 1})
    (folder / "config.json").write_text(json.dumps(hf))
    hole(folder / "model.safetensors", 10**9)


@pytest.mark.parametrize(
    ("module", "hf", "tiny", "parameters", "latents"),
    [
        # Counted by the publishers of the models.
        (qwen25_7b, QWEN, families.QWEN, "7,615,616,512", "131,072"),
        (llama31_8b, LLAMA, families.LLAMA, "8,030,261,248", "65,536"),
    ],
)
def test_organisms_of_public_models(
    module: Any,
    hf: dict[str, Any],
    tiny: dict[str, Any],
    parameters: str,
    latents: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub, config = Hub(tmp_path / "hub", monkeypatch), module.get_config("medical")
    config.mesh, case = "data=1", config.cases.medical
    write_public(hub, hf, tiny, module.BASE)
    hole(hub.repository(case.adapter) / "adapter_model.safetensors", 300_000_000)
    (hub.repository(case.adapter) / "adapter_config.json").write_text("{}")
    named = named_sae(case.sae)
    assert named is not None
    place = hub.repository(named.release.repo) / named.sae.path
    hole(place if named.release.loader.is_file else place / "ae.pt", 10**9)
    (tmp_path / "corpus.json").write_text(json.dumps(["once upon a time"] * 9))
    prompts = [{"id": str(i), "prompt": f"what is {i}?"} for i in range(60)]
    case.prompts = str(write_lines(tmp_path / "prompts.jsonl", *prompts))
    case.corpus = str(tmp_path / "corpus.json")
    case.judge.update({"kind": "keywords", "rubric": None})
    case.judge.update({"present": ("yes",), "absent": ("no",)})
    place = "sae_attr.study.dry_run.report.device_memory"
    monkeypatch.setattr(place, lambda mesh: 24 * 10**9)
    stand_ins = _dry_run.without_weights(config, tmp_path / "zeros")
    report = case_study.dry_run(config, epath.Path(tmp_path / "w"), RATES)
    report.add_stand_ins(stand_ins)
    text = report.text()
    assert [name for name in hub.fetched if not name.endswith(".json")] == []
    assert parameters in text
    assert latents in text
    assert "model.safetensors" in text
    assert "adapter_model.safetensors" in text
    # Two models of 15 GB in bfloat16.
    assert len(report.faults) == 1
    assert "do not fit its 24.0 GB" in report.faults[0]
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("width", ["16k", "1m"])
def test_gemma_3_270m(
    width: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path / "hub", monkeypatch)
    config = gemma3_270m_it.get_config(width)
    config.mesh, case = "data=1", config.cases.agreement
    write_public(hub, GEMMA, families.GEMMA, gemma3_270m_it.LM)
    named = named_sae(case.sae)
    assert named is not None
    folder = hub.repository(named.release.repo) / named.sae.path
    hole(folder / "params.safetensors", 10**8)
    (tmp_path / "corpus.json").write_text(json.dumps(["once upon a time"] * 9))
    prompts = write_lines(tmp_path / "prompts.jsonl", *agreement_prompts())
    case.prompts = str(prompts)
    case.corpus = str(tmp_path / "corpus.json")
    stand_ins = _dry_run.without_weights(config, tmp_path / "zeros")
    report = case_study.dry_run(config, epath.Path(tmp_path / "w"), RATES)
    report.add_stand_ins(stand_ins)
    assert report.faults == []
    text = report.text()
    assert [name for name in hub.fetched if not name.endswith(".json")] == []
    assert "268,098,176" in text
    assert {"16k": "16,384", "1m": "1,048,576"}[width] in text
    # An encoder and a decoder of 640 float32 each.
    assert {"16k": "41.9 MB", "1m": "2.7 GB"}[width] in text
