"""Rules for settings: which values each takes, how a message says so, and how a variable spells it.

The front checks what a user sets with them, and the engine what it is started with.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """The values that one setting takes."""

    words: str | Callable[[], str]
    """The values in words; a function where they are found out only when a message needs them."""
    accept: Callable[[Any], Any]
    """The value as it is kept; raises ValueError, TypeError or OverflowError for another."""
    from_text: Callable[[str], object] = str
    """The JSON value that an environment variable spells; raises ValueError or RecursionError."""
    secret: bool = False
    """Whether a value, even a bad one, may be a key that must not be shown."""

    @property
    def expected(self) -> str:
        """The values in words, as a message to the user says them."""
        if callable(self.words):
            return self.words()
        return self.words


def setting(default: Any, rule: Rule, **metadata: object) -> Any:
    """A dataclass field with its rule. The repr does not show secrets."""
    return field(default=default, repr=not rule.secret, metadata={"rule": rule, **metadata})


def require(condition: bool) -> None:
    if not condition:
        raise ValueError


def flag() -> Rule:
    def accept(value: Any) -> bool:
        require(isinstance(value, bool))
        return bool(value)

    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    return Rule("true or false", accept, lambda text: words.get(text.lower(), text))


def finite(value: Any) -> Any:
    """The value if it is a finite number. bool is an int to Python but no number in JSON."""
    require(isinstance(value, int | float) and not isinstance(value, bool))
    require(math.isfinite(value))
    return value


def number(expected: str, holds: Callable[[float], bool]) -> Rule:
    """A number for which a condition holds, such as `lambda value: value > 0`."""

    def accept(value: Any) -> float:
        real = float(finite(value))
        require(holds(real))
        return real

    return Rule(expected, accept, json.loads)


SECONDS = number("a number of seconds above 0", lambda value: value > 0)


def whole(low: int, high: int | None = None) -> Rule:
    def accept(value: Any) -> int:
        integer = int(finite(value))
        # Some clients write 64 as 64.0: JSON has one kind of number.
        require(integer == value and low <= integer)
        require(high is None or integer <= high)
        return integer

    expected = f"a whole number from {low} to {high}"
    if high is None:
        expected = f"a whole number of at least {low}"
    return Rule(expected, accept, json.loads)


def choice(*names: str) -> Rule:
    def accept(value: Any) -> str:
        require(isinstance(value, str) and value in names)
        return str(value)

    return Rule("one of " + ", ".join(names), accept)


def text(expected: str, pattern: str, *, optional: bool = False, secret: bool = False) -> Rule:
    """A text that matches a pattern. optional: an empty one is accepted too, and means None."""

    def accept(value: Any) -> str | None:
        require(isinstance(value, str))
        if optional and not value:
            return None
        require(re.fullmatch(pattern, value) is not None)
        return str(value)

    return Rule(expected, accept, secret=secret)
