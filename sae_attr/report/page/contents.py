"""What a page holds: frozen values of plain Python and numpy, documented field by
field; `render_page` draws them.

Rates, changes and intervals are shares (0.12 is 12 percentage points). NaN is "not
known" wherever a float stands. Text may hold anything that a model wrote: it is shown
as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["away", "toward"]
Kind = Literal[
    "text", "integer", "number", "percent", "points", "tokens", "methods", "flag"
]
NAN = float("nan")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    key: the name under which rows hold its value.
    title: the header.
    kind: text; integer; number (`digits` significant ones); percent (a share, shown as
      12.3 %); points (a change of a rate, shown as +12.3, in percentage points); tokens
      (a sequence of strings); methods (names of methods, shown as figures write them);
      flag (a bool, shown as ● or nothing).
    help: what the column is, in a sentence; shown with the header and in the legend
      below the table.
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

    Keys that have a meaning to the page where rows hold them: `latent` (int; links a
    row to its points and completions) and `methods` (sequence of str; rows can be
    filtered by it), `outside` (bool; rows can be restricted to these).
    """

    columns: tuple[Column, ...]
    rows: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class MethodCount:
    """What one method's latents did in one direction; the fields of
    `steering.effects.MethodCount`.

    method: e.g. delta_attribution; "random" is the band's own.
    direction: away (the model with the behaviour is steered against the latent) or
      toward (the one without, along it).
    chosen: latents that the method chose; measured: those with at least one pair of
      completions.
    outside: those outside the random band on the side that matters (away: below;
      toward: above); other_side: on the other.
    expected: how many would be outside on the side that matters if they were random
      latents.
    mean: mean change of the measured latents; low, high: its bootstrap interval.
    """

    method: str
    direction: Direction
    chosen: int
    measured: int
    outside: int
    other_side: int
    expected: float
    mean: float
    low: float = NAN
    high: float = NAN


@dataclass(frozen=True)
class MethodDifference:
    """Two methods compared in one direction, first − second; the fields of
    `steering.compare.MethodDifference`.

    count: difference of the numbers of latents outside the band; mean: difference of
      the mean changes. Each has a bootstrap interval (`_low`, `_high`), a permutation
      p-value (`_p`) and one corrected for all comparisons of the study (`_q`).
    shared: the latents that both chose; shared_outside: how many of them are outside
      the band. They count in neither's favour.
    only_first_outside, only_second_outside: latents outside the band that one of the
      two alone chose.
    resampled: what the bootstrap drew again, e.g. ("prompts", "latents").
    """

    direction: Direction
    first: str
    second: str
    count: float
    count_low: float
    count_high: float
    count_p: float
    count_q: float
    mean: float
    mean_low: float
    mean_high: float
    mean_p: float
    mean_q: float
    shared: tuple[int, ...] = ()
    shared_outside: int = 0
    only_first_outside: int = 0
    only_second_outside: int = 0
    resampled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A completion and what the judge said of it.

    text: as the model wrote it.
    behaviour: 1 with the behaviour, 0 without, NaN where the judge set it aside or gave
      no answer; or a probability.
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
    """What steering with one latent did, with completions to read.

    strength: signed, in units of the site's mean activation norm.
    change, low, high: change of the behaviour's rate and its interval. base_rate: the
      rate without steering.
    methods: who chose it. tokens: its nearest unembedding tokens. description: in
      words, if someone described it.
    passages: top-activating passages of the corpus, if they were looked up.
    comparisons: some completions beside each other; say in `note` how they were picked.
    """

    latent: int
    direction: Direction
    strength: float
    change: float
    low: float = NAN
    high: float = NAN
    base_rate: float = NAN
    methods: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    description: str = ""
    passages: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A further figure as a file's bytes. alt: what it shows, for those who cannot see
    it; suffix: svg or png.
    """

    title: str
    alt: str
    data: bytes
    suffix: Literal["svg", "png"] = "svg"
    caption: str = ""


@dataclass(frozen=True)
class CaseReport:
    """One case study.

    id: short name, unique on the page (letters, digits, - and _).
    title: of its section. behaviour: what is counted, as it stands after "the rate of",
      e.g. "harmful advice".
    question: what was asked, in a sentence or two.
    found: what was found, in sentences of the author; the counts and differences are
      put into words by the page itself.
    facts: small facts by name (pairs, prompts, samples, judge, models …); values are
      shown as text.
    counts, differences: the headline, per method and direction.
    detectable: direction -> smallest change that this number of prompts could detect
      (80 % power, 5 % level).
    effects: what `figures.effects_figure` takes. signed_effects: the same for steering
      by the sign of the gradient, or None.
    ablation: what `figures.ablation_figure` takes, or None.
    latents: every latent that was looked at. steered: latents with completions to read,
      in the order to show.
    pictures: further figures. warnings: what a reader must know.
    """

    id: str
    title: str
    behaviour: str
    effects: Mapping[str, Any]
    latents: Table
    question: str = ""
    found: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    counts: tuple[MethodCount, ...] = ()
    differences: tuple[MethodDifference, ...] = ()
    detectable: Mapping[str, float] = field(default_factory=dict)
    signed_effects: Mapping[str, Any] | None = None
    ablation: Mapping[str, Any] | None = None
    steered: tuple[SteeredLatent, ...] = ()
    pictures: tuple[Picture, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FirstLatent:
    """The first latent of one study, looked up in the other; the fields of
    `steering.convergence.FirstLatent`.

    study, other: titles of the two. latent: its number.
    rank_in_other: 1 is best, among `population` latents; None where the other did not
      score it.
    rank_p: chance that a latent drawn at random ranks as high there.
    toward_rank: by toward-effect in this study among the `toward_of` measured latents
      of the union of both selections; None where it was not measured.
    change, low, high, base_rate: of steering toward in its own study; other_ the same
      in the other one.
    """

    study: str
    other: str
    latent: int
    rank_in_other: int | None
    population: int
    rank_p: float
    toward_rank: int | None
    toward_of: int
    change: float
    low: float
    high: float
    base_rate: float
    other_change: float
    other_low: float
    other_high: float
    other_base_rate: float


@dataclass(frozen=True)
class Convergence:
    """Whether two studies point at the same latents; the fields of
    `steering.convergence.Convergence`.

    firsts: for each study's first latent, its place in the other.
    shared: latents that both selections hold. selected: the sizes of the two
      selections. population: latents to choose from.
    expected: size of the overlap by chance; overlap_p: chance of one as large. null:
      under which draws, in words.
    """

    firsts: tuple[FirstLatent, ...]
    shared: tuple[int, ...]
    selected: tuple[int, int]
    population: int
    expected: float
    overlap_p: float
    null: str


@dataclass(frozen=True)
class StageTime:
    """A stage: name, what it did (made, continued, loaded), seconds, and what it cost
    by name (samples, tokens, calls).
    """

    name: str
    state: str
    seconds: float
    cost: Mapping[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Choice:
    """A point on which the method is silent: its name, what was chosen here, and what
    else could have been.
    """

    name: str
    chosen: Any
    meaning: str = ""


@dataclass(frozen=True)
class Report:
    """The whole page.

    title, subtitle: at the top. found: what was found over all cases, in sentences, the
      first one the most important.
    cases: in order. convergence: between studies. latent_tokens: latent -> nearest
      tokens, for latents named outside tables.
    stages: with their seconds. cost: totals by name. warnings: about the whole run.
    config: the run's own (nested mappings allowed). versions: package -> version.
      hashes: input or artefact -> hash.
    choices: every choice where the method is silent. command: how to make it again.
    """

    title: str
    cases: tuple[CaseReport, ...]
    subtitle: str = ""
    found: tuple[str, ...] = ()
    convergence: tuple[Convergence, ...] = ()
    latent_tokens: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    stages: tuple[StageTime, ...] = ()
    cost: Mapping[str, int | float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[Choice, ...] = ()
    command: str = ""
