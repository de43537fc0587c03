"""`--dry_run` on the command line: how fast to count with, and how the run ends."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import parse_qsl

from etils import epath
from ml_collections import ConfigDict

from sae_attr import parallel
from sae_attr.lm.config import LMConfig
from sae_attr.lm.config_files import load_config
from sae_attr.study.dry_run.addresses import StandIn, model_stand_in, sae_stand_in
from sae_attr.study.dry_run.rates import (
    Batch,
    Rates,
    RatesOf,
    measured_rates,
    stated_rates,
)
from sae_attr.study.dry_run.report import DryRun


def rates_of_flags(tokens_per_second: Sequence[str], mesh: str) -> RatesOf:
    """Returns how the rates of a model are found: as the flag --tokens_per_second states
    them, else by a short measurement on this device.

    Raises:
      ValueError: anything but two numbers above 0.
    """
    stated = [_number(text) for text in tokens_per_second]
    if stated and (len(stated) != 2 or min(stated) <= 0):
        raise ValueError(
            f"--tokens_per_second={','.join(tokens_per_second)} is not understood; give "
            "two numbers above 0, tokens read and tokens sampled per second: "
            "--tokens_per_second=1781,107"
        )

    def rates(cfg: LMConfig, batch: Batch, dtype: str) -> Rates:
        if stated:
            read, sampled = stated
            return stated_rates(cfg, read=read, sampled=sampled, rows=batch.rows)
        return measured_rates(cfg, parallel.make_mesh(mesh), batch=batch, dtype=dtype)

    return rates


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def run_dry(
    dry_run: Callable[[ConfigDict, epath.Path, RatesOf], DryRun],
    config: ConfigDict,
    workdir: epath.Path,
    tokens_per_second: Sequence[str],
) -> NoReturn:
    """Runs an experiment's dry run, prints it and ends the program.

    Args:
      dry_run: finds out what the run of a config in a workdir needs.
      tokens_per_second: as for `rates_of_flags`.
    """
    rates = rates_of_flags(tokens_per_second, str(config.get("mesh") or ""))
    with tempfile.TemporaryDirectory() as folder:
        stand_ins = without_weights(config, Path(folder))
        report = dry_run(config, workdir, rates)
    report.add_stand_ins(stand_ins)
    end(report)


MODELS = ("lm", "lm_aligned", "lm_base", "adapter")  # keys of a config, at any depth


def without_weights(config: ConfigDict, folder: Path) -> list[StandIn]:
    """Replaces models and SAEs on the hub that are not here by what stands in for them,
    in the config and its parts; returns these.

    Args:
      folder: for stand-ins of SAEs.

    Raises:
      ValueError: an address that leads nowhere.
    """
    stand_ins = []
    for name in MODELS:
        if config.get(name) and (there := model_stand_in(str(config[name]))):
            stand_ins.append(there)
            config[name] = there.path
    address, lm = config.get("sae"), config.get("lm")
    if isinstance(address, str) and address and lm:
        there = _sae(address, str(lm), config.get("site"), folder)
        if there is not None:
            stand_ins.append(there)
            # A stand-in has one layout, whatever the format of what it stands for.
            config.update({"sae": there.path, "sae_format": "auto"})
            config.sae_options = ConfigDict({})
    if config.get("saes") and lm:
        texts = []
        for text in str(config.saes).split(","):
            path, mark, query = text.strip().partition("?")
            site = dict(parse_qsl(query)).get("site")
            there = _sae(path, str(lm), site, folder) if path else None
            if there is not None:
                stand_ins.append(there)
                path = there.path
            texts.append(f"{path}{mark}{query}")
        config.saes = ",".join(texts)
    for name in config:
        part = config.get(name)
        if isinstance(part, ConfigDict):
            stand_ins += without_weights(part, folder)
    return stand_ins


def _sae(address: str, lm: str, site: str | None, folder: Path) -> StandIn | None:
    """Returns what stands in for an SAE, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    place = folder / str(len(list(folder.iterdir())))
    return sae_stand_in(address, lm, load_config(lm), site, place)


def end(report: DryRun) -> NoReturn:
    """Prints a dry run and ends the program: exit status 0 where everything fits, 1 with
    the list of faults where not.
    """
    if parallel.is_main():
        print(report.text())
    sys.exit(1 if report.faults else 0)
