"""A hub in a folder: downloads copy what is asked for into a cache that is laid out as
huggingface_hub's.
"""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

COMMIT = "0a1b2c"


class Hub:
    """Takes the place of the hub's client.

    Attributes:
      downloads: every call, as (repository, revision).
      fetched: files that were copied, below their repository.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.downloads: list[tuple[str, str | None]] = []
        self.fetched: list[str] = []
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self._download)

    def repository(self, repo: str) -> Path:
        """The folder of a repository's files."""
        folder = self.root / "remote" / repo.replace("/", "--")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _download(
        self,
        repo: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str] | None,
        dry_run: bool = False,
    ) -> Any:
        source = self.repository(repo)
        cache = self.root / f"models--{repo.replace('/', '--')}/snapshots/{COMMIT}"
        if dry_run:
            return self._listed(source, cache, allow_patterns)
        self.downloads.append((repo, revision))
        cache.mkdir(parents=True, exist_ok=True)
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            name = file.relative_to(source).as_posix()
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, cache / name)
                self.fetched.append(name)
        return str(cache)

    def _listed(self, source: Path, cache: Path, patterns: list[str]) -> list[Any]:
        """What a download of these files would do, as huggingface_hub lists it."""
        listed = []
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            name = file.relative_to(source).as_posix()
            if any(fnmatch(name, pattern) for pattern in patterns):
                size, here = file.stat().st_size, (cache / name).exists()
                listed.append(
                    SimpleNamespace(
                        filename=name, file_size=size, will_download=not here
                    )
                )
        return listed
