"""One decoder on several devices, partly on a disk, or shared by several processes.

In reading order:
- device_map: which device, or the disk, holds which part of a decoder; "auto" is accelerate's
  choice.
- placed_decoder: a decoder of such parts. accelerate's hooks bring weights and inputs together.
- split_cache: a KV cache whose layers are on different devices.
- shares: what one process of a group has of a decoder, and a checkpoint that is cut to that.
- tensor_parallel: the decoder of such a process.
- spread: opens a checkpoint in either way, for load_model and the heads.

Invariants:
- A placed decoder gives what one on a single device gives. It has no faster step for few rows.
- So do the processes of a group together, up to the order of sums.
- Weights that go to the disk are written there as they are read; the decoder never holds them all.
- accelerate is imported where a map is chosen or used, never at load.
"""
