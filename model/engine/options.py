"""The options of an engine: what `fimls.engine.*` sets, and the JSON value that starts a process.

An option is stated here and nowhere else in the program: the front takes its settings from
EngineOptions and sends them as they are. Standard library only, because the front reads this too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from model.engine.rules import SECONDS, Rule, choice, flag, setting, text, whole

MIB = 2**20
MAX_CACHE = 2**20  # MiB


class BadOptions(ValueError):
    """A JSON value that no engine can be started with. The message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options of the process that holds the model, as a user can set them.

    Engines that differ in an option are different processes, except where identity is False.
    """

    device: str = setting(
        "auto",
        text("auto, cpu, mps, cuda, or cuda: and a number", r"auto|cpu|mps|cuda(:[0-9]{1,2})?"),
    )
    dtype: str = setting("auto", choice("auto", "float32", "float16", "bfloat16"))
    quantization: str = setting(
        "auto", choice("auto", "none", "int8", "int4", "llm.int8", "nf4", "nf4-double")
    )
    idle_timeout: float = setting(900.0, SECONDS, identity=False)
    """Seconds without a request after which the engine ends and its memory is free again."""
    threads: int | None = setting(None, whole(1, 1024))
    """Threads for computing on the CPU; None takes as many as there are usable cores."""
    start_timeout: float = setting(120.0, SECONDS, identity=False)
    """Seconds from an engine's start to its first answer, at most. Only the front uses it."""
    cache_memory: int = setting(512, whole(0, MAX_CACHE))
    """MiB of computed prompts to keep in memory; 0 keeps none."""
    cache_disk: int = setting(1024, whole(0, MAX_CACHE))
    """MiB of computed prompts to keep on disk between the engine's runs; 0 keeps none."""
    cache_weights: bool = setting(True, flag(), identity=False)
    """Whether the weights of a large model are kept on disk as they are in memory, a byte for each,
    so that the next start takes seconds less."""

    @property
    def identity(self) -> dict[str, object]:
        """The options that tell one engine from another."""
        names = [each.name for each in fields(self) if each.metadata.get("identity", True)]
        return {name: getattr(self, name) for name in names}


CACHE_BYTES = EngineOptions().cache_memory * MIB


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything that an engine process is told when it is started, as one JSON value."""

    listen: str = setting(
        "tcp:127.0.0.1:8712",
        text("unix:PATH or tcp:HOST:PORT", r"(?s)(unix|loopback):.+|tcp:.*:[0-9]+"),
    )
    model: str = setting("bundled", text('"bundled" or the path of a model folder', r"(?s).+"))
    version: str = setting("", text("a text", r"(?s).*"))
    """The front's; a front of another version replaces the engine."""
    cache_folder: str = setting("", text("a text", r"(?s).*"))
    """For prompts, compiled code and the speed of kernels; "" keeps nothing on disk."""
    log: str = setting("", text("a text", r"(?s).*"))
    """The file that the descriptors 1 and 2 lead to; "" where they lead elsewhere."""
    ends_when_idle: bool = setting(True, flag())
    certificate: str = setting("", text("the path of a PEM file", r"(?s).*"))
    """For TLS on a network port; "" speaks plain HTTP."""
    certificate_key: str = setting("", text("the path of a PEM file", r"(?s).*"))
    """"" where the certificate's file holds it, too."""
    options: EngineOptions = field(default_factory=EngineOptions)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def parse_launch(line: str) -> Launch:
    """Reads what `Launch.to_json` writes; what is absent or null has its default. Raises
    BadOptions."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError):
        raw = line
    values = dict(_object(raw, "the argument"))
    options = _object(values.pop("options", None) or {}, "options")
    known = _accepted(EngineOptions, options, "options.")
    return Launch(options=EngineOptions(**known), **_accepted(Launch, values, ""))


def _object(raw: object, name: str) -> Mapping[str, object]:
    if not isinstance(raw, dict):
        raise BadOptions(f"{name} is {str(raw)[:60]!r}, expected a JSON object")
    return raw


def _accepted(kind: Any, raw: Mapping[str, object], prefix: str) -> dict[str, Any]:
    """The values of some fields of a dataclass, checked by the fields' rules. Raises BadOptions."""
    rules: dict[str, Rule | None] = {each.name: each.metadata.get("rule") for each in fields(kind)}
    values = {}
    for name, value in raw.items():
        rule = rules.get(name)
        if rule is None:
            raise BadOptions(f"{prefix}{name} is not an option of an engine")
        if value is None:
            continue
        try:
            values[name] = rule.accept(value)
        except (ValueError, TypeError, OverflowError):
            shown = str(value)[:60]
            raise BadOptions(f"{prefix}{name} is {shown!r}, expected {rule.expected}") from None
    return values
