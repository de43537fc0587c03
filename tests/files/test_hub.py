"""What the hub's client raises, as one message each."""

from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from configs.attribute import get_config
from sae_attr.lm.config_files import load_config
from sae_attr.lm.hf_folder import resolve_model
from sae_attr.sae.formats import LoadOptions, load_sae, pinned


def bare(kind: type[Exception]) -> Exception:
    """An error of the hub's client without the answer that it usually carries."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            bare(RevisionNotFoundError),
            r"repository owner/name has no revision 'v9'; take a branch",
        ),
        (bare(GatedRepoError), "owner/name at revision v9 is gated: accept its terms"),
        (
            bare(RepositoryNotFoundError),
            "the hub has no repository owner/name, or it is private",
        ),
        (
            ConnectionError("down"),
            "owner/name at revision v9 is no folder here and could not be fetched .*: "
            "down",
        ),
    ],
)
def test_what_the_hub_refuses(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    for load in (
        load_config,
        lambda path: load_sae(f"hf://{path.partition('@')[0]}/folder@v9"),
    ):
        with pytest.raises(ValueError, match=said):
            load("owner/name@v9")


def test_every_option_of_a_loader_can_be_set_in_a_config() -> None:
    assert set(get_config().sae_options) == set(LoadOptions.__annotations__)


def test_a_branch_is_pinned_to_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = iter(("/cache/snapshots/0a1b", "/cache/snapshots/ffff"))
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *args, **kwargs: next(heads)
    )
    assert pinned("hf://owner/repo/a/b@main") == "hf://owner/repo/a/b@0a1b"
    assert pinned("hf://owner/repo") == "hf://owner/repo@ffff"


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_torchs_weights_are_fetched_where_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    asked = []

    def fetch(*args: object, allow_patterns: list[str], **kwargs: object) -> str:
        asked.append(allow_patterns)
        if any(fnmatch(weights, pattern) for pattern in allow_patterns):
            (tmp_path / weights).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve_model("owner/name") == tmp_path
    assert (tmp_path / weights).exists()
    assert len(asked) == (1 if weights.endswith("safetensors") else 2)
