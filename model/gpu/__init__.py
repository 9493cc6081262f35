"""CUDA devices: a faster step.

- cuda_graphs: the step that is recorded once and started by one call, for float weights.

Nothing here is needed on a CPU.
"""
