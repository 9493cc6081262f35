"""The settings: frozen values, read from whatever JSON a client sends.

A setting is one field of a dataclass below, with its default and its rule. Those of `engine.*` are
stated in model/engine/options.py, because the engine reads them too. README.md and the manifest of
the VS Code extension (editors/vscode/package.json) describe each to the user.

A bad value becomes a problem, one sentence that says what to write instead, and the base's value is
used. null means "not set": editors send it for each setting that the user left alone. An empty
string means None where None is possible, and "not set" for the model.

Sources are layered with `base`, the weakest first: the defaults, the user's settings file
(user_settings.py), the environment, the client. Parse each answer of the client with the same base,
or a setting that the user deletes would stay.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

from model.engine.options import EngineOptions
from model.engine.rules import (
    SECONDS,
    Rule,
    choice,
    flag,
    number,
    require,
    setting,
    text,
    whole,
)

if TYPE_CHECKING:  # the server starts without fim
    from fim.formats import Layout

SECTION = "fimls"
Multiline = Literal["auto", "always", "never"]
PRINTABLE = r"[^\x00-\x1f\x7f\ud800-\udfff]+"
FORMAT_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


def names() -> Rule:
    def accept(value: Any) -> tuple[str, ...]:
        require(isinstance(value, list | tuple) and all(isinstance(item, str) for item in value))
        return tuple(value)

    def from_text(text: str) -> object:
        return [part.strip() for part in text.split(",")]

    return Rule("a list of strings", accept, from_text)


def layout_name() -> Rule:
    """ "auto" or a layout of fim, which is imported only when one is named."""

    def layouts() -> Rule:
        from fim.formats import LAYOUTS

        return choice("auto", *LAYOUTS)

    def accept(value: Any) -> Any:
        if value == "auto":
            return value
        return layouts().accept(value)

    return Rule(lambda: layouts().expected, accept)


def url_of_server() -> Rule:
    """A user name and password would end up in messages and logs, so they are not accepted."""

    def accept(value: Any) -> str | None:
        require(isinstance(value, str))
        if not value:
            return None
        require(re.search(r"[\s\x00-\x1f\ud800-\udfff]", value) is None)
        parts = urlsplit(value)
        require(parts.scheme in ("http", "https") and bool(parts.hostname))
        require("@" not in parts.netloc)
        require(parts.port is None or parts.port > 0)  # raises ValueError if it is none
        return str(value)

    return Rule("an http or https address without user name and password", accept)


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """An OpenAI-compatible server that is used in place of the engine here if there is a url."""

    url: str | None = setting(None, url_of_server())
    model: str = setting("", text("the name of a model on the server", f"({PRINTABLE})?"))
    api_key_env: str | None = setting(
        "FIMLS_API_KEY",
        text(
            "the name of an environment variable",
            r"[A-Za-z_][A-Za-z0-9_]*",
            optional=True,
            secret=True,
        ),
    )
    """The environment variable that holds the key."""
    # Visible ASCII is what an HTTP header can carry.
    api_key: str | None = setting(
        None, text("a key without spaces", r"[!-~]+", optional=True, secret=True)
    )
    format: str | None = setting(None, text("the name of a FIM format", FORMAT_NAME, optional=True))
    """The FIM format of the remote model; prompts are then sent as text."""
    timeout: float = setting(10.0, SECONDS)
    """Seconds that a whole answer may take."""
    ca_file: str | None = setting(None, text("the path of a PEM file", PRINTABLE, optional=True))
    """A PEM bundle to trust in place of the system's authorities."""
    verify_tls: bool = setting(True, flag())
    proxy: str | None = setting(
        None,
        text(
            "an http address or none",
            r"none|https?://[^\s/@]+(:[^\s/@]*@[^\s/@]+)?/?",
            optional=True,
            secret=True,
        ),
    )
    """The proxy on the way there; "none" takes none. None: as HTTPS_PROXY, HTTP_PROXY and NO_PROXY
    say, or the system's settings. It may hold a user name and a password."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    level: str = setting("info", choice("error", "warning", "info", "debug"))


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a user can set. In JSON the names are in camelCase, under the section `fimls`."""

    enabled: bool = setting(True, flag())
    disabled_languages: tuple[str, ...] = setting((), names())
    """LSP language identifiers."""
    model: str = setting("bundled", text('"bundled" or the path of a model folder', PRINTABLE))
    format: str = setting("auto", text('"auto" or the name of a FIM format', FORMAT_NAME))
    layout: Layout | Literal["auto"] = setting("auto", layout_name())
    multiline: Multiline = setting("auto", choice(*get_args(Multiline)))
    max_tokens: int = setting(64, whole(1, 1024))
    context_tokens: int | None = setting(None, whole(64))
    """Tokens of a whole prompt; None takes what the model takes."""
    suffix_tokens: int | None = setting(None, whole(0))
    """Of those after the cursor, at most; None: a quarter, and what the text before leaves free."""
    min_confidence: float | None = setting(
        None, number("a number from 0 to 1", lambda value: 0 <= value <= 1)
    )
    """Less sure suggestions are not shown, 0 to 1; None takes what suits the model."""
    alternatives: int = setting(3, whole(1, 10))
    """Suggestions that an explicit request is answered with, at most."""
    project_context: str = setting("auto", choice("auto", "on", "off"))
    """Whether prompts have pieces of the workspace's other files; "auto": for models here alone."""
    attribution: str = setting("show", choice("show", "hide", "off"))
    """Whether a suggestion that repeats a known package is marked, hidden, or not looked up."""
    time_budget: float | None = setting(
        None, number("a number of milliseconds of at least 0", lambda value: value >= 0)
    )
    """Milliseconds after which whole lines are shown; None takes what suits the model."""
    patience: float = setting(10.0, SECONDS)
    """Seconds that a request may take until its first whole line."""
    temperature: float = setting(0.0, number("a number from 0 to 2", lambda value: 0 <= value <= 2))
    top_p: float = setting(
        1.0, number("a number above 0 and up to 1", lambda value: 0 < value <= 1)
    )
    seed: int = setting(0, whole(0, 2**63 - 1))
    engine: EngineOptions = field(default_factory=EngineOptions)
    remote: RemoteSettings = field(default_factory=RemoteSettings)
    log: LogSettings = field(default_factory=LogSettings)


def _rules(settings: Any, prefix: str = "") -> dict[str, Rule]:
    """The rules of a class of settings by their JSON names, those of its groups with dots."""
    found: dict[str, Rule] = {}
    for each in fields(settings):
        name = prefix + re.sub(r"_(.)", lambda match: match[1].upper(), each.name)
        if "rule" in each.metadata:
            found[name] = each.metadata["rule"]
        else:
            found |= _rules(each.default_factory, f"{name}.")
    return found


_RULES = _rules(Settings)
_TOP = frozenset(name.partition(".")[0] for name in _RULES)
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
    """Reads the JSON value of the section: the settings and the problems. Never raises.

    `raw` may also be a whole configuration with a key `fimls` or keys that begin with `fimls.`; its
    other keys are ignored. Groups may be nested or written with dots. `base` holds for all that is
    not set; with trusted=False, also for the settings in MACHINE_SCOPE.
    """
    values: dict[str, object] = {}
    problems: list[str] = []
    unknown: list[str] = []
    for name, value in _flatten(_section(raw, problems, trusted), problems):
        rule = _RULES.get(name)
        if rule is None:
            unknown.append(name)
            continue
        if value is None or (name == "model" and value == ""):
            continue
        try:
            accepted = rule.accept(value)
        except (ValueError, TypeError, OverflowError):
            problems.append(_bad_value(name, value, base))
            continue
        if trusted or name not in MACHINE_SCOPE:
            values[name] = accepted
        elif accepted != _value(base, name):  # editors also send what they know as defaults
            problems.append(f"{SECTION}.{name} cannot be set by a workspace; {_kept(base, name)}")
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
        fresh = tuple(each for each in dict.fromkeys(problems) if each not in self._told)
        self._told.update(fresh)
        return fresh


def from_environment(env: Mapping[str, str]) -> dict[str, object]:
    """The settings in the FIMLS_ variables, as a value for `parse`.

    maxTokens is FIMLS_MAX_TOKENS, remote.url FIMLS_REMOTE_URL, log.level FIMLS_LOG_LEVEL; the
    engine's settings go without their group: FIMLS_DEVICE. Lists are separated by commas. An empty
    variable counts as not set, and one that names no setting is ignored.
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
    """The environment variable of a setting: engine.idleTimeout -> FIMLS_IDLE_TIMEOUT."""
    return "FIMLS_" + _snake(name.removeprefix("engine.")).replace(".", "_").upper()


def _section(raw: object, problems: list[str], trusted: bool) -> Mapping[Any, Any]:
    """The section's own mapping, out of itself or of a whole configuration."""
    section = _mapping(raw, SECTION, problems)
    dotted = {}
    for key, value in section.items():
        if str(key).startswith(f"{SECTION}."):
            dotted[str(key).removeprefix(f"{SECTION}.")] = value
    if SECTION in section:
        return {**_mapping(section[SECTION], SECTION, problems), **dotted}
    if not trusted and not dotted and _is_of_others(section):
        return {}
    return dotted or section


def _is_of_others(section: Mapping[Any, Any]) -> bool:
    """Whether a whole configuration, which some clients send bare, holds other servers' settings
    alone: groups, none of them ours."""
    names = {str(key).partition(".")[0] for key in section}
    grouped = any("." in str(key) or isinstance(value, Mapping) for key, value in section.items())
    return grouped and not names & _TOP


def _mapping(value: object, name: str, problems: list[str]) -> Mapping[Any, Any]:
    """A section or a group of settings; a value that is no object is a problem."""
    if isinstance(value, Mapping):
        return value
    if value is not None and value != []:  # what an empty table of Lua becomes
        problems.append(
            f"{name} is {_show(value)}, expected an object with settings; it is ignored"
        )
    return {}


def _flatten(section: Mapping[Any, Any], problems: list[str]) -> Iterator[tuple[str, object]]:
    """Settings with their dotted names."""
    for key, value in section.items():
        name = str(key)
        if name not in _GROUPS:
            yield name, value
            continue
        for inner, item in _mapping(value, f"{SECTION}.{name}", problems).items():
            yield f"{name}.{inner}", item


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
    value: object = settings
    for part in name.split("."):
        value = getattr(value, _snake(part))
    return value


def _bad_value(name: str, value: object, base: Settings) -> str:
    rule = _RULES[name]
    given = f"is {_show(value)}"
    if rule.secret:
        given = "is not usable"
    return f"{SECTION}.{name} {given}, expected {rule.expected}; {_kept(base, name)}"


def _kept(base: Settings, name: str) -> str:
    if _RULES[name].secret:
        return "it is ignored"
    return f"{_show(_value(base, name))} is used instead"


def _unknown(name: str) -> str:
    short = name[:_SHOWN]  # difflib takes quadratic time
    close = difflib.get_close_matches(short, _RULES, n=1)
    hint = "it is ignored"
    if close:
        hint = f"did you mean {SECTION}.{close[0]}?"
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
