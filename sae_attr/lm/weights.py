"""Hugging Face folders into our parameter tree: memory-mapped files, streamed to their devices a layer at a time."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file
from tqdm import tqdm

from sae_attr.lm.config import LMConfig, config_from_hf
from sae_attr.lm.model import Params, init_params
from sae_attr.parallel import LM_RULES, spec_for
from sae_attr.tensorfiles import read_tensors

Read = Callable[[np.ndarray, LMConfig], np.ndarray]
CHUNK_BYTES = 8 << 20  # weights are streamed in pieces of about this size; larger ones were no faster


@dataclass(frozen=True)
class Source:
    """Where one leaf of one layer comes from: a tensor's name without prefixes, and the view of it that we store."""

    name: str
    read: Read = lambda w, cfg: w


def _transposed(w: np.ndarray, cfg: LMConfig) -> np.ndarray:
    return w.T


def _interleaved(part: int) -> Read:
    """GPT-NeoX keeps (head, [q, k, v], channel) in one matrix."""

    def read(w: np.ndarray, cfg: LMConfig) -> np.ndarray:
        view = w.reshape(cfg.n_heads, 3, cfg.head_dim, *w.shape[1:])[:, part]
        return view.reshape(cfg.n_heads * cfg.head_dim, *w.shape[1:]).T

    return read


def _conv1d(part: int) -> Read:
    """GPT-2's Conv1D is [in, out] with q, k and v side by side along the outputs."""
    return lambda w, cfg: w[..., part * cfg.d_model : (part + 1) * cfg.d_model if part < 2 else None]


def _fused_qkv(part: int) -> Read:
    """Phi-3's qkv_proj is [q rows, k rows, v rows]; v takes all that is left, so that its shape tells of too many."""

    def read(w: np.ndarray, cfg: LMConfig) -> np.ndarray:
        heads = np.cumsum([0, cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads]) * cfg.head_dim
        return w[heads[part] : heads[part + 1] if part < 2 else None].T

    return read


def _linear(ours: str, theirs: str, read: Read = _transposed) -> dict[str, Source]:
    bias: Read = (lambda w, cfg: w) if read is _transposed else read
    return {f"{ours}/kernel": Source(f"{theirs}.weight", read), f"{ours}/bias": Source(f"{theirs}.bias", bias)}


def _norm(ours: str, theirs: str) -> dict[str, Source]:
    return {f"{ours}/scale": Source(f"{theirs}.weight"), f"{ours}/bias": Source(f"{theirs}.bias")}


def _as_is(w: np.ndarray, cfg: LMConfig) -> np.ndarray:
    return w


_OUTER = {
    "embed/table": Source("embed_tokens.weight"),
    "head/table": Source("lm_head.weight"),
    **_norm("final_norm", "norm"),
}
_LLAMA = {
    **_OUTER,
    **_norm("attn_norm", "layers.{}.input_layernorm"),
    **_norm("mlp_norm", "layers.{}.post_attention_layernorm"),
    **_norm("q_norm", "layers.{}.self_attn.q_norm"),
    **_norm("k_norm", "layers.{}.self_attn.k_norm"),
    **_linear("q", "layers.{}.self_attn.q_proj"),
    **_linear("k", "layers.{}.self_attn.k_proj"),
    **_linear("v", "layers.{}.self_attn.v_proj"),
    **_linear("o", "layers.{}.self_attn.o_proj"),
    **_linear("gate", "layers.{}.mlp.gate_proj"),
    **_linear("up", "layers.{}.mlp.up_proj"),
    **_linear("down", "layers.{}.mlp.down_proj"),
}
_POST_NORMS = {
    **_norm("attn_post_norm", "layers.{}.post_attention_layernorm"),
    **_norm("mlp_norm", "layers.{}.pre_feedforward_layernorm"),
    **_norm("mlp_post_norm", "layers.{}.post_feedforward_layernorm"),
}
_PHI3 = {
    **_LLAMA,
    **{f"{n}/kernel": Source("layers.{}.self_attn.qkv_proj.weight", _fused_qkv(i)) for i, n in enumerate("qkv")},
    "gate/kernel": Source("layers.{}.mlp.gate_up_proj.weight", lambda w, cfg: w[: cfg.d_mlp].T),
    "up/kernel": Source("layers.{}.mlp.gate_up_proj.weight", lambda w, cfg: w[cfg.d_mlp :].T),
}
_GPT2 = {
    "embed/table": Source("wte.weight"),
    "pos/table": Source("wpe.weight"),
    "head/table": Source("lm_head.weight"),
    **_norm("final_norm", "ln_f"),
    **_norm("attn_norm", "h.{}.ln_1"),
    **_norm("mlp_norm", "h.{}.ln_2"),
    **_linear("q", "h.{}.attn.c_attn", _conv1d(0)),
    **_linear("k", "h.{}.attn.c_attn", _conv1d(1)),
    **_linear("v", "h.{}.attn.c_attn", _conv1d(2)),
    **_linear("o", "h.{}.attn.c_proj", _as_is),
    **_linear("up", "h.{}.mlp.c_fc", _as_is),
    **_linear("down", "h.{}.mlp.c_proj", _as_is),
}
_NEOX = {
    "embed/table": Source("embed_in.weight"),
    "head/table": Source("embed_out.weight"),
    **_norm("final_norm", "final_layer_norm"),
    **_norm("attn_norm", "layers.{}.input_layernorm"),
    **_norm("mlp_norm", "layers.{}.post_attention_layernorm"),
    **_linear("q", "layers.{}.attention.query_key_value", _interleaved(0)),
    **_linear("k", "layers.{}.attention.query_key_value", _interleaved(1)),
    **_linear("v", "layers.{}.attention.query_key_value", _interleaved(2)),
    **_linear("o", "layers.{}.attention.dense"),
    **_linear("up", "layers.{}.mlp.dense_h_to_4h"),
    **_linear("down", "layers.{}.mlp.dense_4h_to_h"),
}
_SOURCES: Mapping[str, Mapping[str, Source]] = {
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "phi3": _PHI3,
    "gemma2": {**_LLAMA, **_POST_NORMS},
    "gemma3_text": {**_LLAMA, **_POST_NORMS},
    "olmo2": {**_LLAMA, **_POST_NORMS},
}

# Checkpoints differ in what stands before a tensor's name, and carry buffers that are computed, not learnt.
_PREFIXES = re.compile(
    r"^(model\.language_model\.|language_model\.model\.|language_model\.|model\.|transformer\.|gpt_neox\.)"
)
_NOT_WEIGHTS = re.compile(
    r"rotary_emb\.|\.attn\.(masked_)?bias$|attention\.(masked_)?bias$|vision_|multi_modal_projector"
)


def resolve_model(path: str) -> Path:
    """The local folder of a model: `path` itself, or a hub id `owner/name[@revision]` downloaded by huggingface_hub.

    Raises:
      ValueError: neither a folder nor something that looks like a hub id, or the hub has no such model.
    """
    if Path(path).is_dir():
        return Path(path)
    hub_id, _, revision = path.removeprefix("hf://").partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub_id) or path.startswith((".", "/")):
        raise ValueError(f"{path!r} is neither a folder here nor a hub id owner/name[@revision]; check --config.lm")
    import huggingface_hub  # slow to import, and not needed for local folders

    patterns = ["*.json", "*.safetensors", "*.jinja"]
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        raise ValueError(f"{hub_id!r} is no folder here and could not be fetched from the hub: {error}") from error


def load_config(path: str, *, resid_dtype: str = "float32") -> LMConfig:
    """`LMConfig` of a model folder or hub id, without its weights; ValueError if config.json is missing or unknown."""
    file = resolve_model(path) / "config.json"
    if not file.exists():
        raise ValueError(f"{file.parent} holds no config.json, so it is no Hugging Face model folder")
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); fetch it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__} where an object is expected; fetch it again")
    return replace(config_from_hf(found), resid_dtype=resid_dtype)


def _files(folder: Path) -> list[Path]:
    """The files that hold the model: those of the index, or model.safetensors, or whatever there is."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        try:
            return [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is no JSON object with a weight_map ({error!r}); fetch it again") from error
    return [whole] if whole.exists() else sorted(folder.glob("*.safetensors"))


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder's safetensors files as a memory map, under its name without prefixes."""
    files = _files(folder)
    absent = [file.name for file in files if not file.exists()]
    if absent or not files:
        lacking = ", ".join(absent) or "any *.safetensors file"
        raise ValueError(f"{folder} lacks {lacking}; download the model completely")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        for name, tensor in read_tensors(file).items():
            if not _NOT_WEIGHTS.search(name):
                tensors[_PREFIXES.sub("", name)] = tensor
    return tensors


def _wanted(cfg: LMConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Path -> shape of every leaf of the parameter tree."""
    tree = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in leaves}


def _source(cfg: LMConfig, leaf: str) -> Source:
    return _SOURCES.get(cfg.family, _LLAMA)[leaf.removeprefix("blocks/")]


def _names(cfg: LMConfig, leaf: str) -> list[str]:
    name = _source(cfg, leaf).name
    return [name.format(i) for i in range(cfg.n_layers)] if leaf.startswith("blocks/") else [name]


def _check_names(cfg: LMConfig, wanted: Mapping[str, Any], tensors: Mapping[str, np.ndarray], folder: Path) -> None:
    expected = {name for leaf in wanted for name in _names(cfg, leaf)}
    spare = {"lm_head.weight", "embed_out.weight"} if cfg.tied_head else set()  # a second copy of the embedding
    lines = [f"- {name} (missing)" for name in sorted(expected - set(tensors))]
    lines += [f"+ {name} (unexpected)" for name in sorted(set(tensors) - expected - spare)]
    if len(lines) > 20:
        lines[20:] = [f"... and {len(lines) - 20} more"]
    if lines:
        raise ValueError(
            f"the weights in {folder} are not those of the {cfg.family} model that config.json describes:\n"
            + "\n".join([*lines, "Use the config.json that belongs to these weights."])
        )


def _view(cfg: LMConfig, leaf: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What a leaf takes of a tensor; ValueError if that has another shape than config.json asks for."""
    try:
        view = _source(cfg, leaf).read(tensor, cfg)
    except ValueError:  # it cannot be cut into heads
        view = tensor
    if view.shape != shape:
        raise ValueError(
            f"{leaf} should be {shape} by config.json, but the file has {view.shape}; take both from one model"
        )
    return view


@dataclass(frozen=True)
class _Piece:
    """A part of a leaf that is small enough for the host: the same cut out of every device's shard.

    Args:
      view: the file's tensor as the leaf takes it, a layer of a stacked leaf as `[1, ...]`.
      start: first element in `view`, within a shard.
      size: elements of one shard, per axis.
      shard: shape of a device's shard of `view`.
      layer: index along the leaf's first axis, 0 for a leaf that is not stacked.
    """

    view: np.ndarray
    start: tuple[int, ...]
    size: tuple[int, ...]
    shard: tuple[int, ...]
    layer: int

    def put(self, sharding: jax.NamedSharding, dtype: str) -> jax.Array:
        """The piece on its devices: one array whose shards are the devices' cuts."""
        parts = [whole // part for whole, part in zip(self.view.shape, self.shard)]

        def cut(index: Any) -> np.ndarray:
            number = [(s.start or 0) // size for s, size in zip(index, self.size)]
            first = [n * part + start for n, part, start in zip(number, self.shard, self.start)]
            block = self.view[tuple(slice(a, a + size) for a, size in zip(first, self.size))]
            return np.ascontiguousarray(block).astype(dtype, copy=False)

        whole = tuple(size * n for size, n in zip(self.size, parts))
        return jax.make_array_from_callback(whole, sharding, cut)


def _pieces(
    cfg: LMConfig, leaf: str, tensors: Mapping[str, np.ndarray], shape: tuple[int, ...], sharding: jax.NamedSharding
) -> Iterator[_Piece]:
    """A leaf in pieces of about `CHUNK_BYTES`, a layer at a time, along the axis that is outermost in the file."""
    stacked = leaf.startswith("blocks/")
    shard = sharding.shard_shape(shape)
    shard = (1, *shard[1:]) if stacked else shard
    for i, name in enumerate(_names(cfg, leaf)):
        view = _view(cfg, leaf, tensors[name], shape[1:] if stacked else shape)
        view = view[None] if stacked else view
        axis = int(np.argmax(view.strides))
        step = max(1, min(shard[axis], CHUNK_BYTES * shard[axis] // max(1, view.nbytes)))
        size = (*shard[:axis], step, *shard[axis + 1 :])
        starts = [*range(0, shard[axis] - step, step), shard[axis] - step]  # the last may overlap: one program for all
        for at in starts:
            start = tuple(at if k == axis else 0 for k in range(len(shard)))
            yield _Piece(view, start, size, shard, i if stacked else 0)


@lru_cache(maxsize=256)
def _programs(shape: tuple[int, ...], dtype: str, sharding: jax.NamedSharding) -> tuple[Any, Any]:
    """Compiled `() -> buffer, finite` and `(buffer, finite, piece, at) -> buffer, finite`, shared by leaves of a shape.

    The second works in place. Every device updates its own shard: an update along an axis that is split would have XLA
    gather the whole leaf on every device.
    """
    spec, places = sharding.spec, (sharding, jax.NamedSharding(sharding.mesh, P()))

    def local(buffer: jax.Array, x: jax.Array, at: jax.Array) -> jax.Array:
        # As integers, since XLA on CPUs would convert a whole bfloat16 buffer to float32 and back.
        bits = jnp.dtype(f"uint{8 * buffer.dtype.itemsize}")
        as_bits = lambda value: jax.lax.bitcast_convert_type(value, bits)
        filled = jax.lax.dynamic_update_slice(as_bits(buffer), as_bits(x), [at[k] for k in range(buffer.ndim)])
        return jax.lax.bitcast_convert_type(filled, buffer.dtype)

    place = jax.shard_map(local, mesh=sharding.mesh, in_specs=(spec, spec, P()), out_specs=spec)
    fill = lambda buffer, finite, x, at: (place(buffer, x, at), finite & jnp.isfinite(x).all())
    start = lambda: (jnp.zeros(shape, dtype), jnp.bool_(True))
    return jax.jit(start, out_shardings=places), jax.jit(fill, donate_argnums=0, out_shardings=places)


def _stream(
    leaf: str, pieces: Iterator[_Piece], shape: tuple[int, ...], sharding: jax.NamedSharding, dtype: str
) -> jax.Array:
    """Fills one leaf's device buffer in place; the host holds one piece of it at a time."""
    start, fill = _programs(shape, dtype, sharding)
    buffer, finite = start()
    for piece in pieces:
        at = np.array([piece.layer + piece.start[0], *piece.start[1:]], np.int32)
        buffer, finite = fill(buffer, finite, piece.put(sharding, dtype), at)
        finite.block_until_ready()  # otherwise pieces are read faster than they are placed, and pile up
    if not bool(finite):
        raise ValueError(
            f"{leaf} holds NaN or infinity after loading as {dtype}; the file is damaged or overflows {dtype}"
        )
    return buffer


def load_lm(
    path: str,
    *,
    mesh: jax.sharding.Mesh,
    dtype: str = "float32",
    resid_dtype: str | None = None,
    progress: bool = True,
) -> tuple[LMConfig, Params]:
    """Config and parameters of a Hugging Face folder or hub id, each weight on the devices that `LM_RULES` gives it.

    Files are memory-mapped; the host holds a piece of `CHUNK_BYTES` at a time (benchmarks/load_memory.py).

    Args:
      path: folder, or hub id `owner/name[@revision]`.
      mesh: axes `data` and `model`.
      dtype: of the weights and of matrix products: float32, bfloat16 or float64 (under x64).
      resid_dtype: of the residual stream; default float32, float64 for float64 weights.
      progress: show a bar.

    Raises:
      ValueError: missing or unexpected weights (listed with - and +), shapes that contradict config.json, truncated
        files, NaN or infinity.
    """
    folder = resolve_model(path)
    cfg = load_config(str(folder), resid_dtype=resid_dtype or ("float64" if dtype == "float64" else "float32"))
    tensors, wanted = _tensors(folder), _wanted(cfg)
    _check_names(cfg, wanted, tensors, folder)
    params: Params = {}
    for leaf, want in tqdm(wanted.items(), desc="load weights", unit="leaf", disable=not progress):
        *outer, last = leaf.split("/")
        node = params
        for key in outer:
            node = node.setdefault(key, {})
        sharding = jax.NamedSharding(mesh, spec_for(leaf, want.shape, LM_RULES, mesh))
        pieces = _pieces(cfg, leaf, tensors, want.shape, sharding)
        node[last] = _stream(leaf, pieces, want.shape, sharding, dtype)
    return cfg, params


def save_lm(folder: Path, hf: Mapping[str, Any], params: Params) -> None:
    """Writes a Hugging Face folder (config.json, model.safetensors) of a family whose matrices are not fused.

    Args:
      hf: config.json of the model, from which `params` were made.

    Raises:
      ValueError: a family whose file format joins matrices (GPT-2, GPT-NeoX, Phi-3).
    """
    cfg = config_from_hf(hf)
    tensors: dict[str, np.ndarray] = {}
    for leaf in _wanted(cfg):
        read = _source(cfg, leaf).read
        value = np.asarray(functools.reduce(lambda tree, key: tree[key], leaf.split("/"), params))
        layers = value if leaf.startswith("blocks/") else [value]
        for name, layer in zip(_names(cfg, leaf), layers, strict=True):
            if name in tensors or (
                layer.ndim == 2 and read not in (_transposed, _as_is) and leaf.startswith("blocks/")
            ):
                raise ValueError(f"saving a {cfg.family} model is not implemented: {name} joins several matrices")
            tensors[f"model.{name}".replace("model.lm_head", "lm_head")] = np.ascontiguousarray(
                layer.T if read is _transposed else layer
            )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(dict(hf), indent=1))
