"""What every entrypoint shares: versions, plain JSON values, errors as one line."""

from __future__ import annotations

import io
import json
import logging
import platform
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import jax
import numpy as np
from absl import app
from ml_collections import ConfigDict

import sae_attr
from sae_attr.attribution.settings import Settings
from sae_attr.attribution.study import Study

OTHER_KEYS = ("mesh", "compare")  # keys of a config that are no settings of a study
LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "scipy", "tokenizers", "safetensors")


def versions() -> dict[str, Any]:
    """Versions of this project, its libraries and Python, and the devices."""
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    devices = [f"{d.platform}:{d.device_kind}" for d in jax.devices()]
    return {"sae_attr": sae_attr.__version__, "python": platform.python_version(), **libraries, "devices": devices}


def plain(value: Any) -> Any:
    """`json.dumps(default=...)`: numpy numbers and arrays, sets and paths as plain values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)


def json_text(value: Any) -> str:
    """JSON for people and for strict readers: NaN and infinity, which JSON does not know, become null."""
    finite = json.loads(json.dumps(value, default=plain), parse_constant=lambda _: None)
    return json.dumps(finite, indent=1, ensure_ascii=False) + "\n"


def npz_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as the bytes of an uncompressed .npz."""
    buffer = io.BytesIO()
    kwargs: dict[str, Any] = dict(arrays)
    np.savez(buffer, **kwargs)
    return buffer.getvalue()


def settings_of(config: ConfigDict) -> Settings:
    """`Settings` from the config; a ValueError names what is missing or unknown."""
    values = {k: v for k, v in config.to_dict().items() if k not in OTHER_KEYS}
    absent = [k for k in ("lm", "sae", "pairs", "corpus") if not values.get(k)]
    if absent:
        raise ValueError(f"the config lacks {', '.join(absent)}; add " + " ".join(f"--config.{k}=PATH" for k in absent))
    if values["exclude"] is not None:
        values["exclude"] = tuple(values["exclude"])
    values["sae_options"] = {k: v for k, v in values["sae_options"].items() if v is not None}
    return Settings(**values)


def choices(study: Study) -> dict[str, Any]:
    """Everything that the method leaves open, as it was chosen here."""
    return {
        "site": str(study.site),
        "encoded_site": str(study.read_site),
        "gradient": gradient_choice(study),
        "excluded_tokens": sorted(study.exclude) or "padding only",
        "prepend_bos": "as the tokenizer does" if study.prepend_bos is None else study.prepend_bos,
        "decoder_rows": "scaled to unit norm",
        "mean": "mean activation of the studied model over the corpus, same mask as δ",
        "order": "mean over a completion's tokens, difference within the prompt, mean over prompts; signed, descending",
        "context": study.context,
        "corpus_context": study.corpus_context,
        "sae": vars(study.sae_cfg),
        "settings": vars(study.settings),
    }


def gradient_choice(study: Study) -> dict[str, Any]:
    """What stood for g_t in δ."""
    s = study.settings
    if s.gradient == "integrated":
        scope = s.presets()[0].tokens
        return {"name": "integrated", "form": "joint", "steps": s.gradient_steps, "rule": "midpoint", "moved": scope}
    return {"name": s.gradient, "backward_rules": sorted(s.rules)}


def summary_text(summary: Mapping[str, Any]) -> str:
    """The few numbers that tell how far the ranking can be trusted."""
    pairs, exact = summary["pairs"], summary["exact_ablation"]
    lines = [f"{pairs['prompts']} prompts"]
    for side in ("positive", "negative"):
        if side in pairs:
            p = pairs[side]
            lines.append(
                f"{side}: {p['completions']} completions of {p['mean_tokens']:.1f} tokens, {p['nats_per_token']:.3f} nats/token"
            )
    primary = summary["presets"][summary["primary"]]
    lines.append(f"mean activation over {summary['mean']['tokens']:,} tokens, mean norm {summary['mean']['norm']:.3f}")
    lines.append(
        f"best latent reaches {100 * summary['bound']['best_over_bound']:.0f} % of what any direction could score"
    )
    stability = summary["stability"]
    lines.append(
        f"halves of the prompts: top overlap {stability['half_overlap']:.2f}, Spearman over the dictionary "
        f"{stability['half_spearman']:.2f}"
    )
    lines.append(
        "overlap of the top with: " + ", ".join(f"{k} {v:.2f}" for k, v in primary["overlap"].items() if k != "random")
    )
    lines.append(f"overlap with the same ranking around the prompts' own mean: {summary['prompt_mean_overlap']:.2f}")
    if "joint_per_latent" in exact:
        for name in ("joint_per_latent", "joint_per_completion", "single_position"):
            c = exact[name]
            lines.append(
                f"exact ablation, {name.replace('_', ' ')}: Pearson {c['pearson']:.3f}, Spearman {c['spearman']:.3f}"
            )
        lines.append(f"the first-order step fails for {exact['latents_where_taylor_fails']} ablated latents (marked !)")
    lines += [f"not computed: {name} ({why})" for name, why in summary["skipped"].items()]
    return "\n" + "\n".join(lines)


def run_app(main: Callable[[list[str]], None]) -> None:
    """`app.run`, with an input error as one message instead of a traceback (exit status 1)."""
    # jax tells at INFO which accelerators it did not find; that reads like an error and is none.
    logging.getLogger("jax").setLevel(logging.WARNING)
    app.run(guarded(main), flags_parser=parse_flags)


def guarded(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """`main` that ends an input error with one message on stderr and exit status 1; a bug keeps its traceback."""

    def run(argv: list[str]) -> None:
        try:
            main(argv)
        except (ValueError, OSError, RuntimeError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError):
                raise
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    return run


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with an unknown config key or an absent config file as one message."""
    try:
        return app.parse_flags_with_usage(argv)
    except AttributeError as error:  # what a locked ConfigDict raises for a key that it does not have
        named = str(error).strip("\"'")
        print(f"error: the config has no key {named!r}; configs/attribute.py lists them", file=sys.stderr)
    except OSError as error:
        print(f"error: {error}; check --config", file=sys.stderr)
    sys.exit(1)
