"""Computed prefixes: a new prompt starts from the longest prefix that is already computed.

- memory.py: the KV caches of earlier prompts within a budget of memory; a request leases one, which
  is trimmed to the shared prefix or copied, and gives it back.
- disk.py: the costly ones as safetensors files, which outlive the engine, within a budget of disk.
- packed_ids.py: token ids as bytes, so that long prompts are compared in blocks.

A leased cache belongs to one request. Sequences are compared by their ids, never by a hash. A
restored position is bit for bit the one that was computed; a file in doubt is a miss. Absent: the
computing of positions (model.generation) and any locks: one thread uses all of this.
"""
