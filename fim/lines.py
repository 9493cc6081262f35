"""Lines and indentation of source text in any language: fast rules, no parser."""

import re

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
_CLOSING_WORD = re.compile(r"</[\w.:-]*>?|\w+|.")
# In the middle of a block that a word closes.
_MIDDLE = re.compile(r"(?:else|elif|elsif|elseif|rescue|ensure|when|in)\b")
_CONTINUES = re.compile(r"(?:[=(\[{,&|+*/?:-]|->|=>|<<|\b(?:and|or|not|in|return))$")

# What opens a block in one language only.
_LANGUAGE_OPENERS: dict[str, re.Pattern[str]] = {
    "yaml": re.compile(r"\s*(?:- +)?[^\s#'\"].*:$|.*:\s*[|>][+-]?$"),
    "makefile": re.compile(r"[^\s:#=][^:=#]*::?(?![:=])[^=]*$"),
    "ruby": re.compile(
        r"\s*(?:def (?!.*=\s)|class|module|if|unless|while|until|for|case|begin)\b(?!.*\bend$)"
        r"|.*\bdo(?:\s*\|[^|]*\|)?$"
    ),
    "lua": re.compile(r"(?!.*\bend\b).*\bfunction\b[^()]*\([^()]*\)$|\s*repeat$"),
    **dict.fromkeys(
        "html xml vue svelte javascriptreact typescriptreact".split(),
        re.compile(
            r".*<(?!(?:area|base|br|col|embed|hr|img|input|link|meta|source|track|wbr)\b)"
            r"[A-Za-z][\w.:-]*(?:\s[^<>]*)?(?<![/=])>$"
        ),
    ),
}


def width(line: str) -> int:
    """The columns of indentation; a tab goes to the next multiple of 4."""
    return len(line[: len(line) - len(line.lstrip())].expandtabs(4))


def opens_block(line: str, language: str = "") -> bool:
    """Whether a line, as far as it is written, ends in something that opens a block."""
    line = line.rstrip()
    own = _LANGUAGE_OPENERS.get(language)
    opens = _COLON_BLOCK.match(line) or _OTHER_OPENER.match(line) or (own and own.match(line))
    return bool(opens)


def continues(line: str) -> bool:
    """Whether a line ends in something that asks for more: an operator, a comma."""
    return bool(_CONTINUES.search(line.rstrip()))


def same_block(line: str, below: str) -> bool:
    """Whether `below` closes, or goes on with, the block that the line `line` would close."""
    if width(line) != width(below):
        return False
    closer = _CLOSING_WORD.match(line.lstrip())
    other = _CLOSING_WORD.match(below.lstrip())
    if not closer or not other:
        return False
    return closer[0] == other[0] or (closer[0].isalpha() and bool(_MIDDLE.match(below.lstrip())))


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
