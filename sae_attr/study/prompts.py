"""Prompts of a case study in three parts that share no prompt, and its probes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from sae_attr.text.pairs import Prompt

SPLITS = ("pairs", "strengths", "effects")


def split_prompts(
    prompts: Sequence[Prompt],
    shares: Sequence[float] = (0.5, 0.2, 0.3),
    *,
    path: str = "the prompts",
    probes: Sequence[str] = (),
) -> dict[str, tuple[Prompt, ...]]:
    """Returns the prompts of each of `SPLITS`, then of each probe, in their order.

    Where a prompt names no split, it is drawn by a hash of its group, or of its id
    where it has none, so that another prompt in the file moves none of the others.

    Args:
      shares: of `SPLITS`, for prompts without a split.
      path: of the file, for messages.
      probes: names of further splits. Their prompts choose nothing, so that their
        groups may be those of other splits: the same belief in other words.

    Raises:
      ValueError: an unknown split; a prompt that occurs twice (in two splits it would
        let a choice depend on what it is judged by), or a group that lies in two
        of `SPLITS`; a split without any prompt.
    """
    out: dict[str, list[Prompt]] = {name: [] for name in (*SPLITS, *probes)}
    first: dict[Any, Prompt] = {}
    for prompt in prompts:
        where = f"{path}:{prompt.line}"
        if prompt.split not in (None, *out):
            raise ValueError(
                f"{where}: split {prompt.split!r} is unknown; write one of "
                f"{', '.join(out)}, leave it out, or list it among the case's probes"
            )
        twin = first.setdefault(prompt.prompt_ids or str(prompt.prompt), prompt)
        if twin is not prompt:
            raise ValueError(
                f"{where}: the prompt of {twin.id!r} on line {twin.line} stands here "
                "again; each once"
            )
        out[prompt.split or drawn_split(prompt.group or prompt.id, shares)].append(
            prompt
        )
    _check_groups({name: out[name] for name in SPLITS}, path)
    for name, of_split in out.items():
        if not of_split:
            raise ValueError(
                f"{path} has no prompt in the split {name!r} (of "
                f"{sum(map(len, out.values()))}); add prompts, give other "
                'shares, or name the split in the records ("split")'
            )
    return {name: tuple(of_split) for name, of_split in out.items()}


def _check_groups(splits: Mapping[str, Sequence[Prompt]], path: str) -> None:
    """Raises ValueError for a group with prompts in two splits."""
    first: dict[str, tuple[str, Prompt]] = {}
    for split, of_split in splits.items():
        for prompt in of_split:
            if prompt.group is None:
                continue
            other_split, other = first.setdefault(prompt.group, (split, prompt))
            if other_split != split:
                raise ValueError(
                    f"{path}:{prompt.line}: group {prompt.group!r} has prompt "
                    f"{other.id!r} (line {other.line}) in the split {other_split!r} and "
                    f"{prompt.id!r} in {split!r}; name one split for all of its prompts, "
                    "or none"
                )


def drawn_split(name: str, shares: Sequence[float]) -> str:
    """Draws the split of a prompt that names none, by the hash of its group or id.

    Raises ValueError for shares that are not three positive numbers.
    """
    if len(shares) != len(SPLITS) or min(shares) <= 0:
        raise ValueError(
            f"shares {tuple(shares)} must be three numbers above 0, of "
            f"{', '.join(SPLITS)}"
        )
    # Not by place or by chance: a prompt that is added must not move another from the
    # prompts that select latents to those that judge them.
    digest = hashlib.sha256(name.encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64 * sum(shares)
    for split, share in zip(SPLITS, shares, strict=True):
        place -= share
        if place < 0:
            return split
    return SPLITS[-1]
