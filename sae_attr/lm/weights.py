"""Hugging Face folders into our parameter tree: memory-mapped files, streamed to their
devices a layer at a time.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file
from tqdm import tqdm

from sae_attr.files.gguf_header import is_gguf
from sae_attr.files.gguf_parts import read_gguf
from sae_attr.lm.config import LMConfig
from sae_attr.lm.gguf_config import config_from_gguf
from sae_attr.lm.gguf_weights import (
    quantisation,
    quantisation_text,
    read_gguf_weights,
)
from sae_attr.lm.hf_config import config_from_hf
from sae_attr.lm.hf_folder import (
    ADAPTER,
    CONFIG,
    read_object,
    resolve_config,
    resolve_model,
)
from sae_attr.lm.hf_layouts import as_is, source_of, tensor_name, transposed
from sae_attr.lm.model import Params
from sae_attr.lm.params import init_params
from sae_attr.lm.peft_load import Adapter, Factors, load_adapter
from sae_attr.lm.weight_files import (
    Weights,
    printable,
    quantised_names,
    read_weights,
    same_numbers,
    weight_files,
)
from sae_attr.parallel import (
    LM_RULES,
    is_main,
    make_mesh,
    shard_tree,
    spec_for,
    to_host,
)
from sae_attr.store import write_atomic

CHUNK_BYTES = (
    8 << 20
)  # weights are streamed in pieces of about this size; larger ones were no faster


def load_config(
    path: str | Path,
    *,
    resid_dtype: str = "float32",
    mesh: jax.sharding.Mesh | None = None,
) -> LMConfig:
    """Reads the `LMConfig` of a model, without its weights; ValueError if config.json
    is missing or unknown.

    With a mesh, the tokens of each `data` shard go to experts by themselves, so that no
    shard waits for another's.
    """
    folder = resolve_config(path)
    return _for_mesh(
        config_from_hf(read_config(folder), _config_name(folder)), resid_dtype, mesh
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the config.json of a model's folder, or what would stand there of a GGUF
    file.

    Raises:
      ValueError: no such file, or one that cannot be read.
    """
    if folder.is_file():
        return config_from_gguf(read_gguf(folder))
    file = folder / CONFIG
    if file.is_file():
        return read_object(file)
    if (folder / ADAPTER).is_file():
        weight_files(folder)  # which says what to do with an adapter
    raise ValueError(
        f"{folder} holds no {CONFIG}, so it is no Hugging Face model folder"
    )


def _config_name(folder: Path) -> str:
    return f"{folder}" if folder.is_file() else str(folder / CONFIG)


def _for_mesh(
    cfg: LMConfig, resid_dtype: str, mesh: jax.sharding.Mesh | None
) -> LMConfig:
    cfg = replace(cfg, resid_dtype=resid_dtype)
    if mesh is not None:
        _check_heads(cfg, mesh)
    return (
        replace(cfg, token_groups=mesh.shape["data"])
        if mesh is not None and cfg.n_experts
        else cfg
    )


def _check_heads(cfg: LMConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError where the model axis would cut heads apart."""
    model = mesh.shape["model"]
    if cfg.n_heads % model:
        fits = [m for m in range(1, cfg.n_heads + 1) if cfg.n_heads % m == 0]
        raise ValueError(
            f"mesh data × model = {mesh.shape['data']} × {model} cannot split the "
            f"model's {cfg.n_heads} heads ({cfg.n_kv_heads} for keys) over "
            f"model={model}; choose one of {', '.join(map(str, fits))}, and data × "
            f"model for {mesh.size} devices"
        )


def _wanted(cfg: LMConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape of every leaf of the parameter tree."""
    tree = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in leaves}


def _places(cfg: LMConfig, leaf: str) -> list[tuple[tuple[int, ...], str]]:
    """What fills a leaf: its first indices (none, a layer, or a layer and an expert)
    and a tensor's name.
    """
    source = source_of(cfg, leaf)
    if not leaf.startswith("blocks/"):
        return [((), source.name)]
    experts = range(cfg.n_experts if source.per_expert else 1)
    at = lambda i, j: (i, j) if source.per_expert else (i,)
    layers = cfg.layers_of(leaf)
    return [
        (at(k, j), source.name.format(i, j))
        for k, i in enumerate(layers)
        for j in experts
    ]


def _names(cfg: LMConfig, leaf: str) -> list[str]:
    return list(dict.fromkeys(name for _, name in _places(cfg, leaf)))


def _check(
    cfg: LMConfig, wanted: Mapping[str, Any], weights: Weights, folder: Path
) -> None:
    """Raises ValueError, with a line for each fault, if the files do not hold what
    config.json describes.
    """
    tensors = weights.tensors
    expected = {name for leaf in wanted for name in _names(cfg, leaf)}
    spare = {name for name in _HEADS if name in tensors} if cfg.tied_head else set()
    lines = [
        f"- {printable(name)} (missing)" for name in sorted(expected - set(tensors))
    ]
    lines += [
        f"+ {printable(name)} (unexpected)"
        for name in sorted(set(tensors) - expected - spare)
    ]
    if len(lines) > 20:
        lines[20:] = [f"... and {len(lines) - 20} more"]
    if lines:
        quantised = quantised_names(set(tensors) - expected)
        cure = "Use the config.json that belongs to these weights."
        if folder.is_file():
            cure = "Fetch the file again, or convert the model anew."
        if quantised:
            cure = (
                f"{printable(quantised[0])} belongs to quantised weights, whose "
                "config.json has a quantization_config; take "
                "the unquantised model."
            )
        raise ValueError(
            f"the weights in {folder} are not those of the {cfg.family} model that "
            f"{_described_by(folder)} describes:\n" + "\n".join([*lines, cure])
        )
    for name in spare:
        _check_tied(cfg, name, weights, folder)
    for leaf, want in wanted.items():
        for at, name in _places(cfg, leaf):
            _check_shape(cfg, leaf, weights, name, at, want.shape[len(at) :])


def _described_by(source: Path) -> str:
    return "its metadata" if is_gguf(source) else CONFIG


_HEADS = ("lm_head.weight", "embed_out.weight")


def _check_tied(cfg: LMConfig, name: str, weights: Weights, folder: Path) -> None:
    """The head of a tied model is a second copy of its embedding, or not this model's
    at all.
    """
    embedding = source_of(cfg, "embed/table").name
    if not same_numbers(weights.tensors[name], weights.tensors[embedding]):
        raise ValueError(
            f"{folder / CONFIG} says that head and embedding are one "
            f"(tie_word_embeddings), but {name} in "
            f"{weights.file_of[name].name} differs from {embedding}; set "
            "tie_word_embeddings to false if the head is the "
            "model's, or take it out of the file"
        )


def _check_shape(
    cfg: LMConfig,
    leaf: str,
    weights: Weights,
    name: str,
    at: tuple[int, ...],
    shape: tuple[int, ...],
) -> None:
    """Raises ValueError if a tensor is not of the shape that config.json asks for, or
    holds no real numbers.
    """
    tensor = weights.tensors[name]
    try:
        got = source_of(cfg, leaf).shape_of(
            weights.tensors, name, at[-1] if at else 0, cfg
        )
    except (ValueError, IndexError):  # it cannot be cut into heads or experts
        got = tensor.shape
    if got != shape:
        where = f" ({name} of layer {at[0]})" if at else ""
        raise ValueError(
            f"{leaf} should be {shape} by {_described_by(weights.file_of[name])}, but "
            f"the file has {got}; take both from one model{where}"
        )
    dtype = getattr(tensor, "dtype", None)
    if dtype is not None and (
        np.dtype(dtype).kind in "iub" or np.dtype(dtype).itemsize == 1
    ):  # or float8
        raise ValueError(
            f"{weights.file_of[name]}: {name} holds {np.dtype(dtype).name} numbers "
            "without scales, so it is quantised or "
            "damaged; take the unquantised model (a quantised one has a "
            "quantization_config in config.json)"
        )


@dataclass(frozen=True)
class _Piece:
    """A part of a leaf that is small enough for the host: the same cut out of every
    device's shard.

    Args:
      view: the file's tensor as the leaf takes it, a layer of a stacked leaf as `[1,
        ...]`, an expert's as `[1, 1, ...]`.
      start: first element in `view`, within a shard.
      size: elements of one shard, per axis.
      shard: shape of a device's shard of `view`.
      at: where it goes in a shard of the leaf.
      factors: an adapter's matrices for this layer, whose product is added.
    """

    view: np.ndarray
    start: tuple[int, ...]
    size: tuple[int, ...]
    shard: tuple[int, ...]
    at: tuple[int, ...]
    factors: Factors | None = None

    def put(self, sharding: jax.NamedSharding, dtype: str) -> jax.Array:
        """Puts the piece on its devices: one array whose shards are the devices' cuts."""
        parts = [whole // part for whole, part in zip(self.view.shape, self.shard)]

        def cut(index: Any) -> np.ndarray:
            number = [(s.start or 0) // size for s, size in zip(index, self.size)]
            first = [
                n * part + start
                for n, part, start in zip(number, self.shard, self.start)
            ]
            slices = tuple(slice(a, a + size) for a, size in zip(first, self.size))
            block = self.view[slices]
            if self.factors is not None:
                block = block.astype(np.float64) + self.factors.product(*slices[1:])
            return np.ascontiguousarray(block).astype(dtype, copy=False)

        whole = tuple(size * n for size, n in zip(self.size, parts))
        return jax.make_array_from_callback(whole, sharding, cut)


def _pieces(
    cfg: LMConfig,
    leaf: str,
    tensors: Mapping[str, Any],
    shape: tuple[int, ...],
    sharding: jax.NamedSharding,
    adapter: Adapter | None = None,
) -> Iterator[_Piece]:
    """A leaf in pieces of about `CHUNK_BYTES`, a layer or expert at a time, along the
    axis outermost in the file.
    """
    factors = adapter.factors(cfg, leaf) if adapter else {}
    for at, name in _places(cfg, leaf):
        view = source_of(cfg, leaf).view(tensors, name, at[-1] if at else 0, cfg)[
            (None,) * len(at)
        ]
        shard = (*view.shape[: len(at)], *sharding.shard_shape(shape)[len(at) :])
        axis = (
            int(np.argmax(view.strides[len(at) :])) + len(at)
            if view.ndim > len(at)
            else 0
        )
        step = max(
            1, min(shard[axis], CHUNK_BYTES * shard[axis] // max(1, view.nbytes))
        )
        size = (*shard[:axis], step, *shard[axis + 1 :])
        starts = [
            *range(0, shard[axis] - step, step),
            shard[axis] - step,
        ]  # the last may overlap: one program for all
        for first in starts:
            start = tuple(first if k == axis else 0 for k in range(len(shard)))
            yield _Piece(
                view,
                start,
                size,
                shard,
                (*at, *start[len(at) :]),
                factors.get(at[0]) if at else None,
            )


@lru_cache(maxsize=256)
def _programs(
    shape: tuple[int, ...], dtype: str, sharding: jax.NamedSharding
) -> tuple[Any, Any]:
    """Compiled `() -> buffer, finite` and `(buffer, finite, piece, at) -> buffer,
    finite`, shared by leaves of a shape.

    The second works in place. Every device updates its own shard: an update along an
    axis that is split would have XLA gather the whole leaf on every device.
    """
    spec, places = sharding.spec, (sharding, jax.NamedSharding(sharding.mesh, P()))

    def local(buffer: jax.Array, x: jax.Array, at: jax.Array) -> jax.Array:
        # As integers, since XLA on CPUs would convert a whole bfloat16 buffer to
        # float32 and back.
        bits = jnp.dtype(f"uint{8 * buffer.dtype.itemsize}")
        as_bits = lambda value: jax.lax.bitcast_convert_type(value, bits)
        filled = jax.lax.dynamic_update_slice(
            as_bits(buffer), as_bits(x), [at[k] for k in range(buffer.ndim)]
        )
        return jax.lax.bitcast_convert_type(filled, buffer.dtype)

    place = jax.shard_map(
        local, mesh=sharding.mesh, in_specs=(spec, spec, P()), out_specs=spec
    )
    fill = lambda buffer, finite, x, at: (
        place(buffer, x, at),
        finite & jnp.isfinite(x).all(),
    )
    start = lambda: (jnp.zeros(shape, dtype), jnp.bool_(True))
    return jax.jit(start, out_shardings=places), jax.jit(
        fill, donate_argnums=0, out_shardings=places
    )


def _stream(
    leaf: str,
    pieces: Iterator[_Piece],
    shape: tuple[int, ...],
    sharding: jax.NamedSharding,
    dtype: str,
) -> jax.Array:
    """Fills one leaf's device buffer in place; the host holds one piece of it at a
    time.
    """
    start, fill = _programs(shape, dtype, sharding)
    buffer, finite = start()
    for piece in pieces:
        buffer, finite = fill(
            buffer, finite, piece.put(sharding, dtype), np.array(piece.at, np.int32)
        )
        finite.block_until_ready()  # otherwise pieces are read faster than they are placed, and pile up
    if not bool(finite):
        raise ValueError(
            f"{leaf} holds NaN or infinity after loading as {dtype}; the file is "
            f"damaged or overflows {dtype}"
        )
    return buffer


def load_lm(
    path: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str = "float32",
    resid_dtype: str | None = None,
    adapter: str | None = None,
    merge: bool = True,
    cfg: LMConfig | None = None,
    progress: bool = True,
) -> tuple[LMConfig, Params]:
    """Loads config and parameters of a Hugging Face folder, hub id or GGUF model, each
    weight on the devices that `LM_RULES` gives it.

    Files are memory-mapped; the host holds a piece of `CHUNK_BYTES` at a time
    (benchmarks/load_memory.py).

    Args:
      path: folder, hub id `owner/name[@revision]`, .gguf file, or `pip:NAME`.
      mesh: axes `data` and `model`; None: every device on `data`.
      dtype: of the weights and of matrix products: float32, bfloat16 or float64 (under
        x64).
      resid_dtype: of the residual stream; default float32, float64 for float64 weights.
      adapter: folder or hub id of a PEFT LoRA adapter of this model.
      merge: add it to the weights, in float64 before they are rounded to `dtype`;
        otherwise its factors are kept apart in `params["lora"]`, where they can be
        differentiated, scaled or taken out.
      cfg: the model, where no config.json describes it: any combination of parts that
        `LMConfig` has. Its `family` says under which names and in which layout the
        tensors lie, its `names` which of them differ.
      progress: show a bar.

    Raises:
      ValueError: missing or unexpected weights (listed with - and +), shapes that
        contradict config.json, truncated files, NaN or infinity, an adapter of another
        kind or another model.
    """
    folder = resolve_model(path)
    mesh = make_mesh() if mesh is None else mesh
    resid_dtype = resid_dtype or ("float64" if dtype == "float64" else "float32")
    hf = read_config(folder) if cfg is None else {}
    cfg = _for_mesh(cfg or config_from_hf(hf, _config_name(folder)), resid_dtype, mesh)
    added = resolve_model(adapter) if adapter else None
    lora = load_adapter(added) if added else None
    own = added is not None and added.resolve() == folder.resolve()
    if folder.is_file():
        header = read_gguf(folder)
        weights = read_gguf_weights(header, cfg)
        types = quantisation_text(quantisation(header))
        logging.info("%s: dequantised from %s tensors", folder.name, types)
    else:
        weights = read_weights(folder, multimodal="text_config" in hf, adapter=own)
    wanted = _wanted(cfg)
    _check(cfg, wanted, weights, folder)
    if lora:
        lora.check(cfg, {leaf: want.shape for leaf, want in wanted.items()})
    params: Params = {}
    for leaf, want in tqdm(
        wanted.items(), desc="load weights", unit="leaf", disable=not progress
    ):
        *outer, last = leaf.split("/")
        node = params
        for key in outer:
            node = node.setdefault(key, {})
        sharding = jax.NamedSharding(mesh, spec_for(leaf, want.shape, LM_RULES, mesh))
        pieces = _pieces(
            cfg, leaf, weights.tensors, want.shape, sharding, lora if merge else None
        )
        node[last] = _stream(leaf, pieces, want.shape, sharding, dtype)
    if lora and not merge:
        params |= shard_tree({"lora": lora.stacked(cfg, dtype)}, LM_RULES, mesh)
    return cfg, params


# ---- writing -------------------------------------------------------------------------


def save_lm(folder: Path, hf: Mapping[str, Any], params: Params) -> None:
    """Writes a Hugging Face folder: model.safetensors in the parameters' dtype, then
    config.json. Every process calls it.

    Args:
      hf: config.json of the model, from which `params` were made; its dtype is set to
        that of the weights.

    Raises:
      ValueError: an adapter kept apart (`lm.adapters.merged` adds it to the weights);
        parameters of another model.
    """
    cfg = config_from_hf(hf)
    if "lora" in params:
        raise ValueError(
            "these parameters keep an adapter apart, which the folder has no place "
            "for; merge it on loading, or with "
            "lm.adapters.merged"
        )
    parts: dict[str, list[_Part]] = {}
    for leaf, want in _wanted(cfg).items():
        array: Any = params
        for key in leaf.split("/"):
            array = array[key]
        value = to_host(array)
        if value.shape != want.shape:
            raise ValueError(
                f"{leaf} is {value.shape} but config.json asks for {want.shape}; take "
                "both from one model"
            )
        for at, name in _places(cfg, leaf):
            parts.setdefault(name, []).append(
                _Part(leaf, at[-1] if at else 0, value[at])
            )
    if not is_main():
        return
    tensors = {
        tensor_name(cfg, name): _joined(cfg, name, found)
        for name, found in parts.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / ".model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, folder / "model.safetensors")
    plain = {key: value for key, value in hf.items() if key != "quantization_config"}
    plain["dtype" if "dtype" in hf else "torch_dtype"] = params["embed"][
        "table"
    ].dtype.name
    write_atomic(folder / "config.json", json.dumps(plain, indent=1))


@dataclass(frozen=True, eq=False)
class _Part:
    """What a leaf has of a file's tensor; `expert` as `LeafSource.view` takes it."""

    leaf: str
    expert: int
    value: np.ndarray


def _joined(cfg: LMConfig, name: str, parts: list[_Part]) -> np.ndarray:
    """The file's tensor, of which every part is a view: the inverse of `LeafSource.view`,
    whatever that does.

    A tensor of element numbers goes through the view; what comes out says where each
    element of the part belongs.
    """
    if len(parts) == 1 and (read := source_of(cfg, parts[0].leaf).read) in (
        transposed,
        as_is,
    ):
        return np.ascontiguousarray(
            parts[0].value.T if read is transposed else parts[0].value
        )
    size = sum(part.value.size for part in parts)
    for shape in _shapes(cfg, parts):
        numbers = (
            np.arange(size).reshape(shape)
            if math.prod(shape) == size
            else np.zeros(0, int)
        )
        try:
            views = [
                source_of(cfg, p.leaf).view({name: numbers}, name, p.expert, cfg)
                for p in parts
            ]
        except (ValueError, IndexError):  # it cannot be cut into heads or experts
            continue
        if all(view.shape == part.value.shape for view, part in zip(views, parts)):
            out = np.empty(size, parts[0].value.dtype)
            for view, part in zip(views, parts):
                out[view] = part.value
            return out.reshape(shape)
    raise ValueError(
        f"the parts of {name} do not make one tensor of a {cfg.family} model"
    )


def _shapes(cfg: LMConfig, parts: list[_Part]) -> list[tuple[int, ...]]:
    """Shapes that the joined tensor may have: parts beside or below each other, with or
    without an axis of experts.
    """
    first = parts[0].value.shape
    leaves = {part.leaf: part.value.shape[-1] for part in parts}
    wide = (*first[:-1], sum(leaves.values()))
    return [wide, wide[::-1], (cfg.n_experts, *wide)]
