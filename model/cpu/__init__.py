"""Models on a CPU: quantized weights, and steps that run a few rows fast.

In reading order:
- blocks/: weights of 4 to 8 bits in blocks, among them those of a GGUF file as they are, with a
  compiled product and a compiled step. All models take these where machine code can be made.
- upgrade: gives them to a decoder, as soon as there is machine code.
- code_cache: the folder that keeps it, and the process that compiles it.
- measurements: how a time is measured, and the file that keeps the times of this machine.
- step_costs: how long a step takes by its number of rows.
- quantized_linear: without machine code, the modules of a decoder with int8 weights.
- kernels: torch's integer products for these, one class each.
- torch_step: a pass over few rows with them, in as few calls of torch as possible.

Invariants:
- The result of a row does not depend on the rows beside it, bit for bit, in every step and kernel
  but `widened`. Greedy speculative decoding relies on it.
- Nothing here is needed for a right result: without measurements, without a writable folder and
  without numba, torch does the work.
- Machine code is run only from a folder that nobody else can write to. Doubt means: compile again.
- Weights are kept once, except those of small models.
- No module imports numba before there is machine code, and none outside of blocks/ does at all.
"""
