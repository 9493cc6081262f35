"""The settings: frozen values, read from whatever JSON a client sends.

A bad value never stops anything. It becomes a problem, one sentence that says what to write
instead, and the base's value is used. null means "not set": editors send it for each setting that
the user left alone. An empty string means None where None is possible.

Sources are layered with `base`, the weakest first: the defaults, the environment, what the client
sends. Parse each new answer of the client with the same base and not with the previous result, or a
setting that the user deletes would stay.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import urlsplit

SECTION = "fimls"


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The process that holds the model."""

    device: str = "auto"
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: Literal["auto", "none", "int8", "int4"] = "auto"
    idle_timeout: float = 900.0
    """Seconds without a request after which the engine ends and its memory is free again."""
    threads: int | None = None
    """Threads for computing on the CPU; None leaves the choice to the engine."""
    start_timeout: float = 120.0
    """Seconds that an engine may take from its start to its first answer."""
    cache_memory: int = 512
    cache_disk: int = 1024
    """MiB of computed prompts to keep, in memory and between the engine's runs; 0 keeps none."""


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """An OpenAI-compatible server in place of the engine on this machine; none unless there is a
    url."""

    url: str | None = None
    model: str = ""
    api_key_env: str | None = "FIMLS_API_KEY"
    """The environment variable that holds the key."""
    api_key: str | None = field(default=None, repr=False)
    format: str | None = None
    """The FIM format of the remote model; prompts are then sent as text."""
    timeout: float = 10.0
    """Seconds that a whole answer may take."""
    ca_file: str | None = None
    """A PEM bundle to trust in place of the system's authorities."""
    verify_tls: bool = True


@dataclass(frozen=True, slots=True)
class LogSettings:
    level: Literal["error", "warning", "info", "debug"] = "info"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a user can set. The JSON names are these names in camelCase, under the section
    `fimls`."""

    enabled: bool = True
    disabled_languages: tuple[str, ...] = ()
    """LSP language identifiers."""
    model: str = "bundled"
    """`bundled` or the path of a model folder."""
    format: str = "auto"
    layout: Literal["auto", "psm", "spm", "anchored"] = "auto"
    multiline: Literal["auto", "always", "never"] = "auto"
    max_tokens: int = 64
    context_tokens: int | None = None
    """Tokens of a whole prompt; None takes what the model takes."""
    suffix_tokens: int | None = None
    """Of those behind the cursor, at most; None gives them a quarter, and what the text before it
    leaves free."""
    min_confidence: float | None = None
    """Suggestions that the model itself is less sure of, 0 to 1, are not shown; None takes what
    suits the model."""
    alternatives: int = 3
    """Suggestions that an explicit request is answered with, at most."""
    attribution: Literal["show", "hide", "off"] = "show"
    """Of a suggestion that repeats text of known packages: say so, do not show it, or do not
    look."""
    time_budget: float | None = None
    """Milliseconds after which the whole lines are shown, while the rest goes on; None takes what
    suits the model."""
    patience: float = 10.0
    """Seconds that a request may take until its first whole line."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    engine: EngineSettings = field(default_factory=EngineSettings)
    remote: RemoteSettings = field(default_factory=RemoteSettings)
    log: LogSettings = field(default_factory=LogSettings)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What one setting takes."""

    expected: str
    accept: Callable[[Any], Any]
    """The value as it is kept; raises ValueError or TypeError for one that is not acceptable."""
    from_text: Callable[[str], object] = str
    """The JSON value meant by an environment variable; raises ValueError if it is none."""
    secret: bool = False
    """Whether a value, even a bad one, might be a key that must not be shown."""


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _flag() -> _Rule:
    def accept(value: Any) -> bool:
        _require(isinstance(value, bool))
        return bool(value)

    words = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(
        ("0", "false", "no", "off"), False
    )
    return _Rule("true or false", accept, lambda text: words.get(text.lower(), text))


def _number(value: Any) -> Any:
    """The value if it is a finite number. bool is an int to Python but no number in JSON."""
    _require(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )
    return value


def _whole(low: int, high: int | None = None) -> _Rule:
    def accept(value: Any) -> int:
        whole = int(_number(value))
        # JSON knows one kind of number: some clients write 64 as 64.0.
        _require(whole == value and low <= whole and (high is None or whole <= high))
        return whole

    span = f"of at least {low}" if high is None else f"from {low} to {high}"
    return _Rule(f"a whole number {span}", accept, json.loads)


def _real(expected: str, holds: Callable[[float], bool]) -> _Rule:
    def accept(value: Any) -> float:
        number = float(_number(value))
        _require(holds(number))
        return number

    return _Rule(expected, accept, json.loads)


def _seconds() -> _Rule:
    return _real("a number of seconds above 0", lambda value: value > 0)


def _choice(*names: str) -> _Rule:
    def accept(value: Any) -> str:
        _require(isinstance(value, str) and value in names)
        return str(value)

    return _Rule("one of " + ", ".join(names), accept)


def _text(expected: str, pattern: str, *, optional: bool = False, secret: bool = False) -> _Rule:
    def accept(value: Any) -> str | None:
        _require(isinstance(value, str))
        if optional and not value:
            return None
        _require(re.fullmatch(pattern, value) is not None)
        return str(value)

    return _Rule(expected, accept, secret=secret)


def _names() -> _Rule:
    def accept(value: Any) -> tuple[str, ...]:
        _require(isinstance(value, list | tuple) and all(isinstance(item, str) for item in value))
        return tuple(value)

    return _Rule(
        "a list of strings", accept, lambda text: [part.strip() for part in text.split(",")]
    )


def _url() -> _Rule:
    def accept(value: Any) -> str | None:
        _require(isinstance(value, str))
        if not value:
            return None
        _require(re.search(r"[\s\x00-\x1f\ud800-\udfff]", value) is None)
        parts = urlsplit(value)
        _require(
            parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        )
        _require(
            parts.port is None or parts.port > 0
        )  # reading it raises ValueError if it is no port
        return str(value)

    # A user name and password would end up in messages and logs, so they are not taken from here.
    return _Rule("an http or https address without user name and password", accept)


_PRINTABLE = r"[^\x00-\x1f\x7f\ud800-\udfff]+"
_FORMAT_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

_RULES: dict[str, _Rule] = {
    "enabled": _flag(),
    "disabledLanguages": _names(),
    "model": _text('"bundled" or the path of a model folder', _PRINTABLE),
    "format": _text('"auto" or the name of a FIM format', _FORMAT_NAME),
    "layout": _choice("auto", "psm", "spm", "anchored"),
    "multiline": _choice("auto", "always", "never"),
    "maxTokens": _whole(1, 1024),
    "contextTokens": _whole(64),
    "suffixTokens": _whole(0),
    "minConfidence": _real("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "alternatives": _whole(1, 10),
    "attribution": _choice("show", "hide", "off"),
    "timeBudget": _real("a number of milliseconds of at least 0", lambda value: value >= 0),
    "patience": _seconds(),
    "temperature": _real("a number from 0 to 2", lambda value: 0 <= value <= 2),
    "topP": _real("a number above 0 and up to 1", lambda value: 0 < value <= 1),
    "seed": _whole(0, 2**63 - 1),
    "engine.device": _text(
        "auto, cpu, cuda, or cuda: and a number", r"auto|cpu|cuda(:[0-9]{1,2})?"
    ),
    "engine.dtype": _choice("auto", "float32", "float16", "bfloat16"),
    "engine.quantization": _choice("auto", "none", "int8", "int4"),
    "engine.idleTimeout": _seconds(),
    "engine.threads": _whole(1, 1024),
    "engine.startTimeout": _seconds(),
    "engine.cacheMemory": _whole(0, 2**20),
    "engine.cacheDisk": _whole(0, 2**20),
    "remote.url": _url(),
    "remote.model": _text("the name of a model on the server", f"({_PRINTABLE})?"),
    "remote.apiKeyEnv": _text(
        "the name of an environment variable", r"[A-Za-z_][A-Za-z0-9_]*", optional=True, secret=True
    ),
    # Visible ASCII is what an HTTP header can carry.
    "remote.apiKey": _text("a key without spaces", r"[!-~]+", optional=True, secret=True),
    "remote.format": _text("the name of a FIM format", _FORMAT_NAME, optional=True),
    "remote.timeout": _seconds(),
    "remote.caFile": _text("the path of a PEM file", _PRINTABLE, optional=True),
    "remote.verifyTls": _flag(),
    "log.level": _choice("error", "warning", "info", "debug"),
}

_GROUPS = frozenset(name.partition(".")[0] for name in _RULES if "." in name)

MACHINE_SCOPE = frozenset(
    name for name in _RULES if name == "model" or name.startswith(("engine.", "remote."))
)
"""Settings that a workspace may not set: no repository decides what is loaded, run or asked."""

_MAX_UNKNOWN = 10
_SHOWN = 60


def parse(
    raw: object, *, base: Settings = Settings(), trusted: bool = True
) -> tuple[Settings, tuple[str, ...]]:
    """Read the JSON value of the section; give the settings and the problems, a sentence each.
    Never raises.

    `raw` may also be a whole configuration with a key `fimls` or keys that begin with `fimls.`; its
    other keys then belong to others. Groups may be nested or written with dots. `base` holds for
    what is not set. With trusted=False the settings in MACHINE_SCOPE keep the base's value,
    whatever `raw` says.
    """
    values: dict[str, object] = {}
    problems: list[str] = []
    unknown: list[str] = []
    for name, value in _flatten(_section(raw, problems), problems):
        rule = _RULES.get(name)
        if rule is None:
            unknown.append(name)
        elif value is None:
            continue
        else:
            try:
                accepted = rule.accept(value)
                if trusted or name not in MACHINE_SCOPE:
                    values[name] = accepted
                elif accepted != _value(base, name):  # editors also send what they know as defaults
                    problems.append(
                        f"{SECTION}.{name} cannot be set by a workspace; {_kept(base, name, rule)}"
                    )
            except (ValueError, TypeError, OverflowError):
                given = "is not usable" if rule.secret else f"is {_show(value)}"
                problems.append(
                    f"{SECTION}.{name} {given}, expected {rule.expected}; {_kept(base, name, rule)}"
                )
    problems += map(_unknown, unknown[:_MAX_UNKNOWN])
    if len(unknown) > _MAX_UNKNOWN:
        problems.append(f"{len(unknown) - _MAX_UNKNOWN} more names under {SECTION} are no settings")
    return _with(base, values), tuple(problems)


class Reporter:
    """Remembers which problems were told, so that each is told once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def new(self, problems: Iterable[str]) -> tuple[str, ...]:
        """Those that were not reported before, in order and each once."""
        fresh = tuple(problem for problem in dict.fromkeys(problems) if problem not in self._told)
        self._told.update(fresh)
        return fresh


def from_environment(env: Mapping[str, str]) -> dict[str, object]:
    """What the FIMLS_ variables say, as a value for `parse`.

    maxTokens is FIMLS_MAX_TOKENS, remote.url FIMLS_REMOTE_URL, log.level FIMLS_LOG_LEVEL; the
    engine's settings go without their group: FIMLS_DEVICE. Lists are separated by commas. An empty
    variable counts as not set, and one that names no setting is left to whom it may concern.
    """
    raw: dict[str, object] = {}
    for name, rule in _RULES.items():
        text = env.get(variable(name), "")
        if text:
            try:
                raw[name] = rule.from_text(text)
            except (ValueError, RecursionError):
                raw[name] = text  # `parse` says what is wrong with it
    return raw


def variable(name: str) -> str:
    """The environment variable of a setting, named as in JSON: engine.idleTimeout ->
    FIMLS_IDLE_TIMEOUT."""
    return "FIMLS_" + _snake(name.removeprefix("engine.")).replace(".", "_").upper()


def _section(raw: object, problems: list[str]) -> Mapping[Any, Any]:
    """The section's own mapping, out of itself or of a whole configuration."""
    if isinstance(raw, Mapping):
        prefix = f"{SECTION}."
        dotted = {
            str(key).removeprefix(prefix): value
            for key, value in raw.items()
            if str(key).startswith(prefix)
        }
        if SECTION not in raw and not dotted:
            return raw
        return {**_section_value(raw.get(SECTION), problems), **dotted}
    return _section_value(raw, problems)


def _section_value(raw: object, problems: list[str]) -> Mapping[Any, Any]:
    if isinstance(raw, Mapping):
        return raw
    if raw is not None:
        problems.append(
            f"{SECTION} is {_show(raw)}, expected an object with settings; it is ignored"
        )
    return {}


def _flatten(section: Mapping[Any, Any], problems: list[str]) -> Iterator[tuple[str, object]]:
    """Settings with their dotted names; a group that is no object is a problem."""
    for key, value in section.items():
        name = str(key)
        if name not in _GROUPS:
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", item) for inner, item in value.items())
        elif value is not None:
            problems.append(
                f"{SECTION}.{name} is {_show(value)}, expected an object with settings; it is "
                "ignored"
            )


def _with(base: Settings, values: Mapping[str, object]) -> Settings:
    groups: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for name, value in values.items():
        group, _, attribute = name.rpartition(".")
        groups[group][_snake(attribute)] = value
    top = groups.pop("", {})
    for group, attributes in groups.items():
        top[group] = replace(getattr(base, group), **attributes)
    return replace(base, **top)


def _value(settings: Settings, name: str) -> object:
    group, _, attribute = name.rpartition(".")
    return getattr(getattr(settings, group) if group else settings, _snake(attribute))


def _kept(base: Settings, name: str, rule: _Rule) -> str:
    return "it is ignored" if rule.secret else f"{_show(_value(base, name))} is used instead"


def _unknown(name: str) -> str:
    short = name[:_SHOWN]  # difflib takes quadratic time
    close = difflib.get_close_matches(short, _RULES, n=1)
    hint = f"did you mean {SECTION}.{close[0]}?" if close else "it is ignored"
    return f"{SECTION}.{_shorten(json.dumps(name[: _SHOWN + 1])[1:-1])} is not a setting; {hint}"


def _show(value: object) -> str:
    """A value for a person, on one line and not too long."""
    try:
        text = json.dumps(value)
    except (ValueError, TypeError, RecursionError):
        return f"a {type(value).__name__}"
    return _shorten(re.sub(r"//[^/\s]*@", "//…@", text))


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda match: "_" + match[0].lower(), name)
