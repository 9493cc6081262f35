"""Small and large models on a CPU: int8 weights, and steps that run a few rows fast.

In reading order:
- quantized_linear: the modules of a decoder with int8 weights, and the factory that makes them.
- kernels: the integer products, one class each.
- interleaved/: a product of our own, whose packed weights are plain arrays.
- blocks/: weights of 4 to 8 bits in blocks, among them those of a GGUF file as they are.
- kernel_choice: the kernels that a model multiplies with (Plan), chosen by their speed.
- measurements: how a time is measured, and the file that keeps the times of this machine.
- torch_step: a pass over few rows in as few calls of torch as possible, for all sizes.
- step_costs: how long such a pass takes by its number of rows.
- compiled_step: a pass over few rows as one function of machine code, for small models. `upgrade`
  gives it, and the interleaved product, to a running engine.
- numba_step: the source of that machine code.
- code_cache: the folder that keeps it, and the process that compiles it.

Invariants:
- The result of a row does not depend on the rows beside it, bit for bit, in every step and kernel
  but `widened`. Greedy speculative decoding relies on it.
- Nothing here is needed for a right result: without measurements, without a writable folder and
  without numba, other kernels and the step in torch do the work.
- Machine code is run only from a folder that nobody else can write to. Doubt means: compile again.
- Weights are kept once, except those of small models (Plan.small).
- No module but numba_step and two of interleaved/ imports numba, and none imports it before there
  is machine code.
"""
