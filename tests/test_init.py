"""The ten names of a first notebook: there, cheap, and the same objects as in their rooms."""

import importlib
import subprocess
import sys

import pytest

import sae_attr

NAMES = {
    *("load_lm", "load_sae", "forward", "act_and_grad", "attribute"),
    *("rank", "steer", "Site", "Replace", "Add"),
}


def test_the_ten_names_are_those_of_their_rooms() -> None:
    assert set(sae_attr.__all__) == NAMES
    for name in NAMES:
        value = getattr(sae_attr, name)
        assert value.__doc__
        assert value is getattr(importlib.import_module(value.__module__), name)


def test_a_star_import_gives_them_and_nothing_else() -> None:
    names: dict[str, object] = {}
    exec("from sae_attr import *", names)
    assert set(names) - {"__builtins__"} == NAMES


def test_another_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_model'"):
        _ = sae_attr.load_model


def test_the_import_alone_loads_no_library() -> None:
    script = "import sys, sae_attr; print(sae_attr.__version__, 'jax' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [sae_attr.__version__, "False"]
