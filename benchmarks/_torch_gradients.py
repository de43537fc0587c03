"""The PyTorch side of `benchmarks.gradients`: answers requests, one JSON line each, on
the weights of a folder.

Run by that benchmark with an interpreter that has torch and, for the second peer,
transformers; it imports nothing else. `plain` is written for speed: prefix under
no_grad, frozen weights, fused norms, attention and activations, logits of the completion
alone. `hooked` is transformers' own model, frozen, with a hook that makes the site's
output a leaf; it computes every position's logits and, as its users do, runs its layers
below the site in the same forward pass. `unfrozen` is the same without freezing:
gradients of all parameters, through all layers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

Weights = dict[str, torch.Tensor]
Shape = dict[str, Any]


class Plain:
    """What decoders of functions of torch alone share."""

    def __init__(self, weights: Weights, shape: Shape) -> None:
        self.w, self.shape = weights, shape
        self.layers = len(weights["o.kernel"])

    def joined(self, *names: str, leaf: str = "kernel") -> torch.Tensor:
        """Returns several layers' matrices side by side, as F.linear takes them."""
        x = torch.cat([self.w[f"{name}.{leaf}"] for name in names], -1)
        return x.transpose(1, -1).contiguous() if x.ndim == 3 else x

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns what enters the first layer."""
        return self.w["embed"][tokens]

    def block(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """Applies layer i to the residual stream `[b, t, d]`."""
        raise NotImplementedError

    def final_norm(self, x: torch.Tensor) -> torch.Tensor:
        """Returns what the unembedding multiplies."""
        raise NotImplementedError

    def gradient(self, tokens: torch.Tensor, prompt: int, site: int) -> torch.Tensor:
        """Returns dL/da at the output of layer `site`."""
        with torch.no_grad():
            a = self.embed(tokens)
            for i in range(site + 1):
                a = self.block(a, i)
        x = a.requires_grad_(True)
        for i in range(site + 1, self.layers):
            x = self.block(x, i)
        logits = F.linear(self.final_norm(x[:, prompt - 1 : -1]), self.w["embed"])
        loss = F.cross_entropy(
            logits.flatten(0, 1), tokens[:, prompt:].flatten(), reduction="sum"
        )
        return torch.autograd.grad(loss, a)[0]


class PlainGPT2(Plain):
    """GPT-2."""

    def __init__(self, weights: Weights, shape: Shape) -> None:
        super().__init__(weights, shape)
        self.qkv = self.joined(*"qkv"), self.joined(*"qkv", leaf="bias")
        self.kernel = {name: self.joined(name) for name in ("o", "up", "down")}

    def _linear(self, name: str, x: torch.Tensor, i: int) -> torch.Tensor:
        return F.linear(x, self.kernel[name][i], self.w[f"{name}.bias"][i])

    def _norm(self, name: str, x: torch.Tensor, *i: int) -> torch.Tensor:
        scale, bias = self.w[f"{name}.scale"][i], self.w[f"{name}.bias"][i]
        return F.layer_norm(x, (x.shape[-1],), scale, bias)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().embed(tokens) + self.w["pos"][: tokens.shape[1]]

    def final_norm(self, x: torch.Tensor) -> torch.Tensor:
        return self._norm("final", x)

    def block(self, x: torch.Tensor, i: int) -> torch.Tensor:
        b, t, d = x.shape
        qkv = F.linear(self._norm("attn_norm", x, i), self.qkv[0][i], self.qkv[1][i])
        heads = qkv.view(b, t, 3, self.shape["n_head"], -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self._linear("o", z.transpose(1, 2).reshape(b, t, d), i)
        hidden = self._linear("up", self._norm("mlp_norm", x, i), i)
        return x + self._linear("down", F.gelu(hidden, approximate="tanh"), i)


class PlainLlama(Plain):
    """Llama: rotary positions, fewer heads of keys than of queries, a gated MLP."""

    def __init__(self, weights: Weights, shape: Shape) -> None:
        super().__init__(weights, shape)
        self.qkv, self.gate_up = self.joined(*"qkv"), self.joined("gate", "up")
        self.o, self.down = self.joined("o"), self.joined("down")
        self.heads = shape["num_attention_heads"]
        self.kv_heads = shape["num_key_value_heads"]
        self.head_dim = shape["hidden_size"] // self.heads
        halves = torch.arange(0, self.head_dim, 2) / self.head_dim
        angles_th = torch.outer(
            torch.arange(shape["max_position_embeddings"]),
            shape["rope_theta"] ** -halves,
        )
        angles_tc = torch.cat([angles_th, angles_th], -1)
        self.cos_tc, self.sin_tc = angles_tc.cos(), angles_tc.sin()

    def _norm(self, name: str, x: torch.Tensor, *i: int) -> torch.Tensor:
        scale, eps = self.w[f"{name}.scale"][i], self.shape["rms_norm_eps"]
        return F.rms_norm(x, (x.shape[-1],), scale, eps)

    def _rotated(self, x: torch.Tensor) -> torch.Tensor:
        t, half = x.shape[-2], self.head_dim // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * self.cos_tc[:t] + turned * self.sin_tc[:t]

    def final_norm(self, x: torch.Tensor) -> torch.Tensor:
        return self._norm("final", x)

    def block(self, x: torch.Tensor, i: int) -> torch.Tensor:
        b, t, d = x.shape
        qkv = F.linear(self._norm("attn_norm", x, i), self.qkv[i])
        qkv = qkv.view(b, t, -1, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), 1)
        q, k = self._rotated(q), self._rotated(k)
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + F.linear(z.transpose(1, 2).reshape(b, t, d), self.o[i])
        hidden = F.linear(self._norm("mlp_norm", x, i), self.gate_up[i])
        gate, up = hidden.chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down[i])


class Hooked:
    """transformers' own model with plain autograd and a hook at the site."""

    def __init__(self, weights: Weights, shape: Shape, frozen: bool) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(**shape, bos_token_id=0, eos_token_id=0)
        self.model = AutoModelForCausalLM.from_config(
            config, attn_implementation="sdpa"
        ).eval()
        is_gpt2 = shape["model_type"] == "gpt2"
        state = gpt2_state(weights) if is_gpt2 else llama_state(weights)
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        if set(missing) - {"lm_head.weight"} or unexpected:
            raise ValueError(
                f"{type(self.model).__name__}: missing {missing}, unexpected "
                f"{unexpected}; its names have changed"
            )
        self.model.tie_weights()
        self.blocks = self.model.transformer.h if is_gpt2 else self.model.model.layers
        self.frozen = frozen
        self.model.requires_grad_(not frozen)

    def gradient(self, tokens: torch.Tensor, prompt: int, site: int) -> torch.Tensor:
        """Returns dL/da at the output of layer `site`."""
        kept: list[torch.Tensor] = []

        def hook(module: Any, inputs: Any, output: Any) -> Any:
            a = output[0] if isinstance(output, tuple) else output
            kept.append(a.requires_grad_(True) if self.frozen else a)
            kept[0].retain_grad()

        handle = self.blocks[site].register_forward_hook(hook)
        try:
            logits = self.model(tokens, use_cache=False).logits[:, prompt - 1 : -1]
        finally:
            handle.remove()
        F.cross_entropy(
            logits.flatten(0, 1), tokens[:, prompt:].flatten(), reduction="sum"
        ).backward()
        self.model.zero_grad(set_to_none=True)
        assert kept[0].grad is not None
        return kept[0].grad


def gpt2_state(weights: Weights) -> Weights:
    """Returns the weights under transformers' names for GPT-2."""
    state = {
        "transformer.wte.weight": weights["embed"],
        "transformer.wpe.weight": weights["pos"],
        "transformer.ln_f.weight": weights["final.scale"],
        "transformer.ln_f.bias": weights["final.bias"],
    }
    names = {
        "ln_1": "attn_norm",
        "ln_2": "mlp_norm",
        "attn.c_proj": "o",
        "mlp.c_fc": "up",
        "mlp.c_proj": "down",
    }
    for i in range(len(weights["o.kernel"])):
        at = f"transformer.h.{i}."
        for theirs, ours in names.items():
            leaf = "scale" if "norm" in ours else "kernel"
            state[f"{at}{theirs}.weight"] = weights[f"{ours}.{leaf}"][i]
            state[f"{at}{theirs}.bias"] = weights[f"{ours}.bias"][i]
        for theirs, ours in (("weight", "kernel"), ("bias", "bias")):
            parts = [weights[f"{name}.{ours}"][i] for name in "qkv"]
            state[f"{at}attn.c_attn.{theirs}"] = torch.cat(parts, -1)
    return state


def llama_state(weights: Weights) -> Weights:
    """Returns the weights under transformers' names for Llama."""
    state = {
        "model.embed_tokens.weight": weights["embed"],
        "model.norm.weight": weights["final.scale"],
    }
    norms = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm"}
    products = {f"self_attn.{name}_proj": name for name in "qkvo"}
    products |= {f"mlp.{name}_proj": name for name in ("gate", "up", "down")}
    for i in range(len(weights["o.kernel"])):
        at = f"model.layers.{i}."
        for theirs, ours in norms.items():
            state[f"{at}{theirs}.weight"] = weights[f"{ours}.scale"][i]
        for theirs, ours in products.items():
            state[f"{at}{theirs}.weight"] = weights[f"{ours}.kernel"][i].T
    return state


def product_seconds(rows: int, d: int, f: int) -> float:
    """Returns the seconds of one product [rows, d] × [d, f], the best of four."""
    a, b = torch.randn(rows, d), torch.randn(d, f)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        torch.matmul(a, b)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Answers requests from standard input; arguments: folder with shape.json,
    weights.npz and tokens.npy, number of threads, of prompt tokens, the site.
    """
    folder, threads, prompt, site = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    torch.set_num_threads(threads)
    weights = {
        name: torch.from_numpy(x) for name, x in np.load(folder / "weights.npz").items()
    }
    tokens = torch.from_numpy(np.load(folder / "tokens.npy")).long()
    shape = json.loads((folder / "shape.json").read_text())
    plain = PlainGPT2 if shape["model_type"] == "gpt2" else PlainLlama
    make: dict[str, Callable[[], Any]] = {
        "plain": lambda: plain(weights, shape),
        "hooked": lambda: Hooked(weights, shape, frozen=True),
        "unfrozen": lambda: Hooked(weights, shape, frozen=False),
    }
    sides: dict[str, Any] = {}
    print(json.dumps({"torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["side"] == "product":
            print(
                json.dumps(
                    {"seconds": product_seconds(*request["shape"]), "cpu_seconds": 0.0}
                ),
                flush=True,
            )
            continue
        side = sides.setdefault(request["side"], None) or make[request["side"]]()
        sides[request["side"]] = side
        start, cpu_start = time.perf_counter(), time.process_time()
        grads = side.gradient(tokens[: request["rows"]], prompt, site)
        found = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - cpu_start,
        }
        if request.get("save"):
            np.save(folder / request["save"], grads.numpy())
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
