"""Measurements, one module for each. RESULTS.md holds the figures, each with the command that makes
it."""
