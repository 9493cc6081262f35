"""Lines, indentation and brackets of source text in any language: fast rules, no parser."""

import re

_PAIRS = {")": "(", "]": "[", "}": "{"}
_QUOTES = "\"'`"
_CLOSERS = frozenset(")]}>\"'`")

# A colon opens a block only after such a word, or after the closing bracket of a header of several
# lines: the colon of `x: int` and of `"key":` does not.
_COLON_BLOCK = re.compile(
    r"\s*(?:[)\]}]|(?:async|def|class|if|elif|else|for|while|try|except|finally|with|match|case"
    r"|default|switch"
    r"|public|private|protected)\b).*:$",
    re.DOTALL,
)
_OTHER_OPENER = re.compile(r".*(?:[{(\[]|=>|->|\b(?:do|then|else|begin))$", re.DOTALL)
_CLOSING_LINE = re.compile(r"[)\]}]|</|(?:end|esac|fi|done)\b")
_CLOSING_STARTS = frozenset(")]}<efd")


def width(line: str) -> int:
    """The columns of indentation; a tab goes to the next multiple of 4."""
    return len(line[: len(line) - len(line.lstrip())].expandtabs(4))


def opens_block(line: str) -> bool:
    """Whether a line, as far as it is written, ends in something that opens a block."""
    line = line.rstrip()
    return bool(_COLON_BLOCK.match(line) or _OTHER_OPENER.match(line))


def is_closing(line: str) -> bool:
    """Whether a line begins with something that closes a block: a bracket, a tag, `end`."""
    return bool(_CLOSING_LINE.match(line.lstrip()))


def may_be_closing(first: str) -> bool:
    """Whether a line whose first visible character is `first` can turn out to be closing."""
    return first in _CLOSING_STARTS


def only_closes(rest: str) -> bool:
    """Whether nothing but closing brackets, quotes and punctuation stands in `rest`."""
    return all(char.isspace() or char in _CLOSERS or char in ",;:" for char in rest)


def without_closers(suffix: str) -> str:
    """The suffix without the rest of the cursor's line, if that only closes brackets and the like.

    Editors insert and remove these while someone types. Each time the suffix would change, which in
    spm stands in front of all else. Answers are as good without them: `Shaper` fits the answer to
    them (benchmarks/RESULTS.md).
    """
    rest = suffix.partition("\n")[0]
    return suffix[len(rest) :] if only_closes(rest) else suffix


def splits_word(text: str, index: int) -> bool:
    """Whether a cut at `index` would divide a word."""
    return 0 < index < len(text) and _is_word(text[index - 1]) and _is_word(text[index])


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def open_quote(line: str) -> str:
    """The quote of the string that is still open at the end of `line`, or ""."""
    return _scan(line, "")[2]


def brackets(text: str, quote: str = "") -> tuple[list[int], list[int]]:
    """(depths, closers) of a text that begins inside a string of `quote`, or of none with "".

    depths: for each index, and for the end, how many brackets and quotes are open there that the
    text itself opened. closers: the indices of brackets and quotes that close something opened
    before the text.
    """
    depths, closers, _ = _scan(text, quote)
    return depths, closers


def _scan(text: str, quote: str) -> tuple[list[int], list[int], str]:
    depths: list[int] = []
    closers: list[int] = []
    opened: list[str] = []
    escaped = False
    for index, char in enumerate(text):
        depths.append(len(opened))
        string = quote or (opened[-1] if opened and opened[-1] in _QUOTES else "")
        if string:
            ends = char == string and not escaped
            # Most strings end with their line at the latest, and a comment may have an apostrophe.
            broken = char == "\n" and string != "`"
            escaped = char == "\\" and not escaped
            if ends and quote:
                closers.append(index)
            if (ends or broken) and quote:
                quote = ""
            elif ends or broken:
                opened.pop()
        elif char in _QUOTES or char in _PAIRS.values():
            opened.append(char)
        elif char in _PAIRS and not opened:
            closers.append(index)
        elif char in _PAIRS and opened[-1] == _PAIRS[char]:
            opened.pop()
    depths.append(len(opened))
    still_open = quote or (opened[-1] if opened and opened[-1] in _QUOTES else "")
    return depths, closers, still_open
