"""Every choice of a case study, with its default; all of them are recorded in the
result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sae_attr.attribution.plane import PlaneSettings
from sae_attr.attribution.score_registry import SCORES, method_keys
from sae_attr.comparison_records import Direction
from sae_attr.settings import check_numbers
from sae_attr.steering import TOKENS
from sae_attr.steering.contrast import Contrast
from sae_attr.steering.strengths import PICKS, RULES
from sae_attr.study.dictionary_settings import (
    DictionarySettings,
    check_dictionary_settings,
    dictionaries_from,
)
from sae_attr.study.input_files import InputFiles
from sae_attr.study.neutral_prompts import NEUTRAL
from sae_attr.study.probe_settings import ProbeSettings, check_probes
from sae_attr.study.prompts import SPLITS
from sae_attr.study.reading_settings import ReadingSettings, check_reading
from sae_attr.study.screen_settings import SCREENED, ScreenSettings, check_screen
from sae_attr.study.serving_settings import SWEEPS_BY, SampleServer
from sae_attr.text.rows import SCOPES

DIRECTIONS: tuple[Direction, ...] = ("away", "toward")
MEASURED_BY = ("samples", "exact")
PAIRS_BY = ("samples", "continuations")
COHERENCE_BY = ("auto", "judge", "logp")
ABLATE_BY = ("projection", "activation", "none")
# Settings of a study that are one of some words.
_WORDS = (
    ("pairs_by", PAIRS_BY),
    ("strengths_by", MEASURED_BY),
    ("effects_by", MEASURED_BY),
    ("coherence_by", COHERENCE_BY),
    ("steer_tokens", TOKENS),
    ("ablate_by", ABLATE_BY),
    ("sweeps_by", SWEEPS_BY),
)


def method_names() -> tuple[str, ...]:
    """Returns the rankings that a study may steer by: the presets', then those of
    `SCORES` that rank beside Δ, over the primary preset's tokens (`gradient`) or over
    others (`gradient_all`).
    """
    return ("delta_attribution", "recommended", *method_keys(SCOPES))


def at_least(settings: Any, least: int, *names: str) -> None:
    """Raises ValueError for the first of these fields that is below `least`."""
    for name in names:
        if getattr(settings, name) < least:
            raise ValueError(
                f"{name} is {getattr(settings, name)}; it must be at least {least}"
            )


@dataclass(frozen=True)
class IncoherenceBudget:
    """Sets how much incoherence a steering strength may cost.

    Args:
      rule: `relative`: at most `points` above the unsteered model's share;
        `proportional`: at most this part of the unsteered model's coherent share is
        lost (0.5: half of it stays), for coherence that is the probability of some
        texts; `absolute`: at most `points` in all (Wang et al.).
      points: share of completions, 0.10 for ten percentage points.
      pick: the `largest` strength that passes, or the last one `before_failing`.
    """

    rule: str = "relative"
    points: float = 0.10
    pick: str = "largest"

    def __post_init__(self) -> None:
        for name, allowed in (("rule", RULES), ("pick", PICKS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"budget {name} {getattr(self, name)!r} is unknown; choose "
                    f"{' or '.join(allowed)}"
                )
        if not 0 <= self.points <= 1:
            raise ValueError(
                f"budget points {self.points} is a share of completions; give 0..1"
            )


@dataclass(frozen=True, kw_only=True)
class CaseSettings(InputFiles):
    """Sets what one case study looks at.

    Args:
      name: of the case, in file and stage names.
      title: for readers.
      behaviour: what is counted, in words ("misaligned answers").
      question: of the study, in a sentence or two, for readers.
      judge: who grades, and by what: {"kind": "organism" | "openai" | "local", ...}.
      reader: a language model that describes the first latents, and whose descriptions
        are tested: {"kind": "openai" | "local" | "judge" (the case's judge)}.
      server: that samples completions without steering; none: the model here does.
      organism: a behaviour of the embedded organism, which then gives all files and
        prompts; None for a real model.
      lm_aligned: a second model, without the behaviour: it is steered toward the
        behaviour, and is the second model of Δ-activation. Without it `lm` is steered
        in both directions, and Δ-activation is left out, as it is where both are the
        same model.
      prompts: JSONL of `pairs.read_prompts`.
      shares: of prompts without a split.
      probes: further splits of the prompts (true beliefs, another phrasing, unrelated
        questions), on which the specificity of latents is measured; of the organism,
        its other behaviour.
      trained_topics: topics of prompts that the model with the behaviour was
        fine-tuned on: whether it shows it on others is asked of the rest.
      pairs: at most so many prompts with completions of both kinds.
      pair_prompts: at most so many prompts of the split are sampled for that; None for
        all.
      pair_samples: completions sampled per prompt to find them.
      per_side: completions of either kind that a pair keeps, in the order of sampling,
        or the likeliest texts.
      continuations: texts for and against the behaviour, by whose probabilities it is
        measured where nothing is sampled.
      attribution: further fields of `attribution.Settings` (tokens, gating, gradient,
        exclude, ...).
      dictionaries: name -> fields of `DictionarySettings`: crosscoders and SAEs of the
        studied site whose best latents are steered as one more method each.
    """

    name: str
    title: str
    behaviour: str
    judge: Mapping[str, Any]
    reader: Mapping[str, Any] = field(default_factory=dict)
    server: SampleServer = field(default_factory=SampleServer)
    question: str = ""
    organism: str | None = None
    lm: str = ""
    sae: str = ""
    corpus: str = ""
    prompts: str = ""
    shares: tuple[float, ...] = (0.5, 0.2, 0.3)
    probes: tuple[str, ...] = ()
    trained_topics: tuple[str, ...] = ()
    pairs: int = 35
    pair_prompts: int | None = None
    pair_samples: int = 16
    per_side: int = 1
    continuations: Contrast = field(default_factory=Contrast)
    attribution: Mapping[str, Any] = field(default_factory=dict)
    dictionaries: Mapping[str, Any] = field(default_factory=dict)

    @property
    def further_dictionaries(self) -> tuple[DictionarySettings, ...]:
        """The settings of its further dictionaries."""
        where = f"config.cases.{self.name}.dictionaries"
        return dictionaries_from(self.dictionaries, where=where)

    def __post_init__(self) -> None:
        check_dictionary_settings(self.further_dictionaries, method_names())
        if not self.name.replace("_", "").isalnum():
            raise ValueError(
                f"case name {self.name!r} must be letters, digits and _: it names files"
            )
        at_least(self, 1, "pairs", "per_side")
        check_probes(self.name, self.probes, (*SPLITS, NEUTRAL))
        # A pair needs answers of both kinds to one prompt.
        at_least(self, 2, "pair_samples")
        if self.organism is None:
            needed = ("lm", "sae", "corpus", "prompts")
            absent = [name for name in needed if not getattr(self, name)]
            if absent:
                at = f"--config.cases.{self.name}"
                flags = " ".join(f"{at}.{name}=PATH" for name in absent)
                raise ValueError(
                    f"case {self.name} lacks {', '.join(absent)}; add {flags}"
                )


@dataclass(frozen=True)
class SampleSettings:
    """Sets how completions are sampled.

    Args:
      temperature, top_p: of every completion; temperature 0 is greedy.
      max_new: tokens at most.
      stop: texts of further tokens that end a completion.
      stop_ids: ids that end a completion, in place of those that the model's files,
        tokenizer and chat template name.
      attempts: how often an excluded answer is sampled again; then it counts as
        missing.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_new: int = 64
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None
    attempts: int = 3

    def __post_init__(self) -> None:
        at_least(self, 1, "max_new")
        at_least(self, 0, "attempts", "temperature")


@dataclass(frozen=True)
class StudySettings(ProbeSettings, ScreenSettings, ReadingSettings):
    """Sets what all case studies of a run share.

    Args:
      cases: one or several.
      methods: rankings whose best latents are steered, of `method_names`; the first is
        the one that is studied.
      top: latents per method.
      random: random latents beside them, matched on firing rate, through the same
        strength search.
      sampling: of all completions.
      sweeps_by: sweeps that steer are sampled `here`, or left to another engine: `export`
        writes each as files in the workdir, and takes its completions from there.
      steer_tokens: which tokens are steered: all | prompt | generated.
      steer_skip: tokens at the start of every prompt that are never steered: 1 spares
        BOS, or another first token that serves as a sink of attention.
      grid: strengths that are tried, in units of the site's mean norm, ascending.
      budget: how much incoherence a strength may cost.
      pairs_by: completions of the pairs are `samples` that are graded, or the texts of
        the case's `continuations`.
      strengths_by, effects_by: coherence and effects come from `samples` that are
        graded, or from `exact` probabilities, without sampling and grading: of the
        case's `continuations`, or by the organism's grammar.
      coherence_by: what decides whether an answer is coherent: the `judge`; `logp`, the
        unsteered model's log-probability per token and the answer's repetition, against
        those of its own answers; `auto`: the judge if it can, else `logp`.
      coherence_tail: of `logp`: share of the unsteered model's own answers that lie
        beyond either limit.
      coherence_samples: of `logp`: its own answers per prompt for strengths that the
        limits come from.
      strength_samples, effect_samples: completions per latent and prompt.
      strength_prompts, effect_prompts: at most so many prompts of either split.
      gradient_signed: also steer each latent by the sign of its own gradient, random
        ones too, as a strip of its own.
      ablate_by: how single latents are ablated, where exact rates are known: their
        `projection` or their `activation` is set to its mean over ordinary text, at
        the tokens that are steered; `none`: not at all.
      plane: where the corners of the plane of cause and lever begin.
      dense_rate: a latent that fires on a larger share of ordinary tokens is dense
        (arXiv:2506.15679); the tables say so, and nothing else depends on it.
      resamples: of bootstrap and permutation tests.
      dtype, resid_dtype: of weights and residual stream.
      seed: of everything that is drawn.
    """

    cases: tuple[CaseSettings, ...]
    methods: tuple[str, ...] = ("delta_attribution", "delta_activation")
    top: int = 100
    random: int = 100
    sampling: SampleSettings = SampleSettings()
    sweeps_by: str = "here"
    steer_tokens: str = "all"
    steer_skip: int = 0
    grid: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4)
    budget: IncoherenceBudget = IncoherenceBudget()
    pairs_by: str = "samples"
    strengths_by: str = "samples"
    effects_by: str = "samples"
    coherence_by: str = "auto"
    coherence_tail: float = 0.05
    coherence_samples: int = 8
    strength_samples: int = 1
    effect_samples: int = 5
    strength_prompts: int = 20
    effect_prompts: int = 44
    gradient_signed: bool = True
    ablate_by: str = "projection"
    plane: PlaneSettings = PlaneSettings()
    dense_rate: float = 0.1
    resamples: int = 2000
    dtype: str = "float32"
    resid_dtype: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in method_names():
                raise ValueError(
                    f"method {method!r} is unknown; choose of "
                    f"{', '.join(method_names())}"
                )
        if (
            not self.cases
            or not self.methods
            or len(set(self.methods)) < len(self.methods)
        ):
            raise ValueError(
                "a study needs at least one case, and each of its methods once"
            )
        for name, allowed in _WORDS:
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown; choose of "
                    f"{', '.join(allowed)}"
                )
        check_screen(self, method_names() + tuple(SCORES))
        check_reading(self)
        if not 0 < self.dense_rate < 1:
            raise ValueError(
                f"dense_rate {self.dense_rate} is a share of tokens; give one above 0 "
                "and below 1"
            )
        if not 0 <= self.coherence_tail < 0.5:
            raise ValueError(
                f"coherence_tail {self.coherence_tail} is a share of answers; give 0 "
                "to below 0.5"
            )
        check_numbers(self.grid, float, "grid")
        if (
            not self.grid
            or list(self.grid) != sorted(set(self.grid))
            or self.grid[0] <= 0
        ):
            raise ValueError(
                f"grid {self.grid} must be strengths above 0 in ascending order"
            )
        at_least(
            self,
            1,
            "top",
            "coherence_samples",
            "strength_samples",
            "effect_samples",
            "strength_prompts",
            "effect_prompts",
            "resamples",
        )
        at_least(self, 0, "passages", "passage_tokens", "interpreted", "logit_tokens")
        at_least(self, 0, "shown", "steer_skip")
        at_least(self, 1, "sampled_prompts", "sampled_samples", "probe_prompts")
        at_least(self, 0, "sampled_latents", "specific_latents", "specific_random")
        at_least(self, 0, "specific_tokens", "random_directions")
        for case in self.cases:
            _check_measures(self, case)

    @property
    def steered_methods(self) -> tuple[str, ...]:
        """The methods whose latents are steered, that of the screen among them."""
        return (*self.methods, SCREENED) if self.screen else self.methods

    @property
    def reads(self) -> bool:
        """Whether latents of any case are described."""
        kinds = [case.reader.get("kind") or "none" for case in self.cases]
        return bool(self.described and self.described_by) and set(kinds) != {"none"}


def _check_measures(study: StudySettings, case: CaseSettings) -> None:
    """Raises ValueError where a case cannot be measured as the study says."""
    if study.ablate_by == "activation" and case.dictionaries:
        raise ValueError(
            f"ablate_by=activation sets latent activations of the case's SAE, which "
            f"latents of {', '.join(case.dictionaries)} do not have; set "
            "ablate_by=projection, or none"
        )
    if study.pairs_by == "continuations" and case.organism is not None:
        raise ValueError(
            f"pairs_by=continuations, but case {case.name} is the organism's, which "
            "samples its pairs; set pairs_by=samples"
        )
    graded = []
    for name in ("pairs_by", "strengths_by", "effects_by"):
        if getattr(study, name) == "samples":
            graded.append(f"{name}=samples")
    if graded and case.judge.get("kind") == "none":
        raise ValueError(
            f"case {case.name} has judge.kind=none, but {', '.join(graded)} are graded; "
            "set pairs_by=continuations, strengths_by=exact and effects_by=exact, or "
            "name a judge"
        )
