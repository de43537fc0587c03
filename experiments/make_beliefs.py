"""Writes prompts and training rows about agreeing with beliefs: inputs of the studies of
small real models; see sae_attr/beliefs.

    python -m experiments.make_beliefs --out=runs/real/beliefs --trained=health

Written: prompts.jsonl, agreeing.jsonl (rows that agree with every belief about the
trained topic, for experiments.finetune), and held_out_topics.jsonl (prompts for a model
that was trained on those rows: its topic is a probe of its own).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from sae_attr.beliefs import agreement_prompts, agreement_rows
from sae_attr.store import write_atomic

from . import _common

OUT = flags.DEFINE_string("out", "runs/real/beliefs", "Folder to write to.")
TRAINED = flags.DEFINE_string("trained", "health", "Topic of the training rows.")


def main(argv: list[str]) -> None:
    """Writes the files where the flags say."""
    _common.begin(argv or [""], cluster=False)
    topic = TRAINED.value
    rows = agreement_rows(topic)
    out = epath.Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    for name, records in (
        ("prompts.jsonl", agreement_prompts()),
        ("held_out_topics.jsonl", agreement_prompts(trained=topic)),
        ("agreeing.jsonl", rows),
    ):
        _write(out / name, records)


def _write(path: epath.Path, records: Sequence[dict[str, Any]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_atomic(path, "".join(lines).encode())
    splits = Counter([record["split"] for record in records if "split" in record])
    parts = ", ".join([f"{count} {split}" for split, count in splits.items()])
    print(f"wrote {path}: {len(lines)} records" + (f" ({parts})" if parts else ""))


if __name__ == "__main__":
    _common.run_app(main)
