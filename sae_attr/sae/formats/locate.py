"""Finds the weight file of one SAE and its format: in local folders and files, and on
the Hugging Face hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from sae_attr.files import hub
from sae_attr.files.tensors import read_tensors
from sae_attr.sae.formats.format import Format, WeightFile

Formats = Mapping[str, Format]

_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin")
_MOST = 64  # weight files of unknown name that are looked into
_SHOWN = 12  # files of a folder, in a message


def detect(path: Path, fmt: str, formats: Formats) -> tuple[str, Path]:
    """Returns the format and the weight file of a local folder or file.

    Args:
      path: folder or file.
      fmt: name of one of `formats`, or "auto".
      formats: by name, in the order in which they are tried.

    Raises:
      ValueError: the files fit no format, or several.
      FileNotFoundError: nothing at the path.
    """
    if path.is_file():
        name = format_of(path, path.name, formats) if fmt == "auto" else fmt
        if name:
            return name, path
        raise ValueError(
            f"{path} is not recognised as SAE weights{_contents(path)}; say fmt= one "
            f"of {', '.join(formats)}, or name the "
            "tensors of a file of your own as docs/inputs.md shows in six lines"
        )
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a file nor a folder")
    candidates = _of_known_name(path, fmt, formats) or _of_other_name(
        path, fmt, formats
    )
    if len(candidates) != 1:
        raise ValueError(_not_one(path, fmt, formats, candidates))
    return candidates[0]


def format_of(path: Path, name: str, formats: Formats) -> str | None:
    """Returns the format of a weight file, from its name and, where that does not
    decide, from what it holds; None if unknown.

    Args:
      path: the file.
      name: its path inside the SAE's folder.
      formats: by name, in the order in which they are tried.
    """
    users = [f.name for f in formats.values() if name in f.weights]
    if len(users) == 1:
        return users[0]
    if path.suffix not in _SUFFIXES:
        return None
    file = WeightFile(path)
    detected = next((f.name for f in formats.values() if f.detect(file)), None)
    if not users or detected in users or detected == "plain":
        return detected
    # The order goes from the most particular format to the most general one.
    return users[-1]


def _of_known_name(folder: Path, fmt: str, formats: Formats) -> list[tuple[str, Path]]:
    """Weight files of a folder whose names formats state."""
    candidates = []
    for name in _weight_names(fmt, formats):
        path = folder / name
        if not path.is_file():
            continue
        detected = format_of(path, name, formats) if fmt == "auto" else fmt
        candidates.append((detected or "", path))
    return candidates


def _of_other_name(folder: Path, fmt: str, formats: Formats) -> list[tuple[str, Path]]:
    """Weight files of a folder that go by no stated name, but hold an SAE."""
    files = sorted(f for f in folder.iterdir() if f.suffix in _SUFFIXES and f.is_file())
    files = files[:_MOST]
    # Archives of numpy may hold anything: beside weights they are left out.
    files = [file for file in files if file.suffix != ".npz"] or files
    candidates: list[tuple[str, Path]] = []
    errors: list[ValueError] = []
    for file in files:
        try:
            detected = format_of(file, file.name, formats)
        except ValueError as error:
            # An optimiser's state beside the weights, or damaged weights.
            errors.append(error)
            continue
        if detected is not None and fmt in ("auto", "plain", detected):
            candidates.append((detected if fmt == "auto" else fmt, file))
    if errors and not candidates:
        raise errors[0]
    return candidates


def _weight_names(fmt: str, formats: Formats) -> list[str]:
    """Names of weight files of one format, or of all for "auto"; each once."""
    names = []
    for layout in formats.values():
        if fmt in ("auto", layout.name):
            names += layout.weights
    return list(dict.fromkeys(names))


def _not_one(
    folder: Path, fmt: str, formats: Formats, candidates: list[tuple[str, Path]]
) -> str:
    """The message for a folder that holds no SAE, or several."""
    entries = sorted(entry.name for entry in folder.iterdir())[:_SHOWN]
    files = ", ".join(entries) or "nothing"
    if not candidates:
        looked = ", ".join(_weight_names(fmt, formats)) or "a weight file"
        kind = "known" if fmt == "auto" else fmt
        return (
            f"{folder} holds no {kind} SAE: found {files}; looked for {looked}. "
            "Point at the weight file or its folder, or say fmt=; for a file of your "
            "own see docs/inputs.md"
        )
    names = sorted({name for name, _ in candidates})
    several = len({*names} - {"plain"}) > 1
    what = "several formats" if several else "several SAEs"
    return (
        f"{folder} holds {what} ({', '.join(names)}: {files}); choose one with fmt=, "
        "or point at its weight file"
    )


def _contents(path: Path) -> str:
    """Tensors of a weight file, for a message; empty where it is of another kind."""
    if path.suffix not in _SUFFIXES:
        return ""
    tensors = list(read_tensors(path).items())[:8]
    if not tensors:
        return " (it holds no tensors)"
    shapes = [f"{name!r} {list(value.shape)}" for name, value in tensors]
    return f" (it holds {', '.join(shapes)})"


# ---- the hub -------------------------------------------------------------------------


def parse_hub(url: str) -> tuple[str, str, str | None]:
    """Splits `hf://owner/repo/sub/folder@revision` into repo id, folder or file inside
    it, and revision. A slash at the end says that it is a folder, and stays.

    Raises:
      ValueError: another spelling, or a folder that leaves the repository.
    """
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:/([^@]*))?(?:@(.+))?", url)
    parts = {*match[1].split("/"), *(match[2] or "").split("/")} if match else set()
    if not match or {"..", "."} & parts or "\\" in url:
        raise ValueError(
            f"{url!r} is not understood; write hf://owner/repo/folder@revision"
        )
    return match[1], (match[2] or "").lstrip("/"), match[3]


def fetch(url: str, formats: Formats) -> Path:
    """Downloads the few files of one SAE through the hub's cache; never the whole
    folder, which may hold GBs.
    """
    repo, inside, revision = parse_hub(url)
    files = hub_files(repo, inside, formats)
    return hub.download(repo, revision, files=files) / inside


def pinned(url: str, formats: Formats) -> str:
    """Returns the hub address with the commit that its branch or tag stands for now, so
    that everything later reads that commit.

    Errors as for `load_sae`.
    """
    repo, inside, _ = parse_hub(url)
    commit = commit_of(url, formats)
    return f"hf://{repo}{'/' * bool(inside)}{inside}@{commit}"


def commit_of(url: str, formats: Formats) -> str:
    """Returns the commit that the branch or tag of a hub address stands for now; the
    SAE's files are fetched.

    Errors as for `load_sae`.
    """
    repo, inside, revision = parse_hub(url)
    files = hub_files(repo, inside, formats)
    # The cache's folder of a snapshot is named after its commit.
    return hub.download(repo, revision, files=files).name


def hub_files(repo: str, inside: str, formats: Formats) -> list[str]:
    """Returns the files of a repository that may belong to the SAE at a folder or file:
    exact names, no wildcards. What ends in a slash is a folder whatever its name is.
    """
    layouts = formats.values()
    path = PurePosixPath(inside)
    is_file = path.suffix in _SUFFIXES and not inside.endswith("/")
    folder = path.parent if is_file else path
    if is_file:
        weights = [path.name, *_shards_with(path.name, layouts)]
    else:
        weights = [name for f in layouts for name in (*f.weights, *f.shards)]
    configs = [name for f in layouts for name in f.configs]
    if is_file:
        configs = [name.format(stem=path.stem) for name in configs]
    names = [folder / name for name in (*configs, *weights) if "{" not in name]
    if folder.parts:
        names += [folder.parent / name for f in layouts for name in f.configs_above]
    elif not is_file:
        # A repository of one file may give it its own name.
        title = PurePosixPath(repo).name
        names += [folder / f"{title}{suffix}" for suffix in (".pth", ".pt")]
    return list(dict.fromkeys(map(str, names)))


def _shards_with(name: str, formats: Iterable[Format]) -> tuple[str, ...]:
    """All weight files of an SAE of which one is named."""
    for layout in formats:
        if name in layout.shards:
            return layout.shards
    return ()
