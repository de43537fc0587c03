"""Writes an SAE or directions of its decoder for other tools; see configs/export.py for
the command.
"""

from __future__ import annotations

from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from sae_attr.files.gguf import write_control_vector
from sae_attr.files.vectors import write_vectors
from sae_attr.report.tables import json_text
from sae_attr.sae.export import (
    latent_directions,
    save_dictionary_learning,
    save_saelens,
)
from sae_attr.sae.formats import load_sae, open_decoder, read_config
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


def main(argv: list[str]) -> None:
    """Runs `export` with the values of the flags."""
    _common.begin(argv, cluster=False)
    export(CONFIG.value, epath.Path(str(WORKDIR.value)))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    _common.run_app(main)
