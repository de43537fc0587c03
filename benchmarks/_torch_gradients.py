"""The PyTorch side of `benchmarks.gradients`: answers requests, one JSON line each, on
the weights of a folder.

Run by that benchmark with an interpreter that has torch and, for the second peer,
transformers; it imports nothing else. `plain` is written for speed: prefix under
no_grad, frozen weights, fused layer norm, attention and gelu, logits of the completion
alone. `hooked` is transformers' GPT2LMHeadModel, frozen, with a hook that makes the
site's output a leaf; it computes every position's logits and, as its users do, runs its
layers below the site in the same forward pass. `unfrozen` is the same without freezing:
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


class Plain:
    """GPT-2 from functions of torch alone."""

    def __init__(self, weights: dict[str, torch.Tensor], heads: int) -> None:
        self.w, self.heads, self.d = weights, heads, weights["embed"].shape[1]
        joined = [
            torch.cat([weights[f"{name}.kernel"] for name in "qkv"], 2),
            torch.cat([weights[f"{n}.bias"] for n in "qkv"], 1),
        ]
        self.qkv = [
            x.transpose(1, -1).contiguous() if x.ndim == 3 else x for x in joined
        ]
        self.kernel = {
            name: weights[f"{name}.kernel"].transpose(1, 2).contiguous()
            for name in ("o", "up", "down")
        }

    def _linear(self, name: str, x: torch.Tensor, i: int) -> torch.Tensor:
        return F.linear(x, self.kernel[name][i], self.w[f"{name}.bias"][i])

    def _norm(self, name: str, x: torch.Tensor, i: int) -> torch.Tensor:
        return F.layer_norm(
            x, (self.d,), self.w[f"{name}.scale"][i], self.w[f"{name}.bias"][i]
        )

    def block(self, x: torch.Tensor, i: int) -> torch.Tensor:
        """Applies layer i to the residual stream `[b, t, d]`."""
        b, t, d = x.shape
        qkv = F.linear(self._norm("attn_norm", x, i), self.qkv[0][i], self.qkv[1][i])
        q, k, v = qkv.view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        z = (
            F.scaled_dot_product_attention(q, k, v, is_causal=True)
            .transpose(1, 2)
            .reshape(b, t, d)
        )
        x = x + self._linear("o", z, i)
        hidden = F.gelu(
            self._linear("up", self._norm("mlp_norm", x, i), i), approximate="tanh"
        )
        return x + self._linear("down", hidden, i)

    def gradient(self, tokens: torch.Tensor, prompt: int, site: int) -> torch.Tensor:
        """Returns dL/da at the output of layer `site`."""
        with torch.no_grad():
            a = self.w["embed"][tokens] + self.w["pos"][: tokens.shape[1]]
            for i in range(site + 1):
                a = self.block(a, i)
        x = a.requires_grad_(True)
        for i in range(site + 1, len(self.kernel["o"])):
            x = self.block(x, i)
        last = F.layer_norm(
            x[:, prompt - 1 : -1],
            (self.d,),
            self.w["final.scale"],
            self.w["final.bias"],
        )
        logits = F.linear(last, self.w["embed"])
        loss = F.cross_entropy(
            logits.flatten(0, 1), tokens[:, prompt:].flatten(), reduction="sum"
        )
        return torch.autograd.grad(loss, a)[0]


class Hooked:
    """transformers' GPT-2 with plain autograd and a hook at the site."""

    def __init__(
        self, weights: dict[str, torch.Tensor], heads: int, frozen: bool
    ) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        layers, d = weights["o.kernel"].shape[:2]
        cfg = GPT2Config(
            n_embd=d,
            n_layer=layers,
            n_head=heads,
            vocab_size=len(weights["embed"]),
            bos_token_id=0,
            eos_token_id=0,
        )
        cfg._attn_implementation = "sdpa"
        self.model, self.frozen = GPT2LMHeadModel(cfg).eval(), frozen
        state = {
            "transformer.wte.weight": weights["embed"],
            "transformer.wpe.weight": weights["pos"],
        }
        state |= {
            f"transformer.ln_f.{a}": weights[f"final.{b}"]
            for a, b in (("weight", "scale"), ("bias", "bias"))
        }
        names = {
            "ln_1": "attn_norm",
            "ln_2": "mlp_norm",
            "attn.c_proj": "o",
            "mlp.c_fc": "up",
            "mlp.c_proj": "down",
        }
        for i in range(layers):
            at = f"transformer.h.{i}."
            for theirs, ours in names.items():
                state[f"{at}{theirs}.weight"] = weights[
                    f"{ours}.{'scale' if 'norm' in ours else 'kernel'}"
                ][i]
                state[f"{at}{theirs}.bias"] = weights[f"{ours}.bias"][i]
            state[f"{at}attn.c_attn.weight"] = torch.cat(
                [weights[f"{n}.kernel"][i] for n in "qkv"], 1
            )
            state[f"{at}attn.c_attn.bias"] = torch.cat(
                [weights[f"{n}.bias"][i] for n in "qkv"]
            )
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        if set(missing) - {"lm_head.weight"} or unexpected:
            raise ValueError(
                f"GPT2LMHeadModel: missing {missing}, unexpected {unexpected}; its "
                "names have changed"
            )
        self.model.requires_grad_(not frozen)

    def gradient(self, tokens: torch.Tensor, prompt: int, site: int) -> torch.Tensor:
        """Returns dL/da at the output of layer `site`."""
        kept: list[torch.Tensor] = []

        def hook(module: Any, inputs: Any, output: Any) -> Any:
            a = output[0] if isinstance(output, tuple) else output
            kept.append(a.requires_grad_(True) if self.frozen else a)
            kept[0].retain_grad()

        handle = self.model.transformer.h[site].register_forward_hook(hook)
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


def product_seconds(rows: int, d: int, f: int) -> float:
    """Returns the seconds of one product [rows, d] × [d, f], the best of four."""
    a, b = torch.randn(rows, d), torch.randn(d, f)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Answers requests from standard input; arguments: folder with weights.npz and
    tokens.npy, number of threads, of heads, of prompt tokens, the site.
    """
    folder, threads, heads, prompt, site = Path(sys.argv[1]), *map(int, sys.argv[2:6])
    torch.set_num_threads(threads)
    weights = {
        name: torch.from_numpy(x) for name, x in np.load(folder / "weights.npz").items()
    }
    tokens = torch.from_numpy(np.load(folder / "tokens.npy")).long()
    make: dict[str, Callable[[], Any]] = {
        "plain": lambda: Plain(weights, heads),
        "hooked": lambda: Hooked(weights, heads, frozen=True),
        "unfrozen": lambda: Hooked(weights, heads, frozen=False),
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
