"""Text to tokens: tokenizers, chat templates, pairs, corpora, fine-tuning rows, and the
batches of token rows that models read.
"""
