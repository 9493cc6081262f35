"""Where functions, classes and their bodies stand in a text: by a compiled grammar, or by its
indentation.

Grammars are loaded when first asked for, so that importing this room costs nothing. A text is
parsed for a bounded time: one that is too long or too strange for that, like a language without a
grammar, is read by its indentation.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, lru_cache
from importlib import import_module
from typing import TYPE_CHECKING

from fim.editing.languages import GRAMMARS, PHP, Grammar
from fim.editing.line_offsets import indentation, line_at, line_end, line_start, lines_below
from fim.editing.outline import Definition, by_indentation, closed_by, indented_end
from fim.lines import width

if TYPE_CHECKING:
    from tree_sitter import Language, Node, Tree

_LONGEST = 1_000_000  # code points
_SECONDS = 0.3  # some texts take a grammar minutes; a common one of 2,000 lines takes it 10 ms
_CHUNK = 1 << 16


# Nodes that a definition may be the last part of: `export const f = () => {}`.
_WRAPPERS = frozenset(
    "decorated_definition export_statement template_declaration lexical_declaration "
    "variable_declaration "
    "variable_declarator expression_statement assignment_expression assignment_statement "
    "assignment expression_list "
    "public_field_definition field_definition field pair ambient_declaration var_declaration "
    "var_spec "
    "short_var_declaration let_declaration declaration init_declarator "
    "local_declaration_statement".split()
)
_AHEAD = frozenset("comment line_comment block_comment attribute_item decorator".split())
_DEEPEST_WRAPPING = 5
_MOST_COMMENT_LINES = 100


def definitions(text: str, language: str, offset: int) -> Iterator[Definition]:
    """What stands around `offset`, or is declared on its line, from the inside out."""
    grammar = GRAMMARS.get(language)
    parsed = _parsed(text, _dialect(grammar, text)) if grammar else None
    if grammar is None or parsed is None:
        yield from by_indentation(text, language, offset)
        return
    kept, cut = [], False
    for node in _around(parsed.root_node, text, grammar, offset):
        definition = _definition(node, text, grammar)
        if definition and _reaches(definition, text, offset):
            kept.append(definition)
        else:
            cut = True
    if parsed.root_node.has_error and (cut or not kept):
        # The tree let a broken definition run on over the next ones.
        innermost = kept[0].start if kept else -1
        yield from (
            found for found in by_indentation(text, language, offset) if found.start > innermost
        )
    yield from kept


@cache
def load(module: str, language: str) -> "Language | None":
    """The grammar, or None where its wheel is missing or does not fit the tree_sitter that is
    here."""
    try:
        from tree_sitter import Language

        return Language(getattr(import_module(module), language)())
    except (ImportError, AttributeError, TypeError, ValueError, OSError):
        return None


def _dialect(grammar: Grammar, text: str) -> Grammar:
    return (
        replace(grammar, language="language_php_only")
        if grammar is PHP and "<?" not in text
        else grammar
    )


@lru_cache(maxsize=4)
def _parsed(text: str, grammar: Grammar) -> "Tree | None":
    """The syntax tree, whose offsets are those of `text`; None where there is no grammar or no time
    for it."""
    if len(text) > _LONGEST or not (language := load(grammar.module, grammar.language)):
        return None
    from tree_sitter import Parser

    source = _one_byte_each(text)
    give_up = time.monotonic() + _SECONDS
    try:
        return Parser(language).parse(
            lambda offset, _: source[offset : offset + _CHUNK],
            progress_callback=lambda *_: time.monotonic() > give_up,
        )
    except ValueError:  # given up
        return None


def _one_byte_each(text: str) -> bytes:
    """The text for a grammar, one byte per code point: blanks are blanks, and other non-ASCII is a
    letter."""
    if not text.isascii():
        text = re.sub(
            r"[^\x00-\x7f]",
            lambda found: " " if found[0].isspace() or found[0] == "\ufeff" else "a",
            text,
        )
    return text.replace("\0", " ").encode("ascii")


def _around(root: "Node", text: str, grammar: Grammar, offset: int) -> list["Node"]:
    """The nodes of definitions around the offset, from the inside out."""
    first = line_start(text, offset)
    code = first + len(indentation(text, offset))
    points = [code] if offset < code < line_end(text, offset) else [offset, offset - 1]
    if not grammar.closer:  # here a line belongs to one function as a whole
        points.append(code)
        for _ in range(
            _MOST_COMMENT_LINES
        ):  # comments and blank lines may stand outside of the body that they end
            if first == 0 or text[code : line_end(text, code)].strip()[:1] not in ("", "#"):
                break
            first = line_start(text, first - 1)
            code = first + len(indentation(text, first))
            points.append(code)
    found: dict[int, Node] = {}
    for point in points:
        chain = _chain(root, max(point, 0))
        for node in chain:
            kept = node if _is_definition(node, grammar) else _wrapped(node, text, grammar)
            if kept is not None:
                found[kept.id] = kept
    # Of two that do not hold each other the later one, which begins at the cursor, comes first.
    return sorted(found.values(), key=lambda node: (node.start_byte, -node.end_byte), reverse=True)


def _chain(root: "Node", point: int) -> list["Node"]:
    """The nodes that have the character at `point`, from the outside in."""
    cursor, nodes = root.walk(), [root]
    while cursor.goto_first_child_for_byte(point) is not None:
        node = cursor.node
        if node is None or node.start_byte > point:
            break
        nodes.append(node)
    return nodes


def _is_definition(node: "Node", grammar: Grammar) -> bool:
    if node.type in grammar.closures:
        body = node.child_by_field_name("body")
        block = body is not None and (
            body.type.endswith("block") or body.type == "compound_statement"
        )
        return block or bool(grammar.closer == "end" and node.is_named)
    return node.is_named and (node.type in grammar.functions or node.type in grammar.types)


def _wrapped(node: "Node", text: str, grammar: Grammar, depth: int = 0) -> "Node | None":
    """The definition that a wrapper holds, or that stands right below a comment or an attribute."""
    if (
        node.type in _AHEAD
        and not text[line_start(text, node.start_byte) : node.start_byte].strip()
    ):
        below: Node | None = node
        while below is not None and below.type in _AHEAD:
            end = below.end_byte
            below = below.next_named_sibling
            if below is None or text.count("\n", end, below.start_byte) > 1:
                return None
        assert below is not None
        if _is_definition(below, grammar):
            return below
        node = below
    if node.type in _WRAPPERS and depth < _DEEPEST_WRAPPING:
        for child in reversed(node.named_children):
            held = (
                child
                if _is_definition(child, grammar)
                else _wrapped(child, text, grammar, depth + 1)
            )
            if held is not None:
                return held
    return None


def _definition(node: "Node", text: str, grammar: Grammar) -> Definition | None:
    whole = node
    for _ in range(_DEEPEST_WRAPPING):
        parent = whole.parent
        if parent is None or parent.type not in _WRAPPERS:
            break
        whole = parent
    bare = Definition(
        _name(node, text),
        whole.start_byte,
        None,
        grammar.closer,
        type=node.type in grammar.types,
        nameless=node.type in grammar.closures and whole == node,
    )
    if not grammar.closer:
        return _indented(node, text, bare)
    if grammar.closer == "end":
        return _ended(node, text, bare)
    body = node.child_by_field_name("body")
    if body is None:
        return bare
    if body.type == "arrow_expression_clause":
        arrow = body.start_byte + len("=>")
        start = arrow + len(text[arrow : body.end_byte]) - len(text[arrow : body.end_byte].lstrip())
        return (
            replace(bare, inner=(start, body.end_byte), expression=True)
            if start < body.end_byte
            else bare
        )
    opener = text[body.start_byte : body.start_byte + 1]
    if opener not in {"{", "("}:
        return bare
    closer = "}" if opener == "{" else ")"
    there = body.end_byte - 1 > body.start_byte and text[body.end_byte - 1] == closer
    bare = replace(bare, closer=closer)
    return closed_by(
        text, bare, body.start_byte + 1, body.end_byte - 1 if there else None, broken=node.has_error
    )


def _indented(node: "Node", text: str, bare: Definition) -> Definition | None:
    """A definition of Python: its header ends with the last colon before its body."""
    body = node.child_by_field_name("body")
    colons = [child for child in node.children if child.type == ":" and not child.is_missing]
    if not colons or body is None:
        return None
    header = colons[0].end_byte
    columns = width(line_at(text, node.start_byte))
    if node.has_error or body.start_byte == body.end_byte:
        return replace(bare, inner=(header, max(header, indented_end(text, header, columns))))
    end = line_end(text, body.end_byte)
    rest = text[body.end_byte : end].strip()
    end = body.end_byte if rest and not rest.startswith(("#", ";")) else end
    own = width(line_at(text, body.start_byte))
    for start, line in lines_below(
        text, end
    ):  # comments that end the body stand outside of its node
        if line.strip() and (
            not line.lstrip().startswith("#") or width(line) < own or own <= columns
        ):
            break
        end = start + len(line) if line.strip() else end
    return replace(bare, inner=(header, end))


def _ended(node: "Node", text: str, bare: Definition) -> Definition | None:
    """A definition of Lua or Ruby, which `end` closes."""
    last = node.children[-1] if node.children else None
    body = node.child_by_field_name("body")
    header = node.child_by_field_name("parameters") or node.child_by_field_name("name")
    if bare.type or header is None or last is None:
        return bare
    if body is not None and body == last and last.type != "body_statement":  # def f(x) = x
        return replace(bare, inner=(body.start_byte, body.end_byte), expression=True)
    there = last.type == "end" and last.end_byte > last.start_byte
    after = re.compile(r"[ \t]*;|").match(text, header.end_byte)
    start = after.end() if after else header.end_byte
    return closed_by(text, bare, start, last.start_byte if there else None, broken=node.has_error)


def _reaches(definition: Definition, text: str, offset: int) -> bool:
    """Whether the offset is not past the definition: by its tree it may run on to the end of a
    broken file."""
    if definition.inner is None:
        return True
    header, end = definition.inner
    if offset <= line_end(text, end) or (
        text[header:offset].isspace() and text.count("\n", header, offset) == 1
    ):
        return True
    if definition.closer or line_at(text, offset).strip():
        return False
    # A blank line below a function is in it when it is indented so.
    return width(line_at(text, offset)) > width(line_at(text, definition.start))


def _name(node: "Node", text: str) -> str:
    named, held = node.child_by_field_name("name"), node
    for _ in range(_DEEPEST_WRAPPING):
        if named is not None or held.parent is None or held.parent.type not in _WRAPPERS:
            break
        held = held.parent
        for field in ("name", "left", "key", "property", "pattern", "declarator"):
            named = named or held.child_by_field_name(field)
    declared = node.child_by_field_name("declarator")
    if named is None and node.type == "type_declaration" and node.named_children:  # of Go
        named = node.named_children[0].child_by_field_name("name")
    if named is None:
        for _ in range(_DEEPEST_WRAPPING):
            named, declared = declared, declared and declared.child_by_field_name("declarator")
            if declared is None:
                break
    written = text[named.start_byte : named.end_byte].strip() if named else ""
    return written if 0 < len(written) <= 60 and "\n" not in written else ""
