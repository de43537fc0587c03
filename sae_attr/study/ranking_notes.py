"""What a reader of a ranking must know: choices, inputs, facts about pairs, warnings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sae_attr.activations import MeanActivation
from sae_attr.attribution.token_table import TokenTable
from sae_attr.hooks import Site
from sae_attr.lm.gguf_weights import quantisation_text
from sae_attr.store import fingerprint
from sae_attr.study.setup import Setup
from sae_attr.text.rows import scope_mask

LENGTHS_APART = 0.1  # share by which mean lengths of the sides may differ silently


def choices(setup: Setup, limits: Mapping[Site, float]) -> dict[str, Any]:
    """Returns everything that the method leaves open, as this run has it."""
    norms = {str(site): limit for site, limit in limits.items()}
    bos = setup.prepend_bos
    return {
        "site": str(setup.site),
        "encoded_site": str(setup.read_site),
        "gradient": _gradient(setup),
        "masks": {**setup.masks.to_dict(), "norm_limits": norms},
        "prepend_bos": "as the tokenizer does" if bos is None else bos,
        "decoder_rows": "scaled to unit norm",
        "mean": "mean activation of the studied model over the corpus, same mask as δ",
        "order": "mean over a completion's tokens, difference within the prompt, mean "
        "over prompts; signed, descending",
        "context": setup.context,
        "corpus_context": setup.corpus_context,
        "sae": vars(setup.sae_cfg),
        **_quantised(setup),
        "settings": vars(setup.settings),
    }


def _quantised(setup: Setup) -> dict[str, Any]:
    """Returns the types that a model's weights are dequantised from, nothing for
    weights that are read as they are.
    """
    types = setup.model_files.quantisation
    return {"quantisation": types} if types else {}


def _gradient(setup: Setup) -> dict[str, Any]:
    """Returns what stands for g_t in δ."""
    s = setup.settings
    if s.gradient != "integrated":
        return {"name": s.gradient, "backward_rules": sorted(s.rules)}
    return {
        "name": "integrated",
        "form": "joint",
        "steps": s.gradient_steps,
        "rule": "midpoint",
        "moved": s.presets()[0].tokens,
    }


def input_keys(setup: Setup) -> dict[str, str]:
    """Returns the hashes of all files that a run reads."""
    s = setup.settings
    keys = {
        "lm": setup.lm_key,
        "sae": setup.sae_key,
        "pairs": fingerprint(s.pairs),
        "corpus": fingerprint(s.corpus),
    }
    source = setup.sae_files.source
    if source != s.sae:  # on the hub: the commit that was read
        keys["sae_source"] = source
    if s.lm_aligned:
        keys["lm_aligned"] = setup.aligned_key
    return keys


def masked_counts(
    setup: Setup, table: TokenTable, mean: MeanActivation
) -> dict[str, int]:
    """Counts the tokens that masks leave out: of the corpus for their norm, of prompts
    and completions for any reason.
    """
    counted = sinks = 0
    for row in table.rows:
        counted += int(scope_mask(row, "all", exclude=setup.exclude).sum())
        if row.masked is not None:
            sinks += int(row.masked.sum())
    tokens = len(table.acts_kd)
    return {
        "corpus_outliers": mean.outliers,
        "tokens": tokens,
        "left_out": tokens - counted,
        "first_and_outliers": sinks,
    }


def pair_facts(setup: Setup, table: TokenTable) -> dict[str, Any]:
    """Returns counts, lengths and nats per token of both sides, and the samplers."""
    facts: dict[str, Any] = {
        "prompts": len(setup.pairs),
        "straddling_tokens": setup.encoded.straddling,
    }
    for side, name in ((1, "positive"), (-1, "negative")):
        members, rows = [], []
        for r, row in enumerate(table.rows):
            if row.side == side:
                members.append(r)
                rows.append(row)
        if not members:
            continue
        lengths = np.array([len(row.ids) - row.n_prompt for row in rows])
        facts[name] = {
            "completions": len(members),
            "mean_tokens": float(lengths.mean()),
            "nats_per_token": float(table.nll_r[members].sum() / lengths.sum()),
        }
    samplers = sorted({pair.sampler or "unknown" for pair in setup.pairs})
    facts["samplers"] = samplers
    facts["on_policy"] = samplers == [setup.lm_key]
    return facts


def warnings(
    setup: Setup,
    pairs: Mapping[str, Any],
    sae_check: Mapping[str, Any],
    presets: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Returns what a reader must know about SAE, pairs and rankings, a sentence each.

    Args:
      pairs: of `pair_facts`.
      sae_check: the self-test as result.json has it.
      presets: per preset its facts, `ranked` among them.
    """
    return [
        *_about_models(setup),
        *_about_sae(sae_check),
        *_about_pairs(setup, pairs),
        *_about_pools(presets),
    ]


def _about_models(setup: Setup) -> Iterator[str]:
    for name, types in setup.model_files.quantisation.items():
        yield (
            f"{name} is a GGUF whose weights are dequantised "
            f"({quantisation_text(types)} tensors): results are about the model that "
            "llama.cpp runs, not the one that was quantised"
        )


def _about_sae(sae_check: Mapping[str, Any]) -> Iterator[str]:
    for finding in sae_check.get("findings", ()):
        yield f"SAE, {finding['code']}: {finding['text']}"
    if "skipped" in sae_check:
        yield f"SAE, not tested: {sae_check['skipped']}"


def _about_pairs(setup: Setup, pairs: Mapping[str, Any]) -> Iterator[str]:
    s = setup.settings
    scopes = {preset.tokens for preset in s.presets()}
    if not pairs["on_policy"]:
        yield (
            "pairs are not known to be on-policy: sampler "
            f"{', '.join(pairs['samplers'])}, model {setup.lm_key}; the method "
            "expects completions that the studied model itself sampled"
        )
    if "negative" in pairs and "positive" in pairs:
        positive, negative = (pairs[n]["mean_tokens"] for n in ("positive", "negative"))
        apart = abs(positive / negative - 1) > LENGTHS_APART
        if apart and s.loss == "sum" and scopes - {"prompt"}:
            yield (
                f"positives have {positive:.1f} tokens and negatives {negative:.1f}: "
                "with a summed loss and completion tokens in "
                "the scope this difference leaks into Δ; compare with loss=mean"
            )
    if s.gradient == "integrated" and len(scopes) > 1:
        yield (
            "integrated gradients move the positions of the primary preset's scope "
            f"{s.presets()[0].tokens!r}; presets of other scopes use "
            "the same gradients"
        )
    if "negative" not in pairs:
        yield "no record has a negative: this is the plain mean of δ, not a difference"


def _about_pools(presets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    for name, facts in presets.items():
        ranked = facts["ranked"]
        if ranked["latents"] < ranked["of"]:
            yield (
                f"ranking {name!r} looked at {ranked['latents']:,} of {ranked['of']:,} "
                f"latents ({ranked['by']}), because its "
                "score of all of them exceeds dense_limit; with a larger dense_limit "
                "it looks at all"
            )
