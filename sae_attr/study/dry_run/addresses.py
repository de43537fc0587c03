"""Models and SAEs on the hub for a dry run: configs and tokenizers are fetched, weights
are only counted.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sae_attr.files import hub
from sae_attr.files.packages import PREFIX
from sae_attr.lm.config import LMConfig
from sae_attr.lm.hf_folder import COPIES, WANTED, hub_address
from sae_attr.sae.formats import FORMATS, parse_hub
from sae_attr.sae.formats.locate import hub_files
from sae_attr.sae.registry.names import check_model, is_remote, named_sae
from sae_attr.site_names import parse_site

_HEADERS = ("*.json", "*.jinja")
_FLOAT = 4  # bytes of a weight


@dataclass(frozen=True)
class StandIn:
    """Stands in for an address in a dry run.

    Args:
      address: as it was given.
      path: of the files that stand for it.
      absent: name -> bytes of the files that a run would fetch.
    """

    address: str
    path: str
    absent: Mapping[str, int]


def model_stand_in(address: str) -> StandIn | None:
    """Fetches what a model on the hub says beside its weights; None for one that is
    here.

    Raises:
      ValueError: no such model, or files that cannot be fetched.
    """
    if address.startswith(PREFIX) or Path(address).exists():
        return None
    repo, revision = hub_address(address)
    absent = hub.missing(repo, revision, files=WANTED, ignore=COPIES)
    weights = {name: size for name, size in absent.items() if _is_weights(name)}
    if not weights:
        return None
    folder = hub.download(repo, revision, files=_HEADERS, ignore=COPIES)
    return StandIn(address, str(folder), weights)


def sae_stand_in(
    address: str, lm: str, cfg: LMConfig, site: str | None, folder: Path
) -> StandIn | None:
    """Writes an SAE of zeros as large as one on the hub, whose file takes no room; None
    for one that is here.

    The number of latents is the registry's, else what the size of the weights leaves:
    float32, an encoder and a decoder of the site's width.

    Args:
      lm, cfg: the model.
      site: of the settings; None: the registry's.
      folder: where it is written, made if absent.

    Raises:
      ValueError: no such SAE, one of another model, or an address of which nothing says
        the site.
    """
    if not is_remote(address):
        return None
    named = named_sae(address)
    at = parse_site(site) if site else None if named is None else named.site
    if at is None:
        raise ValueError(
            f"{address} does not say where it reads before it is fetched; set site, "
            "for instance layer2.resid_post"
        )
    width = cfg.width(at.point)
    if named is not None:
        check_model(named, lm, layers=cfg.n_layers, width=width)
        named.check_read()
    repo, inside, revision = parse_hub(address if named is None else named.url)
    absent = hub.missing(repo, revision, files=hub_files(repo, inside, FORMATS))
    weights = {name: size for name, size in absent.items() if _is_weights(name)}
    if not weights:
        return None
    latents = None if named is None else named.sae.latents
    latents = latents or _latents(sum(weights.values()), width)
    _write_zeros(folder, latents, width, str(at))
    return StandIn(address, str(folder), weights)


def _is_weights(name: str) -> bool:
    return PurePosixPath(name).suffix not in (".json", ".jinja")


def _latents(size: int, width: int) -> int:
    """Returns the latents of an SAE of so many bytes of weights."""
    return max((size // _FLOAT - width) // (2 * width + 2), 1)


def _write_zeros(folder: Path, latents: int, width: int, site: str) -> None:
    """Writes an SAE of zeros in SAELens' layout, its weights as a hole in the file."""
    shapes = {
        "W_enc": [width, latents],
        "W_dec": [latents, width],
        "b_enc": [latents],
        "b_dec": [width],
    }
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        start, count = end, _FLOAT
        for size in shape:
            count *= size
        end = start + count
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sae_weights.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    config = {
        "architecture": "standard",
        "d_in": width,
        "d_sae": latents,
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", "hook_name": site},
    }
    (folder / "cfg.json").write_text(json.dumps(config))
