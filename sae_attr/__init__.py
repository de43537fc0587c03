"""Which SAE latents caused a bad completion: Δ-attribution, checked by ablation and
steering (see README.md).
"""

__version__ = "0.1.0"
