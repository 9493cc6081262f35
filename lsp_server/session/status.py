"""The status of one window, as an editor shows it in its status bar."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["loading", "ready", "busy", "off", "failed"]


@dataclass(frozen=True, slots=True)
class Status:
    """message is for the user; it names the remedy if the state is "failed" or "off". progress runs
    from 0 to 1 while the model is loading."""

    state: State
    message: str
    model: str
    progress: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
