"""Writes an SAE or directions of its decoder for other tools; see configs/export.py for
the command.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.files.gguf import write_control_vector
from sae_attr.files.hub import public_name
from sae_attr.files.hub_upload import check_upload, files_below, upload
from sae_attr.files.vectors import write_vectors
from sae_attr.report.tables import json_text
from sae_attr.sae.export import (
    latent_directions,
    save_dictionary_learning,
    save_saelens,
)
from sae_attr.sae.formats import load_sae, open_decoder, read_config
from sae_attr.sae.model_card import CardFacts, model_card
from sae_attr.settings import given_only
from sae_attr.site_names import parse_site
from sae_attr.store import write_atomic

from . import _common
from ._flags import CONFIG, WORKDIR

LAYOUTS = {
    "saelens": save_saelens,
    "dictionary_learning": save_dictionary_learning,
}
VECTORS = ("safetensors", "repeng")
CARD = "README.md"
METRICS = ("explained_variance", "l0", "ce_recovered", "dead_share")

PUSH = flags.DEFINE_string(
    "push", None, "Upload what is written to this hub repository, owner/name."
)
PUSH_PRIVATE = flags.DEFINE_bool(
    "push_private", True, "Whether a repository that --push makes is private."
)


def check(config: ConfigDict) -> None:
    """Raises ValueError for a config that asks for nothing, or for what there is not."""
    _common.require(config, "sae")
    if not config.layout and not config.latents:
        raise ValueError(
            f"nothing is asked for; give --config.layout={'|'.join(LAYOUTS)} or "
            "--config.latents=ID,ID"
        )
    if config.layout and config.layout not in LAYOUTS:
        raise ValueError(
            f"layout {config.layout!r} is unknown; choose one of {', '.join(LAYOUTS)}"
        )
    if config.vectors not in VECTORS:
        raise ValueError(
            f"vectors {config.vectors!r} is unknown; choose one of {', '.join(VECTORS)}"
        )
    if config.latents and config.vectors == "repeng" and not config.model_type:
        raise ValueError(
            "repeng checks the model's type; add --config.model_type=TYPE, as its "
            "config.json has it"
        )


def layer_after(config: ConfigDict, site: str | None) -> int:
    """Returns the block to whose output a direction is added.

    Raises:
      ValueError: the SAE writes elsewhere, or its file does not say where.
    """
    if config.layer is not None:
        return config.layer
    parsed = None if site is None else parse_site(site)
    if parsed is None or parsed.point != "resid_post":
        raise ValueError(
            f"repeng adds a direction to the output of a block, and the SAE writes to "
            f"{site or 'a site that its file does not name'}; say which block with "
            "--config.layer"
        )
    return parsed.layer


def export(config: ConfigDict, workdir: epath.Path) -> dict[str, Any]:
    """Writes the files that the config asks for; returns what export.json holds.

    Raises:
      ValueError: see `check` and `layer_after`; an SAE that the layout cannot express.
      FileExistsError: the workdir holds an SAE of that layout already.
    """
    check(config)
    source, fmt = config.sae, config.sae_format
    options = given_only(config.sae_options.to_dict())
    cfg = read_config(source, fmt, **options)
    workdir.mkdir(parents=True, exist_ok=True)
    files: list[str] = []
    if config.layout:
        sae = load_sae(source, fmt=fmt, dtype=config.dtype, **options)
        LAYOUTS[config.layout](workdir / config.layout, sae)
        files.append(f"{config.layout}/")
    site = cfg.site_out or cfg.site
    if config.latents:
        decoder = open_decoder(source, fmt=fmt, **options)
        directions = latent_directions(decoder, config.latents, scale=config.scale)
        if config.vectors == "safetensors":
            named = {f"latent_{latent}": row for latent, row in directions.items()}
            files.append("directions.safetensors")
            about = {"site": site or "", "scale": config.scale}
            write_vectors(workdir / files[-1], named, about)
        else:
            layer = layer_after(config, site)
            for latent, row in directions.items():
                files.append(f"latent_{latent}.gguf")
                path = workdir / files[-1]
                write_control_vector(path, {layer: row}, config.model_type)
    result = {
        "files": files,
        "site": site,
        "sae": {"format": cfg.source, "latents": cfg.n_latents, "folded": cfg.folded},
        "choices": config.to_dict(),
        "versions": _common.versions(),
    }
    write_atomic(workdir / "export.json", json_text(result))
    print(f"wrote to {workdir}: {', '.join([*files, 'export.json'])}")
    return result


# ---- the hub -------------------------------------------------------------------------


def check_push(config: ConfigDict, repo: str) -> None:
    """Raises ValueError for an upload without a licence, a token or a repository."""
    if not config.license:
        raise ValueError(
            "what is uploaded needs a licence; add --config.license=NAME, as the hub "
            "spells it, such as apache-2.0"
        )
    check_upload(repo)


def measured_metrics(sae: str) -> dict[str, float]:
    """Returns what `train_sae` measured of an SAE on held-out text, where its
    result.json lies beside the SAE's folder; else nothing.
    """
    path = Path(sae).parent / "result.json"
    try:
        held_out = json.loads(path.read_text("utf-8"))["held_out"]
        return {name: float(held_out[name]) for name in METRICS if name in held_out}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def push(
    config: ConfigDict, workdir: Path, result: dict[str, Any], repo: str, private: bool
) -> str:
    """Writes the model card, lists the files and uploads them; returns the address.

    export.json stays here: it holds paths of this machine.
    """
    options = given_only(config.sae_options.to_dict())
    cfg = read_config(config.sae, config.sae_format, **options)
    model = config.base_model or public_name(cfg.model_name) or ""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        model = ""
    files = files_below(workdir, result["files"])
    facts = CardFacts(
        repo,
        config.license,
        config.layout or "",
        model,
        files,
        measured_metrics(config.sae),
    )
    write_atomic(workdir / CARD, model_card(cfg, facts))
    files = [CARD, *files]
    kind = "private" if private else "public"
    print(f"uploading to {repo} ({kind} if it is made now):")
    for name in files:
        print(f"  {name}  {(workdir / name).stat().st_size:,} bytes")
    address = upload(workdir, files, repo, private=private)
    print(f"uploaded to {address}")
    return address


def main(argv: list[str]) -> None:
    """Runs `export`, and `push` where the flags say so."""
    _common.begin(argv, cluster=False)
    config, workdir = CONFIG.value, epath.Path(str(WORKDIR.value))
    if PUSH.value:
        check(config)
        check_push(config, PUSH.value)
    result = export(config, workdir)
    if PUSH.value:
        push(config, Path(workdir), result, PUSH.value, PUSH_PRIVATE.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
