"""The lines of a text by offset: where they start and end, how they are indented, how they end.

Offsets are in code points. A line ends with "\\n" or "\\r\\n".
"""

from collections import Counter
from collections.abc import Iterator

from fim.lines import width

_NEAR = 20_000  # code points


def line_start(text: str, offset: int) -> int:
    """The start of the line around `offset`."""
    return text.rfind("\n", 0, offset) + 1


def line_above(text: str, start: int) -> int:
    """The start of the line above the one that starts at `start`."""
    return line_start(text, start - 1)


def line_break(text: str, offset: int) -> int:
    r"""The offset of the line's \n, or the length of the text."""
    found = text.find("\n", offset)
    return found if found >= 0 else len(text)


def line_end(text: str, offset: int) -> int:
    r"""The end of the line's own text, before \n or \r\n."""
    end = line_break(text, offset)
    if end > offset and text[end - 1 : end + 1] == "\r\n":
        return end - 1
    return end


def line_at(text: str, offset: int) -> str:
    """The line around `offset`, without its end."""
    return text[line_start(text, offset) : line_end(text, offset)]


def first_on_line(text: str, offset: int) -> bool:
    """Whether nothing but blanks stands before `offset` on its line."""
    return not text[line_start(text, offset) : offset].strip()


def lines_below(text: str, offset: int) -> Iterator[tuple[int, str]]:
    """The lines under that of `offset`, each with its start, without their ends."""
    start = text.find("\n", offset) + 1
    while 0 < start <= len(text):
        end = line_end(text, start)
        yield start, text[start:end]
        start = text.find("\n", end) + 1


def next_line(text: str, offset: int) -> tuple[int, str]:
    """The next line that is not blank, with its start; (len(text), "") when there is none."""
    for start, line in lines_below(text, offset):
        if line.strip():
            return start, line
    return len(text), ""


def newline_at(text: str, offset: int) -> str:
    """The line end that is nearest above, or else below."""
    end = text.rfind("\n", 0, offset)
    if end < 0:
        end = text.find("\n", offset)
    if end > 0 and text[end - 1] == "\r":
        return "\r\n"
    return "\n"


def indentation(text: str, offset: int) -> str:
    """The blanks that the line at `offset` begins with."""
    return _blanks(line_at(text, offset))


def _blanks(line: str) -> str:
    return line[: len(line) - len(line.lstrip(" \t"))]


def indentation_step(text: str, offset: int, usual: str) -> str:
    """One step of indentation: the most common one around `offset`, or else `usual`."""
    own = indentation(text, offset)
    if own.startswith("\t"):
        return "\t"
    steps: Counter[str] = Counter()
    previous = ""
    for line in text[line_start(text, max(0, offset - _NEAR)) : offset + _NEAR].split("\n"):
        if not line.strip():
            continue
        blanks = _blanks(line)
        if blanks.startswith(previous):
            step = blanks[len(previous) :]
            is_tab = step == "\t" and not own
            is_spaces = 1 < len(step) <= 8 and not step.strip(" ")
            if is_tab or is_spaces:
                steps[step] += 1
        previous = blanks
    if steps:
        return steps.most_common(1)[0][0]
    if own and usual == "\t":
        return "    "
    return usual


def indented_end(text: str, header: int, columns: int) -> int:
    """The end of the lines under a header that are indented by more than `columns`."""
    end = line_end(text, header)
    for start, line in lines_below(text, header):
        if width(line) > columns:
            end = start + len(line)
        elif line.strip():
            break
    return end
