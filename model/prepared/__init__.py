"""Prepared weights: what loading has made of a large model's own files, kept on disk as the kernels
take it. The next start of an engine maps that file instead of reading, rounding and packing again.

- files: which prepared files there are, of which models; deletes them. Loads no torch.
- weights: finds the file that fits a decoder, maps it or writes it.

Invariants:
- Nothing here is needed for a right result: in doubt a file is deleted, and the model's own files
  are read.
- A file is the user's alone, and appears as a whole. One that engines may have mapped is only
  replaced or deleted, never written to or cut: a process that reads a page that is gone dies.
- Machine code does not check where it reads. So every tensor's shape and type is compared with what
  the decoder expects before any of them is handed out.
"""
