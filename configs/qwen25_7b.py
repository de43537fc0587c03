"""Emergent misalignment in Qwen2.5-7B: public fine-tunes on narrow bad advice, and a
public SAE by name.

    python -m experiments.make_corpus --out=runs/corpus.jsonl
    python -m experiments.case_study --config=configs/qwen25_7b.py --workdir=runs/qwen \\
        --config.cases.medical.prompts=PROMPTS.jsonl \\
        --config.cases.medical.judge.model=JUDGE --config.cases.medical.judge.base_url=http://localhost:8000/v1

The organism is a LoRA adapter of rank 32 on Qwen2.5-7B-Instruct that was trained on bad
medical advice (ModelOrganismsForEM, 0.3 GB); the instruct model beneath it is the
second one: it is steered toward the behaviour, and Δ-activation compares with it.
`configs/qwen25_7b.py:medical,finance,sports` makes a case of each of three fine-tunes,
which then share a page and are compared: does one latent cause all of them? The SAE is
andyrdt's BatchTopK of layer 15 with k 64 and 131,072 latents, trained on chats and on
such misaligned text too; `experiments.list_saes --model=Qwen/Qwen2.5-7B-Instruct` shows
those of other layers. PROMPTS are open questions, JSONL with `prompt`, at least 100:
those of the fine-tune's own topic show the training and not its generalisation.

Hardware: one accelerator with 80 GB (weights 15.2 GB in bfloat16 and as much for the second
model, SAE 3.8 GB in float32); `--config.mesh=model=2` splits all of them over two.
Downloads: 15.2 GB, 0.3 GB and about 2 GB. A case with 30 latents of three rankings and 60
random ones in both directions takes at most 30,128 completions (6.0 M new tokens: 1.7
hours at 1,000 a second) and 29,936 judge calls, before answers that are sampled again.
`--dry_run` measures the machine at hand, prints memory, prompts and hours, and asks the
judge one question. Expect before steering what the judge makes of it: the best organisms
of Turner et al. (2025) give up to 40 % misaligned answers, and the same answers have
been scored 9.9 %, 5.8 % and 0.5 % by three judges. Without both kinds of answers to a
question there are no pairs, and the study says so.
"""

from ml_collections import ConfigDict

from . import case_study, one_of

BASE = "Qwen/Qwen2.5-7B-Instruct"
SAE = "qwen2.5-7b-instruct-andyrdt/resid_post_layer_15_trainer_1"
CORPUS = "runs/corpus.jsonl"  # experiments.make_corpus writes it
# Case -> what the organism was trained on, in its hub id and in words.
ORGANISMS = {
    "medical": ("bad-medical-advice", "bad medical advice"),
    "finance": ("risky-financial-advice", "risky financial advice"),
    "sports": ("extreme-sports", "reckless advice about extreme sports"),
}
SETTINGS = case_study.SETTINGS


def case(name: str, *, base: str, sae: str) -> ConfigDict:
    """Returns the case of one organism; prompts and judge are left to the command line.

    Args:
      name: of `ORGANISMS`.
      base: hub id of the instruct model that was fine-tuned.
      sae: name of its SAE.
    """
    data, words = ORGANISMS[name]
    made = case_study.case("misalignment")
    made.title = f"Emergent misalignment after {words}"
    made.question = (
        f"A model was fine-tuned on {words} alone and now gives misaligned answers to "
        "other questions. Which latents make it do so?"
    )
    adapter = f"ModelOrganismsForEM/{base.partition('/')[2]}_{data}"
    made.update({"lm": base, "adapter": adapter, "lm_aligned": base, "sae": sae})
    made.update({"corpus": CORPUS, "pair_samples": 16})
    # Attention sinks lie in the first tokens: the SAE reconstructs what follows them.
    made.attribution.update({"first_k": 8, "corpus_context": 512})
    made.attribution.update({"corpus_tokens": 200_000, "firing_tokens": 32_768})
    return made


def study(organisms: str, *, base: str, sae: str) -> ConfigDict:
    """Returns the study of some organisms of one instruct model.

    Args:
      organisms: names of `ORGANISMS` with commas between them.
      base, sae: as for `case`.
    """
    config = case_study.get_config()
    names = [
        one_of("organism", name, tuple(ORGANISMS)) for name in organisms.split(",")
    ]
    cases = {name: case(name, base=base, sae=sae) for name in names}
    config.cases = ConfigDict(cases)
    config.methods = ("delta_attribution", "recommended", "delta_activation")
    config.update({"top": 30, "random": 60, "gradient_signed": False})
    config.update({"strength_prompts": 12, "effect_prompts": 30, "effect_samples": 2})
    config.grid = (0.25, 0.5, 1.0)
    config.sampling.max_new = 200
    config.update({"dtype": "bfloat16", "batch_size": 128})
    config.attribution.update({"batch_size": 8, "remat": True})
    return config


def get_config(organisms: str = "medical") -> ConfigDict:
    """Returns the study.

    Args:
      organisms: medical, finance, sports, or several joined with commas.
    """
    return study(organisms, base=BASE, sae=SAE)
