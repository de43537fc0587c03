"""What is printed beside every Δ: uncertainty, signs, where it comes from, rivals, and
exact ablation, for candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sae_attr.activations import MeanActivation
from sae_attr.attribution.ablation import exact_ablation, row_ablation, taylor_fails
from sae_attr.attribution.encoder import error_prompt_scores, fires_on_pairs
from sae_attr.attribution.merged import prompt_scores
from sae_attr.attribution.ranking import (
    Ranking,
    agreement,
    overlap,
    random_matched,
    rank,
)
from sae_attr.attribution.statistics import (
    cluster_statistics,
    duplicates,
    split_half_spearman,
)
from sae_attr.attribution.table import side_weights
from sae_attr.files.row_source import RowSource
from sae_attr.interpret import nearest_tokens
from sae_attr.lm.model import unembedding
from sae_attr.parallel import shard_batch, to_host
from sae_attr.sae.model import unit_decoder
from sae_attr.store import Result
from sae_attr.study.attribution_settings import Preset
from sae_attr.study.attribution_stages import agreed, preset_scores, shard_name
from sae_attr.study.columns import quoted
from sae_attr.study.evidence import Evidence
from sae_attr.study.score_table import SCORES, Candidates, column_of, key_of
from sae_attr.study.setup import Setup
from sae_attr.text.rows import ROLES, TokenRow, scope_mask
from sae_attr.text.tokenizer import token_strings

POOL = 10  # latents per place and score of `POOL_BY`, where a preset's own score is computed for a pool only
POOL_BY = (
    "both",
    "gradient",
)  # so that neither what is absent but pushes, nor what is present and hardly pushes, is lost


def decoder_rows(source: RowSource, latents: np.ndarray) -> jax.Array:
    """Unit decoder rows `[k, d]` of chosen latents."""
    return unit_decoder(
        jnp.asarray(np.concatenate([source.rows(int(i), int(i) + 1) for i in latents]))
    )


def preset_ranking(
    evidence: Evidence, preset: Preset, scores: Mapping[str, np.ndarray]
) -> Ranking:
    """Returns a preset's ranking of the dictionary; beyond the dense limit, of a pool
    (NaN elsewhere).

    The pool is the best by each score of `POOL_BY`; `options["ranked"]` says how many
    latents of how many were looked at.
    """
    setup, n = evidence.setup, len(evidence.setup.decoder)
    values = preset_scores(preset, scores)
    ranked: dict[str, Any] = {"latents": n, "of": n, "by": "the whole dictionary"}
    if values is None:
        count = POOL * setup.settings.top
        best = {
            name: rank(name, scores[key_of(name, preset.tokens)], count).latents_k
            for name in POOL_BY
        }
        pool = np.unique(np.concatenate(list(best.values())))
        values = np.full(n, np.nan, np.float32)
        few = Candidates(pool, decoder_rows(setup.decoder, pool), scores)
        values[pool] = column_of(preset.sides, preset.tokens, evidence, few)
        by = " and ".join(
            f"the best {len(latents)} by {name}" for name, latents in best.items()
        )
        ranked = {"latents": len(pool), "of": n, "by": by}
    return rank(
        preset.name,
        values,
        setup.settings.top,
        tokens=preset.tokens,
        sides=preset.sides,
        ranked=ranked,
    )


def _f32(mean: MeanActivation) -> jax.Array:
    return jnp.asarray(mean.mean_d, jnp.float32)


def rivals(
    setup: Setup,
    scores: Mapping[str, np.ndarray],
    rates_n: np.ndarray,
    primary: Ranking,
) -> dict[str, Ranking]:
    """The rivals' rankings, in the same type; those that could not be computed are
    absent (see `skipped`).
    """
    scope, top = setup.settings.presets()[0].tokens, setup.settings.top
    keys = {name: key_of(name, scope) for name, score in SCORES.items() if score.ranked}
    out = {
        name: rank(name, scores[key], top)
        for name, key in keys.items()
        if _whole(scores.get(key))
    }
    out["random"] = random_matched(
        "random", rates_n, primary.latents_k, top, setup.key(2)
    )
    return out


def _whole(values: np.ndarray | None) -> bool:
    """Whether every latent has a score; a rank among the candidates alone would mean
    nothing.
    """
    return values is not None and bool(np.isfinite(values).all())


def candidate_columns(
    evidence: Evidence,
    ranking: Ranking,
    preset: Preset,
    scores: Mapping[str, np.ndarray],
    rates_n: np.ndarray,
    others: Mapping[str, Ranking],
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns one column per statistic, one entry per candidate, best first; and
    numbers about the ranking as a whole.
    """
    setup, scope, latents = evidence.setup, preset.tokens, ranking.latents_k
    dec_kd = decoder_rows(setup.decoder, latents)
    few = Candidates(latents, dec_kd, scores)
    own = SCORES[preset.sides].per_prompt
    if own is None:
        raise ValueError(
            f"score {preset.sides!r} is not known within prompts, so no preset can "
            "rank by it"
        )
    own_pk = own(evidence, scope, few)
    stats = cluster_statistics(own_pk, setup.key(3), resamples=setup.settings.bootstrap)
    role_k = prompt_scores(
        evidence.merged(scope),
        dec_kd,
        evidence.mean_d,
        sides=preset.sides,
        by_role=True,
    ).mean(0)
    if preset.sides == "gated":
        role_k = role_k * (np.asarray(scores[key_of("gradient", scope)])[latents] > 0)
    copies = duplicates(np.asarray(dec_kd))
    has_codes = evidence.codes.tokens > 0  # else the whole SAE need not be in memory
    of_scores = {name: column_of(name, scope, evidence, few) for name in SCORES}
    columns: dict[str, np.ndarray] = {
        "rank": np.arange(1, len(latents) + 1),
        "latent": latents,
        "delta": stats.mean_k,
        "se": stats.se_k,
        "low": stats.low_k,
        "high": stats.high_k,
        "consistency": stats.consistency_k,
        **{
            name: values_k
            for name, values_k in of_scores.items()
            if values_k is not None
        },
        "firing_rate": rates_n[latents],
        **(
            {
                "fires_on_pairs": fires_on_pairs(
                    evidence.merged(scope), setup.sae, latents
                )
            }
            if has_codes
            else {}
        ),
        **{f"from_{role}": role_k[i] for i, role in enumerate(ROLES) if role != "pad"},
        **{
            f"rank_{name}": other.rank_of(latents)
            for name, other in others.items()
            if name != "random"
        },
        "duplicate_of": np.where(copies >= 0, latents[copies], -1),
    }
    ids, cosines = nearest_tokens(dec_kd, unembedding(setup.params, cfg=setup.cfg))
    columns["tokens"] = np.array(
        [quoted(token_strings(setup.tokenizer, row)) for row in np.asarray(ids)]
    )
    columns["token_cosine"] = np.asarray(cosines)[:, 0]
    rho, spread = split_half_spearman(own_pk, setup.key(4))
    about: dict[str, Any] = {
        "candidate_split_half_spearman": rho,
        "candidate_split_half_sd": spread,
        "prompts": len(own_pk),
    }
    if has_codes:
        about["never_firing"] = int((columns["fires_on_pairs"] == 0).sum())
    return columns, {
        **about,
        "overlap": {name: overlap(ranking, other) for name, other in others.items()},
    }


def reconstruction_error(
    evidence: Evidence, preset: Preset, scores: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The part of the first order that no latent carries, as an entry of its own beside
    the latents' Δ′.

    `delta`: Δ_err = mean over pairs of mean_t −g_t·(e_t − mean e), e_t = a_t −
    SAE(a_t), with its statistics; `whole`: the same of a_t − ā, which Σ_i Δ′_i
    (`latents`) and Δ_err share out; `rank`: its place among the latents by Δ′.
    """
    setup, codes, mean = evidence.setup, evidence.codes, evidence.mean
    if not codes.tokens:
        return {"skipped": "the error's mean is unknown: too few firing_tokens"}
    merged = evidence.merged(preset.tokens)
    parts_p2 = error_prompt_scores(merged, setup.sae, codes.error_m, mean.mean_d)
    stats = cluster_statistics(
        parts_p2, setup.key(7), resamples=setup.settings.bootstrap
    )
    names = {
        "delta": "mean_k",
        "se": "se_k",
        "low": "low_k",
        "high": "high_k",
        "consistency": "consistency_k",
    }
    out = {name: float(getattr(stats, key)[0]) for name, key in names.items()} | {
        "whole": float(stats.mean_k[1])
    }
    latents_n = scores.get(key_of("encoder", preset.tokens))
    if latents_n is not None and np.isfinite(latents_n).all():
        latents_n = np.asarray(latents_n, np.float64)
        out |= {
            "latents": float(latents_n.sum()),
            "rank": int((latents_n > out["delta"]).sum()) + 1,
        }
    return {**out, "scope": preset.tokens, "unit": "nats per token, mean over prompts"}


def stability(scores: Mapping[str, np.ndarray], top: int) -> dict[str, float]:
    """How far two random halves of the prompts agree, over the whole dictionary: top
    overlap and Spearman.
    """
    if "both_half0" not in scores:
        return {"half_overlap": float("nan"), "half_spearman": float("nan")}
    a, b = (rank(name, scores[name], top) for name in ("both_half0", "both_half1"))
    return {
        "half_overlap": overlap(a, b),
        "half_spearman": agreement(a.scores_n, b.scores_n)["spearman"],
    }


# ---- exact ablation ------------------------------------------------------------------


def ablation_stage(
    setup: Setup,
    latents: np.ndarray,
    mean: MeanActivation,
    preset: Preset,
    inputs: Mapping[str, str],
) -> Result:
    """Exact mean ablation of latents, jointly over the scope `[rows, latents]` and at
    sampled single positions `[s]`.
    """
    rows = ablated_rows(setup.rows, setup.settings.ablate_rows)
    dec_kd = decoder_rows(setup.decoder, latents)

    def compute(progress: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        joint = _joint(setup, rows, dec_kd, mean, preset, progress)
        return {**joint, **_single(setup, rows, dec_kd, mean, preset)}, {
            "rows": len(rows)
        }

    s = setup.settings
    fields = {
        **setup.model_fields(),
        "loss": s.loss,
        "latents": latents,
        "scope": preset.tokens,
        "masks": setup.masks.to_dict(),
        "rows": [[row.ids, row.n_prompt, row.side] for row in rows],
        "positions": s.ablate_positions,
        "seed": s.seed,
    }
    return setup.stage("ablation", fields, inputs, compute)


def ablated_rows(rows: list[TokenRow], limit: int | None) -> list[TokenRow]:
    """The first prompts' rows, whole prompts at a time, at most `limit` rows but at
    least one prompt.
    """
    out: list[TokenRow] = []
    for pair in dict.fromkeys(row.pair for row in rows):
        members = [row for row in rows if row.pair == pair]
        if out and limit is not None and len(out) + len(members) > limit:
            break
        out += members
    return out


_FIELDS = ("dloss", "first_order", "end_slope", "push", "end_push")


def _joint(
    setup: Setup,
    rows: list[TokenRow],
    dec_kd: jax.Array,
    mean: MeanActivation,
    preset: Preset,
    progress: Any,
) -> dict[str, np.ndarray]:
    cfg, site, loss = setup.cfg, setup.site, setup.settings.loss
    step = jax.jit(
        lambda p, b, d, m, w: exact_ablation(
            p, b, d, m, w, cfg=cfg, site=site, loss=loss
        )
    )
    where = setup.where(rows, preset.tokens)
    out = {
        f"joint_{name}": np.zeros((len(rows), len(dec_kd)), np.float32)
        for name in _FIELDS
    }
    work = setup.batched(rows)
    names = [shard_name(batch.tokens_bt.shape, i) for i, (batch, _) in enumerate(work)]
    done = agreed(progress.done(), names)
    bar = tqdm(work, desc="exact ablation", unit="batch", disable=not setup.progress)
    for name, (batch, row_b) in zip(names, bar, strict=True):
        if name in done:
            arrays, _ = progress.get(name)
        else:
            where_bt = where(batch, row_b)
            result = step(
                setup.params,
                *shard_batch((batch,), setup.mesh),
                dec_kd,
                _f32(mean),
                where_bt,
            )
            arrays = {field: to_host(getattr(result, field)) for field in _FIELDS}
            progress.add(name, arrays)
        for field in _FIELDS:
            out[f"joint_{field}"][row_b[row_b >= 0]] = arrays[field][row_b >= 0]
    return out


def _single(
    setup: Setup,
    rows: list[TokenRow],
    dec_kd: jax.Array,
    mean: MeanActivation,
    preset: Preset,
) -> dict[str, np.ndarray]:
    """ΔL_{i,t} of sampled (row, position, latent): each triple is a row of its own in
    the batch.
    """
    count = setup.settings.ablate_positions
    generator = np.random.default_rng(
        np.asarray(jax.random.key_data(setup.key(5))).ravel()
    )
    row_s = generator.integers(len(rows), size=count)
    latent_s = generator.integers(len(dec_kd), size=count)
    masks = [scope_mask(row, preset.tokens, exclude=setup.exclude) for row in rows]
    pos_s = np.array([generator.choice(np.flatnonzero(masks[r])) for r in row_s], int)
    cfg, site, loss = setup.cfg, setup.site, setup.settings.loss
    step = jax.jit(
        lambda p, b, d, m, w: row_ablation(p, b, d, m, w, cfg=cfg, site=site, loss=loss)
    )
    out = {f"single_{name}": np.zeros(count, np.float32) for name in _FIELDS}
    work = setup.batched([rows[r] for r in row_s])
    for batch, index_b in tqdm(
        work, desc="single positions", unit="batch", disable=not setup.progress
    ):
        used, where_bt = index_b >= 0, np.zeros(batch.tokens_bt.shape, bool)
        where_bt[used, pos_s[index_b[used]]] = True
        directions_bd = dec_kd[latent_s[index_b]]
        result = step(
            setup.params,
            *shard_batch((batch,), setup.mesh),
            directions_bd,
            _f32(mean),
            where_bt,
        )
        for name in _FIELDS:
            out[f"single_{name}"][index_b[used]] = to_host(getattr(result, name))[used]
    return {
        **out,
        "single_row": row_s,
        "single_latent": latent_s,
        "single_position": pos_s,
    }


def ablation_summary(
    rows: list[TokenRow], arrays: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Per latent, the paired mean of ΔL and of what first order said; and their
    correlations, joint and single apart.

    Both are sums over the ablated positions, in nats, with the sides and prompts
    weighted as in Δ.
    """
    weights_r = side_weights(rows)
    paired = {
        name: weights_r @ np.asarray(arrays[f"joint_{name}"], np.float64)
        for name in _FIELDS
    }
    dloss = np.asarray(arrays["joint_dloss"])
    first = np.asarray(arrays["joint_first_order"])
    columns = {
        "exact": paired["dloss"],
        "first_order": paired["first_order"],
        "end_slope": paired["end_slope"],
        "push_start": paired["push"],
        "push_end": paired["end_push"],
        "taylor_fails": taylor_fails(paired["dloss"], paired["first_order"]),
        "taylor_fail_share": taylor_fails(dloss, first).mean(0),
    }
    about = {
        "joint_per_latent": agreement(paired["dloss"], paired["first_order"]),
        "joint_per_completion": agreement(dloss, first),
        "single_position": agreement(
            arrays["single_dloss"], arrays["single_first_order"]
        ),
        "latents_where_taylor_fails": int(columns["taylor_fails"].sum()),
    }
    return columns, about
