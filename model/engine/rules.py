"""Rules for settings: which values each takes, how a message says so, and how a variable spells it.

The front checks what a user sets with them, and the engine what it is started with.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import field
from typing import Any


def setting(default: Any, rule: Rule, **metadata: object) -> Any:
    """A dataclass field with its rule. The repr does not show secrets."""
    return field(default=default, repr=not rule.secret, metadata={"rule": rule, **metadata})


def require(condition: bool) -> None:
    if not condition:
        raise ValueError


def finite(value: Any) -> Any:
    """The value if it is a finite number. bool is an int to Python but no number in JSON."""
    require(isinstance(value, int | float) and not isinstance(value, bool))
    require(math.isfinite(value))
    return value


class Rule:
    """The values that one setting takes. secret: a value, even a bad one, may be a key."""

    def __init__(self, expected: str, *, secret: bool = False) -> None:
        self._expected = expected
        self.secret = secret

    @property
    def expected(self) -> str:
        """The values in words, as a message to the user says them."""
        return self._expected

    def accept(self, value: Any) -> Any:
        """The value as it is kept. Raises ValueError, TypeError or OverflowError for another."""
        raise NotImplementedError

    def from_text(self, text: str) -> object:
        """The JSON value that an environment variable spells. Raises ValueError, RecursionError."""
        return text


class Flag(Rule):
    TRUE = ("1", "true", "yes", "on")
    FALSE = ("0", "false", "no", "off")

    def __init__(self) -> None:
        super().__init__("true or false")

    def accept(self, value: Any) -> bool:
        require(isinstance(value, bool))
        return bool(value)

    def from_text(self, text: str) -> object:
        if text.lower() in self.TRUE:
            return True
        if text.lower() in self.FALSE:
            return False
        return text


class Number(Rule):
    """A finite number for which a condition holds, such as `lambda value: value > 0`."""

    def __init__(self, expected: str, holds: Callable[[float], bool]) -> None:
        super().__init__(expected)
        self._holds = holds

    def accept(self, value: Any) -> float:
        number = float(finite(value))
        require(self._holds(number))
        return number

    def from_text(self, text: str) -> object:
        value: object = json.loads(text)
        return value


SECONDS = Number("a number of seconds above 0", lambda value: value > 0)


class Whole(Rule):
    """A whole number in a range. Some clients write 64 as 64.0: JSON has one kind of number."""

    def __init__(self, low: int, high: int | None = None) -> None:
        span = f"from {low} to {high}"
        if high is None:
            span = f"of at least {low}"
        super().__init__(f"a whole number {span}")
        self._low = low
        self._high = high

    def accept(self, value: Any) -> int:
        whole = int(finite(value))
        require(whole == value and self._low <= whole)
        require(self._high is None or whole <= self._high)
        return whole

    def from_text(self, text: str) -> object:
        value: object = json.loads(text)
        return value


class Choice(Rule):
    def __init__(self, *names: str) -> None:
        super().__init__("one of " + ", ".join(names))
        self._names = names

    def accept(self, value: Any) -> str:
        require(isinstance(value, str) and value in self._names)
        return str(value)


class Text(Rule):
    """A text that matches a pattern. optional: an empty one is accepted too, and means None."""

    def __init__(
        self, expected: str, pattern: str, *, optional: bool = False, secret: bool = False
    ) -> None:
        super().__init__(expected, secret=secret)
        self._pattern = pattern
        self._optional = optional

    def accept(self, value: Any) -> str | None:
        require(isinstance(value, str))
        if self._optional and not value:
            return None
        require(re.fullmatch(self._pattern, value) is not None)
        return str(value)
