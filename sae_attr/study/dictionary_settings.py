"""Settings of a case's further dictionaries: crosscoders and SAEs beside the studied one,
whose best latents are steered as methods of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae_attr.attribution.presets import PRESETS
from sae_attr.report.method_style import RANDOM, method_name
from sae_attr.settings import settings_from
from sae_attr.study.screen_settings import SCREENED

DELTA_NORM, MEAN_CODE = "delta_norm", "mean_code"
AUTO, SITE, DIFFERENCE = "auto", "site", "difference"
READS = (AUTO, SITE, DIFFERENCE)
OTHERS = "other_studies"  # latents that another case's studied method selected
# Names that stand for something else among a study's methods.
_TAKEN = (RANDOM, SCREENED, OTHERS, *PRESETS)


@dataclass(frozen=True, kw_only=True)
class DictionarySettings:
    """A further dictionary of a case; its name is a method of the study.

    Its best latents are steered with the strength search, prompts and samples of all
    methods, and compared with the same random latents: those of the studied SAE,
    matched on the firing rates of the study's first method and not on its own.

    Args:
      name: of the method; its latents are called NAME:NUMBER.
      sae: a crosscoder of two models, or an SAE that writes to the studied site: path,
        `RELEASE/ID` of SAELens' registry, or `hf://owner/repo/folder@revision`.
      sae_format, sae_options: as for `load_sae`. Of a crosscoder the second model's
        decoder rows count, which is the fine-tuned one, unless `model` names another.
      by: what ranks its latents. delta_norm: ½ ((|d_ft| − |d_base|) / max + 1) of a
        crosscoder; mean_code: mean latent activation on the pairs' tokens; or a method
        of a study, whose score is then that of its decoder rows. auto: delta_norm for a
        crosscoder, delta_attribution for all others.
      reads: what an SAE of one stream encodes: the activation at the `site`, or the
        `difference` of the two models' there (lm − lm_aligned). auto: the site where
        its file names it, else not known, so that nothing is encoded.
      top: latents that are steered; None for as many as of every method.
    """

    name: str
    sae: str
    sae_format: str = "auto"
    sae_options: Mapping[str, Any] = field(default_factory=dict)
    by: str = AUTO
    reads: str = AUTO
    top: int | None = None

    def __post_init__(self) -> None:
        if self.reads not in READS:
            raise ValueError(
                f"dictionary {self.name}: reads {self.reads!r} is unknown; choose of "
                f"{', '.join(READS)}"
            )
        if self.top is not None and self.top < 1:
            raise ValueError(
                f"dictionary {self.name}: top is {self.top}; it must be at least 1"
            )


def by_name(by: str) -> str:
    """Returns what ranks a dictionary, as figures and sentences write it."""
    names = {DELTA_NORM: "Δ_norm", MEAN_CODE: "mean latent activation"}
    return names.get(by) or method_name(by)


def dictionaries_from(
    values: Mapping[str, Any], *, where: str
) -> tuple[DictionarySettings, ...]:
    """Returns the settings of further dictionaries.

    Args:
      values: name -> fields of `DictionarySettings`, or the path of `sae` alone.
      where: path of `values` in the config, for messages.

    Raises:
      ValueError: a field that does not exist, a value that cannot be.
    """
    dictionaries = []
    for name, fields in values.items():
        if isinstance(fields, str):
            fields = {"sae": fields}
        if not isinstance(fields, Mapping):
            raise ValueError(
                f"{where}.{name} is {fields!r}; give the dictionary's path: "
                f"--{where}.{name}.sae=PATH"
            )
        of_name = {**fields, "name": str(name)}
        dictionaries.append(
            settings_from(DictionarySettings, of_name, where=f"{where}.{name}")
        )
    return tuple(dictionaries)


def check_dictionary_settings(
    dictionaries: Sequence[DictionarySettings], methods: Sequence[str]
) -> None:
    """Raises ValueError for a name or a ranking that cannot be.

    Args:
      methods: every ranking that a study may steer by.
    """
    for dictionary in dictionaries:
        name = dictionary.name
        if not name.replace("_", "").isalnum() or name.isdigit():
            raise ValueError(
                f"dictionary {name!r}: give a name of letters, digits and _, a letter "
                "among them; its latents are called by it"
            )
        if name in (*_TAKEN, *methods):
            raise ValueError(
                f"dictionary {name!r} has the name of a method, and tables could not "
                "tell them apart; give it another name"
            )
        allowed = (AUTO, DELTA_NORM, MEAN_CODE, *methods)
        if dictionary.by not in allowed:
            raise ValueError(
                f"dictionary {name}: by {dictionary.by!r} is unknown; choose of "
                f"{', '.join(allowed)}"
            )
