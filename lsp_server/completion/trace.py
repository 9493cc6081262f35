"""The figures of one request, for `fimls complete --json`, the log, `fimls bench` and "why?"."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["shown", "hidden", "late"]
"""late: nothing could be shown before the patience was over."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Times in milliseconds, counts in tokens. It never holds the user's text."""

    outcome: Outcome
    layout: str = ""
    extent: str = ""
    prompt_tokens: int = 0
    reused_tokens: int | None = None  # of the prompt; None: the engine does not tell
    prefilled_tokens: int | None = None
    generated_tokens: int = 0
    forward_passes: int | None = None  # None: closed before its end
    context_ms: float = 0.0
    prompt_ms: float = 0.0
    first_token_ms: float | None = None
    total_ms: float = 0.0
    cut: bool = False  # at the time budget; the rest is still written
    lines: int = 0  # of the suggestion
    from_memory: bool = False  # from the answer cache: the engine was not asked
    confidence: float = 0.0
    reasons: tuple[str, ...] = ()  # the filters that changed the answer
    attribution_ms: float = 0.0
    attribution: str | None = None  # the packages whose text the suggestion repeats

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        for name, value in fields.items():
            if isinstance(value, float):
                fields[name] = round(value, 3)
        return fields
