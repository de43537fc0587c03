"""Artefacts on disk: content-addressed, published whole or not at all, resumable while they grow.

Paths go through etils.epath, so that a store or a workdir may lie in a bucket.
"""

from sae_attr.store.entries import Damaged, Progress, Store
from sae_attr.store.files import Arrays, Meta, PathLike, write_atomic
from sae_attr.store.names import digest, fingerprint
from sae_attr.store.stages import Result, run_stage
from sae_attr.store.workdir import claim_workdir, lock_workdir

__all__ = [
    "Arrays",
    "Damaged",
    "Meta",
    "PathLike",
    "Progress",
    "Result",
    "Store",
    "claim_workdir",
    "digest",
    "fingerprint",
    "lock_workdir",
    "run_stage",
    "write_atomic",
]
