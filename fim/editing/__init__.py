"""Edits by a model: the ranges of a text that it can rewrite or fill, and how its answer fits in.

In reading order:
- targets: the entry; the target of each kind at a cursor (selection, body, documentation).
- fitting: `Target`, a range with what stands around the answer, and how an answer is made to fit.
- docstrings: the targets of documentation, as a docstring or as a comment above.
- grammars: the definitions around a cursor by syntax tree; the only importer of tree_sitter.
- outline: `Definition`; the same by indentation, where there is no grammar or a text is broken.
- languages: the table of languages; a new language is one entry there.
- line_offsets: where lines start and end, by offset in a text.

No model, file or editor is known here, and importing the package loads no grammar. Nothing raises
because of a text: a text that a grammar cannot read in a bounded time is read by its indentation.
An edit changes nothing outside its target's range. Offsets are in code points.
"""
