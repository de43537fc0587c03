"""Smaller studies around the method: one file each, of pure functions that a notebook
can import.
"""
