"""Descriptions of latents and their tests, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sae_attr.comparison_records import Estimate
from sae_attr.report.description_records import Description, SourceTest
from sae_attr.report.numbers import is_known, signed
from sae_attr.report.safe_text import one_line

# What a reader described latents by, as sentences have it.
SOURCE_NAMES = {
    "passages": "top passages",
    "answers": "steered answers",
    "neutral": "steered answers to neutral prompts",
}
_CHANCE = 0.5


def description_sentence(description: Description) -> str:
    """Returns a description with its source and how well it tells texts apart."""
    head = f"by {SOURCE_NAMES[description.source]}:"
    if not description.text:
        return f"{head} the reader's reply could not be read"
    text = f"{head} “{one_line(description.text)}”"
    accuracy = description.accuracy
    if not is_known(accuracy.value):
        return f"{text} (not tested)"
    return f"{text} (balanced accuracy {_estimate(accuracy)}; {_counts(description)})"


def _counts(description: Description) -> str:
    """Returns how many texts of each kind were told rightly."""
    names = {"fit": description.fits, **_unfit(description)}
    parts = [
        f"{right} of {of} that {name}" for name, (right, of) in names.items() if of
    ]
    return ", ".join(parts)


def _unfit(description: Description) -> dict[str, tuple[int, int]]:
    return {
        "do not": description.ordinary,
        "fit another latent": description.other,
    }


def reader_sentences(tests: Sequence[SourceTest], unread: int) -> tuple[str, ...]:
    """Returns what the tests of a reader's descriptions show."""
    return tuple(_sentences(tests, unread))


def _sentences(tests: Sequence[SourceTest], unread: int) -> Iterator[str]:
    for test in tests:
        if not test.latents:
            yield (
                f"Described by {SOURCE_NAMES[test.source]}, no latent was tested: "
                "`tested` is 0, or there are too few held-out texts."
            )
            continue
        yield (
            f"Described by {SOURCE_NAMES[test.source]}, {_latents(test.latents)} of the "
            f"methods: balanced accuracy {_estimate(test.mean)} on held-out texts (chance "
            f"is 0.50){_beside_random(test)}."
        )
        if test.mean.low <= _CHANCE:
            yield (
                f"So descriptions by {SOURCE_NAMES[test.source]} are not shown to say "
                "anything: this reader, or these texts, are not enough."
            )
    if unread:
        yield f"{unread} replies of the reader could not be read, and count nowhere."


def _beside_random(test: SourceTest) -> str:
    """Returns what random latents had, where some were tested."""
    if not test.random:
        return ""
    return (
        f"; {_latents(test.random, 'random ')} {_estimate(test.random_mean)}; "
        f"difference {_estimate(test.difference, sign=True)}"
    )


def _latents(count: int, kind: str = "") -> str:
    return f"{count} {kind}latent{'' if count == 1 else 's'}"


def _estimate(estimate: Estimate, *, sign: bool = False) -> str:
    value = signed(estimate.value, 2) if sign else f"{estimate.value:.2f}"
    if not is_known(estimate.low):
        return value
    low, high = estimate.low, estimate.high
    if sign:
        return f"{value} [{signed(low, 2)}, {signed(high, 2)}]"
    return f"{value} [{low:.2f}, {high:.2f}]"
