"""Artefacts on disk: content-addressed, published whole or not at all, resumable while
they grow.

Paths go through etils.epath, so that a store or a workdir may lie in a bucket.
"""

from sae_attr.store.entries import Store
from sae_attr.store.files import Arrays, Meta, PathLike, write_atomic
from sae_attr.store.graph import (
    Computed,
    InputAwaited,
    NothingToCompute,
    Result,
    Stage,
    StageOutput,
    StageRun,
    Status,
    matching_names,
    run_stage,
    run_stages,
    select_stages,
    stage_key,
    stage_keys,
    stage_statuses,
    stored_results,
    with_readers,
)
from sae_attr.store.lease import LockLost
from sae_attr.store.manifest import Damaged
from sae_attr.store.names import digest, fingerprint
from sae_attr.store.progress import Progress
from sae_attr.store.workdir import claim_workdir, lock_workdir, own_workdir

__all__ = [
    "Arrays",
    "Computed",
    "Damaged",
    "InputAwaited",
    "LockLost",
    "Meta",
    "NothingToCompute",
    "PathLike",
    "Progress",
    "Result",
    "Stage",
    "StageOutput",
    "StageRun",
    "Status",
    "Store",
    "claim_workdir",
    "digest",
    "fingerprint",
    "lock_workdir",
    "matching_names",
    "own_workdir",
    "run_stage",
    "run_stages",
    "select_stages",
    "stage_key",
    "stage_keys",
    "stage_statuses",
    "stored_results",
    "with_readers",
    "write_atomic",
]
