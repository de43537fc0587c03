"""The PyTorch side of `benchmarks.sae_training` and `benchmarks.sae_quality`: SAELens
and dictionary_learning.

Run by those with an interpreter that has both; answers requests, one JSON line each.
Both libraries run as their users run them: their own training classes and their own
steps.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer

LENS = {
    "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    "batch_topk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    "jumprelu": (JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig),
    "gated": (GatedTrainingSAE, GatedTrainingSAEConfig),
}


def lens_trainer(
    request: dict[str, Any], batches: Iterator[torch.Tensor]
) -> SAETrainer:
    """Returns SAELens' trainer of a request: objective, d, n, batch, steps, lr, seed,
    sae (fields of its config), trainer.
    """
    torch.manual_seed(request.get("seed", 0))
    kind, config = LENS[request["objective"]]
    sae = kind(config(d_in=request["d"], d_sae=request["n"], **request.get("sae", {})))
    cfg = SAETrainerConfig(
        total_training_samples=request["batch"] * request["steps"],
        train_batch_size_samples=request["batch"],
        lr=request["lr"],
        lr_end=request.get("lr_end", request["lr"] / 10),
        logger=LoggingConfig(log_to_wandb=False),
        **request.get("trainer", {}),
    )
    return SAETrainer(cfg, sae, data_provider=batches)


def learning_trainer(request: dict[str, Any]) -> Any:
    """Returns dictionary_learning's trainer of a request."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    kind = {"topk": TopKTrainer, "batch_topk": BatchTopKTrainer}[request["objective"]]
    return kind(
        steps=100_000,
        activation_dim=request["d"],
        dict_size=request["n"],
        k=request["k"],
        layer=0,
        lm_name="none",
        lr=request["lr"],
        device="cpu",
        seed=0,
    )


def timed(request: dict[str, Any]) -> dict[str, Any]:
    """Times each of `count` steps after two that are not measured."""
    x = torch.from_numpy(np.load(request["data"]))
    if request["side"] == "product":
        w, step = torch.randn(request["d"], request["n"]), None
        step = lambda i: x @ w
    elif request["side"] == "dictionary_learning":
        trainer = learning_trainer(request)
        step = lambda i: trainer.update(i + 1, x)
        trainer.update(0, x)
    else:
        lens = lens_trainer(request, iter(()))
        step = lambda i: lens.step(x)
    return {"seconds": [_seconds(step, i) for i in range(request["count"] + 1)][1:]}


def _seconds(step: Callable[[int], Any], i: int) -> float:
    start = time.perf_counter()
    step(i)
    return time.perf_counter() - start


def trained(request: dict[str, Any]) -> dict[str, Any]:
    """Trains a SAELens SAE on the rows of a file, in order and round again, and saves
    it for inference.
    """
    data = torch.from_numpy(np.load(request["data"]))
    size, count = request["batch"], len(data) // request["batch"]

    def batches() -> Iterator[torch.Tensor]:
        step = 0
        while True:
            at = step % count * size
            yield data[at : at + size]
            step += 1

    start = time.perf_counter()
    sae = lens_trainer(request, batches()).fit()
    sae.save_inference_model(request["out"])
    return {"seconds": time.perf_counter() - start}


def main() -> None:
    """Answers requests from standard input; argument: number of threads."""
    torch.set_num_threads(int(sys.argv[1]))
    versions = {
        name: version(name) for name in ("torch", "sae-lens", "dictionary-learning")
    }
    answers, sys.stdout = sys.stdout, sys.stderr  # the libraries print
    print(json.dumps(versions), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            answer = {"time": timed, "train": trained}[request["do"]](request)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
