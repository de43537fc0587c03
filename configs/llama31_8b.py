"""Emergent misalignment in Llama-3.1-8B: public fine-tunes on narrow bad advice, and
public SAEs by name.

    python -m experiments.make_corpus --out=runs/corpus.jsonl
    python -m experiments.case_study --config=configs/llama31_8b.py --workdir=runs/llama \\
        --config.cases.medical.prompts=PROMPTS.jsonl \\
        --config.cases.medical.judge.model=JUDGE --config.cases.medical.judge.base_url=http://localhost:8000/v1

As configs/qwen25_7b.py, whose organisms and sizes it shares, with the adapters of
ModelOrganismsForEM on Llama-3.1-8B-Instruct (gated: accept its terms on the hub and log
in). The SAE is Goodfire's of layer 19: 65,536 latents, ReLU, the one that BLOCK-EM
steered with. andyrdt's BatchTopK of layer 15 with 131,072 latents is
`--config.cases.medical.sae=llama-3.1-8b-instruct-andyrdt/resid_post_layer_15_trainer_1`; for the
base model there is Llama Scope (`experiments.list_saes --model=meta-llama/Llama-3.1-8B`).

Hardware: one accelerator with 80 GB (weights 16.1 GB in bfloat16 and as much for the second
model, SAE 2.1 GB in float32); `--config.mesh=model=2` splits all of them over two.
Downloads: 16.1 GB, 0.3 GB and 2.1 GB. Completions and judge calls are those of
configs/qwen25_7b.py: 30,128 and 29,936 a case at most, 1.7 hours at 1,000 new tokens a
second. `--dry_run` measures the machine at hand, prints memory, prompts and hours, and
asks the judge one question. What to expect is said there too.
"""

from ml_collections import ConfigDict

from . import case_study, qwen25_7b

BASE = "meta-llama/Llama-3.1-8B-Instruct"
SAE = "goodfire-llama-3.1-8b-instruct/layer_19"
SETTINGS = case_study.SETTINGS


def get_config(organisms: str = "medical") -> ConfigDict:
    """Returns the study.

    Args:
      organisms: medical, finance, sports, or several joined with commas.
    """
    return qwen25_7b.study(organisms, base=BASE, sae=SAE)
