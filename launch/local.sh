#!/usr/bin/env bash
# Starts an experiment on this machine, with all its devices, from one process.
#
#   launch/local.sh case_study --config=configs/organism.py --workdir=runs/demo
#
# PROCESSES=2 launch/local.sh ...  starts that many processes which share the work (a rehearsal of several hosts on CPU).
# jax.distributed then gets its coordinator from the three JAX_* variables below, which sae_attr.parallel reads.
# DRY_RUN=1 prints what would be started. Exit status: that of the process that ended first with an error; 75, which asks
# schedulers to start the same command again, where one was killed. Several processes need bash 5.1.
set -euo pipefail
cd "$(dirname "$0")/.."
experiment=${1:?usage: launch/local.sh EXPERIMENT [--flag=value ...]}
shift
python=${PYTHON:-.venv/bin/python}
processes=${PROCESSES:-1}
command=("$python" -m "experiments.$experiment" "$@")

if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "${command[@]}"
  printf '× %s\n' "$processes"
  exit 0
fi
if [ "$processes" -eq 1 ]; then
  exec "${command[@]}"
fi

export JAX_COORDINATOR_ADDRESS="localhost:${PORT:-12321}" JAX_NUM_PROCESSES="$processes"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT
for ((i = 0; i < processes; i++)); do
  JAX_PROCESS_ID=$i "${command[@]}" &
  pids+=($!)
done
result=0
for ((i = 0; i < processes; i++)); do
  status=0
  # Whichever ends first: what ended the run, and not what followed from it.
  wait -n -p ended "${pids[@]}" || status=$?
  if [ "$result" -eq 0 ]; then result=$status; fi
  if [ "$status" -eq 137 ]; then
    echo "error: process $ended was killed; if the system's log names its memory, lower what is held at a time (batch_size)" >&2
  fi
  left=()
  for pid in "${pids[@]}"; do if [ "$pid" != "$ended" ]; then left+=("$pid"); fi; done
  pids=("${left[@]:-}")
done
# 134: jax ends the others where process 0 is gone. 137: killed.
case $result in 134 | 137) result=75 ;; esac
exit "$result"
