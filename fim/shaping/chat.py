"""What models that answer in chat write around the code: fences, role words, explanations."""

import re

from fim.shaping.bounds import Answer, Bounds, Stop
from fim.shaping.quotes import scan

_FENCE = "```"
_FIRST_FENCE = re.compile(r"[ \t]*```[\w+#.-]*[ \t]*$")
_MOST_LINES_BEFORE = 4  # of an explanation in front of a fence
_ROLE = re.compile(r"(?:assistant|user|system)$|(?:User|Human|Assistant|Question|Answer): ")
_TELLS = re.compile(
    r"(?:Sure|Certainly|Of course|Here(?:'s| is| are)|Below is|The (?:completed?|missing|following)"
    r"|To (?:complete|fill)|You can|I (?:can|will|have)|This (?:code|function|will|method))"
    r"\b[^=;]*$"
)
_HEADING = re.compile(r"#*\s*\**(?:Explanation|Example [Uu]sage|Output)\**:?\**$")
# Five words and a full stop, with nothing between them that code is made of.
_SENTENCE = re.compile(r"[A-Z][\w']*(?:,? [\w'`\"-]+){4,}[.:!]$")


def is_code(bounds: Bounds) -> bool:
    """Whether an answer at the cursor has to be code: prose is not welcome there."""
    return not bounds.in_text and bounds.language not in (
        "",
        "markdown",
        "plaintext",
        "text",
        "latex",
        "tex",
        "restructuredtext",
        "asciidoc",
        "git-commit",
        "mdx",
    )


def unwrapped(text: str, bounds: Bounds) -> str | None:
    """The answer without the role word, the explanation and the fence that it begins with.

    None while it is not clear what comes, and where nothing but an explanation is there.
    """
    if "chat" in bounds.off or not is_code(bounds):
        return text
    lines = text.split("\n")
    start = 0
    if len(lines) > 1 and lines[0].strip() in ("assistant", "Assistant:"):
        start = 1
    for number in range(start, min(start + _MOST_LINES_BEFORE, len(lines) - 1)):
        if _FIRST_FENCE.match(lines[number]):
            return "\n".join(lines[number + 1 :]).lstrip("\n")
        if number == start and not _TELLS.match(lines[start].strip()):
            break
    told = lines[start].strip()
    if _TELLS.match(told) or (told.startswith(_FENCE) and len(lines) == start + 1):
        return None
    return "\n".join(lines[start:])


def tells_only(text: str, bounds: Bounds) -> bool:
    """Whether an answer that `unwrapped` takes nothing from will never have code."""
    return text.count("\n") > _MOST_LINES_BEFORE + 1 and unwrapped(text, bounds) is None


def chat(answer: Answer, bounds: Bounds) -> Stop | None:
    """Ends at a fence, a role word or an explanation. A rule as in ends.py."""
    if not is_code(bounds):
        return None
    stops: list[Stop] = []
    fence = answer.text.find(_FENCE)
    if fence >= 0 and not scan(answer.text[:fence], bounds.language, bounds.opened).in_text():
        stops.append(Stop(fence + len(_FENCE), fence, "chat"))
    for line in answer.lines[1:-1]:
        if not line.code:
            continue
        role = _ROLE.match(line.text)
        told = _HEADING.match(line.text) or _SENTENCE.match(line.text)
        if (role or told) and not scan(
            answer.text[: line.start], bounds.language, bounds.opened
        ).in_text():
            stops.append(Stop(line.end + 1, line.start - 1, "chat"))
            break
    return min(stops, key=lambda stop: stop.decision, default=None)
