"""CUDA devices: a faster step, and weights of fewer bits.

- cuda_graphs: the step that is recorded once and started by one call, for float weights.
- bitsandbytes_linear: matrices of 8 or 4 bits by the package bitsandbytes.

Nothing here is needed on a CPU; bitsandbytes is imported only where someone asks for its weights.
"""
