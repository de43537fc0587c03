"""Makes the smallest inputs of all: a tiny language model with one planted cause, its
SAE, sampled pairs, prompts and a corpus; see sae_attr/organism/planted.py.

    python -m experiments.make_miniature --out=runs/miniature

A few seconds on one core. --out is a folder of inputs for other commands, which write
to a --workdir.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from absl import flags

from sae_attr.organism.planted import PLANTED, make_planted

from . import _common

OUT = flags.DEFINE_string(
    "out",
    "runs/miniature",
    "Folder for the model, its SAEs, pairs, prompts and corpus: inputs of other "
    "commands. It takes the place of their --workdir; nothing is resumed in it.",
)
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, prompts and samples.")

# Setting of `experiments.attribute` -> what is written for it.
FILES = {
    "lm": "model",
    "sae": "sae",
    "pairs": "pairs.jsonl",
    "corpus": "corpus.json",
}


def main(argv: list[str]) -> None:
    """Makes the miniature where the flags say."""
    _common.begin(argv or [""], cluster=False)
    count = make_planted(Path(OUT.value), SEED.value)
    print(
        f"wrote {OUT.value}: {count} prompts with rude and kind completions, planted "
        f"latent {PLANTED}"
    )
    keys = []
    for setting, file in FILES.items():
        keys.append(f"--config.{setting}={shlex.quote(f'{OUT.value}/{file}')}")
    workdir = shlex.quote(f"{OUT.value}/first")
    print(
        f"next: python -m {__package__}.attribute --config=attribute {' '.join(keys)} "
        f"--workdir={workdir}"
    )


if __name__ == "__main__":
    _common.run_app(main)
