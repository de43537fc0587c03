"""Entrypoints: flags, config and stages; everything they do can be imported from `sae_attr`."""
