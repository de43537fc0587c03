"""Host memory while a model is loaded, beyond the weights themselves; the ratio must
stay below 0.20.

Command: python -m benchmarks.load_memory
Hardware: any CPU with 6 GB of memory and 2 GB of disk in the temporary folder; about
  two minutes on 2 cores.
Expect: ratios from 0.05 to 0.13. On CPU the devices' memory is the host's, so that the
final weights count as well and are subtracted; mapped files are not anonymous memory
and do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from benchmarks._memory import Watch

LIMIT = 0.20
CASES = (
    ("", "bfloat16"),
    ("", "float32"),
    ("model=4", "bfloat16"),
    ("model=4", "float32"),
)  # mesh ("" is one device)
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
}


def shapes() -> Iterator[dict[str, tuple[int, ...]]]:
    """Tensors of one file after another: the tables, then a layer each."""
    d, f, v = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    yield {"model.embed_tokens": (v, d), "lm_head": (v, d), "model.norm": (d,)}
    layer = {f"self_attn.{name}_proj": (d, d) for name in "qkvo"} | {
        "mlp.gate_proj": (f, d),
        "mlp.up_proj": (f, d),
    }
    layer |= {
        "mlp.down_proj": (d, f),
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
    }
    for i in range(CONFIG["num_hidden_layers"]):
        yield {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}


def write_model(folder: Path) -> int:
    """Writes a Llama of random bfloat16 weights in several files; returns their bytes."""
    noise = (0.02 * np.random.default_rng(0).standard_normal(1 << 20)).astype(
        ml_dtypes.bfloat16
    )
    weight_map: dict[str, str] = {}
    for k, tensors in enumerate(shapes()):
        file = f"model-{k:05d}.safetensors"
        weight_map |= dict.fromkeys((f"{name}.weight" for name in tensors), file)
        save_file(
            {
                f"{name}.weight": np.resize(noise, shape)
                for name, shape in tensors.items()
            },
            folder / file,
        )
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measure(folder: str, mesh_spec: str, dtype: str) -> dict[str, Any]:
    """Loads the model in this process and says what that took."""
    import jax

    from sae_attr.lm.weights import load_lm
    from sae_attr.parallel import make_mesh

    mesh = make_mesh(mesh_spec or "data=1")
    jax.jit(lambda x: x + 1)(
        1.0
    ).block_until_ready()  # the compiler's own memory is no part of the load
    watch, start = Watch(), time.perf_counter()
    watch.start()
    _, params = load_lm(folder, mesh=mesh, dtype=dtype, progress=False)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    watch.over.set()
    watch.join()
    final = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(params)
        for shard in leaf.addressable_shards
    )
    beyond = watch.peak - watch.baseline - final
    return {
        "mesh": mesh_spec or "one device",
        "dtype": dtype,
        "weight_bytes": final,
        "beyond_bytes": beyond,
        "ratio": round(beyond / final, 4),
        "seconds": round(seconds, 1),
        "samples": watch.samples,
    }


def in_subprocess(folder: Path, mesh_spec: str, dtype: str) -> dict[str, Any]:
    """Runs `measure` in a process of its own, with as many CPU devices as the mesh
    needs.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={4 if mesh_spec else 1}"
    command = [
        sys.executable,
        "-m",
        "benchmarks.load_memory",
        "--folder",
        str(folder),
        "--mesh",
        mesh_spec,
        "--dtype",
        dtype,
    ]
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent.parent), environ.get("PYTHONPATH", "")]
    )
    found = subprocess.run(
        command, env=environ, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    """Measures every case and ends with status 1 if a ratio is not below the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        help="measure this folder in this process (used for the subprocesses)",
    )
    parser.add_argument("--mesh", default="")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(measure(args.folder, args.mesh, args.dtype)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file_bytes = write_model(Path(folder))
        print(
            f"files: {file_bytes / 1e9:.2f} GB of bfloat16\n{'mesh':<12} {'dtype':<10} "
            "weights  beyond   ratio  seconds"
        )
        rows = [in_subprocess(Path(folder), *case) for case in CASES]
    for row in rows:
        gigabytes = (
            f"{row['weight_bytes'] / 1e9:5.2f} GB {row['beyond_bytes'] / 1e6:5.0f} MB"
        )
        print(
            f"{row['mesh']:<12} {row['dtype']:<10} {gigabytes}  {row['ratio']:.3f}  "
            f"{row['seconds']:5.1f}"
        )
    print(json.dumps({"file_bytes": file_bytes, "limit": LIMIT, "rows": rows}))
    sys.exit(int(any(row["ratio"] >= LIMIT for row in rows)))


if __name__ == "__main__":
    main()
