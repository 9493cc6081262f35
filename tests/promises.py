"""Tables in docs/ of what is promised and which tests hold it.

A table is a list of Promise in a test module, which states it with `write` and checks it with
`missing_tests`. `python -m tests.model.test_options` writes docs/options.md anew.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Promise:
    """what: one line of Markdown. tests: `folder/test_file.py::test_name`, below tests/. note: of
    what no test can hold here, the reason."""

    what: str
    tests: Sequence[str] = ()
    note: str = ""


def markdown(title: str, about: str, sections: Mapping[str, Sequence[Promise]]) -> str:
    """The page: a table for each section."""
    return "\n".join(_lines(title, about, sections))


def _lines(title: str, about: str, sections: Mapping[str, Sequence[Promise]]) -> Iterator[str]:
    yield f"# {title}\n\n{about}"
    for section, promises in sections.items():
        yield f"\n## {section}\n\n| what | held by |\n| --- | --- |"
        for promise in promises:
            held = [*map(_link, promise.tests), *([promise.note] if promise.note else [])]
            yield f"| {promise.what} | {'<br>'.join(held)} |"
    yield ""


def _link(test: str) -> str:
    path, _, name = test.partition("::")
    return f"[{name}](../tests/{path})"


def missing_tests(promises: Iterable[Promise]) -> list[str]:
    """What is wrong: promises that nothing holds, and tests that are not there."""
    wrong = []
    for promise in promises:
        if not promise.tests and not promise.note:
            wrong.append(f"nothing holds: {promise.what}")
        for test in promise.tests:
            path, _, name = test.partition("::")
            if name not in _functions(ROOT / "tests" / path):
                wrong.append(f"there is no test {test}")
    return wrong


@cache
def _functions(file: Path) -> frozenset[str]:
    """The test functions of a file; none where it does not exist."""
    if not file.is_file():
        return frozenset()
    nodes = ast.walk(ast.parse(file.read_text("utf-8")))
    return frozenset(
        node.name
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    )
