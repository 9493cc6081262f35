"""What `fimls doctor` found, as a sentence, with the mend where something is wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """mend: what to do about it; a sentence, and "" where there is nothing to do."""

    kind: Literal["fine", "note", "wrong"]
    text: str
    mend: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.text} {self.mend}".rstrip()


def fine(text: str) -> Finding:
    return Finding("fine", text)


def note(text: str, mend: str = "") -> Finding:
    return Finding("note", text, mend)


def wrong(text: str, mend: str = "") -> Finding:
    """text may hold its mend, as the messages of ModelError do."""
    return Finding("wrong", text, mend)
