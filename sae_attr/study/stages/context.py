"""What every stage of an attribution shares: its names, what it declares, its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_attr.parallel import from_main
from sae_attr.store import Computed, Progress, Result, Stage, digest, write_atomic
from sae_attr.study.setup import Setup

Inputs = Mapping[str, Result]
"""Stage name, without the prefix -> its result."""

Run = Callable[[Inputs, Progress], Computed]


@dataclass(frozen=True, eq=False)
class Context:
    """States where the stages of one attribution stand in a graph.

    A key is made before anything is computed, so a stage declares what is known by
    then: settings, and the contents of files that exist already. A file that another
    stage makes counts by that stage's key.

    Args:
      prefix: of every name, "misalignment." for instance.
      pairs_stage: makes the pairs: its `meta["records"]` are written to the settings'
        file. None: the file exists.
      file_stages: make model, SAE and corpus. (): these exist.
    """

    setup: Setup
    prefix: str = ""
    pairs_stage: str | None = None
    file_stages: tuple[str, ...] = ()

    def stage(
        self,
        name: str,
        run: Run,
        *,
        version: int,
        fields: Mapping[str, Any],
        needs: Sequence[str] = (),
        files: Sequence[str] = (),
        pairs: bool = False,
        accept: Callable[[Result], None] = lambda result: None,
    ) -> Stage:
        """Makes a stage whose function sees results by names without the prefix.

        Args:
          needs: names without the prefix.
          files: what it reads of lm, sae, corpus, lm_aligned.
          pairs: whether it reads the pairs.
          accept: as of a `Stage`.
        """
        declared = dict(fields)
        names = [self.prefix + need for need in needs]
        if files and self.file_stages:
            names += self.file_stages
        elif files:
            declared["files"] = self._file_keys(files)
        if pairs and self.pairs_stage:
            names.append(self.pairs_stage)
        elif pairs:
            declared["rows"] = self._rows_key()

        def compute(results: Mapping[str, Result], progress: Progress) -> Computed:
            if pairs and self.pairs_stage:
                self._write_pairs(results[self.pairs_stage])
            inputs = {need: results[self.prefix + need] for need in needs}
            arrays, meta = run(inputs, progress)
            # All processes are done with `progress` before the writer clears it.
            from_main(True)
            return arrays, meta

        return Stage(
            self.prefix + name,
            compute,
            declared,
            tuple(names),
            version,
            accept=accept,
        )

    def _file_keys(self, files: Sequence[str]) -> dict[str, str | None]:
        setup = self.setup
        keys: dict[str, str | None] = {}
        for file in files:
            if file == "lm_aligned":
                keys[file] = setup.aligned_key if setup.settings.lm_aligned else None
            else:
                keys[file] = getattr(setup, f"{file}_key")
        return keys

    def _rows_key(self) -> str:
        rows = self.setup.encoded.rows
        return digest([[row.ids, row.n_prompt, row.pair, row.side] for row in rows])

    def _write_pairs(self, pairs: Result) -> None:
        lines = [json.dumps(r, ensure_ascii=False) for r in pairs.meta["records"]]
        text = "".join(f"{line}\n" for line in lines)
        if self.setup.store.writer:
            write_atomic(self.setup.settings.pairs, text)
        from_main(True)

    # ---- what stages declare ---------------------------------------------------------

    def site_fields(self) -> dict[str, Any]:
        """Returns what activations depend on beside the model's files."""
        setup, s = self.setup, self.setup.settings
        if self.file_stages:
            site = {"site": s.site, "site_in": s.site_in}
            return {**site, "dtype": s.dtype, "resid_dtype": s.resid_dtype}
        site = {"site": str(setup.site), "site_in": str(setup.read_site)}
        return {**site, "dtype": s.dtype, "resid_dtype": setup.cfg.resid_dtype}

    def mask_fields(self) -> dict[str, Any]:
        """Returns which tokens count."""
        s = self.setup.settings
        if self.file_stages:
            return {"exclude": s.exclude, "first_k": s.first_k, "outlier": s.outlier}
        return self.setup.masks.to_dict()

    def text_fields(self) -> dict[str, Any]:
        """Returns how the corpus is read, in the positions that count."""
        setup, s = self.setup, self.setup.settings
        if self.file_stages:
            rows = {"prepend_bos": s.prepend_bos, "context": s.corpus_context}
            rows |= {"column": s.column, "split": s.split}
            rows["template_options"] = dict(s.template_options)
        else:
            rows = {"prepend_bos": setup.prepend_bos, "context": setup.corpus_context}
        return {**self.site_fields(), **rows}
