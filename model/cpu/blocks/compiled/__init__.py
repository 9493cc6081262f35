"""The functions that numba compiles. No other module imports numba, and nothing imports these
before code_cache.use has told numba the folder for their code.

In reading order:
- intrinsics: what numba has no functions for.
- sharing: how threads share a product.
- product: the product of any number of rows, and rows of a matrix as floats.
- floats: norms, rotary embedding, attention and activations.
- step: a whole pass over few rows that threads share.
"""
