"""Files of a Hugging Face hub repository in the hub's own cache, or one clear error."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sae_attr.files.text import printable

_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")  # of the hub's cache
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_SAYS_NOTHING = (
    "model",
    "final",
    "hf",
    "weights",
    "checkpoint",
    "snapshot",
    "merged",
    "base",
)


def download(
    repo: str,
    revision: str | None,
    *,
    files: Sequence[str],
    ignore: Sequence[str] | None = None,
) -> Path:
    """Returns the local folder that holds `files` of a repository at a revision; nothing is
    fetched that is there already.

    Args:
      repo: "owner/name".
      revision: branch, tag or commit; None for the main branch.
      files: names or wildcards that are wanted.
      ignore: names or wildcards that are not.

    Raises:
      ValueError: no such repository or revision, no permission, or no connection and no
        copy in the cache.
    """
    import huggingface_hub  # slow to import, and not needed for local folders
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"{repo} at revision {revision}" if revision else repo
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo,
                revision=revision,
                allow_patterns=list(files),
                ignore_patterns=list(ignore) if ignore else None,
            )
        )
    except RevisionNotFoundError as error:
        raise ValueError(
            f"the hub repository {repo} has no revision {revision!r}; take a branch, "
            "tag or commit of it, or leave out "
            "what follows @"
        ) from error
    except GatedRepoError as error:
        raise ValueError(
            f"{what} is gated: accept its terms on the hub and log in with `hf auth "
            "login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"the hub has no repository {repo}, or it is private; check the name, or "
            "log in"
        ) from error
    except Exception as error:  # the hub's client raises whatever its transport does
        raise ValueError(
            f"{what} is no folder here and could not be fetched from the hub: {error}"
        ) from error


def missing(
    repo: str,
    revision: str | None,
    *,
    files: Sequence[str],
    ignore: Sequence[str] | None = None,
) -> dict[str, int]:
    """Returns name -> bytes of those files that `download` would fetch; nothing is.
    Without a connection a copy in the cache counts as whole.

    Args:
      repo, revision, files, ignore: as for `download`.

    Raises:
      ValueError: the hub does not say, and there is no copy.
      RuntimeError: huggingface_hub is too old to list files.
    """
    import huggingface_hub  # slow to import, and not needed for local folders

    download_: Any = huggingface_hub.snapshot_download
    if "dry_run" not in inspect.signature(download_).parameters:
        raise RuntimeError(
            f"this huggingface_hub cannot list what it would fetch of {repo}; run: "
            "pip install -U huggingface_hub"
        )
    options: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": list(files),
        "ignore_patterns": list(ignore) if ignore else None,
    }
    try:
        listed = download_(repo, dry_run=True, **options)
    except Exception as error:  # the hub's client raises whatever its transport does
        try:
            download_(repo, local_files_only=True, **options)
        except Exception:
            raise ValueError(
                f"{repo} is not here, and its files cannot be listed: {error}"
            ) from error
        return {}
    return {file.filename: file.file_size or 0 for file in listed if file.will_download}


def public_name(model: str | None) -> str | None:
    """Returns a model's name for a file that leaves this machine: a hub id unchanged, of
    a local folder or bucket the last part of its path.

    A folder whose name says nothing (`model`, `final`) is named after the one that it
    lies in. Control characters are shown as Python writes them. None stays None.
    """
    if model is None:
        return None
    if cached := _CACHED.search(model):
        return f"{cached[1]}/{cached[2]}"
    if (
        _HUB_ID.fullmatch(model)
        and not model.startswith(".")
        and not Path(model).exists()
    ):
        return model
    parts = []
    for part in PurePosixPath(model.replace("\\", "/")).parts:
        # Roots, dots and drives ("C:", "gs:") name nothing.
        if part.strip("/.~") and not part.endswith(":"):
            parts.append(part)
    while len(parts) > 1 and parts[-1].lower() in _SAYS_NOTHING:
        parts.pop()
    name = parts[-1] if parts else Path(model).resolve().name
    return printable(name)
