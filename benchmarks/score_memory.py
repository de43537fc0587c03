"""Scoring a dictionary from disk: host memory must not grow with the number of latents,
and the time is that of the disk or of the products, whichever is slower.

Command: python -m benchmarks.score_memory; for one dictionary of any size
  python -m benchmarks.score_memory --rows=2097152 --width=4096 (17.2 GB of bfloat16).
Hardware: any CPU with 2 GB of memory and 5 GB of disk in the temporary folder; three
  minutes on 2 cores.
Measured: the largest anonymous memory above the baseline, in a process of its own;
  `limit`, the seconds that its bytes take at the disk's rate (512 MB of the file, read
  after the system was told to forget it) or its products at that of the bare product
  [chunk, d] × [d, d] in float32, whichever is more; `share`, that limit over
  the time; `cores`, the products' share of the time of all cores, which others on the
  machine do not change.
Expect: 0.3 to 0.7 GB beyond the baseline whatever the number of latents: three to four
  chunks of 134 MB. Pages of a mapped file are no anonymous memory, and are given back as the
  scoring goes on. Share from 0.7: rows are read and turned to float32 while the chunk
  before is multiplied, but both share the cores.
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

CASES = (
    (2**17, 768, "float32"),
    (2**19, 768, "float32"),
    (2**19, 768, "bfloat16"),
    (2**17, 4096, "bfloat16"),
)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
NAMES = {"float32": "F32", "bfloat16": "BF16"}
LIMIT = 0.8e9  # bytes beyond the baseline, whatever the size
PROBE = 2**29  # bytes of the file that are read to measure the disk


def write_sae(folder: Path, n: int, d: int, dtype: str) -> int:
    """Writes an SAE in SAELens' layout, a few rows at a time; returns the bytes of its
    decoder.
    """
    config = {
        "architecture": "standard",
        "d_in": d,
        "d_sae": n,
        "dtype": dtype,
        "apply_b_dec_to_input": False,
    }
    config |= {
        "normalize_activations": "none",
        "metadata": {"hook_name": "blocks.0.hook_resid_post"},
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    shapes = {"W_dec": (n, d), "b_dec": (d,), "b_enc": (n,), "W_enc": (d, n)}
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
        for left in range(n * d * size, 0, -len(noise)):
            file.write(noise[: min(left, len(noise))])
        # The encoder is a hole in the file: nothing reads it, and it takes no disk.
        file.truncate(8 + len(text) + end)
        file.flush()
        os.fsync(file.fileno())  # only pages that are on the disk can be forgotten
    return n * d * size


def forget(file: Path) -> None:
    """Asks the system to drop a file's pages, so that the next read is the disk's."""
    if hasattr(os, "posix_fadvise"):
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(file: Path) -> float:
    """Measures bytes per second of reading a file from its disk."""
    forget(file)
    start = time.perf_counter()
    done = 0
    with open(file, "rb", buffering=0) as opened:
        while done < PROBE and (piece := opened.read(2**24)):
            done += len(piece)
    rate = done / (time.perf_counter() - start)
    forget(file)
    return rate


def measure(folder: str) -> dict[str, Any]:
    """Scores the dictionary of `folder` in this process and says what that took."""
    import jax
    import jax.numpy as jnp

    from benchmarks._timing import product_seconds
    from sae_attr.attribution import Moment, score_moment
    from sae_attr.attribution.decoder_pass import rows_at_a_time
    from sae_attr.sae.formats import open_decoder

    file = Path(folder) / "sae_weights.safetensors"
    source = open_decoder(folder)
    n, d = source.shape
    rng = np.random.default_rng(1)
    s_dd, g_d = (rng.standard_normal(shape, np.float32) for shape in ((d, d), (d,)))
    moment, mean_d = Moment(jnp.asarray(s_dd), jnp.asarray(g_d)), jnp.zeros(d)
    chunk = rows_at_a_time(n, d)
    disk = disk_rate(file)
    on_clock, of_cores = product_seconds(chunk, d, d)
    product = 2 * chunk * d**2 / on_clock
    # The compiler and its thread pools are there before the count begins.
    score_moment(moment, mean_d, jnp.ones((8, d))).block_until_ready()
    watch, start, before = Watch(), time.perf_counter(), time.process_time()
    watch.start()
    scores_n = score_moment(moment, mean_d, source, chunk=chunk)
    seconds, cores = time.perf_counter() - start, time.process_time() - before
    watch.over.set()
    watch.join()
    size = n * d * source.dtype.itemsize
    limit = max(size / disk, 2 * n * d**2 / product)
    return {
        "beyond": watch.peak - watch.baseline,
        "seconds": round(seconds, 1),
        "disk": disk,
        "product": product,
        "limit": limit,
        "share": limit / seconds,
        "share_of_cores": n / chunk * of_cores / cores,
        "error": _error(source, s_dd, np.asarray(scores_n)),
        "samples": watch.samples,
        "devices": len(jax.devices()),
    }


def _error(source: Any, form_dd: np.ndarray, scores_n: np.ndarray) -> float:
    """Returns the largest relative distance of 64 scores from their formula in float64."""
    sample = np.arange(0, len(source), max(len(source) // 64, 1))
    rows_kd = np.concatenate([source.rows(int(i), int(i) + 1) for i in sample])
    rows_kd = rows_kd.astype(np.float64)
    units_kd = rows_kd / np.linalg.norm(rows_kd, axis=1, keepdims=True)
    want_k = -np.einsum("kd,kd->k", units_kd @ form_dd.astype(np.float64), units_kd)
    return float(np.abs(scores_n[sample] - want_k).max() / np.abs(want_k).max())


def in_subprocess(n: int, d: int, dtype: str) -> dict[str, Any]:
    """Writes a dictionary and measures it in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        size = write_sae(Path(folder), n, d, dtype)
        command = [sys.executable, "-m", "benchmarks.score_memory", "--folder", folder]
        environ = os.environ | {"JAX_PLATFORMS": "cpu"}
        done = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE)
    row = json.loads(done.stdout.splitlines()[-1])
    return {"n": n, "d": d, "dtype": dtype, "bytes": size, **row}


def main() -> None:
    """Measures every case; ends with status 1 where memory exceeds the limit or a score
    is off.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder",
        help="measure this folder in this process (used for the subprocesses)",
    )
    parser.add_argument("--rows", type=int, help="latents of one dictionary")
    parser.add_argument("--width", type=int, default=4096, help="numbers of a row")
    parser.add_argument("--dtype", choices=[*DTYPES], default="bfloat16")
    parser.add_argument("--out", help="write the numbers here as JSON")
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(measure(args.folder)))
        return
    cases = [(args.rows, args.width, args.dtype)] if args.rows else CASES
    print(
        f"{'latents':>9} {'d':>5} {'dtype':<9} {'file GB':>7} {'beyond GB':>9} "
        f"{'seconds':>7} {'limit':>6} {'share':>5} {'cores':>5} {'disk GB/s':>9} "
        f"{'product GF/s':>12} {'error':>8}"
    )
    rows = []
    for case in cases:
        row = in_subprocess(*case)
        rows.append(row)
        print(
            f"{row['n']:>9,} {row['d']:>5} {row['dtype']:<9} {row['bytes'] / 1e9:7.2f} "
            f"{row['beyond'] / 1e9:9.2f} {row['seconds']:7.1f} {row['limit']:6.1f} "
            f"{row['share']:5.2f} {row['share_of_cores']:5.2f} {row['disk'] / 1e9:9.2f} {row['product'] / 1e9:12.0f} "
            f"{row['error']:8.1e}",
            flush=True,
        )
    if args.out:
        Path(args.out).write_text(json.dumps({"limit": LIMIT, "rows": rows}, indent=1))
    failed = any(row["error"] > 1e-4 or row["beyond"] > LIMIT for row in rows)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
