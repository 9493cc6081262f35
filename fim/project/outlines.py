"""A file as parts: the signatures of its functions and types, or runs of its lines.

A signature says in a few tokens what a body says in many, and a small model uses what it is told
only if that is short.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from fim.editing.grammars import syntax_tree
from fim.editing.languages import LANGUAGES, Language
from fim.project.terms import terms

if TYPE_CHECKING:
    from tree_sitter import Node

MOST = 2000  # parts of a file
_DEEPEST = 12  # nodes between a definition and the one around it, `namespace`, `impl` and the like
_LONGEST = 400  # characters of a signature
_SMALL_TYPE = 12  # lines of a type that is shown whole
_FIELDS = 8  # of a longer one
_RUN = 20  # lines of a part, where there is no grammar
_CONSTANT = re.compile(r"^([A-Za-z_]\w*)(?:: [^=\n]+)? = [^\n]+", re.MULTILINE)
_MODIFIERS = re.compile(r"\s*(?:(?:export|default|declare|pub|typedef)\s+)*\Z")
_LONGEST_CONSTANT = 120


@dataclass(frozen=True)  # without slots, so that the terms are counted once
class Part:
    """A piece of a file.

    text: as it is shown, with the indentation of its first line. around: the first lines of the
    types that hold it. start, end: of all that it stands for in the file, in code points.
    """

    path: str
    name: str
    text: str
    start: int
    end: int
    around: tuple[str, ...] = ()
    is_signature: bool = True
    names: tuple[str, ...] = field(default=(), compare=False)  # of the types that hold it

    @cached_property
    def terms(self) -> Counter[str]:
        """Of its text, of what is around it and of its file's name."""
        stem = re.split(r"[/\\]", self.path)[-1].partition(".")[0]
        return Counter(terms(" ".join((self.text, *self.names, stem))))

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset(self.terms)

    @cached_property
    def length(self) -> int:
        return sum(self.terms.values())


def parts_of(text: str, path: str, language: str) -> tuple[Part, ...]:
    """The parts of a file in their order."""
    known = LANGUAGES.get(language, Language())
    tree = syntax_tree(text, known)
    if tree is None:
        return tuple(_runs(text, path))
    found = list(_signatures(tree.root_node, text, path, known))
    if known.indented:
        found += _constants(text, path)
        found.sort(key=lambda part: part.start)
    return tuple(found[:MOST])


def _signatures(root: Node, text: str, path: str, language: Language) -> Iterator[Part]:
    """The definitions, but not those inside of functions."""
    waiting: list[tuple[Node, tuple[str, ...], tuple[str, ...], int]] = [(root, (), (), 0)]
    made = 0
    while waiting and made < MOST:
        node, around, names, depth = waiting.pop()
        is_type = node.is_named and node.type in language.types
        if is_type or (node.is_named and node.type in language.functions):
            made += 1
            yield _part(node, text, path, language, around, names, whole=is_type)
            if not is_type:
                continue
            around = (*around, _first_line(text, node.start_byte))
            names = (*names, _name(node, text))
            depth = 0
        if depth < _DEEPEST:
            for child in reversed(node.named_children):
                waiting.append((child, around, names, depth + 1))


def _part(
    node: Node,
    text: str,
    path: str,
    language: Language,
    around: tuple[str, ...],
    names: tuple[str, ...],
    *,
    whole: bool,
) -> Part:
    start = text.rfind("\n", 0, node.start_byte) + 1
    if not _MODIFIERS.match(text[start : node.start_byte]):  # something else stands before it
        start = node.start_byte
    end = node.end_byte
    body = node.child_by_field_name("body")
    shown = text[start:end]
    if whole and shown.count("\n") < _SMALL_TYPE and not _holds_functions(body, language):
        pass
    elif body is not None:
        head = _on_one_line(text[start : body.start_byte].rstrip())
        shown = f"{head} ..." if language.indented else f"{head} {{ ... }}"
        if whole:
            shown = "\n".join((head, *_fields(body, text, language)))
    else:
        shown = shown.partition("\n")[0]
    return Part(path, _name(node, text), shown[:_LONGEST], start, end, around, True, names)


def _on_one_line(head: str) -> str:
    """A header without the line ends between its parameters; the lines above it stay."""
    above, _, last = head.rpartition("\n")
    if not above or not last.strip().startswith((")", "}", "->", "where")):
        return head
    first = head.find("(")
    return head[:first] + re.sub(r",?\s*\n\s*", lambda gap: ", " if "," in gap[0] else "",
        head[first:]).replace(", )", ")")  # fmt: skip


def _holds_functions(body: Node | None, language: Language) -> bool:
    inside = [] if body is None else body.named_children
    return any(child.type in language.functions or _is_wrapped(child) for child in inside)


def _is_wrapped(node: Node) -> bool:
    return node.type == "decorated_definition"


def _fields(body: Node, text: str, language: Language) -> Iterator[str]:
    """The first lines of a type's body that declare fields."""
    count = 0
    for child in body.named_children:
        line = text[child.start_byte : child.end_byte]
        if child.type in language.functions or child.type in language.types:
            continue
        if "\n" in line or "comment" in child.type or child.type.endswith("string"):
            continue
        if ":" in line or "=" in line or line.endswith(";"):
            yield _indentation(text, child.start_byte) + line
            count += 1
        if count == _FIELDS:
            return


def _indentation(text: str, index: int) -> str:
    before = text[text.rfind("\n", 0, index) + 1 : index]
    return before if before.isspace() else ""


def _first_line(text: str, index: int) -> str:
    start = text.rfind("\n", 0, index) + 1
    line, _, _ = text[start : start + _LONGEST].partition("\n")
    return line.rstrip()


def _name(node: Node, text: str) -> str:
    named: Node | None = node
    while named is not None:
        if (found := named.child_by_field_name("name")) is not None:
            return text[found.start_byte : found.end_byte][:_LONGEST]
        named = named.child_by_field_name("declarator")
        if named is not None and not named.child_count:
            return text[named.start_byte : named.end_byte][:_LONGEST]
    return ""


def _constants(text: str, path: str) -> Iterator[Part]:
    for found in _CONSTANT.finditer(text):
        if len(found[0]) <= _LONGEST_CONSTANT:
            yield Part(path, found[1], found[0], found.start(), found.end())


def _runs(text: str, path: str) -> Iterator[Part]:
    """The text in runs of lines."""
    start = 0
    lines = text.split("\n")
    for first in range(0, min(len(lines), MOST * _RUN), _RUN):
        run = "\n".join(lines[first : first + _RUN])
        if run.strip():
            yield Part(path, "", run, start, start + len(run), (), False)
        start += len(run) + 1
