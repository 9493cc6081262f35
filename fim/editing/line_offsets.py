"""The lines of a text by offset: where they start and end, how they are indented, how they end."""

from collections.abc import Iterator


def line_start(text: str, offset: int) -> int:
    return text.rfind("\n", 0, offset) + 1


def line_end(text: str, offset: int) -> int:
    r"""The end of the line's text, before \n or \r\n."""
    end = text.find("\n", offset)
    if end < 0:
        return len(text)
    return end - 1 if end > offset and text[end - 1] == "\r" else end


def line_at(text: str, offset: int) -> str:
    return text[line_start(text, offset) : line_end(text, offset)]


def indentation(text: str, offset: int) -> str:
    """The blanks that the line at `offset` begins with."""
    line = line_at(text, offset)
    return line[: len(line) - len(line.lstrip(" \t"))]


def lines_below(text: str, offset: int) -> Iterator[tuple[int, str]]:
    """The lines under that of `offset`, each with its start, without their ends."""
    start = text.find("\n", offset) + 1
    while 0 < start <= len(text):
        end = line_end(text, start)
        yield start, text[start:end]
        start = text.find("\n", end) + 1


def newline_at(text: str, offset: int) -> str:
    """The line end that is nearest above, or else below."""
    end = text.rfind("\n", 0, offset)
    end = end if end >= 0 else text.find("\n", offset)
    return "\r\n" if end > 0 and text[end - 1] == "\r" else "\n"
