"""Lists the public SAEs that go by name: every release and id of SAELens' registry.

    python -m experiments.list_saes --model=google/gemma-3-270m-it
    python -m experiments.list_saes --model=google/gemma-3-270m-it --layer=12 --site=resid_post --width=16k
    python -m experiments.list_saes --model=my_model.gguf
    python -m experiments.list_saes --match="llama scope 8x" --format=csv > saes.csv

Filters add up. Many matches are shown as one line per release; --release and the other
filters lead to single SAEs, whose names stand for `sae=` in every experiment. --model
takes every address that `lm=` takes: a model that the registry does not name stands for
those of its shape. Nothing is downloaded, except the config.json of such a model on the
hub.

Sizes are those of encoder and decoder: the download where the release's number format is
known, and the memory that all latents take; a ranking alone reads the decoder from disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from absl import flags

from sae_attr.files.packages import PREFIX
from sae_attr.lm.config_files import load_config
from sae_attr.lm.hf_folder import CONFIG
from sae_attr.report.tables import (
    Columns,
    columns_from_rows,
    csv_text,
    json_text,
    text_table,
)
from sae_attr.sae.registry.names import NamedSAE
from sae_attr.sae.registry.search import (
    Query,
    models_named,
    models_of_shape,
    search,
    unknown_model,
)
from sae_attr.sae.registry.table import weights_of

from . import _common

MODEL = flags.DEFINE_string(
    "model",
    "",
    "Hub id or a part of it; or a model of the same shape: folder, .gguf, pip:NAME.",
)
RELEASE = flags.DEFINE_string("release", "", "Release, or a part of its name.")
LAYER = flags.DEFINE_integer("layer", None, "Block that the SAE reads.")
SITE = flags.DEFINE_string(
    "site", "", "Point or site: resid_post, attn_z, mlp_out, layer12.resid_post."
)
WIDTH = flags.DEFINE_string("width", "", "Number of latents: 16384 or 16k.")
MATCH = flags.DEFINE_string("match", "", "Words that the name holds, in any order.")
FORMAT = flags.DEFINE_enum(
    "format", "text", ["text", "json", "csv"], "Table, or all fields as JSON or CSV."
)
LIMIT = flags.DEFINE_integer(
    "limit", 60, "SAEs that are listed one by one; more are shown by release."
)

MANY = 8  # entries of one cell


def record(named: NamedSAE) -> dict[str, Any]:
    """Returns all fields of one SAE."""
    release, sae = named.release, named.sae
    weights = weights_of(release, sae)
    stored = release.loader.stored_bytes
    return {
        "name": named.name,
        "model": release.model.hub_id,
        "site": sae.site,
        "site_out": sae.site_out,
        "latents": sae.latents,
        "l0": sae.l0,
        "download_bytes": weights * stored if weights and stored else None,
        "float32_bytes": weights * 4 if weights else None,
        "bfloat16_bytes": weights * 2 if weights else None,
        "format": release.loader.format,
        "hub": named.url,
        "neuronpedia": sae.neuronpedia,
        "unread": release.loader.unread or release.model.unread,
    }


def record_columns(matches: Sequence[NamedSAE]) -> Columns:
    """Returns all fields of SAEs as columns."""
    return columns_from_rows([record(named) for named in matches])


def size_text(count: int | None) -> str:
    """Returns bytes for readers: `84 MB`, `5.4 GB`; "–" where they are not known."""
    if count is None:
        return "–"
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB"


def sae_columns(matches: Sequence[NamedSAE]) -> Columns:
    """Returns a table with a row per SAE."""
    records = [record(named) for named in matches]
    return {
        "name": [named.name for named in matches],
        "site": [named.sae.sites for named in matches],
        "latents": [number(r["latents"]) for r in records],
        "L0": [number(r["l0"]) for r in records],
        "download": [size_text(r["download_bytes"]) for r in records],
        "float32": [size_text(r["float32_bytes"]) for r in records],
        "bfloat16": [size_text(r["bfloat16_bytes"]) for r in records],
    }


def release_columns(matches: Sequence[NamedSAE]) -> Columns:
    """Returns a table with a row per release."""
    groups: dict[str, list[NamedSAE]] = {}
    for named in matches:
        groups.setdefault(named.release.name, []).append(named)
    saes = list(groups.values())
    return {
        "release": list(groups),
        "model": [group[0].release.model.hub_id for group in saes],
        "SAEs": [len(group) for group in saes],
        "layers": [ranges({named.sae.layer for named in group}) for group in saes],
        "points": [points_of(group) for group in saes],
        "latents": [widths_of(group) for group in saes],
    }


def number(value: float | None) -> str:
    """Returns a count with its thousands apart; "–" where it is not known."""
    return "–" if value is None else f"{value:,.0f}"


def ranges(numbers: set[int]) -> str:
    """Returns whole numbers as `0–11, 15`."""
    runs: list[list[int]] = []
    for value in sorted(numbers):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    texts = []
    for run in runs:
        texts.append(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}")
    return few(texts)


def few(texts: Sequence[str]) -> str:
    """Returns entries with commas between them; the last ones are counted where there
    are many.
    """
    rest = len(texts) - MANY
    shown = ", ".join(texts[:MANY])
    return f"{shown} and {rest} more" if rest > 0 else shown


def points_of(group: Sequence[NamedSAE]) -> str:
    """Returns the points that SAEs read and write, each once."""
    points: dict[str, None] = {}
    for named in group:
        places = [site for site in (named.sae.site, named.sae.site_out) if site]
        names = [place.partition(".")[2] for place in places]
        points[" → ".join(names)] = None
    return few(list(points))


def widths_of(group: Sequence[NamedSAE]) -> str:
    """Returns the numbers of latents of SAEs, each once, ascending."""
    widths = {named.sae.latents for named in group if named.sae.latents}
    return few([number(width) for width in sorted(widths)]) or "–"


def notes(matches: Sequence[NamedSAE]) -> list[str]:
    """Returns a line for each reason why some of the SAEs cannot be used here."""
    reasons: dict[str, set[str]] = {}
    for named in matches:
        for reason in (named.release.loader.unread, named.release.model.unread):
            if reason:
                reasons.setdefault(reason, set()).add(named.release.name)
    return [
        f"not for use here: {few(sorted(names))}: {r}" for r, names in reasons.items()
    ]


def command(matches: Sequence[NamedSAE]) -> str:
    """Returns the command that checks the first SAE that can be used; "" for none."""
    for named in matches:
        release = named.release
        if not (release.loader.unread or release.model.unread):
            keys = {"lm": release.model.hub_id, "sae": named.name, "corpus": "TEXTS"}
            flags_text = " ".join(f"--config.{key}={keys[key]}" for key in keys)
            return f"use one: python -m {__package__}.check_sae {flags_text}"
    return ""


def listing(matches: Sequence[NamedSAE], *, limit: int) -> str:
    """Returns what a terminal shows: a table, counts, and how to go on."""
    if not matches:
        return "no SAE of SAELens' registry fits; leave out a filter"
    count = len(matches)
    releases = len({named.release.name for named in matches})
    counted = (
        f"{count:,} SAE{'s' * (count > 1)} in {releases} release{'s' * (releases > 1)}"
    )
    if count > limit:
        table = text_table(release_columns(matches))
        more = (
            "one by one: add --release=…, --layer=…, --site=…, --width=… or --match=…"
        )
    else:
        sizes = ("latents", "L0", "download", "float32", "bfloat16")
        table = text_table(sae_columns(matches), right=sizes)
        more = command(matches)
    return "\n".join([table, "", counted, *notes(matches), more]).rstrip()


def model_query(address: str) -> Query:
    """Returns the query for a model's SAEs: by name where the registry has it, else by
    the shape of the model at an address that `lm=` takes.

    Raises:
      ValueError: neither a name of the registry nor a model that can be read; a shape
        that no model of the registry has.
    """
    here = address.startswith(PREFIX) or Path(address).is_file()
    here = here or (Path(address) / CONFIG).is_file()
    name = address.removeprefix("hf://").partition("@")[0]
    if not here and models_named(name):
        return Query(model=name)
    try:
        cfg = load_config(address)
    except ValueError as error:
        if here:
            raise
        raise ValueError(f"{unknown_model(name)}; {error}") from error
    if not models_of_shape(cfg.n_layers, cfg.d_model):
        raise ValueError(
            f"{address} has {cfg.n_layers} layers of {cfg.d_model} channels, and no "
            "model of SAELens' registry has that shape; experiments.train_sae trains "
            "an SAE of it"
        )
    return Query(shape=(cfg.n_layers, cfg.d_model))


def main(argv: list[str]) -> None:
    """Prints the SAEs that the flags ask for."""
    _common.begin(argv, cluster=False)
    by_model = model_query(MODEL.value) if MODEL.value else Query()
    query = replace(
        by_model,
        release=RELEASE.value,
        layer=LAYER.value,
        site=SITE.value,
        width=WIDTH.value,
        match=MATCH.value,
    )
    matches = search(query)
    if FORMAT.value == "text":
        print(listing(matches, limit=LIMIT.value))
        return
    if FORMAT.value == "json":
        print(json_text([record(named) for named in matches]), end="")
        return
    print(csv_text(record_columns(matches)), end="")


if __name__ == "__main__":
    _common.run_app(main)
