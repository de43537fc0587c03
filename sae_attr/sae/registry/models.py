"""The models that registered SAEs belong to: hub id, widths and number of layers.

Source: the models' own config.json. A width is None where nobody has looked it up; an
SAE's files say it when they are read.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A model as far as an SAE depends on it.

    Args:
      hub_id: as `lm=` takes it.
      layers: blocks.
      width: of the residual stream.
      heads_width: of all heads' outputs side by side (attn_z).
      unread: why `lm=` does not read it; "" where it does.
    """

    hub_id: str
    layers: int
    width: int | None = None
    heads_width: int | None = None
    unread: str = ""

    def width_at(self, point: str) -> int | None:
        """Returns how many numbers an activation at a point has; None if unknown."""
        return self.heads_width if point == "attn_z" else self.width


_GEMMA_1 = "Gemma 1 is no family that lm= reads"
_QWEN_3_5 = "Qwen 3.5 (linear attention) is no family that lm= reads"

# Name in SAELens' registry -> model.
MODELS: dict[str, Model] = {
    "gpt2-small": Model("openai-community/gpt2", 12, 768, 768),
    "pythia-70m-deduped": Model("EleutherAI/pythia-70m-deduped", 6, 512, 512),
    "mistral-7b": Model("mistralai/Mistral-7B-v0.1", 32, 4096, 4096),
    "gemma-2b": Model("google/gemma-2b", 18, 2048, 2048, _GEMMA_1),
    "gemma-2b-it": Model("google/gemma-2b-it", 18, 2048, 2048, _GEMMA_1),
    "gemma-2-2b": Model("google/gemma-2-2b", 26, 2304, 2048),
    "gemma-2-9b": Model("google/gemma-2-9b", 42, 3584, 4096),
    "gemma-2-9b-it": Model("google/gemma-2-9b-it", 42, 3584, 4096),
    "gemma-2-27b": Model("google/gemma-2-27b", 46, 4608, 4096),
    "google/gemma-3-270m": Model("google/gemma-3-270m", 18, 640, 1024),
    "google/gemma-3-270m-it": Model("google/gemma-3-270m-it", 18, 640, 1024),
    "google/gemma-3-1b-pt": Model("google/gemma-3-1b-pt", 26, 1152, 1024),
    "google/gemma-3-1b-it": Model("google/gemma-3-1b-it", 26, 1152, 1024),
    "google/gemma-3-4b-pt": Model("google/gemma-3-4b-pt", 34, 2560, 2048),
    "google/gemma-3-4b-it": Model("google/gemma-3-4b-it", 34, 2560, 2048),
    "google/gemma-3-12b-pt": Model("google/gemma-3-12b-pt", 48, 3840, 4096),
    "google/gemma-3-12b-it": Model("google/gemma-3-12b-it", 48, 3840, 4096),
    "google/gemma-3-27b-pt": Model("google/gemma-3-27b-pt", 62, 5376, 4096),
    "google/gemma-3-27b-it": Model("google/gemma-3-27b-it", 62, 5376, 4096),
    "meta-llama/Meta-Llama-3-8B-Instruct": Model(
        "meta-llama/Meta-Llama-3-8B-Instruct", 32, 4096, 4096
    ),
    "meta-llama/Llama-3.1-8B": Model("meta-llama/Llama-3.1-8B", 32, 4096, 4096),
    "meta-llama/Llama-3.1-8B-Instruct": Model(
        "meta-llama/Llama-3.1-8B-Instruct", 32, 4096, 4096
    ),
    "meta-llama/Llama-3.3-70B-Instruct": Model(
        "meta-llama/Llama-3.3-70B-Instruct", 80, 8192, 8192
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": Model(
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 32, 4096, 4096
    ),
    "openai/gpt-oss-20b": Model("openai/gpt-oss-20b", 24, 2880, 4096),
    "Qwen/Qwen2.5-7B-Instruct": Model("Qwen/Qwen2.5-7B-Instruct", 28, 3584, 3584),
    "qwen3-0.6b": Model("Qwen/Qwen3-0.6B", 28, 1024, 2048),
    "qwen3-1.7b": Model("Qwen/Qwen3-1.7B", 28, 2048, 2048),
    "qwen3-4b": Model("Qwen/Qwen3-4B", 36, 2560, 4096),
    "qwen3-8b": Model("Qwen/Qwen3-8B", 36, 4096, 4096),
    "qwen3-14b": Model("Qwen/Qwen3-14B", 40, 5120, 5120),
    "Qwen/Qwen3-1.7B-Base": Model("Qwen/Qwen3-1.7B-Base", 28, 2048, 2048),
    "Qwen/Qwen3-8B-Base": Model("Qwen/Qwen3-8B-Base", 36, 4096, 4096),
    "Qwen/Qwen3-30B-A3B-Base": Model("Qwen/Qwen3-30B-A3B-Base", 48, 2048, 4096),
    "Qwen/Qwen3.5-2B-Base": Model("Qwen/Qwen3.5-2B-Base", 24, unread=_QWEN_3_5),
    "Qwen/Qwen3.5-9B-Base": Model("Qwen/Qwen3.5-9B-Base", 32, unread=_QWEN_3_5),
    "Qwen/Qwen3.5-27B": Model("Qwen/Qwen3.5-27B", 64, unread=_QWEN_3_5),
    "Qwen/Qwen3.5-35B-A3B-Base": Model(
        "Qwen/Qwen3.5-35B-A3B-Base", 40, unread=_QWEN_3_5
    ),
}
