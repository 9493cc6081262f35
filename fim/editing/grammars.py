"""Definitions by syntax tree, with tree-sitter and the compiled grammar of the language.

A grammar is loaded when the first text asks for it, so that importing this room costs nothing. A
text is parsed for a bounded time. A text that is too long or takes too long, like one of a language
without a grammar, is read by its indentation (outline.py).
"""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

from fim.editing.languages import LANGUAGES, Language
from fim.editing.line_offsets import (
    first_on_line,
    indentation,
    indented_end,
    line_above,
    line_at,
    line_end,
    line_start,
    lines_below,
)
from fim.editing.outline import Definition, by_indentation, closed_by
from fim.lines import width

if TYPE_CHECKING:
    import tree_sitter
    from tree_sitter import Node, Tree

_LONGEST = 1_000_000  # code points
_SECONDS = 0.3  # some texts take a grammar minutes; a common one of 2,000 lines takes it 10 ms
_SECONDS_TO_COUNT = 0.1  # a text of some KB takes a few ms
_CHUNK = 1 << 16

# Nodes that a definition may be the last part of: `export const f = () => {}`.
_WRAPPERS = frozenset(
    "decorated_definition export_statement template_declaration lexical_declaration "
    "variable_declaration variable_declarator expression_statement assignment_expression "
    "assignment_statement assignment expression_list public_field_definition field_definition "
    "field pair ambient_declaration var_declaration var_spec short_var_declaration let_declaration "
    "declaration init_declarator local_declaration_statement".split()
)
# Nodes that may stand right above a definition and count as a part of it.
_AHEAD = frozenset("comment line_comment block_comment attribute_item decorator".split())
_DEEPEST_WRAPPING = 5
_MOST_COMMENT_LINES = 100
_LONGEST_NAME = 60
_CLOSERS = {"{": "}", "(": ")"}


def definitions(text: str, language: str, offset: int) -> Iterator[Definition]:
    """The definitions around `offset`, or declared on its line, from the inside out."""
    known = LANGUAGES.get(language, Language())
    tree = _parsed(text, known)
    if tree is None:
        yield from by_indentation(text, known, offset)
        return
    kept: list[Definition] = []
    dropped = False
    for node in _around(tree.root_node, text, known, offset):
        definition = _definition(node, text, known)
        if definition and _reaches(definition, text, offset):
            kept.append(definition)
        else:
            dropped = True
    if tree.root_node.has_error and (dropped or not kept):
        # The tree may let a broken definition run on over the next ones.
        innermost = kept[0].start if kept else -1
        for definition in by_indentation(text, known, offset):
            if definition.start > innermost:
                yield definition
    yield from kept


@lru_cache(maxsize=4)
def _parsed(text: str, language: Language) -> "Tree | None":
    """The syntax tree of a text that is asked for again."""
    return syntax_tree(text, language)


@cache
def load(package: str, loader: str) -> "tree_sitter.Language | None":
    """The grammar; None where its package is missing or does not fit the installed tree_sitter."""
    try:
        from tree_sitter import Language

        return Language(getattr(import_module(package), loader)())
    except (ImportError, AttributeError, TypeError, ValueError, OSError):
        return None


def _grammar(text: str, language: Language) -> "tree_sitter.Language | None":
    """The grammar for a text; None for a language without one."""
    if not language.grammar:
        return None
    loader = language.loader
    if language.loader_without_tags and "<?" not in text:
        loader = language.loader_without_tags
    return load(language.grammar, loader)


def syntax_tree(text: str, language: Language, seconds: float = _SECONDS) -> "Tree | None":
    """The syntax tree, with offsets as in `text`; None without a grammar, or when time ran out."""
    grammar = _grammar(text, language)
    if len(text) > _LONGEST or grammar is None:
        return None
    from tree_sitter import Parser

    source = _one_byte_each(text)
    give_up = time.monotonic() + seconds
    try:
        return Parser(grammar).parse(
            lambda offset, _: source[offset : offset + _CHUNK],
            progress_callback=lambda *_: time.monotonic() > give_up,
        )
    except ValueError:  # given up
        return None


def broken_places(text: str, language: str) -> int | None:
    """How many places of a short text the language's grammar finds wrong or incomplete; None
    without a grammar, or when time ran out."""
    tree = syntax_tree(text, LANGUAGES.get(language, Language()), _SECONDS_TO_COUNT)
    if tree is None:
        return None
    count = 0
    nodes = [tree.root_node] if tree.root_node.has_error else []
    while nodes:
        node = nodes.pop()
        count += node.is_error or node.is_missing
        nodes += [child for child in node.children if child.has_error or child.is_missing]
    return count


def _one_byte_each(text: str) -> bytes:
    """The text for a grammar, with one byte for each code point, so that its offsets are ours."""
    if not text.isascii():
        text = re.sub(r"[^\S\x00-\x7f]|\ufeff", " ", text)  # blanks
        text = re.sub(r"[^\x00-\x7f]", "a", text)  # anything else may be a part of a name
    return text.replace("\0", " ").encode("ascii")


def _around(root: "Node", text: str, language: Language, offset: int) -> list["Node"]:
    """The nodes of definitions around the offset, from the inside out."""
    found: dict[int, Node] = {}
    for point in _points(text, language, offset):
        cursor = root.walk()
        while cursor.goto_first_child_for_byte(point) is not None:
            node = cursor.node
            if node is None or node.start_byte > point:
                break
            held = _definition_in(node, text, language)
            if held is not None:
                found[held.id] = held
    # When two do not hold each other, the later one comes first: it begins at the cursor.
    return sorted(found.values(), key=lambda node: (node.start_byte, -node.end_byte), reverse=True)


def _points(text: str, language: Language, offset: int) -> list[int]:
    """The offsets to look at in the tree for what is around `offset`."""
    start = line_start(text, offset)
    code = start + len(indentation(text, offset))
    points = [offset, max(offset - 1, 0)]
    if offset < code < line_end(text, offset):
        points = [code]
    if not language.indented:
        return points
    # A whole line belongs to one function. Comments that end a body stand outside of its node.
    points.append(code)
    for _ in range(_MOST_COMMENT_LINES):
        line = text[code : line_end(text, code)].strip()
        if start == 0 or (line and not line.startswith(language.line_comment)):
            break
        start = line_above(text, start)
        code = start + len(indentation(text, start))
        points.append(code)
    return points


def _is_definition(node: "Node", language: Language) -> bool:
    if node.type not in language.closures:
        return node.is_named and (node.type in language.functions or node.type in language.types)
    if language.closer == "end" and node.is_named:
        return True
    body = node.child_by_field_name("body")
    return body is not None and body.type.endswith(("block", "compound_statement"))


def _definition_in(node: "Node", text: str, language: Language, depth: int = 0) -> "Node | None":
    """The node, if it is a definition, or else the one in this wrapper or below this comment."""
    if _is_definition(node, language):
        return node
    if node.type in _AHEAD and first_on_line(text, node.start_byte):
        below = _below(node, text)
        return _definition_in(below, text, language, depth) if below is not None else None
    if node.type in _WRAPPERS and depth < _DEEPEST_WRAPPING:
        for child in reversed(node.named_children):
            held = _definition_in(child, text, language, depth + 1)
            if held is not None:
                return held
    return None


def _below(node: "Node", text: str) -> "Node | None":
    """The first other node below comments and attributes; None where a blank line parts them."""
    below: Node | None = node
    while below is not None and below.type in _AHEAD:
        end = below.end_byte
        below = below.next_named_sibling
        if below is not None and text.count("\n", end, below.start_byte) > 1:
            return None
    return below


def _wrappers(node: "Node") -> Iterator["Node"]:
    """The wrappers around a definition, from the inside out."""
    for _ in range(_DEEPEST_WRAPPING):
        parent = node.parent
        if parent is None or parent.type not in _WRAPPERS:
            return
        yield parent
        node = parent


def _definition(node: "Node", text: str, language: Language) -> Definition | None:
    whole = [node, *_wrappers(node)][-1]
    bare = Definition(
        name=_name(node, text),
        start=whole.start_byte,
        inner=None,
        closer=language.closer,
        type=node.type in language.types,
        nameless=node.type in language.closures and whole == node,
    )
    if language.indented:
        return _indented(node, text, bare, language)
    if language.closer == "end":
        return _ended(node, text, bare)
    return _braced(node, text, bare)


def _indented(node: "Node", text: str, bare: Definition, language: Language) -> Definition | None:
    """With the inside that indentation closes: it begins after the colon."""
    body = node.child_by_field_name("body")
    colons = [child for child in node.children if child.type == ":" and not child.is_missing]
    if not colons or body is None:
        return None
    header = colons[0].end_byte
    columns = width(line_at(text, node.start_byte))
    if node.has_error or body.start_byte == body.end_byte:
        return replace(bare, inner=(header, max(header, indented_end(text, header, columns))))
    end = body.end_byte
    rest = text[end : line_end(text, end)].strip()
    if not rest or rest.startswith((language.line_comment, ";")):
        end = line_end(text, end)
    own = width(line_at(text, body.start_byte))
    for start, line in lines_below(text, end):
        # Comments that end the body stand outside of its node.
        is_comment = line.lstrip().startswith(language.line_comment)
        if is_comment and width(line) >= own > columns:
            end = start + len(line)
        elif line.strip():
            break
    return replace(bare, inner=(header, end))


def _ended(node: "Node", text: str, bare: Definition) -> Definition:
    """With the inside that `end` closes, as in Lua and Ruby."""
    last = node.children[-1] if node.children else None
    body = node.child_by_field_name("body")
    header = node.child_by_field_name("parameters") or node.child_by_field_name("name")
    if bare.type or header is None or last is None:
        return bare
    if body is not None and body == last and last.type != "body_statement":  # def f(x) = x
        return replace(bare, inner=(body.start_byte, body.end_byte), expression=True)
    separator = re.compile(r"[ \t]*;").match(text, header.end_byte)
    start = separator.end() if separator else header.end_byte
    is_closer = last.type == "end" and last.end_byte > last.start_byte
    closer = last.start_byte if is_closer else None
    return closed_by(text, bare, start, closer, broken=node.has_error)


def _braced(node: "Node", text: str, bare: Definition) -> Definition:
    """With the inside that a brace closes, or the parenthesis of a shell's function."""
    body = node.child_by_field_name("body")
    if body is None:
        return bare
    if body.type == "arrow_expression_clause":
        expression = text[body.start_byte + len("=>") : body.end_byte].lstrip()
        if not expression:
            return bare
        start = body.end_byte - len(expression)
        return replace(bare, inner=(start, body.end_byte), expression=True)
    opener = text[body.start_byte : body.start_byte + 1]
    if opener not in _CLOSERS:
        return bare
    bare = replace(bare, closer=_CLOSERS[opener])
    last = body.end_byte - 1
    closer = last if last > body.start_byte and text[last] == bare.closer else None
    return closed_by(text, bare, body.start_byte + 1, closer, broken=node.has_error)


def _reaches(definition: Definition, text: str, offset: int) -> bool:
    """Whether the offset is not past the definition; a tree may let it run on over other lines."""
    if definition.inner is None:
        return True
    header, end = definition.inner
    if offset <= line_end(text, end):
        return True
    if text[header:offset].isspace() and text.count("\n", header, offset) == 1:
        return True
    if definition.closer or line_at(text, offset).strip():
        return False
    # A blank line below a function is in it when it is indented so.
    return width(line_at(text, offset)) > width(line_at(text, definition.start))


def _name(node: "Node", text: str) -> str:
    """The name as a person knows it; "" for none, or for one that is too long to show."""
    candidates = [node.child_by_field_name("name")]
    for wrapper in _wrappers(node):  # it may be the value of a variable, a field or a key
        for field in ("name", "left", "key", "property", "pattern", "declarator"):
            candidates.append(wrapper.child_by_field_name(field))
    if node.type == "type_declaration" and node.named_children:  # of Go
        candidates.append(node.named_children[0].child_by_field_name("name"))
    innermost = None  # declarator of C: `f` of `int *f(void)`
    for _ in range(_DEEPEST_WRAPPING):
        innermost = (innermost or node).child_by_field_name("declarator") or innermost
    candidates.append(innermost)
    for named in candidates:
        if named is not None:
            name = text[named.start_byte : named.end_byte].strip()
            return name if len(name) <= _LONGEST_NAME and "\n" not in name else ""
    return ""
