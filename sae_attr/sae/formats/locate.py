"""From an address to the weight file of one SAE and its format: local folders and
files, and the Hugging Face hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from sae_attr.files import hub
from sae_attr.files.tensors import read_tensors
from sae_attr.sae.formats import (
    circuit_tracer,
    crosscoder,
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    kissane,
    llama_scope,
    llamascopium,
    plain,
    saelens,
    sparsify,
    temporal,
)

# Name of a weight file inside its folder -> formats that use it; where there are two,
# the tensors tell.
WEIGHTS: dict[str, tuple[str, ...]] = {
    saelens.WEIGHTS: ("saelens", "llamascopium"),
    llamascopium.WEIGHTS[1]: ("llamascopium",),
    **{
        name: ("dictionary_learning", "crosscoder")
        for name in dictionary_learning.WEIGHTS
    },
    gemma_scope.WEIGHTS: ("gemma_scope",),
    gemma_scope_2.WEIGHTS: ("gemma_scope_2",),
    gemma_scope_2.CROSSCODER_WEIGHTS: ("gemma_scope_2_crosscoder",),
    sparsify.WEIGHTS: ("sparsify",),
    llama_scope.WEIGHTS: ("llama_scope",),
    kissane.CROSSCODER_WEIGHTS: ("ckkissane",),
    temporal.WEIGHTS: ("temporal",),
}
_CONFIGS = (
    saelens.CONFIG, saelens.SCALER, dictionary_learning.CONFIG, llama_scope.CONFIG, llama_scope.LM_CONFIG,
    circuit_tracer.CONFIG, temporal.CONFIG,
)  # fmt: skip
_SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin")
_MOST = 64  # weight files of unknown name that are looked into
assert crosscoder.WEIGHTS[0] in WEIGHTS


def detect(path: Path, fmt: str, formats: tuple[str, ...]) -> tuple[str, Path]:
    """Format and weight file of a local folder or file.

    Args:
      path: folder or file.
      fmt: one of `formats`, or "auto".
      formats: all that are known.

    Raises:
      ValueError: the files fit no format, or several.
      FileNotFoundError: nothing at the path.
    """
    if path.is_file():
        found = fmt if fmt != "auto" else format_of(path, path.name)
        if found:
            return found, path
        raise ValueError(
            f"{path} is not recognised as SAE weights{_holds(path)}; say fmt= one of "
            f"{', '.join(formats)}, or name the "
            "tensors of a file of your own as docs/inputs.md shows in six lines"
        )
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is neither a file nor a folder")
    named = [
        name
        for name, used in WEIGHTS.items()
        if (path / name).is_file() and (fmt in used or fmt == "auto")
    ]
    there = [
        (fmt if fmt != "auto" else format_of(path / name, name), path / name)
        for name in named
    ]
    there = there or _unnamed(path, fmt)
    if len(there) == 1:
        return there[0][0] or "", there[0][1]
    files = ", ".join(sorted(entry.name for entry in path.iterdir())[:12]) or "nothing"
    if there:
        kinds = ", ".join(dict.fromkeys(str(kind) for kind, _ in there))
        what = (
            "several formats"
            if len({kind for kind, _ in there} - {"plain"}) > 1
            else "several SAEs"
        )
        raise ValueError(
            f"{path} holds {what} ({kinds}: {files}); choose one with fmt=, or point "
            "at its weight file"
        )
    looked = [name for name, used in WEIGHTS.items() if fmt in ("auto", *used)] or [
        "a weight file"
    ]
    raise ValueError(
        f"{path} holds no {fmt if fmt != 'auto' else 'known'} SAE: found {files}; "
        f"looked for {', '.join(looked)}. "
        "Point at the weight file or its folder, or say fmt=; for a file of your own "
        "see docs/inputs.md"
    )


def format_of(path: Path, name: str) -> str | None:
    """Format of a weight file, from its name and, where that does not decide, from its
    tensors; None if unknown.
    """
    used = WEIGHTS.get(name, ())
    if len(used) == 1:
        return used[0]
    if path.suffix == ".npz" and not used and _is_gemma_scope(path):
        return "gemma_scope"
    if path.suffix not in _SUFFIXES:
        return None
    found = _by_tensors(path)
    return found if found in used or found == "plain" or not used else used[0]


def _is_gemma_scope(path: Path) -> bool:
    return (
        re.search(r"gemma-scope|/width_\w+/average_l0_", path.absolute().as_posix())
        is not None
    )


def _holds(path: Path) -> str:
    """What a weight file holds, for a message; empty where it cannot be told."""
    if path.suffix not in _SUFFIXES:
        return ""
    shapes = [
        f"{name!r} {list(value.shape)}"
        for name, value in list(read_tensors(path).items())[:8]
    ]
    return f" (it holds {', '.join(shapes)})" if shapes else " (it holds no tensors)"


def _by_tensors(path: Path) -> str | None:
    """The library whose files look so and that has left its mark here (a config, a
    name); else "plain", and it is asked.

    Files of one's own have the same tensors as those of libraries, and other formulas.
    """
    whole = read_tensors(path)
    tensors = {
        name.removeprefix("_orig_mod.").removeprefix("sae."): t
        for name, t in whole.items()
    }
    return _by_marks(path, tensors) or ("plain" if plain.recognised(whole) else None)


def _by_marks(path: Path, tensors: Mapping[str, np.ndarray]) -> str | None:
    names, axes = set(tensors), {name: t.ndim for name, t in tensors.items()}
    threshold = {
        "log_jumprelu_threshold",
        "activation_function.log_jumprelu_threshold",
    } & names
    beside = lambda name: (path.parent / name).is_file()
    if {"pre_bias", "latent_bias"} <= names:
        return "openai"
    if "encoder_linear.weight" in names:
        return "goodfire" if re.search(r"SAE-l\d+$", path.stem) else None
    if "w_enc" in names:
        return "gemma_scope_2" if gemma_scope_2.recognised(path) else None
    if beside(llamascopium.CONFIG) and (
        "W_E" in names or ("encoder.weight" in names and threshold)
    ):
        return "llamascopium"
    if axes.get("encoder.weight") == 3:
        return "crosscoder"
    if axes.get("W_enc") == 3:
        return "ckkissane"
    if {"encoder.weight", "W_dec"} <= names:
        return "sparsify" if beside(sparsify.CONFIG) else None
    if {
        "encoder.weight",
        "encoder.bias",
        "decoder.weight",
        "decoder.bias",
    } == names and (found := _linear_layers(path)):
        return found
    if "W_dec" in names and path.suffix == ".safetensors":
        if circuit_tracer.recognised(path, tensors) and not beside(saelens.CONFIG):
            return "circuit_tracer"
        return (
            "saelens"
            if path.name == saelens.WEIGHTS or saelens.recognised(path)
            else None
        )
    if {"W_enc", "W_dec", "b_enc", "b_dec"} == names:
        if kissane.config_of(path).is_file():
            return "connor_rob"
        released = (
            re.fullmatch(r"layer\d+\.sae", path.stem)
            or "SAE-Res-" in path.absolute().as_posix()
        )
        return "qwen_scope" if released else None
    if names & {"encoder.weight", "W_dec", "ae.encoder.weight", "ae.W_dec"}:
        return (
            "dictionary_learning"
            if dictionary_learning.recognised(path, names)
            else None
        )
    return None


def _linear_layers(path: Path) -> str | None:
    if any(
        (folder / llama_scope.CONFIG).is_file()
        for folder in (path.parent, path.parent.parent)
    ):
        return "llama_scope"
    return "qresearch" if re.search(r"DeepSeek-R1-Distill.*-l\d+$", path.stem) else None


def _unnamed(folder: Path, fmt: str) -> list[tuple[str | None, Path]]:
    """Weight files of a folder that go by no known name, but hold the tensors of an
    SAE.
    """
    files = sorted(
        f for f in folder.iterdir() if f.suffix in _SUFFIXES and f.is_file()
    )[:_MOST]
    files = [
        f for f in files if f.suffix != ".npz"
    ] or files  # archives of numpy may hold anything, beside weights
    found: list[tuple[str | None, Path]] = []
    errors: list[ValueError] = []
    for file in files:
        try:
            kind = format_of(file, file.name)
        except (
            ValueError
        ) as error:  # an optimiser's state beside the weights, or damaged weights
            errors.append(error)
            continue
        if kind is not None and fmt in ("auto", "plain", kind):
            found.append((kind if fmt == "auto" else fmt, file))
    if errors and not found:
        raise errors[0]
    return found


def parse_hub(url: str) -> tuple[str, str, str | None]:
    """`hf://owner/repo/sub/folder@revision` as (repo id, folder or file inside it,
    revision).

    Raises:
      ValueError: another spelling, or a folder that leaves the repository.
    """
    match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:/([^@]*))?(?:@(.+))?", url)
    if (
        not match
        or {"..", "."} & {*match[1].split("/"), *(match[2] or "").split("/")}
        or "\\" in url
    ):
        raise ValueError(
            f"{url!r} is not understood; write hf://owner/repo/folder@revision"
        )
    return match[1], (match[2] or "").strip("/"), match[3]


def fetch(url: str) -> Path:
    """Downloads the few files of one SAE through the hub's cache; never the whole
    folder, which may hold GBs.
    """
    repo, inside, revision = parse_hub(url)
    return hub.download(repo, revision, files=hub_files(repo, inside)) / inside


def pinned(url: str) -> str:
    """The hub address with the commit that its branch or tag stands for now, so that
    everything later reads that commit.

    Errors as for `load_sae`.
    """
    repo, inside, revision = parse_hub(url)
    commit = hub.download(
        repo, revision, files=hub_files(repo, inside)
    ).name  # of the cache's folder of a snapshot
    return f"hf://{repo}{'/' * bool(inside)}{inside}@{commit}"


def hub_files(repo: str, inside: str) -> list[str]:
    """Files of a repository that may belong to the SAE at a folder or file: exact
    names, no wildcards but a layer's.
    """
    is_file = PurePosixPath(inside).suffix in _SUFFIXES
    folder = PurePosixPath(inside).parent if is_file else PurePosixPath(inside)
    names = [folder / name for name in _CONFIGS]
    if folder.parts:
        names += [
            folder.parent / name
            for name in (dictionary_learning.CONFIG, llama_scope.CONFIG)
        ]
    layers = [f"params_layer_{i}.safetensors" for i in range(gemma_scope_2.MAX_LAYERS)]
    if not is_file:
        name = PurePosixPath(repo).name
        names += [folder / weights for weights in (*WEIGHTS, *layers[1:])]
        names += (
            [folder / f"{name}{suffix}" for suffix in (".pth", ".pt")]
            if not folder.parts
            else []
        )
    else:
        names += [
            PurePosixPath(inside),
            PurePosixPath(inside).with_name(f"{PurePosixPath(inside).stem}_cfg.json"),
        ]
        names += (
            [folder / layer for layer in layers]
            if PurePosixPath(inside).name in layers
            else []
        )
    return [str(name) for name in dict.fromkeys(names)]
