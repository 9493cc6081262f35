"""What was written already: below the cursor, above it, or by the answer itself.

These are rules as in ends.py.
"""

import re

from fim.lines import opens_block, width
from fim.shaping.bounds import Answer, Bounds, Line, Stop

# A small model may write `a=self.a, ` without end. Shorter units, as in `0, 0, 0, 0`, are what
# people write too.
_LOOP = re.compile(r"(?=(([^\n]{8,60}?)\2{3}))")
_COPIES = 3  # of a line, or of a group of _MOST_LINES at most, one after another: a loop
_MOST_LINES = 8
_LETTERS = 12  # that a group of lines has at least, of which the second copy is one too many
_DISTINCTIVE = 15  # letters and digits of a line that is hardly written twice
_MOST_ABOVE = 400  # lines that are read for a definition
_ANNOTATION = re.compile(r"\s*(?:@|#\[|\[\w|\[<|/\*|\*|-->|<!--|//|#|--|;)")
_KEY = re.compile(r"\s*[\w.-]+:(?:\s|$)")
_IMPORT = re.compile(r"\s*(?:import|from|#include|use|using|require|export)\b")
_NAMES_A_TYPE = re.compile(
    r"\s*(?:(?:export|default|public|private|protected|internal|static|abstract|final|sealed|pub"
    r"|async|local|partial)\s+)*(?:class|struct|enum|interface|trait|def|fn|func|function)\s+\w\w"
)
_METHOD = re.compile(
    r"\s*(?!(?:if|for|while|switch|catch|else|return|with|using|lock|foreach)\b)"
    r"[\w<>\[\],\s*&:~.?]*\w\s*\([^()]*\)[^()=]*\{$"
)
_PREPROCESSOR = re.compile(r"\s*#\s*(?:if|el|endif)")


def _same(line: str, other: str) -> bool:
    """Whether two lines say the same, whatever blanks, quotes and commas they have."""
    return width(line) == width(other) and _plain(line) == _plain(other)


def _plain(line: str) -> str:
    return re.sub(r"\s+", "", line).replace("'", '"').rstrip(",;")


def _letters(line: str) -> int:
    return sum(map(str.isalnum, line))


def _is_distinctive(line: str, language: str) -> bool:
    if language == "yaml" and _KEY.match(line):  # a mapping has it once
        return True
    return _letters(line) >= _DISTINCTIVE and not _ANNOTATION.match(line)


def repeats_below(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends before a line that the user's own text has next.

    One line is enough if it is hardly written twice. Of another, as `@property` or `{`, the line
    behind it has to be the same, too.
    """
    if not bounds.below:
        return None
    below = bounds.below
    for number, line in enumerate(written := answer.written):
        if not _same(line.text, below[0]):
            continue
        cut = max(line.start - 1, 0)
        if len(below) == 1 or _is_distinctive(line.text, bounds.language):
            return Stop(line.end + 1, cut, "repeats below")
        if number + 1 == len(written):
            return Stop(len(answer.text), cut, "repeats below") if answer.whole else None
        if _same(written[number + 1].text, below[1]):
            return Stop(written[number + 1].end + 1, cut, "repeats below")
    return None


def repeats_above(answer: Answer, bounds: Bounds) -> Stop | None:
    """Nothing is suggested that begins with the lines just above the cursor once more."""
    if bounds.extent == "span":
        return None
    head = bounds.prefix[: len(bounds.prefix) - len(bounds.before)]
    above = [line.rstrip() for line in head[-2000:].split("\n") if line.strip()]
    codes: list[str] = []
    for line in answer.written[:_MOST_LINES]:
        codes.append(line.text.rstrip())
        if above[-len(codes) :] != codes:
            continue
        enough = _LETTERS if len(codes) > 1 else _DISTINCTIVE + 5
        if sum(map(_letters, codes)) >= enough or _IMPORT.match(codes[0]):
            return Stop(line.end + 1, 0, "repeats above")
    return None


def defined_above(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends before a definition that stands above in the same block."""
    if bounds.extent == "span":
        return None
    above: list[str] | None = None
    for line in answer.written:
        if not (_NAMES_A_TYPE.match(line.text) or _METHOD.match(line.text.rstrip())):
            continue
        if above is None:
            head = bounds.prefix[: len(bounds.prefix) - len(bounds.before)]
            above = head.rsplit("\n", _MOST_ABOVE)[-_MOST_ABOVE:][::-1]
        if _stands_in(above, line.text.rstrip()) and not _is_decorated(answer, line, above):
            return Stop(line.end + 1, max(line.start - 1, 0), "defined above")
    return None


def _stands_in(above: list[str], header: str) -> bool:
    """above: the lines above, the nearest first."""
    columns = width(header)
    for line in above:
        if line.strip() and (width(line) < columns or _PREPROCESSOR.match(line)):
            return False
        if line.rstrip() == header:
            return True
    return False


def _is_decorated(answer: Answer, line: Line, above: list[str]) -> bool:
    """Whether a decorator stands over the line, as over the overloads of a function."""
    before = [each.code for each in answer.lines if each.start < line.start and each.code]
    if not before:
        before = [each.strip() for each in above if each.strip()][:1]
    return before[-1:] != [] and before[-1].startswith("@")


def loop_in_line(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends before a line that has the same text four times in a row: the part of it before the
    loop is not to be trusted either."""
    text = answer.text
    first = None
    for loop in _LOOP.finditer(text):
        sooner = first is None or loop.end(1) < first.end(1)
        if sooner and any(map(str.isalpha, loop[2])):
            first = loop
    if first is None:
        return None
    return Stop(first.end(1), max(text.rfind("\n", 0, first.start()), 0), "loops")


def repeated_lines(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends after the first of equal groups of up to six lines, one after another, with or without
    blank lines between them: of two groups where they say much, else of three. A line that opens a
    block does not end the first group."""
    written: list[Line] = []
    codes: list[str] = []
    for line in answer.written:
        written.append(line)
        # Several blocks may end one after another: in a span their indentation tells them apart.
        codes.append(line.text.rstrip() if bounds.extent == "span" else line.code)
        for size in range(1, min(_MOST_LINES, len(codes) // 2) + 1):
            copies = 2 if size > 1 and sum(map(_letters, codes[-size:])) >= _LETTERS else _COPIES
            if len(codes) < copies * size or (copies > 2 and size > 4):
                continue
            *earlier, latest = (codes[-n * size :][:size] for n in range(copies, 0, -1))
            if any(group != latest for group in earlier):
                continue
            if size > 1 and not any(map(str.isalpha, "".join(latest))):
                continue  # brackets, as of nested data
            first = written[: len(written) - (copies - 1) * size]
            if size > 1:
                while first and opens_block(first[-1].text):
                    first.pop()
            return Stop(line.end + 1, first[-1].end if first else 0, "loops")
    return None
