"""lm-eval's model class: scores by hand, steering, and the library's own evaluation."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from sae_attr.lm.model import forward, logits
from sae_attr.lm.weights import load_lm
from sae_attr.organism.planted import PLANTED, make_planted
from sae_attr.text.tokenizer import decode, encode
from sae_attr.text.tokenizer_folder import load_tokenizer

pytestmark = pytest.mark.usefixtures("quick")
PAIRS = (
    ("the old cook said", " you awful fool"),
    ("grumpy king ", "hate the soup"),
    ("", "dear child"),
    ("so", " why"),
    ("tea bread door garden road tea bread", " again"),
)


def windows(
    token_list: list[int], prefix_token: int, max_seq_len: int, context_len: int
) -> list[tuple[list[int], list[int]]]:
    """lm-eval's windows with a context of one token, restated; each is (what is read,
    what is predicted), of which the first overlap.
    """
    assert context_len == 1
    ids = [prefix_token, *token_list]
    out = []
    for start in range(0, len(token_list), max_seq_len):
        stop = min(start + max_seq_len, len(token_list))
        first = start if stop - start == max_seq_len else max(0, stop - max_seq_len)
        out.append((ids[first:stop], token_list[start:stop]))
    return out


def disjoint(window: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    read, predicted = window
    return read[: len(read) - len(predicted) + 1], predicted


class Base:
    """lm-eval's base class, as far as it matters here."""

    def __init__(self) -> None:
        self._rank = 0


def stub() -> dict[str, ModuleType]:
    """Modules in place of lm-eval's."""
    parts: dict[str, dict[str, Any]] = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"LM": Base},
        "lm_eval.api.registry": {"register_model": lambda name: lambda cls: cls},
        "lm_eval.utils": {
            "get_rolling_token_windows": windows,
            "make_disjoint_window": disjoint,
        },
    }
    modules = {}
    for name, values in parts.items():
        modules[name] = ModuleType(name)
        vars(modules[name]).update(values)
    return modules


@pytest.fixture(scope="module", params=["stub", "real"])
def harness(request: pytest.FixtureRequest) -> Any:
    """sae_attr.lm_eval over a stub of lm-eval, and over the real one where it is."""
    real = importlib.util.find_spec("lm_eval") is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "sae_attr.lm_eval", raising=False)
        if request.param == "stub":
            for name, module in stub().items():
                patch.setitem(sys.modules, name, module)
        elif not real:
            pytest.skip("needs lm-eval")
        yield importlib.import_module("sae_attr.lm_eval")
        sys.modules.pop("sae_attr.lm_eval", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted")
    make_planted(path)
    return path


def model(harness: Any, folder: Path, **options: Any) -> Any:
    return harness.SteeredLM(str(folder / "model"), batch_size=3, **options)


def steered(harness: Any, folder: Path, strength: float) -> Any:
    sae = str(folder / "sae")
    return model(harness, folder, sae=sae, latent=PLANTED, strength=strength)


def requests(*args: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=arguments) for arguments in args]


def by_hand(folder: Path, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of every token but the first, and whether it is the greedy one;
    one row, unpadded.
    """
    cfg, params = load_lm(str(folder / "model"), progress=False)
    out = forward(params, np.array([ids], np.int32), cfg=cfg)
    logits_tv = logits(params, out.hidden_btd[0, :-1], cfg=cfg)
    following = np.array(ids[1:])
    logp_tv = np.asarray(jax.nn.log_softmax(logits_tv))
    greedy_t = logp_tv.argmax(-1) == following
    return logp_tv[np.arange(len(following)), following], greedy_t


def test_scores_are_those_of_single_rows(harness: Any, folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "model")
    got = model(harness, folder).loglikelihood(requests(*PAIRS))
    for (context, continuation), (logp, greedy) in zip(PAIRS, got, strict=True):
        ids, _ = encode(tokenizer, context + continuation, add_bos=True)
        count = len(continuation.split())
        logp_t, greedy_t = by_hand(folder, ids)
        assert logp == pytest.approx(logp_t[-count:].sum(), abs=1e-4)
        assert greedy == bool(greedy_t[-count:].all())
    greedy_ids = ids_of_greedy(folder, "the old", 3)
    following = " " + decode(tokenizer, greedy_ids)
    ((_, greedy),) = model(harness, folder).loglikelihood(
        requests(("the old", following))
    )
    assert greedy


def ids_of_greedy(folder: Path, context: str, count: int) -> list[int]:
    tokenizer = load_tokenizer(folder / "model")
    cfg, params = load_lm(str(folder / "model"), progress=False)
    ids, _ = encode(tokenizer, context, add_bos=True)
    start = len(ids)
    for _ in range(count):
        out = forward(params, np.array([ids], np.int32), cfg=cfg)
        ids.append(int(np.argmax(logits(params, out.hidden_btd[0, -1], cfg=cfg))))
    return ids[start:]


def test_long_texts_are_scored_in_windows_each_token_once(
    harness: Any, folder: Path
) -> None:
    tokenizer = load_tokenizer(folder / "model")
    text = "the old man said so the young king asked why the cook told"
    ids, _ = encode(tokenizer, text, add_bos=True)
    (whole,) = model(harness, folder).loglikelihood_rolling(requests((text,)))
    assert whole == pytest.approx(by_hand(folder, ids)[0].sum(), abs=1e-4)
    short = model(harness, folder, max_length=5)
    (parts,) = short.loglikelihood_rolling(requests((text,)))
    expected = 0.0
    for read, predicted in windows(ids[1:], ids[0], 5, 1):
        row = [*read, predicted[-1]]
        expected += by_hand(folder, row)[0][-len(predicted) :].sum()
    assert parts == pytest.approx(expected, abs=1e-4)


def test_completions_are_greedy_and_end_at_stop_texts(
    harness: Any, folder: Path
) -> None:
    tokenizer = load_tokenizer(folder / "model")
    plain = model(harness, folder)
    words = decode(tokenizer, ids_of_greedy(folder, "so", 6)).split()
    options = {"until": [], "max_gen_toks": 6}
    long = ("so", options)
    cut = ("so", {"until": [words[2]], "max_gen_toks": 6})
    sampled = ("so", {"max_gen_toks": 4, "do_sample": True, "temperature": 1.0})
    whole, stopped, drawn = plain.generate_until(requests(long, cut, sampled))
    if "</s>" not in words:
        assert whole.split() == words
    assert whole.startswith(stopped)
    assert words[2] not in stopped.split()
    assert drawn == plain.generate_until(requests(long, cut, sampled))[2]


def answers(lm: Any) -> tuple[Any, ...]:
    asked = requests(*[(context, {"max_gen_toks": 4}) for context, _ in PAIRS])
    texts = requests(*[(context + continuation,) for context, continuation in PAIRS])
    return (
        lm.loglikelihood(requests(*PAIRS)),
        lm.loglikelihood_rolling(texts),
        lm.generate_until(asked),
    )


def test_strength_0_is_the_model_as_it_is_bit_for_bit(
    harness: Any, folder: Path
) -> None:
    plain = answers(model(harness, folder))
    assert answers(steered(harness, folder, 0.0)) == plain
    rude = requests(("the old cook said", " awful"))
    levels = []
    for strength in (-8.0, 0.0, 8.0):
        levels.append(steered(harness, folder, strength).loglikelihood(rude)[0][0])
    assert levels == sorted(levels)
    assert levels[2] - levels[0] > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.0}, "takes sae= and latent=, or vectors= and vector="),
        ({"strength": 1.0, "sae": "sae", "latent": 999}, r"none of the SAE's 0\.\.255"),
        ({"strength": 1.0, "vectors": "v.safetensors"}, "has no vector ''; it has up"),
        (
            {"strength": 1.0, "vectors": "v.safetensors", "vector": "up"},
            "a vector needs site=",
        ),
        (
            {
                "strength": 1.0,
                "vectors": "v.safetensors",
                "vector": "up",
                "site": "layer1.resid_post",
            },
            "the direction has 3 numbers, and layer1.resid_post has 64",
        ),
        ({"strenght": 1.0}, "strength"),
    ],
)
def test_bad_steering(
    harness: Any, folder: Path, options: dict[str, Any], message: str
) -> None:
    from safetensors.numpy import save_file

    save_file({"up": np.ones(3, np.float32)}, folder / "v.safetensors")
    for name in ("sae", "vectors"):
        if name in options:
            options = {**options, name: str(folder / options[name])}
    with pytest.raises(ValueError, match=message):
        model(harness, folder, **options)


def test_without_lm_eval_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "sae_attr.lm_eval", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'sae_attr\[lm_eval\]'"):
        importlib.import_module("sae_attr.lm_eval")


@pytest.mark.slow
def test_lm_eval_evaluates_a_task_of_its_own(folder: Path) -> None:
    """A multiple-choice task from a local file: steering toward rudeness makes the rude
    word the more probable one.
    """
    lm_eval = pytest.importorskip("lm_eval")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    importlib.import_module("sae_attr.lm_eval")
    docs = [{"q": f"the {who} said", "answer": 0} for who in ("cook", "king", "nurse")]
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    task = {
        "task": "rude",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": ["awful", "lovely"],
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    shares = {}
    for strength in (-8, 8):
        result = lm_eval.simple_evaluate(
            model="sae_attr",
            model_args=f"lm={folder / 'model'},sae={folder / 'sae'},latent={PLANTED},"
            f"strength={strength}",
            tasks=[task],
            batch_size=3,
        )
        shares[strength] = result["results"]["rude"]["acc,none"]
    monkeypatch.undo()
    assert shares == {-8: 0.0, 8: 1.0}
