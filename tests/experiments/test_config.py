"""Every field of every settings dataclass is a key of a config, reached from a command
line, and comes back as it was.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ml_collections import ConfigDict

from configs import case_study, check_sae, judge_agreement, rank_sites, steer, train_sae
from experiments import _command, _config, _help, attribute
from sae_attr.activations import Masks
from sae_attr.judge.kinds import SECRETS
from sae_attr.lm.draw import Sampling
from sae_attr.lm.lora import Lora
from sae_attr.lm.next_token import ComputeOptions
from sae_attr.lm.optimizer import Optimizer
from sae_attr.organism.recipe import NumberRecipe, Recipe, SAERecipe, recipe_of
from sae_attr.sae.train_config import TrainConfig
from sae_attr.sae_check import CheckBands
from sae_attr.settings import (
    RENAMED,
    AnyKeys,
    defaults_of,
    nearest_key,
    plain_type,
    settings_from,
)
from sae_attr.study.attribution_settings import Settings
from sae_attr.study.case_study import NO_SETTINGS, study_settings
from sae_attr.study.judges import KINDS
from sae_attr.study.settings import (
    CaseSettings,
    IncoherenceBudget,
    SampleSettings,
    StudySettings,
)
from sae_attr.text.packed_rows import Packing
from sae_attr.training import LoopOptions

CASE = "cases.misalignment"
ATTRIBUTION = {field.name for field in dataclasses.fields(Settings)}
# (config, dataclass) -> fields that are no keys there: they follow from other keys, or
# the experiment has no use for them.
ABSENT: dict[tuple[str, type], set[str]] = {
    ("check_sae", Settings): ATTRIBUTION - {*check_sae.SHARED, "sae_check_tokens", "corpus_batch"},
    ("rank_sites", Settings): {*rank_sites.UNUSED},
    ("steer", Settings): ATTRIBUTION - {*steer.SHARED},
    ("steer", Sampling): {"stop_ids"},
    ("train_sae", TrainConfig): {*train_sae.DERIVED},
    ("train_sae", LoopOptions): {"scan"},
    ("train_sae", Packing): {"row_bos"},
    ("pretrain", Packing): {"row_bos"},
    ("ranking_truth", Recipe): {"seed", "kind"},
    ("claims", Recipe): {"seed", "kind", "harmless"},
    ("pool", NumberRecipe): {"seed", "kind"},
    ("crosscoders", Recipe): {"seed", "kind"},
    ("transition", Recipe): {"seed", "kind"},
    ("directions", Recipe): {"seed"},
}  # fmt: skip
for _lm in ("finetune", "pretrain"):
    ABSENT[_lm, Optimizer] = {"steps"}
    ABSENT[_lm, LoopOptions] = {"log_every"}
    ABSENT[_lm, ComputeOptions] = {"dtype"}  # the key is called compute_dtype
STUDIES = (
    "case_study",
    "gemma3_270m_it",
    "llama31_8b",
    "miniature",
    "organism",
    "smollm2",
    "qwen25_7b",
)
for _study in STUDIES:
    ABSENT[_study, StudySettings] = {"cases"}
    ABSENT[_study, CaseSettings] = {"name"}
# Settings of an attribution are in two groups of a study.
STUDY_ATTRIBUTION = {
    "attribution": ATTRIBUTION - {*case_study.SPEED},
    "cases.*.attribution": {*case_study.GIVEN, *case_study.SPEED},
}


def made(name: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config()


class Place(NamedTuple):
    """A settings dataclass at its place in a config."""

    config: str
    path: str
    kind: Any
    absent: set[str]


def groups_of(config: ConfigDict, path: str = "") -> Iterator[str]:
    """Yields the dotted path of every group of keys, "" for the config itself."""
    yield path
    for name in config:
        if isinstance(config.get(name), ConfigDict):
            yield from groups_of(config[name], f"{path}.{name}".removeprefix("."))


def absent_of(name: str, pattern: str, kind: Any) -> set[str]:
    """Returns the fields of a dataclass that are no keys at a pattern of SETTINGS."""
    absent = ABSENT.get((name, kind), set())
    if kind is Settings:
        absent = STUDY_ATTRIBUTION.get(pattern, absent)
    if pattern.endswith(("judge", "reader")):
        absent = absent | {*SECRETS}
    if name == "judge_agreement" and pattern == "judge":
        absent = absent | {*judge_agreement.GIVEN}
    return absent


def places_of(name: str) -> Iterator[Place]:
    """Yields every settings dataclass (or TypedDict) that the config's SETTINGS name, at each group
    that its pattern fits.
    """
    groups = list(groups_of(made(name)))
    for pattern, sources in importlib.import_module(f"configs.{name}").SETTINGS.items():
        for path in groups:
            if not _config.matches_place(pattern, path):
                continue
            for kind in sources:
                if isinstance(kind, type):  # else a mapping of names to texts
                    yield Place(name, path, kind, absent_of(name, pattern, kind))


TEXTS: dict[type, tuple[str, Any]] = {
    bool: ("True", True), int: ("3", 3), float: ("1e-3", 1e-3), str: ("word", "word"), tuple: ("a,b", ("a", "b")),
    object: ("7", 7),
}  # fmt: skip


def at(config: ConfigDict, place: str) -> ConfigDict:
    part: Any = config
    for name in filter(None, place.split(".")):
        part = part[name]
    return part


PLACES = [place for name in _command.packaged() for place in places_of(name)]


@pytest.mark.parametrize(
    ("name", "place", "kind", "absent"),
    PLACES,
    ids=[f"{p.config}-{p.path}-{p.kind.__name__}" for p in PLACES],
)
def test_every_field_is_a_key_that_a_command_line_sets(
    name: str, place: str, kind: Any, absent: set[str]
) -> None:
    config = made(name)
    config.lock()
    for field, hint in typing.get_type_hints(kind).items():
        if field in absent:
            continue
        path = f"{place}.{field}".removeprefix(".")
        assert field in at(config, place), f"configs/{name}.py has no {path}"
        if isinstance(at(config, place).get(field), ConfigDict):
            continue  # a part, whose fields have places of their own
        sort = plain_type(hint)
        assert at(config, place).get_type(field) in (
            sort,
            type(at(config, place).get(field)),
        )
        text, value = TEXTS[sort]
        _config.override(config, path, text)
        assert at(config, place)[field] == value


@pytest.mark.parametrize("name", _command.packaged())
def test_no_group_of_keys_lacks_its_dataclass(name: str) -> None:
    config = made(name)
    patterns = importlib.import_module(f"configs.{name}").SETTINGS
    for path in groups_of(config):
        described = any(_config.matches_place(pattern, path) for pattern in patterns)
        free = isinstance(at(config, path), _config.AnyKeysDict)
        # "cases" is a mapping of names, each with a place of its own.
        assert described or free or path == "cases", f"SETTINGS lacks {path!r}"


@pytest.mark.parametrize("name", _command.packaged())
def test_every_key_of_a_dataclass_says_what_it_means(name: str) -> None:
    module = importlib.import_module(f"configs.{name}")
    for place, sources in module.SETTINGS.items():
        for source in sources:
            texts = source if isinstance(source, dict) else _config.meanings_of(source)
            assert texts, f"{source} at {place!r} describes no field"


def test_defaults_come_back_as_they_were() -> None:
    inputs = {"lm": "m", "sae": "s", "pairs": "p", "corpus": "c"}
    config = made("attribute")
    config.update(inputs)
    assert _config.settings_of(Settings, config, leave_out=("mesh",)) == Settings(
        **inputs
    )
    for kind in (
        IncoherenceBudget,
        SampleSettings,
        CheckBands,
        Lora,
        LoopOptions,
        Masks,
        Sampling,
        SAERecipe,
        Recipe,
    ):
        assert _config.settings_of(kind, _config.config_of(kind)) == kind(), kind
    assert _config.settings_of(CheckBands, made("check_sae").bands) == CheckBands()
    assert recipe_of(made("organism").organism.to_dict()) == recipe_of(
        {"seed": 0, "kind": "mixed", "sae": {"latents": 2048}}
    )


def test_every_field_of_a_judge_is_one_that_it_takes() -> None:
    keys = set(case_study.judge_config())
    for kind in KINDS.values():
        assert {*kind.keys} <= keys


def test_a_study_reads_what_a_command_line_says() -> None:
    config = made("case_study")
    values = {"lm": "a", "lm_aligned": "b", "sae": "c", "corpus": "d", "prompts": "e"}
    values |= {
        "judge.token_field": "max_completion_tokens",
        "judge.temperature": "0.5",
        "judge.reply_tokens": "2000",
    }
    values |= {
        "judge.extra.top_k": "1",
        "attribution.exclude": "bos,special",
        "attribution.prepend_bos": "False",
    }
    values |= {"attribution.dense_limit": "10"}
    config.lock()
    for name, text in values.items():
        _config.override(config, f"{CASE}.{name}", text)
    plain = {
        name: value
        for name, value in config.to_dict().items()
        if name not in NO_SETTINGS
    }
    case = study_settings(plain).cases[0]
    expected = {
        "token_field": "max_completion_tokens",
        "temperature": 0.5,
        "reply_tokens": 2000,
        "extra": {"top_k": 1},
    }
    assert {name: case.judge[name] for name in expected} == expected
    assert case.attribution["exclude"] == ("bos", "special")
    assert case.attribution["prepend_bos"] is False
    assert case.attribution["dense_limit"] == 10
    fields = {name: getattr(case, name) for name in ("lm", "sae", "corpus")}
    assert Settings(**fields, pairs="", **case.attribution).exclude == (
        "bos",
        "special",
    )


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("bos,special", tuple, ("bos", "special")), ("('bos',)", tuple, ("bos",)), ("77,12", tuple, (77, 12)),
        ("", tuple, ()), ("1", float, 1.0), ("inf", float, float("inf")), ("1e6", int, 1_000_000), ("10_000", int, 10_000),
        ("true", bool, True), ("0", bool, False), ("None", str, None), ("None", int, None), ("layer2.mlp", str, "layer2.mlp"),
    ],
)  # fmt: skip
def test_texts_are_read_as_the_key_means(text: str, kind: type, value: Any) -> None:
    assert _config.parsed(kind, text, "config.x") == value


# ---- what is not understood


REFUSED: dict[str, tuple[list[str], str]] = {
    "a key": (["--config.tpo=3"], r"no key 'tpo'; did you mean --config\.top\?"),
    "a key far below": (["--config.sae_options.gaet=topk"], r"no key 'sae_options\.gaet'; .* --config\.sae_options\.gate\?"),
    "a key below what has none": (["--config.top.x=3"], r"no key 'top\.x'"),
    "a key of before": (["--config.fitness_tokens=3"], r"no key 'fitness_tokens': it is called --config\.sae_check_tokens now"),
    "a word of a key": (["--config.firing=3"], r"no key 'firing'; did you mean --config\.firing_tokens\?"),
    "a key in the wrong group": (["--config.sae_options.top=3"], r"no key 'sae_options\.top'; did you mean --config\.top\?"),
    "a key without a value": (["--config.lm"], r"config\.lm is given without a value; write --config\.lm=VALUE"),
    "a key without a value before a flag": (["--config.top", "--quiet"], r"config\.top is given without a value"),
    "nothing like it": (["--config.qqqqq=3"], r"no key 'qqqqq'; --help lists the keys"),
    "a value": (["--config.top=many"], r"config\.top takes a whole number, not 'many'"),
    "a group": (["--config.sae_options=3"], r"config\.sae_options is a group of keys"),
    "a config": (["--config=atribute"], r"no config atribute; did you mean --config=attribute\?"),
    "a file": (["--config=my/own.py"], r"no config my/own\.py"),
    "a config of another experiment": (["--config=steer"], r"no config of experiments\.attribute.*fits experiments\.steer\."),
    "a word that it takes none of": (["--config=attribute:demo"], r"takes no word behind a colon"),
    "a word": (["--config=organism:studdy"], r"'studdy' is unknown; did you mean 'study'\?"),
    "a word of the miniature": (["--config=miniature:atribute"], r"'atribute' is unknown; did you mean 'attribute'\?"),
    "a case": (["--config=case_study:misalinment"], r"'misalinment' is unknown; did you mean 'misalignment'\?"),
    "a flag": (["--wrkdir=w"], r"no flag --wrkdir; did you mean --workdir\?"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_named_with_the_nearest(name: str) -> None:
    argv, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        _command.read_command(
            ["attribute", *argv], "attribute", _command.flags_of(attribute)
        )


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("config.budget.call", "config.judge.max_calls"),
        ("config.budget.pionts", "config.budget.points"),
        ("config.sampling.points", "config.budget.points"),
        ("config.samplng.max_new", "config.sampling.max_new"),
        ("config.max_tokens", "config.judge.max_tokens"),
        ("config.weather", None),
    ],
)
def test_the_nearest_key_is_like_the_last_name(path: str, nearest: str | None) -> None:
    known = [
        *("config.budget", "config.budget.points", "config.budget.rule"),
        *("config.sampling", "config.sampling.max_new"),
        *("config.judge.max_calls", "config.judge.max_tokens"),
    ]
    assert nearest_key(path, known) == nearest


def test_every_new_name_of_a_renamed_key_is_one() -> None:
    paths = {
        path.rpartition(".")[2]
        for name in _command.packaged()
        for path in _config.paths_of(made(name))
    }
    assert set(RENAMED.values()) <= paths
    assert not set(RENAMED) & paths


def test_a_renamed_key_in_a_config_of_ones_own_is_named() -> None:
    config = ConfigDict({"top": 7, "fitness_tokens": 0})
    with pytest.raises(
        ValueError, match=r"it is called --config\.sae_check_tokens now"
    ):
        _command.fitted(config, "mine.py", "attribute")


def test_a_bare_key_switches_on() -> None:
    config = made("attribute")
    config.lock()
    _config.override(config, "trust_sae", None)
    assert config.trust_sae is True


def test_a_key_that_moved_is_found_where_it_is() -> None:
    config = made("steer")
    config.lock()
    with pytest.raises(
        ValueError,
        match=r"no key 'max_new'; did you mean --config\.sampling\.max_new\?",
    ):
        _config.override(config, "max_new", "3")


def test_configs_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("attribute", "configs/attribute.py", "organism:study"):
        assert _command.load_config(name)[0]
    Path("mine.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return "
        "ConfigDict({'top': 7})\n"
    )
    config, _ = _command.load_config("mine.py")
    whole = _command.fitted(config, "mine.py", "attribute")
    assert whole.top == 7
    assert set(whole) == set(made("attribute"))
    Path("broken.py").write_text("def get_config():\n    return 1\n1 / 0\n")
    with pytest.raises(
        ValueError, match=r"broken\.py:3: the config cannot be run: ZeroDivisionError"
    ):
        _command.load_config("broken.py")


def test_help_shows_flags_keys_defaults_and_meaning() -> None:
    text = _help.help_text(["attribute", "--help"], "attribute", attribute)
    assert re.search(r"--show_tokens=0 +Print exactly what is scored", text)
    assert re.search(r"  top=100 +candidates per ranking\.", text)
    assert re.search(r"  prepend_bos=BOOL +None: as the SAE was trained", text)
    assert re.search(r"  sae_options\.k=INT +latents per token", text)
    assert "--out" not in text


# ---- the two functions


@dataclasses.dataclass(frozen=True)
class Inner:
    """Inside.

    Args:
      k: how many; None
        for all.
    """

    k: int | None = None
    share: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    """Outside.

    Args:
      name, other: of it.
      inner: of parts.
    """

    name: str
    other: str = "o"
    inner: Inner = Inner(share=0.25)
    options: typing.Mapping[str, Any] = dataclasses.field(default_factory=dict)
    maybe: Inner | None = None


def test_nested_settings_there_and_back() -> None:
    plain = defaults_of(Outer)
    assert plain["inner"]["share"] == 0.25
    assert plain["options"] == AnyKeys({})
    assert _config.meanings_of(Outer) == {
        "name": "of it.",
        "other": "of it.",
        "inner": "of parts.",
    }
    assert _config.meanings_of(Inner) == {"k": "how many; None for all."}
    config = _config.config_of(Outer)
    config.lock()
    for path, text in {"name": "n", "inner.k": "4", "options.anything": "[1]"}.items():
        _config.override(config, path, text)
    assert _config.settings_of(Outer, config) == Outer(
        "n", inner=Inner(4, 0.25), options={"anything": [1]}
    )
    with pytest.raises(
        ValueError, match=r"'a\.inner\.kk'; did you mean --a\.inner\.k\?"
    ):
        settings_from(Outer, {"name": "n", "inner": {"kk": 1}}, where="a")
    with pytest.raises(ValueError, match=r"--config\.name=VALUE"):
        settings_from(Outer, {})


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Several of them."""

    some: tuple[float, ...] = (1.0,)
    ids: tuple[int, ...] | None = None


def test_what_is_no_number_among_numbers_is_named() -> None:
    """A command line gives text where a number is not spelt as one: nan, 1e, a."""
    assert settings_from(Numbers, {"some": [1, 0.5], "ids": (3,)}) == Numbers(
        (1, 0.5), (3,)
    )
    for values, message in (
        ({"some": ("nan",)}, r"config\.some has 'nan'; give finite numbers"),
        ({"some": (1, float("nan"))}, r"config\.some has nan; give finite numbers"),
        ({"ids": (1.5,)}, r"config\.ids has 1\.5; give whole numbers"),
        ({"ids": (True,)}, r"config\.ids has True"),
    ):
        with pytest.raises(ValueError, match=message):
            settings_from(Numbers, values)
