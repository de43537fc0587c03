"""Results for people: numbers and sentences, text tables, CSV, figures, and one HTML page.
Pure functions of results, without JAX.
"""
