"""Host memory while a dictionary is scored from disk: it must not grow with the number
of latents.

Command: python -m benchmarks.score_memory
Hardware: any CPU with 2 GB of memory and 5 GB of disk in the temporary folder; about a
  minute on 2 cores.
Expect: 0.11 to 0.14 GB beyond the baseline at 131,072 latents and at four times as
many, where the decoder alone is 1.6 GB: a few chunks of 8,192 rows of d 768, as read,
as float32 and as a product. Pages of a mapped file are no anonymous memory; the system
drops them when others need it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks._memory import Watch

D = 768
SIZES = (2**17, 2**19)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
NAMES = {"float32": "F32", "bfloat16": "BF16"}
LIMIT = 0.3e9  # bytes beyond the baseline, whatever the size


def write_sae(folder: Path, n: int, dtype: str) -> int:
    """Writes an SAE in SAELens' layout, a few rows at a time; returns the bytes of its
    decoder.
    """
    config = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": n,
        "dtype": dtype,
        "apply_b_dec_to_input": False,
    }
    config |= {
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.0.hook_resid_post"},
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    shapes = {"W_enc": (D, n), "W_dec": (n, D), "b_enc": (n,), "b_dec": (D,)}
    header: dict[str, Any] = {}
    end, size = 0, DTYPES[dtype].itemsize
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * size
        header[name] = {
            "dtype": NAMES[dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    noise = (
        np.random.default_rng(0)
        .standard_normal(1 << 20)
        .astype(DTYPES[dtype])
        .tobytes()
    )
    with open(folder / "sae_weights.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for left in range(end, 0, -len(noise)):
            file.write(noise[: min(left, len(noise))])
    return n * D * size


def measure(folder: str) -> dict[str, Any]:
    """Scores the dictionary of `folder` in this process and says what that took."""
    import jax
    import jax.numpy as jnp

    from sae_attr.attribution import Moment, score_moment
    from sae_attr.sae.formats import open_decoder

    rng = np.random.default_rng(1)
    moment = Moment(
        *(
            jnp.asarray(rng.standard_normal(shape), jnp.float32)
            for shape in ((D, D), (D,))
        )
    )
    mean_d = jnp.zeros(D)
    source = open_decoder(folder)
    # The compiler and its thread pools are there before the count begins.
    score_moment(moment, mean_d, jnp.ones((8, D))).block_until_ready()
    watch, start = Watch(), time.perf_counter()
    watch.start()
    scores_n = score_moment(moment, mean_d, source)
    seconds = time.perf_counter() - start
    watch.over.set()
    watch.join()
    sample = np.arange(0, len(source), len(source) // 64)
    rows_kd = np.concatenate([source.rows(int(i), int(i) + 1) for i in sample]).astype(
        np.float64
    )
    form_dd = np.asarray(moment.s_dd, np.float64)
    units_kd = rows_kd / np.linalg.norm(rows_kd, axis=1, keepdims=True)
    want_k = -np.einsum("kd,de,ke->k", units_kd, form_dd, units_kd)
    return {
        "beyond": watch.peak - watch.baseline,
        "seconds": round(seconds, 1),
        "error": float(
            np.abs(np.asarray(scores_n)[sample] - want_k).max() / np.abs(want_k).max()
        ),
        "samples": watch.samples,
        "devices": len(jax.devices()),
    }


def main() -> None:
    """Measures both sizes and both dtypes; ends with status 1 where memory exceeds the
    limit or a score is off.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        help="measure this folder in this process (used for the subprocesses)",
    )
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(measure(args.folder)))
        return
    failed = False
    print(
        f"{'latents':>9} {'dtype':<10} {'decoder GB':>10} {'beyond GB':>10} "
        f"{'seconds':>8} {'error':>9}"
    )
    for dtype in DTYPES:
        for n in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                size = write_sae(Path(folder), n, dtype)
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.score_memory",
                    "--folder",
                    folder,
                ]
                environ = os.environ | {"JAX_PLATFORMS": "cpu"}
                found = json.loads(
                    subprocess.run(
                        command, env=environ, check=True, stdout=subprocess.PIPE
                    ).stdout
                )
            failed |= found["error"] > 1e-4 or found["beyond"] > LIMIT
            row = f"{size / 1e9:>10.2f} {found['beyond'] / 1e9:>10.2f} {found['seconds']:>8} {found['error']:>9.1e}"
            print(f"{n:>9,} {dtype:<10} {row}")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
