"""What happened to one request: what `fimls complete --json`, the log, and later `fimls bench` and
"why?" read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Trace:
    """Times in milliseconds, counts in tokens. It never holds text of the user's."""

    outcome: (
        str  # "shown", "hidden", or "late": nothing could be shown before the patience was over
    )
    layout: str = ""
    extent: str = ""
    prompt_tokens: int = 0
    reused_tokens: int | None = None  # None: the engine does not tell
    prefilled_tokens: int | None = None
    generated_tokens: int = 0
    forward_passes: int | None = None  # known of an answer that the model ended by itself
    context_ms: float = 0.0
    prompt_ms: float = 0.0
    first_token_ms: float | None = None
    total_ms: float = 0.0
    cut: bool = False  # at the time budget; the rest went on
    lines: int = 0  # of the suggestion
    from_memory: bool = False  # the same was asked before: the engine was not asked again
    confidence: float = 0.0
    reasons: tuple[str, ...] = ()
    attribution_ms: float = 0.0
    attribution: str | None = None  # the packages whose text the suggestion continues or makes

    def to_json(self) -> dict[str, Any]:
        return {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}
