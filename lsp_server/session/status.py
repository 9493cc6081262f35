"""The status of one window, as an editor shows it in its status bar."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["loading", "ready", "busy", "off", "failed"]


@dataclass(frozen=True, slots=True)
class Status:
    """The state of one window, for its user."""

    state: State
    message: str  # it names the remedy if the state is "failed" or "off"
    model: str
    progress: float | None = None  # 0 to 1 while the model is loading

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
