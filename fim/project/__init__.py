"""Pieces of other files that may help at a cursor: found, ranked and chosen, as text alone.

The modules in reading order:
- terms: the words in the names of a text, by which texts are compared
- outlines: a file as parts, signatures where a grammar knows them (Part)
- imports: which files of a project a text imports, by their paths
- ranking: the parts that suit a cursor best, as snippets within a budget (choose)

Invariants:
- Nothing here reads a file; lsp_server/context/ does. What it may not read never comes here.
- The same texts give the same snippets. Their text is a part of the files' own, but for the marks
  in place of what was left out.
"""

from fim.project.imports import imported_names, imported_paths
from fim.project.outlines import Part, parts_of
from fim.project.ranking import Place, Source, better, choose

__all__ = [
    "Part",
    "Place",
    "Source",
    "better",
    "choose",
    "imported_names",
    "imported_paths",
    "parts_of",
]
