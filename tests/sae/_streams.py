"""Decoder rows of one stream of an SAE, for comparisons with `open_decoder`."""

import jax

from sae_attr.sae.model import SAE


def stream_decoder(sae: SAE) -> jax.Array:
    """Rows `[n, d_out]` of the only stream, or of the one that was loaded by name."""
    stream = 0 if sae.cfg.streams == 1 else sae.cfg.stream
    assert stream is not None
    return sae.dec_nm[:, stream * sae.cfg.d_out : (stream + 1) * sae.cfg.d_out]
