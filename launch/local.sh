#!/usr/bin/env bash
# Starts an experiment on this machine, with all its devices, from one process.
#
#   launch/local.sh case_study --config=configs/organism.py --workdir=runs/demo
#
# PROCESSES=2 launch/local.sh ...  starts that many processes which share the work (a rehearsal of several hosts on CPU).
# jax.distributed then gets its coordinator from the three JAX_* variables below, which sae_attr.parallel reads.
set -euo pipefail
cd "$(dirname "$0")/.."
experiment=${1:?usage: launch/local.sh EXPERIMENT [--flag=value ...]}
shift
python=${PYTHON:-.venv/bin/python}
processes=${PROCESSES:-1}

if [ "$processes" -eq 1 ]; then
  exec "$python" -m "experiments.$experiment" "$@"
fi

export JAX_COORDINATOR_ADDRESS="localhost:${PORT:-12321}" JAX_NUM_PROCESSES="$processes"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((i = 0; i < processes; i++)); do
  JAX_PROCESS_ID=$i "$python" -m "experiments.$experiment" "$@" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
