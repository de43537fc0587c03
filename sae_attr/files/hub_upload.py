"""Files of a folder uploaded to a Hugging Face hub repository, or one clear error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_upload(repo: str) -> None:
    """Checks what can be checked before anything is written.

    Raises:
      ValueError: `repo` is no "owner/name", or nobody is logged in to the hub.
    """
    import huggingface_hub  # slow to import, and not needed for local folders

    if not _REPO.fullmatch(repo):
        raise ValueError(
            f"{repo!r} names no hub repository; give owner/name, such as me/my-sae"
        )
    if huggingface_hub.get_token() is None:
        raise ValueError(
            f"nothing can be uploaded to {repo} without a token: log in with `hf auth "
            "login`, or set HF_TOKEN"
        )


def files_below(folder: Path, names: Sequence[str]) -> list[str]:
    """Returns the files that names stand for, relative to a folder: a name is a file,
    or with a slash at its end a folder of which all files count.
    """
    files = []
    for name in names:
        if name.endswith("/"):
            inside = sorted(path for path in (folder / name).rglob("*"))
            files += [str(p.relative_to(folder)) for p in inside if p.is_file()]
        else:
            files.append(name)
    return files


def upload(
    folder: Path, files: Sequence[str], repo: str, *, private: bool = True
) -> str:
    """Uploads files of a folder in one commit, and returns the repository's address.

    Args:
      files: relative to the folder; nothing else is uploaded.
      repo: "owner/name"; made where there is none.
      private: of a repository that is made; one that exists stays as it is.

    Raises:
      ValueError: the hub refuses: no permission, no connection.
    """
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    try:
        hub.create_repo(repo, private=private, repo_type="model", exist_ok=True)
        hub.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="model",
            allow_patterns=list(files),
            commit_message="Upload by sae_attr",
        )
    except Exception as error:  # the hub's client raises whatever its transport does
        raise ValueError(
            f"the hub did not take {repo}: {error}. The files are in {folder}, and the "
            "same command tries again"
        ) from error
    return f"https://huggingface.co/{repo}"
