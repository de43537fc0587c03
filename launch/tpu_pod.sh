#!/usr/bin/env bash
# Starts the same experiment on every host of a TPU slice; --workdir must be a bucket that all hosts reach.
#
#   TPU=my-slice ZONE=us-east5-a launch/tpu_pod.sh attribute --config=configs/... --workdir=gs://bucket/run
#
# The checkout must lie at ~/sae_attr on every host, installed with `pip install -e '.[tpu,gcs]'` into .venv.
# jax.distributed gets coordinator, process count and index from the TPU metadata server; JAX_DISTRIBUTED=1 tells
# sae_attr.parallel to ask for them (a single TPU host needs none of it). DRY_RUN=1 prints what would be started.
set -euo pipefail
experiment=${1:?usage: TPU=... ZONE=... launch/tpu_pod.sh EXPERIMENT [--flag=value ...]}
shift
: "${TPU:?the name of the TPU slice}" "${ZONE:?its zone}"

flags=""
if [ $# -gt 0 ]; then flags=$(printf ' %q' "$@"); fi
# The shell of the host opens ~, so it stays outside of any quotes.
remote="cd ~/${CHECKOUT:-sae_attr} && JAX_DISTRIBUTED=1 .venv/bin/python -m experiments.$experiment$flags"
command=(gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$remote")
if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
