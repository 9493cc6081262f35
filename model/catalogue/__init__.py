"""Models by name: which there are, which lie on this disk, and how to fetch one.

In reading order:
- entries: the catalogue as data (catalogue.toml), and the entry that a file on the disk is.
- places: where fimls, Hugging Face's library and ollama keep models.
- records: what fimls pulled, with checksums, so that it is found again and may be removed.
- installed: find_all and locate: what is on the disk, whoever put it there.
- download: pull, from a name to a verified model on the disk.
- hub: one repository of the Hugging Face hub: its files, fetched into the hub's own cache.
- packages: the same file in pieces, from a Python package index.
- recommend: which entry suits a machine, and the time to a suggestion that this means.
- transfer: progress, stopping, free disk and checksums, for both of them.

Invariants:
- Nothing here loads torch. entries, places, records and installed use no network and do not load
  huggingface_hub, which hub imports when it is asked for something.
- A file counts as pulled when its SHA-256, or git's own checksum for a small one, is the expected
  one. Until then it has another name.
- Pickled weights are never fetched, and what comes out of a package is never installed or run.
- Files of others (the hub's cache, ollama's store) are used in place and never changed.
"""
