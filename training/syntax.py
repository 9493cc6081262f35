"""Spans of syntax nodes, for middles that are whole pieces of a program (AST-FIM: arXiv
2506.00204)."""

from __future__ import annotations

import ast
import warnings
from itertools import accumulate
from random import Random

from fim.evaluation.samples import Span

Node = tuple[int, int]


class SyntaxSpans:
    """The statements and expressions of one file, as offsets in code points; none where Python
    cannot parse it."""

    def __init__(self, text: str) -> None:
        self.nodes: list[Node] = []
        if "\r" in text:  # a lone one ends a line for Python's parser, but not here
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in the corpus's strings
                tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
        lines = text.split("\n")
        starts = [0, *accumulate(len(line) + 1 for line in lines)]

        def offset(line: int, column: int) -> int:
            """ast counts columns in bytes of UTF-8."""
            content = lines[line - 1]
            if not content.isascii():
                column = len(content.encode()[:column].decode(errors="ignore"))
            return starts[line - 1] + column

        for node in ast.walk(tree):
            if isinstance(node, ast.stmt | ast.expr):
                assert node.end_lineno is not None and node.end_col_offset is not None
                self.nodes.append(
                    (
                        offset(node.lineno, node.col_offset),
                        offset(node.end_lineno, node.end_col_offset),
                    )
                )

    def middle(self, start: int, stop: int, rng: Random) -> Span | None:
        """A node inside text[start:stop]: one of those around a random place, so that large ones
        count for more.

        At most half of the window is taken away. None where no node is there.
        """
        place = rng.randrange(start, stop)
        around = sorted(
            {
                (a, b)
                for a, b in self.nodes
                if start <= a <= place < b <= stop and 2 <= b - a <= (stop - start) // 2
            }
        )
        return rng.choice(around) if around else None
