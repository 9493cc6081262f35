"""The tile of a product: some rows of activations times one panel of weights, in vector
instructions that numba has no functions for.

In reading order:
- cpus: what CPUs have for it.
- code: writes vector instructions; what reads a panel.
- few: the tile of few rows, which reads a panel as it is.
- wide: the tile of many rows, for which a panel is widened first.
- rounding: of activations to 8 bits.

Invariants:
- Every float is the result of the same operations in the same order, whatever the CPU and however
  many rows: whole numbers are summed exactly within a block, and blocks are added one by one.
"""
