"""Sparse autoencoders: the model, the file formats, training and metrics."""
