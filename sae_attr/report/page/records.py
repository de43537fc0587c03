"""What a page holds: frozen values of plain Python and numpy; `render_page` draws them.

Rates, changes and intervals are shares (0.12 is 12 percentage points). NaN is "not
known" wherever a float stands. Text may hold anything that a model wrote: it is shown
as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sae_attr.comparison_records import (
    Convergence,
    Direction,
    LatentName,
    MethodCount,
    MethodDifference,
)
from sae_attr.report.description_records import ReaderTest
from sae_attr.report.page.probe_records import (
    SampledCheck,
    Screen,
    Specificity,
    UnsteeredRates,
)
from sae_attr.report.page.reading_records import LatentReading, ShadedPassage

Kind = Literal[
    "text", "integer", "number", "percent", "points", "tokens", "methods", "flag"
]
NAN = float("nan")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
      key: the name under which rows hold its value.
      title: the header.
      kind: text; integer; number (`digits` significant ones); percent (a share, shown
        as 12.3 %); points (a change of a rate, shown as +12.3, in percentage points);
        tokens (a sequence of strings); methods (names of methods, shown as figures
        write them); flag (a bool, shown as ● or nothing).
      help: what the column holds, in a sentence; shown with the header and in the
        legend below the table.
      digits: of number, significant ones (3 unless given); of percent and points, those
        after the point (1 unless given).
    """

    key: str
    title: str
    kind: Kind = "number"
    help: str = ""
    digits: int | None = None


@dataclass(frozen=True)
class Table:
    """Rows of named values: a value is a bool, int, float, str, sequence of str, or
    None (not known).

    Keys that have a meaning to the page where rows hold them: `latent` (a name; links a
    row to its points and completions), `methods` (sequence of str; rows can be filtered
    by it), `outside` (bool; rows can be restricted to these).
    """

    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Completion:
    """A completion and its grades.

    Args:
      text: as the model wrote it.
      behaviour: 1 with the behaviour, 0 without, NaN where the judge excluded it or
        gave no answer; or a probability.
      coherent: 1, 0, or NaN where it is not known.
      label: the judge's own word, e.g. REFUSAL.
    """

    text: str
    behaviour: float = NAN
    coherent: float = NAN
    label: str = ""


@dataclass(frozen=True)
class Comparison:
    """The same prompt and random key with and without steering."""

    prompt_id: str
    prompt: str
    unsteered: Completion
    steered: Completion


@dataclass(frozen=True)
class SteeredLatent:
    """A latent's effect under steering, with completions to read.

    Args:
      strength: signed, in units of the site's mean activation norm.
      change, low, high: change of the behaviour's rate and its interval. base_rate: the
        rate without steering.
      methods: those that selected it.
      tokens: its nearest unembedding tokens.
      passages: top-activating passages of the corpus, if they were looked up.
      comparisons: some completions beside each other.
      note: how they were picked.
    """

    latent: LatentName
    direction: Direction
    strength: float
    change: float
    low: float = NAN
    high: float = NAN
    base_rate: float = NAN
    methods: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    passages: tuple[ShadedPassage, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class CaseReport:
    """One case study.

    Args:
      id: short name, unique on the page (letters, digits, - and _).
      title: of its section.
      behaviour: what is counted, as it stands after "the rate of", e.g. "harmful
        advice".
      effects: numbers of `figures.effects_figure`.
      latents: every latent that was steered.
      question: of the study, in a sentence or two.
      findings: in sentences; the page itself adds counts and differences in words.
      facts: small facts by name (pairs, prompts, samples, judge, models …); values are
        shown as text.
      counts, differences: the headline, per method and direction.
      detectable: direction -> smallest change that this number of prompts could detect
        (80 % power, 5 % level).
      signed_effects: as `effects`, for steering by the sign of the gradient, or None.
      plane: numbers of `figures.plane_figure`, or None.
      ablated: as `effects`, for the exact ablation of single latents, or None;
        ablated_counts: its counts.
      roles: numbers of `figures.roles_figure`, with `user_only`: {method, top, stay,
        dictionary, rows} or {skipped}; or None.
      screen: latents that were tried on held-out pairs, or None.
      unsteered, specificity, sampled: of studies by exact probabilities, else None.
      ablation: numbers of `figures.ablation_figure`, or None.
      steered: latents with completions to read, in the order to show.
      reading: the first latents of every method, to be read, and random ones that a
        reader described.
      reader: how well its descriptions fit; None where nobody described.
      warnings: what a reader must know.
    """

    id: str
    title: str
    behaviour: str
    effects: Mapping[str, Any]
    latents: Table
    question: str = ""
    findings: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    counts: tuple[MethodCount, ...] = ()
    differences: tuple[MethodDifference, ...] = ()
    detectable: Mapping[str, float] = field(default_factory=dict)
    signed_effects: Mapping[str, Any] | None = None
    plane: Mapping[str, Any] | None = None
    ablated: Mapping[str, Any] | None = None
    ablated_counts: tuple[MethodCount, ...] = ()
    roles: Mapping[str, Any] | None = None
    screen: Screen | None = None
    unsteered: UnsteeredRates | None = None
    specificity: Specificity | None = None
    sampled: SampledCheck | None = None
    ablation: Mapping[str, Any] | None = None
    steered: tuple[SteeredLatent, ...] = ()
    reading: tuple[LatentReading, ...] = ()
    reader: ReaderTest | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class StageTime:
    """A stage, its seconds, and what it cost by name (samples, tokens, calls)."""

    name: str
    seconds: float
    cost: Mapping[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """A point that the method leaves open: its name, the value here, and its meaning."""

    name: str
    value: Any
    meaning: str = ""


@dataclass(frozen=True)
class PageContents:
    """The whole page.

    Args:
      title, subtitle: at the top.
      cases: in order.
      findings: over all cases, in sentences, the most important one first.
      convergence: between studies.
      latent_tokens: latent -> nearest tokens, for latents named outside tables.
      stages: with their seconds.
      cost: totals by name.
      warnings: about the whole run.
      config: the run's own (nested mappings allowed).
      versions: package -> version.
      hashes: input or artefact -> hash.
      choices: every choice where the method is silent.
    """

    title: str
    cases: tuple[CaseReport, ...]
    subtitle: str = ""
    findings: tuple[str, ...] = ()
    convergence: tuple[Convergence, ...] = ()
    latent_tokens: Mapping[LatentName, tuple[str, ...]] = field(default_factory=dict)
    stages: tuple[StageTime, ...] = ()
    cost: Mapping[str, int | float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
