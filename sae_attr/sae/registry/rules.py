"""What the entries of SAELens' registry leave to its loaders: the format of the files,
the site, and the number of latents.

Source: SAELens 6.54 `loading/pretrained_sae_loaders.py`; the widths that no path states
are those of the releases' model cards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Loader:
    """One loader of SAELens, and how its files are read here.

    Args:
      format: name in `formats.FORMATS`; "" where no format here reads them.
      stored_bytes: of one weight on disk; None where releases differ.
      is_file: whether a path is a weight file and not a folder.
      unread: why no format reads them.
    """

    format: str
    stored_bytes: int | None = None
    is_file: bool = False
    unread: str = ""


# conversion_func -> loader; SAELens' own layout has none.
LOADERS: dict[str, Loader] = {
    "sae_lens": Loader("saelens"),
    "gemma_2": Loader("gemma_scope", 4),
    "gemma_2_transcoder": Loader("gemma_scope", 4),
    "gemma_3": Loader("gemma_scope_2", 4),
    "dictionary_learning_1": Loader("dictionary_learning"),
    "llama_scope": Loader("llama_scope", 2),
    "llama_scope_r1_distill": Loader("llamascopium"),
    "mwhanna_transcoder": Loader("circuit_tracer", is_file=True),
    "connor_rob_hook_z": Loader("connor_rob", 4, is_file=True),
    "deepseek_r1": Loader("qresearch", 2, is_file=True),
    "goodfire": Loader("goodfire", is_file=True),
    "qwen_scope": Loader("qwen_scope", is_file=True),
    "temporal": Loader("temporal"),
    "mntss_clt_layer_transcoder": Loader(
        "",
        unread="its latents are those of a cross-layer transcoder: each one writes to "
        "all later layers, and a ranking by one decoder row would leave that out",
    ),
}

_POINTS = {"R": "resid_post", "A": "attn_out", "M": "mlp_out"}  # Llama Scope
_GEMMA_2 = {"res": "resid_post", "att": "attn_z", "mlp": "mlp_out"}
_GEMMA_3 = {"resid_post": "resid_post", "attn_out": "attn_z", "mlp_out": "mlp_out"}
_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "hook_z": "attn_z",
}
# Powers of two under their usual names.
_WIDTHS = {f"{2**p // 1000}k": 2**p for p in range(12, 20)} | {"1m": 2**20}
_WIDTHS |= {f"{2**p // 1024}k": 2**p for p in range(12, 20)}
# Release -> latents, where no name states them.
_LATENTS = {
    "llama-3.1-8b-instruct-andyrdt": 131_072,
    "qwen2.5-7b-instruct-andyrdt": 131_072,
    "goodfire-llama-3.1-8b-instruct": 65_536,
    "goodfire-llama-3.3-70b-instruct": 65_536,
    "deepseek-r1-distill-llama-8b-qresearch": 65_536,
    "gpt2-small-res-jb": 24_576,
}
# Releases whose entry names another model than the one they were trained on.
_MODELS = {"gemma-scope-9b-it-res": "gemma-2-9b-it"}


def model_of(release: str, stated: str) -> str:
    """Returns the name of the model that a release belongs to."""
    return _MODELS.get(release, stated)


def sites(loader: str, release: str, sae_id: str, path: str) -> tuple[str, str]:
    """Returns the site that an SAE reads, and the one that it writes to if that is
    another: `layer3.mlp_in`, `layer3.mlp_out`; "" for none.

    Raises:
      ValueError: a place that the rules do not know.
    """
    if loader in ("gemma_2_transcoder", "mwhanna_transcoder"):
        return f"{_layer(sae_id)}.mlp_in", f"{_layer(sae_id)}.mlp_out"
    if loader == "mntss_clt_layer_transcoder":
        return f"{_layer(sae_id)}.mlp_in", ""
    if loader == "gemma_3":
        return _gemma_3_sites(path)
    if loader == "gemma_2":
        return _gemma_2_site(release, path), ""
    if loader in ("llama_scope", "llama_scope_r1_distill"):
        place = _match(r"L(\d+)([RAM])(?:-\d+x)?$", path)
        return f"layer{place[1]}.{_POINTS[place[2]]}", ""
    if loader in ("qwen_scope", "goodfire"):
        return f"{_layer(sae_id)}.resid_post", ""
    if loader == "dictionary_learning_1":
        return f"{_layer(_match(r'resid_post_layer_[0-9]+', path)[0])}.resid_post", ""
    hook = _match(
        r"blocks\.(\d+)\.(?:attn\.)?(hook_(?:resid_)?[a-z]+(?:_out)?)", sae_id
    )
    return f"layer{hook[1]}.{_HOOKS[hook[2]]}", ""


def _gemma_2_site(release: str, path: str) -> str:
    if path.startswith("embedding/"):
        return "layer0.resid_pre"
    kind = release.removesuffix("-canonical").rpartition("-")[2]
    return f"{_layer(path)}.{_GEMMA_2[kind]}"


def _gemma_3_sites(path: str) -> tuple[str, str]:
    folder = path.partition("/")[0].removesuffix("_all")
    if folder == "transcoder":
        return f"{_layer(path)}.mlp_in", f"{_layer(path)}.mlp_out"
    return f"{_layer(path)}.{_GEMMA_3[folder]}", ""


def _layer(text: str) -> str:
    """`layer3`, as sites begin, from `layer_3` or `layer3`."""
    return f"layer{_match(r'layer_?([0-9]+)', text)[1]}"


def latents(
    release: str, repo: str, path: str, neuronpedia: str, width: int | None
) -> int | None:
    """Returns the number of latents that names state; None where none does.

    Args:
      width: of the model, for names that state a multiple of it.
    """
    if release in _LATENTS:
        return _LATENTS[release]
    where = f"{repo}/{path}"
    if power := re.search(r"width-2pow(\d+)", where):
        return 2 ** int(power[1])
    if times := re.search(r"-(\d+)x$", repo):
        return width * int(times[1]) if width else None
    if exact := re.search(r"(?:_ds|hook_\w+?_)(\d{3,})(?:_|:|$)", path):
        return int(exact[1])
    labels = re.findall(r"(?:width_|-w-|v5_|-W)(\d+[kKmM])(?![a-zA-Z0-9])", where)
    labels = labels or re.findall(r"[-_](\d+[km])(?:$|__)", neuronpedia)
    sizes = {_size(label.lower()) for label in labels}
    return sizes.pop() if len(sizes) == 1 else None


def _size(label: str) -> int | None:
    """65k and 64k are the same power of two; 80k is that many times 1,024."""
    thousands = int(label[:-1]) * 1024 if label[-1] == "k" else None
    return _WIDTHS.get(label, thousands)


def width_of(text: str) -> int:
    """Returns the number of latents that a text means: `16384`, `16k`, `1m`.

    Raises:
      ValueError: no number.
    """
    label = text.strip().lower().replace("_", "").replace(",", "")
    if label.isdecimal():
        return int(label)
    size = _size(label) if label[:-1].isdecimal() else None
    if size is None:
        raise ValueError(f"width {text!r} is no number of latents; write 16384 or 16k")
    return size


def _match(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"{text!r} does not say a place as {pattern} expects")
    return match
