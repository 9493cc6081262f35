"""A model folder -> one that other programs run: `python -m model.export`.

In reading order:
- __main__: the command line.
- export: checks a folder and makes the new one, in either format.
- hugging_face: writes the layout of transformers' save_pretrained.
- gguf: writes one file for llama.cpp.

Invariants:
- The new folder appears whole or not at all, and nothing that is there already is replaced.
- A model that the other program would compute otherwise is refused.
"""
