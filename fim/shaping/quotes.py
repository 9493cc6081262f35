"""Brackets, strings and comments as each language has them: a light reader, no parser.

`scan` reads on from any place whose open brackets and strings are known, so an answer is read from
the cursor on. A language without a row in the table is read by the rules that most have in common.
"""

import re
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Literal, NamedTuple

_PAIRS = {"(": ")", "[": "]", "{": "}"}

Kind = Literal["bracket", "string", "comment"]


class Open(NamedTuple):
    """Something that is open: a bracket, a string or a comment."""

    mark: str  # what opened it
    closer: str
    kind: Kind = "bracket"
    escapes: bool = False  # whether a backslash takes the meaning of the next character
    lines: bool = False  # whether it may go over several lines; else it ends with its line
    code: str = ""  # what opens code in it: "${"


@dataclass(frozen=True, slots=True)
class Scan:
    """What a text does to what is open."""

    depths: list[int]  # at each index, and at the end: how much the text itself has open there
    closers: list[int]  # where it closes something that was open before it
    strays: str  # of these, the brackets that close nothing at all
    opened: tuple[Open, ...]  # at its end
    kept: int  # how many of these were open before it
    starts: list[int]  # where the others were opened

    @property
    def stray(self) -> int:
        return len(self.strays)

    @property
    def own(self) -> tuple[Open, ...]:
        """What it opened itself and leaves open."""
        return self.opened[self.kept :]

    def in_text(self) -> bool:
        """Whether its end stands in a string or a comment."""
        return bool(self.opened) and self.opened[-1].kind != "bracket"


@dataclass(frozen=True, slots=True)
class _Quotes:
    """The marks of one language, as regular expressions for what opens them."""

    line: str = r"//"
    block: tuple[tuple[str, str], ...] = (("/*", "*/"),)
    # (opener, closer, escapes, lines, code). \0 in a closer: what the opener's group 1 matched
    strings: tuple[tuple[str, str, bool, bool, str], ...] = ()
    skipped: str = r"(?!)"  # read as a whole, as a literal of one character
    brackets: bool = True


_DOUBLE = (r'"', '"', True, False, "")
_SINGLE = (r"(?<!\w)'", "'", True, False, "")
_BACK = (r"`", "`", True, True, "")
_CHARACTER = r"'(?:\\(?:u\{\w+\}|x\w\w|u\w{4}|[0-7]{1,3}|.)|[^'\\\n])'"
_HASH = r"(?<!\S)#"
_REGEX = (
    r"(?:(?<=[(,=:\[!&|?{};])|(?<=\breturn)|^)[ \t]*"
    r"/(?![*/ ])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/\w*"
)
_COMMON = _Quotes(r"(?!)", (), (('"""', '"""', True, True, ""), _DOUBLE, _SINGLE, _BACK))
_SCRIPT = _Quotes(strings=(_DOUBLE, _SINGLE, (r"`", "`", True, True, "${")), skipped=_REGEX)
_C = _Quotes(strings=((r'R"\((?=)', ')"', False, True, ""), _DOUBLE), skipped=_CHARACTER)
_MARKUP = _Quotes(
    r"(?!)",
    (("<!--", "-->"),),
    ((r'(?<==)"', '"', False, True, ""), (r"(?<==)'", "'", False, True, "")),
)
_TEXT = _Quotes(r"(?!)", (), (), brackets=False)
_DATA = _Quotes(
    _HASH,
    (),
    ((r'(?<![^\s\[{,:=])"', '"', True, True, ""), (r"(?<![^\s\[{,:=])'", "'", False, True, "")),
)
_LANGUAGES: dict[str, _Quotes] = {
    "python": _Quotes(
        r"#",
        (),
        (
            (r'(?i:\b(?:f|rf|fr))"""', '"""', True, True, "{"),
            (r"(?i:\b(?:f|rf|fr))'''", "'''", True, True, "{"),
            ('"""', '"""', True, True, ""),
            ("'''", "'''", True, True, ""),
            (r'(?i:\b(?:f|rf|fr))"', '"', True, False, "{"),
            (r"(?i:\b(?:f|rf|fr))'", "'", True, False, "{"),
            _DOUBLE,
            (r"'", "'", True, False, ""),
        ),
    ),
    **dict.fromkeys("javascript javascriptreact typescript typescriptreact".split(), _SCRIPT),
    **dict.fromkeys(("vue", "svelte", "astro"), _SCRIPT),
    "go": _Quotes(strings=(_DOUBLE, (r"`", "`", False, True, "")), skipped=_CHARACTER),
    "rust": _Quotes(
        strings=((r'\bb?r(#*)"', '"\0', False, True, ""), (r'"', '"', True, True, "")),
        skipped=_CHARACTER,
    ),
    "c": _C,
    "cpp": _C,
    "java": _Quotes(strings=(('"""', '"""', True, True, ""), _DOUBLE), skipped=_CHARACTER),
    "csharp": _Quotes(
        strings=(
            ('"""', '"""', False, True, ""),
            (r'\$?@\$?"', '"', False, True, ""),
            (r'\$"', '"', True, False, "{"),
            _DOUBLE,
        ),
        skipped=_CHARACTER,
    ),
    "ruby": _Quotes(
        r"(?<!\S)#(?!\{)",
        (),
        ((r'"', '"', True, True, "#{"), (r"(?<!\w)'", "'", True, True, ""), _BACK),
        skipped=_REGEX,
    ),
    "lua": _Quotes(
        r"--(?!\[=*\[)",
        (("--[[", "]]"),),
        ((r"\[(=*)\[", "]\0]", False, True, ""), _DOUBLE, (r"'", "'", True, False, "")),
    ),
    "shellscript": _Quotes(
        _HASH,
        (),
        (
            (r"<<-?[ ]*['\"]?(\w+)['\"]?(?=[^\n]*\n)", "\n\0", False, True, ""),
            (r'"', '"', True, True, "$("),
            (r"'", "'", False, True, ""),
            _BACK,
        ),
        skipped=r"\\.|\$\{#|\$#",
    ),
    "php": _Quotes(
        r"//|(?<!\S)#(?!\[)",
        strings=((r'"', '"', True, True, ""), (r"'", "'", True, True, "")),
    ),
    "html": _MARKUP,
    "xml": _MARKUP,
    **dict.fromkeys(("yaml", "dockercompose"), _DATA),
    "toml": _Quotes(
        _HASH, (), (('"""', '"""', True, True, ""), _DOUBLE, (r"'", "'", False, False, ""))
    ),
    **dict.fromkeys(
        ("makefile", "dockerfile", "ini", "properties"), _Quotes(_HASH, (), (_DOUBLE, _SINGLE))
    ),
    **dict.fromkeys(("json", "jsonc", "json5", "jsonl"), _Quotes(strings=(_DOUBLE,))),
    **dict.fromkeys(("css", "scss", "less"), _Quotes(strings=(_DOUBLE, _SINGLE))),
    "sql": _Quotes(r"--", strings=((r"'", "'", False, True, ""), _DOUBLE)),
    **dict.fromkeys(
        "markdown plaintext text latex tex restructuredtext asciidoc git-commit".split(), _TEXT
    ),
}


@cache
def _code(language: str, *, roughly: bool) -> tuple[re.Pattern[str], list[Open]]:
    """What to look for in code: a comment or string, by the group that matches, or a bracket.

    roughly: comments, strings and brackets that end on their line are skipped as a whole.
    """
    quotes = _LANGUAGES.get(language, _COMMON)
    marks: list[tuple[str, Open]] = [(quotes.line, Open("", "\n", "comment"))]
    for opener, closer in quotes.block:
        marks.append((re.escape(opener), Open("", closer, "comment", lines=True)))
    for string, closer, escapes, lines, code in quotes.strings:
        marks.append((string, Open("", closer, "string", escapes, lines, code)))
    groups = [f"(?P<m{number}>{mark})" for number, (mark, _) in enumerate(marks)]
    skipped = [quotes.skipped]
    if roughly:
        skipped.append(f"(?:{quotes.line})[^\\n]*\\n")
        for string, closer, escapes, lines, code in quotes.strings:
            if escapes and not lines and not code and len(closer) == 1:
                skipped.append(rf"{string}(?!{closer})(?:\\.|[^{closer}\\\n])*{closer}")
        if quotes.brackets:
            skipped.append(r"\([\w ,.=:*+]*\)|\[[\w ,.=:*+]*\]")
    groups.insert(0, f"(?P<skipped>{'|'.join(skipped)})")
    # Groups within a mark are numbered after its own one.
    if quotes.brackets:
        groups.append(r"(?P<bracket>[()\[\]{}])")
    return re.compile("|".join(groups), re.MULTILINE), [what for _, what in marks]


@lru_cache(maxsize=256)
def _inside(what: Open) -> re.Pattern[str]:
    """What to look for in a string or a comment."""
    closer = re.escape(what.closer)
    if what.closer.startswith("\n") and len(what.closer) > 1:
        closer = rf"\n[ \t]*{re.escape(what.closer[1:])}\b"
    parts = [r"\\."] if what.escapes else []
    if what.code == "{":
        parts.append(r"\{\{|\}\}")
    parts.append(f"(?P<end>{closer})")
    if what.code:
        parts.append(f"(?P<code>{re.escape(what.code)})")
    if not what.lines:
        parts.append(r"(?P<broken>\n)")
    return re.compile("|".join(parts), re.DOTALL)


def scan(text: str, language: str, opened: tuple[Open, ...] = (), *, roughly: bool = False) -> Scan:
    """What is open along a text that begins where `opened` is.

    roughly: it takes a third of the time, without `depths`; for long texts.
    """
    reader = _Reader(list(opened), len(opened), keeps_depths=not roughly)
    pattern, kinds = _code(language, roughly=roughly)
    position = 0
    while position <= len(text):
        top = reader.stack[-1] if reader.stack else None
        inside = top is not None and top.kind != "bracket"
        found = (_inside(top) if top and inside else pattern).search(text, position)
        if found is None:
            break
        group = found.lastgroup or ""
        start = found.start()
        position = max(found.end(), start + 1)  # an empty match goes on, too
        mark = found[0]
        if group in ("end", "broken"):
            reader.end_text(start if mark == "\n" else position - 1, whole=group == "end")
        elif group == "code":
            reader.open(position - 1, Open(mark[-1], _PAIRS[mark[-1]]))
        elif mark in _PAIRS and group == "bracket":
            reader.open(start, Open(mark, _PAIRS[mark]))
        elif group == "bracket":
            reader.close(start, mark)
        elif group.startswith("m"):
            what = kinds[int(group[1:])]
            word = next((each for each in found.groups() if each not in (None, mark)), "")
            closer = what.closer.replace("\0", word)
            reader.open(start, what._replace(mark=mark, closer=closer))
    reader.reach(len(text))
    return Scan(
        reader.depths,
        reader.closers,
        reader.strays,
        tuple(reader.stack),
        reader.floor,
        reader.starts,
    )


def begun_in(text: str, language: str) -> tuple[Open, ...]:
    """What is open where a text begins that was cut out of another: a docstring or a comment whose
    end comes before any beginning of one, or nothing."""
    if language == "python":
        return _begun_in_docstring(text)
    for opener, closer in _LANGUAGES.get(language, _COMMON).block:
        end = text.find(closer)
        if end >= 0 and not 0 <= text.find(opener) < end:
            return (Open(opener, closer, "comment", lines=True),)
    return ()


def _begun_in_docstring(text: str) -> tuple[Open, ...]:
    above = ""
    for line in text.split("\n"):
        for mark in ('"""', "'''"):
            if line.count(mark) % 2 == 0:
                continue
            before, _, behind = line.partition(mark)
            opens = above.rstrip().endswith((":", ",", "(", "=")) or before.rstrip().endswith(
                ("=", "(", "[", "{", ",", ":", "+", "return")
            )
            begins = not before.strip(" \trRbBuUfF") and behind.strip() and not above.strip()
            return () if opens or begins else (Open(mark, mark, "string", True, True),)
        if line.strip():
            above = line
    return ()


@dataclass(slots=True)
class _Reader:
    stack: list[Open]
    floor: int  # how much of what was open at the beginning has been open all the time
    keeps_depths: bool
    depths: list[int] = field(default_factory=list)
    closers: list[int] = field(default_factory=list)
    strays: str = ""
    starts: list[int] = field(default_factory=list)  # of what the text itself has open

    def reach(self, index: int) -> None:
        """Goes on to the character at `index`, before which nothing opens or closes."""
        if self.keeps_depths:
            self.depths += [len(self.stack) - self.floor] * (index + 1 - len(self.depths))

    def open(self, index: int, what: Open) -> None:
        self.reach(index)
        self.stack.append(what)
        self.starts.append(index)

    def end_text(self, index: int, *, whole: bool) -> None:
        """A string or comment ends with the character at `index`; not whole: with its line."""
        self.reach(index)
        if len(self.stack) == self.floor:
            self.floor -= 1
            if whole and self.stack[-1].kind == "string":
                self.closers.append(index + 1 - len(self.stack[-1].closer))
        self.stack.pop()
        del self.starts[max(0, len(self.stack) - self.floor) :]

    def close(self, index: int, mark: str) -> None:
        """A closing bracket at `index`, which closes the nearest of its kind."""
        self.reach(index)
        depth = len(self.stack) - 1
        while depth >= 0 and self.stack[depth].closer != mark:
            if self.stack[depth].kind != "bracket":
                return
            depth -= 1
        if depth >= 0:
            if depth < self.floor:
                self.closers.append(index)
                self.floor = depth
            del self.stack[depth:]
            del self.starts[max(0, depth - self.floor) :]
        elif not self.stack:
            self.closers.append(index)
            self.strays += mark
