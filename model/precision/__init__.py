"""Where a model runs and in how many bits.

- devices: devices and floating-point types by their names; free memory.
- quantization: the kinds of weights by their names, their bytes, and which kind fits.
- bitsandbytes_linear: matrices of 8 or 4 bits by the package bitsandbytes.

bitsandbytes is imported only where someone asks for its weights. Nothing here has run on mps.
"""
