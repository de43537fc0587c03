"""Models that were loaded, written again: the same tensors under the same names, for
every family.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sae_attr.lm.save import save_lm
from sae_attr.lm.weights import load_lm
from sae_attr.parallel import make_mesh

FAMILIES = (
    *(
        "gemma2",
        "gemma3_text",
        "gpt2",
        "gpt_neox",
        "gpt_oss",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "phi3",
    ),
    *("qwen2", "qwen3", "qwen3_moe"),
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_written_as_it_was_read(
    shared: Path, tmp_path: Path, family: str
) -> None:
    folder = shared / "fixtures/hf" / family
    _, params = load_lm(str(folder), mesh=make_mesh("data=1"), progress=False)
    save_lm(tmp_path, json.loads((folder / "config.json").read_text()), params)
    want = {
        name: array
        for file in folder.glob("*.safetensors")
        for name, array in load_file(file).items()
    }
    got = load_file(tmp_path / "model.safetensors")
    assert set(got) == set(want)
    for name in want:
        np.testing.assert_array_equal(
            got[name], want[name].astype(np.float32), err_msg=name
        )
