"""A product of 8-bit numbers of our own: exact, fast for any number of rows, and with its weights
in one form for all of them, plain arrays that can be mapped from a file.

In reading order:
- layout: the form.
- kernel: packs weights, has its place among the other kernels, and computes the product in torch.
- product: the product as machine code, compiled by numba.
- sharing: how threads share a product, this one or another.
- intrinsics: the vector instructions that it is made of.

Invariants:
- The result is the same, bit for bit, on every CPU, with any number of threads, and in torch.
- No module but the last three imports numba or llvmlite (code_cache.py says when they are loaded).
"""
