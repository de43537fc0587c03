"""Safe readers and writers of third-party file formats: tensors, vectors, checkpoints, JSON
lines, hub files. Bounded in size, and nothing in a file is executed.
"""
