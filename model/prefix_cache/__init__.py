"""Computed prefixes: a new prompt starts from the longest prefix that is already computed.

- memory.py: KV caches of earlier prompts, by least recent use, within a budget; a request leases
  one and gives it back.
- disk.py: the costly ones in safetensors files, which outlive the engine.
- packed_ids.py: token ids as bytes, so that long prompts are compared in blocks.

A cache that is leased belongs to one request. A sequence is found by comparing its ids, never by a
hash. A restored position is bit for bit the one that was computed; a file in doubt is a miss.
Nothing here computes positions or knows texts. One thread uses it.
"""
