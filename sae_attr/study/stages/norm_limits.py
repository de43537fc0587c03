"""Stage `norm_limits`: the largest norm that counts at each site."""

from __future__ import annotations

from sae_attr.activations import norm_limits
from sae_attr.hooks import Site
from sae_attr.site_names import parse_site
from sae_attr.store import Computed, Progress, Result, Stage
from sae_attr.study.stages.context import Context, Inputs

NAME = "norm_limits"
VERSION = 1  # raised when the stage gives other numbers than before
TOKENS = 8192  # of the corpus: plenty for a median


def stage(c: Context) -> Stage:
    """Makes the stage: `meta["limits"]`, site -> norm; empty where outliers count."""
    setup = c.setup
    tokens = min(TOKENS, setup.settings.corpus_tokens)

    def run(inputs: Inputs, progress: Progress) -> Computed:
        if setup.masks.outlier is None:
            return {}, {"limits": {}}
        limits = norm_limits(
            setup.params,
            setup.corpus.batches(tokens),
            setup.masks.outlier,
            cfg=setup.cfg,
            sites=tuple(dict.fromkeys((setup.site, setup.read_site))),
            mesh=setup.mesh,
        )
        return {}, {"limits": {str(site): limit for site, limit in limits.items()}}

    fields = {**c.text_fields(), "masks": c.mask_fields(), "tokens": tokens}
    # The SAE's file says which tokens it was trained on; only its config matters, which
    # the fields have, unless the file is still to be made.
    return c.stage(NAME, run, version=VERSION, fields=fields, files=("lm", "corpus"))


def limits_of(result: Result) -> dict[Site, float]:
    """Returns site -> largest norm that counts."""
    return {parse_site(site): x for site, x in result.meta["limits"].items()}
