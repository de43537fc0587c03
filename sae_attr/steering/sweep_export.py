"""A sweep as files that another engine answers (docs/serving.md): rows, vectors, and how
both belong together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from etils import epath
from safetensors.numpy import save

from sae_attr.files.vectors import check_vectors
from sae_attr.hooks import NO_END, Site
from sae_attr.lm.draw import Sampling
from sae_attr.sae.model import SAE
from sae_attr.site_names import lens_name
from sae_attr.steering.exported_latents import (
    ExportedLatent,
    check_exportable,
    exported_latent,
)
from sae_attr.steering.interventions import intervention_named, scope
from sae_attr.steering.plan import NO_LATENT, SweepRow, row_keys, row_seeds
from sae_attr.store import digest, write_atomic
from sae_attr.text.tokenizer import Tokenizer, decode

FORMAT, VERSION = "sae_attr.sweep", 1
ROWS, VECTORS, MANIFEST = "rows.jsonl", "vectors.safetensors", "sweep.json"


@dataclass(frozen=True, eq=False)
class SweepExport:
    """Describes rows to another engine, with all that is done to them.

    Args:
      rows: to be sampled.
      prompts: token ids by prompt id.
      vectors: direction `[d]` of every latent that occurs; or the SAE, for modes that
        set latent activations.
      tokenizer: of the model.
      key: typed random key; a row folds its own numbers into it.
      sampling: of all rows.
      site: where all are steered.
      mode, unit, skip: as for `steer`.
      model: name of the model, for readers.
      labels: how readers see latents that are not known by their number alone.

    Raises:
      ValueError: a mode that reads latents without their SAE, or one whose latents
        cannot be stated.
    """

    rows: Sequence[SweepRow]
    prompts: Mapping[str, Sequence[int]]
    vectors: Mapping[int, np.ndarray] | SAE
    tokenizer: Tokenizer
    key: jax.Array
    sampling: Sampling
    site: Site
    mode: str = "add"
    unit: float = 1.0
    skip: int = 0
    model: str = ""
    labels: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        of_latents = intervention_named(self.mode).of_latents
        if of_latents != isinstance(self.vectors, SAE):
            needs = "the SAE" if of_latents else "directions"
            raise ValueError(f"mode {self.mode} needs {needs} as vectors")
        if isinstance(self.vectors, SAE):
            check_exportable(self.vectors)

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Name -> contents of the sweep's files; the manifest is the last."""
        manifest = self.manifest | {"digest": self.digest}
        return {
            ROWS: self._rows_file,
            VECTORS: self._vectors_file,
            MANIFEST: json.dumps(manifest, indent=1, allow_nan=False).encode(),
        }

    @cached_property
    def digest(self) -> str:
        """Names the sweep by its contents; an answer to it states the same."""
        # Not of the bytes of the file of vectors, whose layout is the library's.
        return digest([self.manifest, self._rows_file, self._named_vectors])

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Facts that hold for all rows, in plain values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "rows": len(self.rows),
            "sampling": self.sampling_record,
            "mode": self.mode,
            "unit": float(self.unit),
            "skip": self.skip,
            "sites": {
                str(self.site): {
                    "layer": self.site.layer,
                    "point": self.site.point,
                    "transformer_lens": lens_name(self.site),
                }
            },
        }

    @property
    def sampling_record(self) -> dict[str, Any]:
        """How every row is sampled; an answer to it states the same."""
        return {
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "top_k": self.sampling.top_k,
            "max_tokens": self.sampling.max_new,
            "min_tokens": self.sampling.min_new,
            "stop_token_ids": list(self.sampling.stop_ids),
        }

    @cached_property
    def _rows_file(self) -> bytes:
        seeds = row_seeds(self.key, self.rows)
        keys_b2 = np.asarray(jax.random.key_data(row_keys(self.key, self.rows)))
        texts = {
            name: decode(self.tokenizer, ids) for name, ids in self.prompts.items()
        }
        lines = []
        for row, seed, key in zip(self.rows, seeds, keys_b2.tolist(), strict=True):
            record = {
                **self._row_record(row),
                "prompt_text": texts[row.prompt],
                "prompt_ids": list(self.prompts[row.prompt]),
                "seed": seed,
                "key": key,
                "sampling": self.sampling_record,
                "edits": self._edits(row),
            }
            lines.append(_json_of(row, record) + "\n")
        return "".join(lines).encode()

    def _row_record(self, row: SweepRow) -> dict[str, Any]:
        """Returns what a row is, without what it is sampled from."""
        record = {"id": row.id, "arm": "unsteered", **row.record()}
        if row.condition.latent == NO_LATENT:
            return record | {"latent": None, "tokens": None}
        condition = row.condition
        who = self.labels.get(condition.latent, condition.latent)
        arm = f"latent {who}, {condition.strength:+g}, {condition.tokens}"
        return record | {"arm": arm}

    def _edits(self, row: SweepRow) -> list[dict[str, Any]]:
        """Returns what is done to the activations of a row."""
        condition = row.condition
        if condition.latent == NO_LATENT:
            return []
        length = len(self.prompts[row.prompt])
        start, stop = scope(condition.tokens, np.array([length]), skip=self.skip)
        end = int(stop[0])
        # Multiplied in float32, as the sampler here does; what exceeds it is refused when
        # the row becomes JSON.
        with np.errstate(over="ignore"):
            coefficient = np.float32(condition.strength) * np.float32(self.unit)
        name = vector_name(condition.latent)
        edit: dict[str, Any] = {
            "site": str(self.site),
            "kind": self.mode,
            "vector": name,
            "coefficient": float(coefficient),
            "start": int(start[0]),
            "stop": None if end == NO_END else end,
        }
        if isinstance(self.vectors, SAE):
            edit["encoder"] = f"{name}.encoder"
            edit |= self._latents[condition.latent].parameters
        return [edit]

    @cached_property
    def _latents(self) -> dict[int, ExportedLatent]:
        """What the file of vectors holds of every latent that occurs."""
        latents = {}
        for latent in sorted({row.condition.latent for row in self.rows} - {NO_LATENT}):
            if isinstance(self.vectors, SAE):
                latents[latent] = exported_latent(self.vectors, latent)
            else:
                vector_d = np.asarray(self.vectors[latent], np.float32)
                latents[latent] = ExportedLatent({"": vector_d}, {})
        return latents

    @cached_property
    def _named_vectors(self) -> dict[str, np.ndarray]:
        arrays = {}
        for latent, exported in self._latents.items():
            for end, array_d in exported.arrays.items():
                arrays[vector_name(latent) + end] = np.ascontiguousarray(array_d)
        return arrays

    @property
    def _vectors_file(self) -> bytes:
        """The directions, with site and unit in the file's own metadata."""
        check_vectors(VECTORS, self._named_vectors)
        about = {
            "site": str(self.site),
            "unit": float(self.unit),
            "coefficient": "strength x unit, in units of the activation",
        }
        # One entry: the library writes several in no fixed order.
        return save(self._named_vectors, metadata={FORMAT: json.dumps(about)})

    def of(self, rows: Sequence[SweepRow]) -> SweepExport:
        """Returns the export of other rows."""
        return replace(self, rows=tuple(rows))


def _json_of(row: SweepRow, record: Mapping[str, Any]) -> str:
    """Returns a row's record as JSON, which has no infinity; raises ValueError for a row
    that needs one.
    """
    try:
        return json.dumps(record, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"row {row.id!r} cannot be exported: {record['edits']} holds a number that "
            "is not finite; give smaller strengths, or sample it here (sweeps_by=here)"
        ) from error


def vector_name(latent: int) -> str:
    """Returns the name of a latent's direction in the file of vectors."""
    return f"latent.{latent}"


def write_export(export: SweepExport, folder: epath.Path) -> None:
    """Writes the files of an export; the manifest last, so that a folder that has one is
    whole.
    """
    for name, content in export.files.items():
        write_atomic(folder / name, content)
