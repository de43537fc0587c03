"""Versions of the attribution's stages: each is in the keys of all that run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sae_attr.study import versions

SOURCES = Path(versions.__file__).parent


def test_a_stage_has_the_versions_of_all_that_it_runs() -> None:
    assert versions.called_by("scores") == {
        name: versions.VERSIONS[name] for name in ("norm-limits", "outliers")
    }
    assert set(versions.versions_of(("mean",))) == {"mean", "norm-limits"}
    assert versions.called_by("norm-limits") == {}
    with pytest.raises(KeyError, match="means"):
        versions.versions_of(("means",))


def test_every_stage_that_the_attribution_stores_has_a_version() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCES.glob("*.py"))
    named = set(re.findall(r"(?:setup|self)\.stage\(\s*\"([a-z-]+)\"", text))
    assert named == set(versions.VERSIONS) - {"candidates"}
