"""Tiles, in vector instructions that numba has no functions for: some rows of activations times
one panel of weights, and some queries to cached positions.

In reading order:
- cpus: what CPUs have for it.
- code: writes vector instructions; what reads a panel.
- few: the tile of few rows, which reads a panel as it is.
- wide: the tile of many rows, for which a panel is widened first.
- rounding: of activations to 8 bits.
- attention: some queries and a block of cached positions.

Invariants:
- Every float of a product is the result of the same operations in the same order, whatever the CPU
  and however many rows: whole numbers are summed exactly within a block, and blocks are added one
  by one. Every float of attention is so on one CPU.
"""
