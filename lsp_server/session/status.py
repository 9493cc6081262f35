"""What a window is up to, in one value: what an editor shows in its status bar."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["loading", "ready", "busy", "off", "failed"]


@dataclass(frozen=True, slots=True)
class Status:
    """message is for the user; with "failed" and "off" it names the remedy. progress: 0 to 1 while
    loading."""

    state: State
    message: str
    model: str
    progress: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
