"""Real situations: a document, what a model writes at its cursor, and the document after accepting
what is made of that.

The rows are in situations/, a file for each kind:

    == what it is about (language)
    the document, ▮ at the cursor
    -- dismissed        a suggestion that the user has just dismissed; may be left out
    -- writes           the raw answer, which may run on beyond its sensible end
    -- stands           the document after accepting; or
    -- inserts          what is inserted at the cursor, where nothing is replaced; or
    -- hidden           nothing is shown

One blank line parts two rows. ⇥ is a tab.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from fim import FORMATS, CursorContext, Shaper, with_missing_indentation

FOLDER = Path(__file__).parent / "situations"
HEAD = re.compile(r"== (.*) \((\w+)\)$")


@dataclass(frozen=True)
class Situation:
    kind: str
    title: str
    language: str
    document: str
    answer: str
    expected: str  # the document; with the cursor's mark still in it where nothing is shown
    dismissed: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.kind}: {self.title}"


def parse(kind: str, row: str) -> Situation:
    head, _, body = row.partition("\n")
    found = HEAD.match(f"== {head}")
    assert found, f"{kind}: {head}"
    title, language = found.groups()
    document, *parts = re.split(r"^-- (\w+)$\n?", body.replace("⇥", "\t"), flags=re.MULTILINE)
    texts = {
        name: text.removesuffix("\n") for name, text in zip(parts[::2], parts[1::2], strict=True)
    }
    document = document.removesuffix("\n")
    assert document.count("▮") == 1, title
    assert len({"stands", "inserts", "hidden"} & set(texts)) == 1, title
    expected = document
    if "inserts" in texts:
        expected = document.replace("▮", texts["inserts"])
    if "stands" in texts:
        expected = texts["stands"]
    dismissed = (texts["dismissed"],) if "dismissed" in texts else ()
    return Situation(kind, title, language, document, texts["writes"], expected, dismissed)


def situations() -> list[Situation]:
    rows = []
    for path in sorted(FOLDER.glob("*.txt")):
        _, *texts = re.split(r"^== ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        rows += [parse(path.stem, text.removesuffix("\n")) for text in texts]
    return rows


SITUATIONS = situations()


def accepted(row: Situation, answer: str, piece: int = 0, newline: str = "\n") -> str:
    """The document after accepting what is made of the answer, which comes `piece` characters at a
    time, or at once."""
    document = row.document.replace("\n", newline)
    prefix, _, suffix = document.partition("▮")
    context = with_missing_indentation(CursorContext(prefix, suffix, language=row.language))
    assert context.suffix == suffix and context.prefix == prefix + context.lead
    shaper = Shaper.at(context, FORMATS["qwen2.5-coder"], dismissed=row.dismissed)
    text = answer
    if piece:
        text = ""
        while len(text) < len(answer) and not shaper.done(text):
            text = answer[: len(text) + piece]
    found = shaper.shape(text)
    if found.hidden:
        assert found.text == "" and found.replace == (0, 0)
        return document
    start, end = found.replace
    assert start == 0 <= end <= len(suffix) and "\n" not in suffix[:end]
    assert found.text.count("\n") == found.text.count("\r\n") or newline == "\n"
    return prefix + found.text + suffix[end:]


@pytest.mark.parametrize("row", SITUATIONS, ids=str)
def test_situation(row: Situation) -> None:
    assert accepted(row, row.answer) == row.expected
    for piece in (1, 3):
        assert accepted(row, row.answer, piece) == row.expected
    if "\n" in row.document:
        windows = accepted(row, row.answer, newline="\r\n")
        assert windows == row.expected.replace("\n", "\r\n")


def test_there_are_rows_of_every_language() -> None:
    assert len(SITUATIONS) >= 300
    assert len({str(row) for row in SITUATIONS}) == len(SITUATIONS)
    assert len({row.language for row in SITUATIONS}) >= 20
