"""Which files of a folder hold the model's weights: each is used, left out for a stated
reason, or refused by name.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.lm.hf_folder import ADAPTER, CONFIG, read_object
from sae_attr.lm.hf_layouts import without_prefix
from sae_attr.lm.mxfp4 import join_packed

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TORCH_WHOLE, _TORCH_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")
# The same weights again: in the layout of their authors, or as a variant in another
#   precision.
_COPIES = re.compile(
    r"consolidated.*|model\.(?!safetensors$)\w+(-\d{5}-of-\d{5})?\.safetensors"
)
_BUFFERS = re.compile(r"rotary_emb\.")
_MASKS = re.compile(
    r"\.(attn|attention)\.(masked_)?bias$"
)  # causal masks, which old files carry
_OTHER_SENSES = re.compile(
    r"(^|\.)(vision_tower|vision_model|multi_modal_projector|audio_tower|embed_vision)\."
)
_VALUE_HEADS = re.compile(
    r"^(v_head|value_head|critic_head|reward_head|regression_head|score|classifier)\b"
)
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|weight_scale(_inv)?|weight_packed|weight_shape|SCB|weight_format|absmax|quant_map|input_scale)$"
    r"|\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.)|_blocks$|_scales$"
)


@dataclass(frozen=True, eq=False)
class Weights:
    """Every tensor of a model's files that belongs to the language model, under its
    name without prefixes.

    Args:
      tensors: memory maps, or experts that are unpacked where they are indexed.
      file_of: name -> the file that holds it.
    """

    tensors: Mapping[str, Any]
    file_of: Mapping[str, Path]


def read_weights(
    folder: Path, *, multimodal: bool = False, adapter: bool = False
) -> Weights:
    """Maps the tensors of a folder's files; MXFP4 experts are joined, the heads of
    reward models left out with a warning.

    Args:
      multimodal: what sees or hears is left out; in a model of text alone it is not
        expected.
      adapter: the adapter that lies in the folder was asked for, so it may be there.

    Raises:
      ValueError: files that are missing, damaged, contradict each other or are not
        accounted for.
    """
    tensors: dict[str, Any] = {}
    file_of: dict[str, Path] = {}
    heads = set()
    for file in weight_files(folder, adapter=adapter):
        for full, tensor in read_tensors(file).items():
            name = without_prefix(full)
            if _BUFFERS.search(full) or (
                _MASKS.search(full) and (tensor.ndim == 4 or tensor.size == 1)
            ):
                continue
            if multimodal and _OTHER_SENSES.search(full):
                continue
            if _VALUE_HEADS.search(name):
                heads.add(name)
                continue
            if name in tensors and not same_numbers(tensors[name], tensor):
                raise ValueError(
                    f"{file_of[name]} and {file} both hold {name}, with other numbers; "
                    "keep the right one"
                )
            tensors[name], file_of[name] = tensor, file
    if heads:
        names = ", ".join(sorted(heads))
        warnings.warn(
            f"{folder}: {names} is a head beside the language model's and is left out",
            RuntimeWarning,
            3,
        )
    return Weights(join_packed(tensors), file_of)


def same_numbers(a: np.ndarray, b: np.ndarray) -> bool:
    """Checks whether two arrays hold the same numbers, whatever their types; read in
    pieces.
    """
    if a.shape != b.shape:
        return False
    rows = max(1, (1 << 22) // max(1, a[:1].size)) if a.ndim else 1
    a, b = np.atleast_1d(a), np.atleast_1d(b)
    return all(
        np.array_equal(a[i : i + rows], b[i : i + rows]) for i in range(0, len(a), rows)
    )


def quantised_names(names: Any) -> list[str]:
    """Returns the names among some that belong to quantised weights."""
    return sorted(name for name in names if _QUANTISED.search(name))


# ---- files ---------------------------------------------------------------------------


def weight_files(folder: Path, *, adapter: bool = False) -> list[Path]:
    """Returns the files that hold the model's weights, safetensors before torch's.

    Raises:
      ValueError: an adapter's folder; a file that an index names and the folder lacks;
        an index beside a single file with other shards; files of weights that nothing
        names.
    """
    if not adapter:
        _check_adapter(folder)
    files = _stated(folder, _WHOLE, _INDEX) or _loose(folder, "*.safetensors")
    if files:
        _check_rest(folder, files)
        return files
    files = _stated(folder, _TORCH_WHOLE, _TORCH_INDEX) or _loose(
        folder, "pytorch_model*.bin"
    )
    if not files:
        raise ValueError(
            f"{folder} lacks any *.safetensors file (or {_TORCH_WHOLE}); download the "
            f"model completely{_copies(folder)}"
        )
    return files


def _copies(folder: Path) -> str:
    for file in sorted(folder.glob("*.gguf"))[:1]:
        return f"; {file} is a model too: give the path of the file"
    for pattern, what in (
        ("consolidated*", "its authors' layout"),
        ("*.h5", "Keras' layout"),
    ):
        copies = sorted(file.name for file in folder.glob(pattern))
        if copies:
            return f" ({copies[0]} is in {what}, which is not read)"
    return ""


def _check_adapter(folder: Path) -> None:
    file = folder / ADAPTER
    if not file.is_file():
        return
    base = read_object(file).get("base_model_name_or_path")
    base = f"{base!r}, which {ADAPTER} names" if base else "its base model"
    if not (folder / CONFIG).is_file() or not _any_model(folder):
        raise ValueError(
            f"{folder} holds a PEFT adapter ({ADAPTER}) and no model: give {base}, as "
            "lm and this folder as adapter"
        )
    raise ValueError(
        f"{folder} holds a model ({CONFIG}) and an adapter ({ADAPTER}): give the "
        "folder as adapter too if it is to be added, "
        f"or take {ADAPTER} away"
    )


def _any_model(folder: Path) -> bool:
    files = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return any(not file.name.startswith("adapter_model") for file in files)


def _stated(folder: Path, whole: str, index: str) -> list[Path]:
    """The single file, or the shards of the index; both only if they are the same file."""
    single = [folder / whole] if (folder / whole).is_file() else []
    if not (folder / index).exists():
        return single
    names = _index_files(folder / index)
    present = [name for name in names if (folder / name).is_file()]
    absent = [name for name in names if name not in present]
    if single and names != [whole]:
        if not present:
            return single  # a leftover that names nothing here
        raise ValueError(
            f"{folder} holds {whole} and the shards of {index} ({present[0]}, ...): "
            "two sets of weights; take away the one "
            "that is not the model"
        )
    if absent:
        raise ValueError(
            f"{folder} lacks {', '.join(absent)}; download the model completely"
        )
    _check_index(folder, index)
    return [folder / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    try:
        stated = read_object(index).get("weight_map")
    except ValueError as error:
        raise ValueError(
            f"{error}: it should hold a JSON object with a weight_map"
        ) from None
    if (
        not isinstance(stated, dict)
        or not stated
        or not all(isinstance(name, str) for name in stated.values())
    ):
        raise ValueError(
            f"{index} has no weight_map from tensors to files; fetch it again"
        )
    return stated


def _index_files(index: Path) -> list[str]:
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        path = PurePosixPath(name)
        if (
            path.is_absolute()
            or ".." in path.parts
            or "\\" in name
            or "\0" in name
            or not name
        ):
            raise ValueError(
                f"{index}: weight_map names {name!r}, which lies outside the folder; "
                "refused"
            )
    return names


def _check_index(folder: Path, index: str) -> None:
    """Every tensor lies in the file that the index says."""
    inside: dict[str, set[str]] = {}
    for tensor, name in _weight_map(folder / index).items():
        inside.setdefault(name, set()).add(tensor)
    for name, wanted in inside.items():
        absent = sorted(wanted - set(read_tensors(folder / name)))
        if absent:
            raise ValueError(
                f"{folder / index} says that {name} holds {absent[0]}, but it does "
                "not; take both from one model"
            )


def _loose(folder: Path, pattern: str) -> list[Path]:
    """Files of weights that no index names: all of them, but for copies and parts of
    something else.
    """
    files = [
        file
        for file in sorted(folder.glob(pattern))
        if file.is_file() and _kind(file) == "weights"
    ]
    for file in files:
        match = _SHARD.fullmatch(file.name)
        if match is None:
            continue
        names = [
            f"{match[1]}-{i:05d}-of-{match[3]}.{match[4]}"
            for i in range(1, 1 + min(int(match[3]), 10_000))
        ]
        absent = [name for name in names if not (folder / name).is_file()]
        if absent:
            raise ValueError(
                f"{folder} lacks {', '.join(absent[:5])}; download the model completely"
            )
    return files


def _check_rest(folder: Path, files: list[Path]) -> None:
    rest = sorted(set(folder.glob("*.safetensors")) - set(files))
    spare = [file.name for file in rest if file.is_file() and _kind(file) == "weights"]
    if spare:
        raise ValueError(
            f"{folder} holds {', '.join(spare[:5])} beside {files[0].name}, which "
            "nothing says is part of the model; take it "
            "away, or name it in the index"
        )


def _kind(file: Path) -> str:
    """What a file of tensors is by its name: weights, or a copy or part that is left
    out.
    """
    if _COPIES.fullmatch(file.name) or file.name.startswith(
        ("adapter_model", "optimizer")
    ):
        return "other"
    if _VALUE_HEADS.search(file.name):
        warnings.warn(
            f"{file} is a head beside the language model's and is left out",
            RuntimeWarning,
            3,
        )
        return "other"
    return "weights"
