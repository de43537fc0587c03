"""Token rows, the roles of their tokens, and which positions count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sae_attr.text.masks import REASONS, Masks, check_exclude
from sae_attr.text.tokenizer import Tokenizer, token_strings

# Codes are positions in the tuple. 'last' is the final prompt token, whatever it is;
# 'bos' a BOS at the front only, 'special' every other special token inside the prompt,
# 'template' the text that a chat template writes, 'user' the text of a plain prompt or
# of messages that are neither the system's nor the assistant's.
ROLES = (
    *("pad", "bos", "template", "user", "last", "completion"),
    *("system", "assistant", "special"),
)
SCOPES = ("prompt", "completion", "all")
PAD, BOS, TEMPLATE, USER, LAST, COMPLETION, SYSTEM, ASSISTANT, SPECIAL = range(
    len(ROLES)
)


@dataclass(frozen=True, eq=False)
class TokenRow:
    """One prompt with one completion as tokens.

    Args:
      ids: int32 [t].
      n_prompt: tokens of the prompt, BOS included; ids[n_prompt:] is the completion.
      roles: int8 [t], codes of `ROLES`.
      special: bool [t], ids that are special tokens (BOS among them).
      pair: index in the list of pairs.
      side: +1 positive, -1 negative.
      completion: index within the side.
      masked: bool [t], tokens that never count, whatever the scope: the first k,
        attention sinks; None: no such token.
    """

    ids: np.ndarray
    n_prompt: int
    roles: np.ndarray
    special: np.ndarray
    pair: int
    side: int
    completion: int
    masked: np.ndarray | None = None


def is_special(ids: Sequence[int], tok: Tokenizer) -> np.ndarray:
    """Returns which token ids are special tokens of the tokenizer, bool `[t]`."""
    return np.fromiter((i in tok.special_ids for i in ids), bool, len(ids))


def scope_mask(
    row: TokenRow | tuple[np.ndarray, np.ndarray],
    scope: str,
    *,
    exclude: frozenset[str] = frozenset(),
) -> np.ndarray:
    """Returns the positions that count: one rule for scores and for the mean activation.

    Args:
      row: a row, whose `masked` tokens never count, or its (roles, special) as arrays
        of any equal shape.
      scope: prompt, completion (the completion's own tokens, not those that predict
        them) or all; never padding.
      exclude: of "bos" (the BOS at the front) and "special" (every special token, BOS
        among them).

    Returns:
      bool, the shape of the roles.

    Raises:
      ValueError: unknown scope or exclusion.
    """
    if scope not in SCOPES:
        raise ValueError(
            f"scope {scope!r} is unknown; choose one of {', '.join(SCOPES)}"
        )
    check_exclude(exclude)
    roles, special = (row.roles, row.special) if isinstance(row, TokenRow) else row
    mask = roles != PAD
    if scope != "all":
        mask &= (roles == COMPLETION) == (scope == "completion")
    if "bos" in exclude:
        mask &= roles != BOS
    if "special" in exclude:
        mask &= ~special
    if isinstance(row, TokenRow) and row.masked is not None:
        mask &= ~row.masked
    return mask


def mask_codes(
    tokens_bt: np.ndarray,
    valid_bt: np.ndarray,
    special_bt: np.ndarray,
    *,
    bos_id: int | None,
    masks: Masks,
    since_bt: np.ndarray | None = None,
) -> np.ndarray:
    """Returns why positions of ordinary text do not count, int8 [b, t] codes of `REASONS`.

    Of several reasons the first is returned. Only what token ids decide is covered:
    outliers are known from activations alone, see `masks.beyond_limits`.

    Args:
      special_bt: special ids, BOS among them.
      since_bt: tokens since the text began; None where each row is one text.
    """
    if since_bt is None:
        since_bt = np.broadcast_to(np.arange(tokens_bt.shape[1]), tokens_bt.shape)
    roles_bt = np.where(valid_bt, USER, PAD)
    if bos_id is not None:
        roles_bt[valid_bt & (since_bt == 0) & (tokens_bt == bos_id)] = BOS
    codes_bt = np.where(valid_bt, 0, REASONS.index("padding")).astype(np.int8)
    for name in sorted(masks.exclude):  # bos before special
        counts_bt = scope_mask((roles_bt, special_bt), "all", exclude=frozenset({name}))
        codes_bt[(codes_bt == 0) & ~counts_bt] = REASONS.index(name)
    codes_bt[(codes_bt == 0) & (since_bt < masks.first_k)] = REASONS.index("first_k")
    return codes_bt


def corpus_mask(
    tokens_bt: np.ndarray,
    valid_bt: np.ndarray,
    special_bt: np.ndarray,
    tok: Tokenizer,
    *,
    masks: Masks,
) -> np.ndarray:
    """Returns which positions of a text batch count by their token ids, bool [b, t]."""
    codes_bt = mask_codes(
        tokens_bt, valid_bt, special_bt, bos_id=tok.bos_id, masks=masks
    )
    return codes_bt == 0


def shown_tokens(
    row: TokenRow, tok: Tokenizer, *, exclude: frozenset[str] = frozenset()
) -> str:
    """Returns the table that `--show_tokens` prints for a row: each token, its role, and
    the scopes in which it counts.
    """
    masks = {scope: scope_mask(row, scope, exclude=exclude) for scope in SCOPES}
    side = "positive" if row.side > 0 else "negative"
    lines = [
        f"pair {row.pair} {side} {row.completion}: {len(row.ids)} tokens, "
        f"{row.n_prompt} of the prompt; masked: "
        f"{', '.join(sorted(exclude)) or 'nothing'}",
        f"{'pos':>5} {'id':>7}  {'token':<20} {'role':<10} counts in",
    ]
    for t, text in enumerate(token_strings(tok, row.ids)):
        counts = " ".join(scope for scope in SCOPES if masks[scope][t]) or "masked"
        lines.append(
            f"{t:>5} {row.ids[t]:>7}  {text!r:<20} {ROLES[row.roles[t]]:<10} {counts}"
        )
    return "\n".join(lines)
