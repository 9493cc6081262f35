"""The settings that were measured to suit a model: fimls.json beside its weights, or what the
catalogue knows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.catalogue.entries import CATALOGUE, entry_of
from model.errors import ModelError

COPY_WEIGHTS = {"bias", "length", "agreement", "confidence"}
LARGEST_WEIGHT = 1e6  # of copying; JSON as Python reads it may also hold NaN and Infinity


@dataclass(frozen=True, slots=True)
class Preferences:
    """The settings of one model. A default means that nothing was measured."""

    layout: str | None = None  # of a prompt; None: the format's own preference
    min_confidence: float = 0.0  # suggestions of less are hidden
    time_budget: float | None = None  # milliseconds until an answer is shown in part
    # The model spells the last piece of the prefix anew: see fim.prompt. None: where a tokenizer's
    # tokens can do that.
    heal_tokens: bool | None = None
    # Weights for the tokens that followed the same text before: model.generation.copying.
    copying: Mapping[str, float] | None = None
    languages: tuple[str, ...] = ()  # of its training, by LSP's identifiers; () if unknown
    other_languages: str = ""  # the model to use for the rest


@dataclass(frozen=True, slots=True)
class _Rule:
    """A key of fimls.json: its values, and the sentence that follows a refused one."""

    accepts: Callable[[Any], bool] = lambda value: True
    remedy: str = ""
    nullable: bool = False  # null is then the same as no such key
    convert: Callable[[Any], Any] = lambda value: value


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _are_copy_weights(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != COPY_WEIGHTS:
        return False
    return all(_is_number(weight) and abs(weight) < LARGEST_WEIGHT for weight in value.values())


RULES: Mapping[str, _Rule] = {
    "layout": _Rule(nullable=True),  # lsp_server checks it, since fim knows the layouts
    "min_confidence": _Rule(
        lambda value: isinstance(value, int | float) and 0 <= value <= 1,
        "It must be from 0 to 1; correct the file.",
        convert=float,
    ),
    "time_budget": _Rule(
        lambda value: _is_number(value) and value >= 0,
        "It must be at least 0 (milliseconds); correct it.",
        nullable=True,
    ),
    "heal_tokens": _Rule(
        lambda value: isinstance(value, bool), "It must be true or false; correct the file."
    ),
    "copying": _Rule(
        _are_copy_weights,
        f"It needs the numbers {', '.join(sorted(COPY_WEIGHTS))}, each within "
        f"±{LARGEST_WEIGHT:,.0f}; correct or delete it.",
        nullable=True,
    ),
    "languages": _Rule(
        lambda value: isinstance(value, list),
        "It must be a list; correct or delete the file.",
        convert=lambda value: tuple(map(str, value)),
    ),
    "other_languages": _Rule(convert=str),
}


def known_preferences(model: Path) -> Preferences:
    """What the catalogue knows of a model that has no fimls.json; the defaults where it is none of
    the catalogue's. Raises ModelError."""
    entry = entry_of(model)
    if entry is None:
        return Preferences()
    return read_preferences(entry.preferences, CATALOGUE)


def read_preferences(raw: Mapping[str, Any], path: Path) -> Preferences:
    """The content of fimls.json -> Preferences. Other keys are left alone.

    path: the file, for the messages. Raises ModelError.
    """
    values: dict[str, Any] = {}
    for name, rule in RULES.items():
        if name not in raw or (raw[name] is None and rule.nullable):
            continue
        if not rule.accepts(raw[name]):
            raise ModelError(f"{path}: {name} is {raw[name]!r}. {rule.remedy}")
        values[name] = rule.convert(raw[name])
    return Preferences(**values)
