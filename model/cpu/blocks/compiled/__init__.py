"""The functions that numba compiles. No other module imports numba, and nothing imports these,
but for words, before code_cache.use has told numba the folder for their code.

In reading order:
- intrinsics: what numba has no functions for.
- rows: many rows, rounded once, times panels, widened once.
- product: the product of any number of rows, and rows of a matrix as floats.
- words: what tells a pass what to do.
- floats: norms, rotary embedding and activations.
- attention: keys and values into the cache, and attention to it.
- common: what both kinds of passes do.
- few, many: the phases of a pass over few rows, and over many.
- step: a decoder's pass, which threads share.
"""
