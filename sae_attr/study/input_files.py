"""The files of a study: models, SAE and corpus, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sae_attr.lm.hf_folder import model_fingerprint
from sae_attr.sae.registry.names import is_remote
from sae_attr.store import fingerprint


@dataclass(frozen=True, kw_only=True)
class InputFiles:
    """The files that a ranking reads, beside its pairs.

    Args:
      lm: path or hub id of the model that has the behaviour.
      adapter: folder or hub id of a PEFT LoRA adapter, which is merged into `lm` (not
        into `lm_aligned`).
      lm_aligned: a second model without the behaviour: positive steering is done to it,
        and Δ-activation compares with it; None where there is none.
      sae: path, `RELEASE/ID` of SAELens' registry, or `hf://owner/repo/folder@revision`.
      sae_format, sae_options: as for `load_sae`.
      site: where to read, for instance layer2.resid_post; None takes the site that the
        SAE's file names.
      corpus: ordinary text, path or hub id.
      column, split: of the corpus, as for `read_corpus`.
      template_options: what the chat template reads beside the messages, as for
        `chat.with_options`; `date` stands for today.
    """

    lm: str
    adapter: str | None = None
    lm_aligned: str | None = None
    sae: str
    sae_format: str = "auto"
    sae_options: Mapping[str, Any] = field(default_factory=dict)
    site: str | None = None
    corpus: str
    column: str = "text"
    split: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)


def file_fields(files: InputFiles) -> dict[str, Any]:
    """Returns the fields of `InputFiles` by name, also of a class that has more."""
    return {field.name: getattr(files, field.name) for field in fields(InputFiles)}


def fingerprints(files: InputFiles) -> dict[str, Any]:
    """Returns what the key of a stage that reads the files declares: names of their
    contents, and how they are read.
    """
    model = lambda path: model_fingerprint(path) if path else None
    # A file on the hub is named with its commit; fetching it only for its name would
    # load gigabytes.
    sae = files.sae if is_remote(files.sae) else fingerprint(files.sae)
    return {
        "lm": model(files.lm),
        "lm_aligned": model(files.lm_aligned),
        "adapter": model(files.adapter),
        "sae": sae,
        "corpus": fingerprint(files.corpus),
        "sae_format": files.sae_format,
        "sae_options": dict(files.sae_options),
        "site": files.site,
        "column": files.column,
        "split": files.split,
    }
