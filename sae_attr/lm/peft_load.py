"""PEFT LoRA adapters (Hu et al. 2021) as factors of our own leaves: to be merged while
loading, or kept apart.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_attr.files.tensors import read_tensors
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_folder import ADAPTER, read_object
from sae_attr.lm.hf_layouts import layout_of, source_of, without_prefix
from sae_attr.lm.hf_schema import FLAG, OBJECT, misfits, number, shown, whole

# Keys of adapter_config.json that plain LoRA has, or that say nothing about the result;
# any other that is set is refused.
_UNDERSTOOD = {
    *(
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
        "bias",
    ),
    *(
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "fan_in_fan_out",
        "lora_dropout",
    ),
    *(
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "task_type",
        "inference_mode",
        "peft_version",
    ),
    *(
        "megatron_core",
        "eva_config",
        "runtime_config",
        "qalora_group_size",
        "ensure_weight_tying",
    ),
}
_KINDS = {
    "r": whole(1, 2**16),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), OBJECT),
    "lora_alpha": number(-1e9, 1e9),
    **dict.fromkeys(("use_rslora", "fan_in_fan_out", "use_dora"), FLAG),
}
_PLAIN_STARTS = (
    None,
    True,
    False,
    "gaussian",
    "eva",
    "orthogonal",
)  # the others change the base model as well
_KEY = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.\w+)?\.weight$")


def adaptable(cfg: LMConfig) -> tuple[str, ...]:
    """Returns the linear maps of a block that an adapter may change; experts and their
    router are not among them.
    """
    mlp = (
        ()
        if cfg.n_experts
        else ("gate", "up", "down")
        if cfg.gated_mlp
        else ("up", "down")
    )
    return ("q", "k", "v", "o", *mlp)


@dataclass(frozen=True)
class Factors:
    """Holds what is added to a kernel: a `[in, r]` times b `[r, out]`, with the
    adapter's scale in b.
    """

    a: np.ndarray
    b: np.ndarray

    def product(self, rows: slice, columns: slice) -> np.ndarray:
        """Returns a part of a b, float64."""
        return self.a[rows] @ self.b[:, columns]


@dataclass(frozen=True)
class Adapter:
    """An adapter as its files have it.

    Args:
      path: of its folder.
      matrices: module of the base model, without prefixes -> A `[r, in]` and B `[out,
        r]`, float64, scale in B.
    """

    path: Path
    matrices: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def factors(self, cfg: LMConfig, leaf: str) -> dict[int, Factors]:
        """Returns layer -> what is added to it, for a leaf such as blocks/q/kernel; of
        fused matrices the leaf's own part.
        """
        if leaf not in {f"blocks/{name}/kernel" for name in adaptable(cfg)}:
            return {}
        source, factors = source_of(cfg, leaf), {}
        for layer in range(cfg.n_layers):
            pair = self.matrices.get(_module(source.name, layer))
            if pair is not None:
                a_ri, b_or = pair
                # B's rows are the outputs, as a weight's are, unless the family has
                # them as columns.
                b = b_or.T if layout_of(cfg).in_out else b_or
                factors[layer] = Factors(a_ri.T, source.read(b, cfg))
        return factors

    def check(self, cfg: LMConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises ValueError, with a line for each disagreement, if the adapter is not
        one of this model.

        Args:
          shapes: of every leaf of the parameter tree.
        """
        leaves = [f"blocks/{name}/kernel" for name in adaptable(cfg)]
        allowed = {
            _module(source_of(cfg, leaf).name, i)
            for leaf in leaves
            for i in range(cfg.n_layers)
        }
        lines = [
            f"{name}: no such matrix can be adapted here"
            for name in sorted(set(self.matrices) - allowed)
        ]
        for leaf in leaves:
            lines += self._misfits(cfg, leaf, shapes[leaf][1:])
        if lines:
            lines[20:] = [f"... and {len(lines) - 20} more"] if len(lines) > 20 else []
            raise ValueError(
                f"the adapter in {self.path} does not fit this {cfg.family} model of "
                f"{cfg.n_layers} layers:\n"
                + "\n".join(lines)
                + f"\nAdapted can be {', '.join(adaptable(cfg))} of every block; use the "
                "model that adapter_config.json names as base_model_name_or_path."
            )

    def _misfits(
        self, cfg: LMConfig, leaf: str, shape: tuple[int, ...]
    ) -> Iterator[str]:
        try:
            by_layer = self.factors(cfg, leaf)
        except ValueError as error:  # B cannot be cut into heads
            yield f"{leaf}: {error}"
            return
        for layer, factors in by_layer.items():
            if (got := (factors.a.shape[0], factors.b.shape[1])) != shape:
                yield f"{leaf} of layer {layer} is {shape} in the model and {got} in the adapter"

    def stacked(self, cfg: LMConfig, dtype: str) -> dict[str, dict[str, np.ndarray]]:
        """Returns every adapted matrix's `a` `[l, in, r]` and `b` `[l, r, out]`; layers
        without it, and lower ranks, have zeros.
        """
        tree: dict[str, dict[str, np.ndarray]] = {}
        for name in adaptable(cfg):
            by_layer = self.factors(cfg, f"blocks/{name}/kernel")
            if by_layer:
                rank = max(factors.a.shape[1] for factors in by_layer.values())
                first = next(iter(by_layer.values()))
                a_lir = np.zeros((cfg.n_layers, first.a.shape[0], rank), dtype)
                b_lro = np.zeros((cfg.n_layers, rank, first.b.shape[1]), dtype)
                for layer, factors in by_layer.items():
                    a_lir[layer, :, : factors.a.shape[1]] = factors.a
                    b_lro[layer, : factors.b.shape[0]] = factors.b
                tree[name] = {"a": a_lir, "b": b_lro}
        return tree


def _module(name: str, layer: int) -> str:
    return name.format(layer).removesuffix(".weight")


def load_adapter(folder: Path) -> Adapter:
    """Reads adapter_config.json and adapter_model.safetensors or .bin, without torch.

    Plain LoRA and rsLoRA, with rank_pattern and alpha_pattern: W + s B A, s = alpha / r
      or alpha / sqrt(r).

    Raises:
      ValueError: files that are missing or damaged; another kind of adapter (DoRA,
        modules_to_save, biases, starts such as PiSSA that change the base model, ...);
        factors that lack their other half or have another rank.
    """
    config = _read_config(folder)
    tensors = _read_matrices(folder)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    strange = []
    for name, tensor in tensors.items():
        match = _KEY.match(name)
        if match is None or tensor.ndim != 2:
            strange.append(f"{name} {tensor.shape}")
        else:
            pairs.setdefault(match[1], {})[match[2]] = tensor
    if strange or not pairs:
        what = (
            f"also holds {', '.join(strange[:5])}"
            if strange
            else "holds no lora_A and lora_B"
        )
        raise ValueError(
            f"the adapter in {folder} {what}; only LoRA of linear maps is implemented"
        )
    matrices = {
        without_prefix(name): _scaled(folder, config, name, pair)
        for name, pair in pairs.items()
    }
    return Adapter(folder, matrices)


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / ADAPTER
    if not file.is_file():
        raise ValueError(f"{folder} holds no {ADAPTER}, so it is no PEFT adapter")
    try:
        config = read_object(file)
    except ValueError as error:
        what = str(error).removeprefix(f"{file} ").removeprefix("holds ")
        raise ValueError(f"{file} cannot be read ({what})") from None
    if lines := misfits(config, _KINDS):
        raise ValueError(f"{file}: " + "\n".join(lines))
    if unsafe := [key for key in _patterns(config) if not _is_simple(key)]:
        raise ValueError(
            f"{file}: the pattern {shown(unsafe[0])} is no module's name or simple "
            "expression of names"
        )
    kind, start = config.get("peft_type"), config.get("init_lora_weights")
    if kind != "LORA":
        raise ValueError(
            f"{file}: peft_type {kind!r} is not implemented; only 'LORA' is"
        )
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"{file}: bias {config['bias']!r} trains biases too, which is not "
            "implemented; only 'none' is"
        )
    if start not in _PLAIN_STARTS:
        raise ValueError(
            f"{file}: init_lora_weights {start!r} changes the base model too, which is "
            "not implemented; convert the adapter "
            "to plain LoRA with peft (path_initial_model_for_weight_conversion)"
        )
    refused = sorted(
        name for name, value in config.items() if value and name not in _UNDERSTOOD
    )
    if refused:
        words = ", ".join(f"{name}={config[name]!r}" for name in refused)
        raise ValueError(
            f"{file}: {words} is not implemented; only plain LoRA and rsLoRA are, so "
            "merge it with peft"
        )
    return config


def _read_matrices(folder: Path) -> dict[str, np.ndarray]:
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).exists():
            tensors = read_tensors(folder / name)
            for key, tensor in tensors.items():
                if (
                    tensor.dtype.kind in "iub"
                    or not np.isfinite(np.asarray(tensor, np.float32)).all()
                ):
                    raise ValueError(
                        f"{folder / name}: {key} holds {tensor.dtype} numbers, NaN or "
                        "infinity; fetch it again"
                    )
            return tensors
    raise ValueError(
        f"{folder} lacks adapter_model.safetensors (or .bin); download the adapter "
        "completely"
    )


def _scaled(
    folder: Path, config: Mapping[str, Any], module: str, pair: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A and s B of one module, float64."""
    if set(pair) != {"A", "B"}:
        raise ValueError(
            f"the adapter in {folder} has {module}.lora_{next(iter(pair))} alone; "
            "fetch it again"
        )
    settings = {
        "r": _by_pattern(config.get("rank_pattern"), module, config.get("r", 8)),
        "lora_alpha": _by_pattern(
            config.get("alpha_pattern"), module, config.get("lora_alpha", 8)
        ),
    }
    if lines := misfits(settings, _KINDS):
        raise ValueError(
            f"{folder / ADAPTER}: by its patterns, for {module}, " + "; ".join(lines)
        )
    rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    a_ri, b_or = (np.asarray(pair[half], np.float64) for half in "AB")
    if not a_ri.shape[0] == b_or.shape[1] == rank:
        raise ValueError(
            f"the adapter in {folder} has rank {rank} for {module} by "
            f"adapter_config.json, but lora_A {a_ri.shape} and "
            f"lora_B {b_or.shape} in its file; take both from one adapter"
        )
    return a_ri, b_or * (
        alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    )


def _is_simple(pattern: str) -> bool:
    """Whether a pattern is an expression that takes no time to match: short, few
    repeats, and no group repeated.
    """
    if (
        len(pattern) > 200
        or len(re.findall(r"[*+{]", pattern)) > 3
        or re.search(r"\)[*+{]", pattern)
    ):
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError):
        return False
    return True


def _patterns(config: Mapping[str, Any]) -> list[str]:
    return [*(config.get("rank_pattern") or {}), *(config.get("alpha_pattern") or {})]


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the end of the module's name, as in
    peft.
    """
    return next(
        (
            v
            for key, v in (patterns or {}).items()
            if re.match(rf"(.*\.)?({key})$", module)
        ),
        otherwise,
    )
