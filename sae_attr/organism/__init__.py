"""A model organism: a small world in which every cause is known, models trained on it,
and exact answers about them.
"""
