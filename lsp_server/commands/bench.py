"""`fimls bench`: how fast the model is on this machine, and which others would be fast enough.

Measured: prefill and decode through the engine process, and keys typed in a file through the real
server over stdio. Estimated: other sizes of model, from how fast this machine reads weights and
multiplies (model/probe.py).
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lsp_server.commands.demo import SAMPLE, places
from lsp_server.commands.engine import ready_engine
from lsp_server.commands.errors import CommandError
from lsp_server.commands.source_files import language_of, read_source
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import CompletionRequest, Engine
from lsp_server.protocol.client import EditorWindow
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings

REPEATS, TRIAL_TOKENS, MOST_TOKENS = 3, 64, 2048
PREFILL_S = 1.5  # what one prompt of the measurement should take
JUMPS, KEYS = 6, 10  # places to type at, and keys at each
KEY_S = 0.1
LINE_TOKENS, FILE_TOKENS = 12, 2000  # a suggested line; what is read when a file is opened
BUDGETS_MS = (300, 1000)  # at once; after a moment's pause
ROOM = 1.25  # memory in all, as a multiple of the weights
# Parameters of the models that run natively.
SIZES = {
    "Stable Code 3B": 2.80e9,
    "StarCoder2 3B": 3.03e9,
    "StarCoder2 7B": 7.17e9,
    "StarCoder2 15B": 15.96e9,
}
PROBE_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Measured:
    """The model that was measured. Times in milliseconds."""

    model: str
    where: str
    prompt_tokens: int
    prefill_per_s: float
    decode_per_s: float | None  # None: it had nothing to say
    jump_ms: float
    key_ms: float
    key_p95_ms: float
    keys: int
    suggestions: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a model of so many parameters would do here, at `precision`."""

    name: str
    precision: str
    memory_bytes: int
    line_ms: float
    file_ms: float
    verdict: str


def estimates(probe: dict[str, Any]) -> list[Estimate]:
    """From the probe's two figures. A line is a step for what was typed and one a token; nothing is
    drafted."""
    found = []
    for name, parameters in SIZES.items():
        size = parameters * probe["bytes_a_weight"]
        line_ms = 1000 * (1 + LINE_TOKENS) * size / probe["read_bytes_per_s"]
        file_ms = 1000 * 2 * parameters * FILE_TOKENS / probe["operations_per_s"]
        memory = round(ROOM * size)
        free = probe["available_memory"]
        if free is not None and memory > free:
            verdict = "does not fit"
        elif line_ms <= BUDGETS_MS[0]:
            verdict = "while you type"
        elif line_ms <= BUDGETS_MS[1]:
            verdict = "at a pause"
        else:
            verdict = "too slow"
        found.append(Estimate(name, probe["precision"], memory, line_ms, file_ms, verdict))
    return found


def recommendation(found: Sequence[Estimate]) -> str:
    """One sentence: the largest that keeps up with typing, or else with pauses, or none."""
    for verdict, when in (
        ("while you type", "should keep up with typing"),
        ("at a pause", "should answer at a pause"),
    ):
        fitting = [one for one in found if one.verdict == verdict]
        if fitting:
            return f"{fitting[-1].name} {when} here; try it with fimls bench --model FOLDER."
    return (
        "Of the larger models none is fast enough here; the one that ships with fimls is the "
        "choice."
    )


async def first_piece_s(engine: Engine, request: CompletionRequest) -> float:
    started = time.perf_counter()
    async with aclosing(engine.complete(request)) as pieces:
        async for piece in pieces:
            if piece.text or piece.logprobs:
                break
    return time.perf_counter() - started


async def prefill_per_s(engine: Engine, prompter: Prompter, text: str) -> tuple[int, float]:
    """Tokens of the prompts and tokens a second: medians over prompts that no cache has seen."""
    ids = prompter.encoder.encode(text)
    chance = random.Random(time.time_ns())

    def prompt(tokens: int) -> CompletionRequest:
        shuffled = [chance.choice(ids) for _ in range(tokens)]
        return CompletionRequest(tuple(shuffled), 1, client="bench")

    most = min(MOST_TOKENS, prompter.context_tokens - 1)
    await first_piece_s(engine, prompt(min(TRIAL_TOKENS, most)))  # warms up
    trial = await first_piece_s(engine, prompt(min(TRIAL_TOKENS, most)))
    tokens = min(most, max(TRIAL_TOKENS, int(TRIAL_TOKENS * PREFILL_S / trial)))
    return tokens, statistics.median(
        [tokens / await first_piece_s(engine, prompt(tokens)) for _ in range(REPEATS)]
    )


async def decode_per_s(
    engine: Engine, prompter: Prompter, settings: Settings, cursors: Sequence[Snapshot]
) -> float | None:
    """Tokens a second behind the first piece of an answer, drafts included; None where nothing was
    said."""
    rates = []
    for snapshot in cursors:
        request, _ = prompter.request(prompter.context(snapshot, settings, None), settings, "bench")
        times, counts = [], []
        async with aclosing(engine.complete(request)) as pieces:
            async for piece in pieces:
                if piece.logprobs:
                    times.append(time.perf_counter())
                    counts.append(len(piece.logprobs))
        if len(times) > 1:
            rates.append(sum(counts[1:]) / (times[-1] - times[0]))
    return statistics.median(rates) if rates else None


async def typed(
    path: Path, text: str, settings: Settings, seed: int
) -> tuple[list[float], list[float], int]:
    """Milliseconds to the answer at the first key of a place and at each of the next, and how many
    were suggestions."""
    lines = text.splitlines()
    found = places(lines, seed)[:: max(1, len(places(lines, seed)) // JUMPS)][:JUMPS]
    jumps: list[float] = []
    keys: list[float] = []
    suggestions = 0
    language = language_of(path)
    async with EditorWindow(path.parent, {"model": settings.model}) as window:
        if not await window.wait_until_ready():
            raise CommandError("; ".join(window.messages) or "the model did not load in time")
        for line, column in found:
            for more in range(KEYS):
                written = lines[line][: column + more]
                window.put(
                    path, language, "\n".join([*lines[:line], written, *lines[line + 1 :]]) + "\n"
                )
                started = time.perf_counter()
                suggestions += bool(await window.ask(path, line, len(written)))
                spent = time.perf_counter() - started
                (keys if more else jumps).append(spent * 1000)
                await asyncio.sleep(max(0.0, KEY_S - spent))
    return jumps, keys, suggestions


async def measure(file: Path | None, settings: Settings, seed: int = 0) -> Measured:
    """Raises CommandError, ModelError, FormatError, EngineUnavailable, OSError."""
    path = (file or SAMPLE).absolute()
    text = read_source(path)
    if settings.remote.url:
        raise CommandError(
            "the model runs elsewhere (remote.url); measure there, or unset it for this command"
        )
    prompter = Prompter.for_settings(settings)
    lines = text.splitlines(keepends=True)
    starts = [
        (sum(map(len, lines[:line])) + column)
        for line, column in places(text.splitlines(), seed)[:JUMPS]
    ]
    if not starts:
        raise CommandError(f"there are no lines of code in {path} to type; name another file")
    cursors = [Snapshot(path.as_uri(), 1, language_of(path), text, start) for start in starts]
    async with ready_engine(settings) as engine:
        tokens, prefill = await prefill_per_s(engine, prompter, text)
        decode = await decode_per_s(engine, prompter, replace(settings, temperature=0.0), cursors)
        jumps, keys, suggestions = await typed(path, text, settings, seed)
    ordered = sorted(keys)
    return Measured(
        settings.model,
        str(path),
        tokens,
        prefill,
        decode,
        statistics.median(jumps),
        statistics.median(keys),
        ordered[int(0.95 * (len(ordered) - 1))],
        len(jumps) + len(keys),
        suggestions,
    )


async def probe(settings: Settings) -> dict[str, Any]:
    """model/probe.py's figures, by a process of its own: this one loads no torch. Raises
    CommandError."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "model.probe",
        "--device",
        settings.engine.device,
        "--threads",
        str(settings.engine.threads or 0),
    ]
    try:
        run = await asyncio.to_thread(
            subprocess.run,
            command,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
        found: dict[str, Any] = json.loads(run.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        raise CommandError(
            "the machine's speed could not be measured; is enough memory free?"
        ) from None
    return found


async def show(file: Path | None, settings: Settings, *, as_json: bool) -> None:
    """The command. Raises CommandError, ModelError, FormatError, EngineUnavailable, OSError."""
    measured = await measure(file, settings)
    figures = await probe(settings)
    found = estimates(figures)
    if as_json:
        print(
            json.dumps(
                {
                    "measured": asdict(measured),
                    "probe": figures,
                    "estimates": [asdict(e) for e in found],
                    "recommendation": recommendation(found),
                },
                ensure_ascii=False,
            )
        )
        return
    decode = (
        "nothing said"
        if measured.decode_per_s is None
        else f"{measured.decode_per_s:,.0f} tokens/s"
    )
    rows = {
        f"prefill of {measured.prompt_tokens:,} tokens": f"{measured.prefill_per_s:,.0f} tokens/s",
        "decode, drafts included": decode,
        "first key at a new place": f"{measured.jump_ms:,.0f} ms (median)",
        "next keys": f"{measured.key_ms:,.0f} ms (median), {measured.key_p95_ms:,.0f} ms (95%)",
        "answered with a suggestion": f"{measured.suggestions} of {measured.keys} keys",
    }
    print(f"{measured.model}, measured in {measured.where}:")
    for name, value in rows.items():
        print(f"  {name:32}{value}")
    print(
        f"\nOther models in {figures['precision']} on this machine's {figures['device']}, "
        "estimated from "
        f"{figures['read_bytes_per_s'] / 1e9:,.1f} GB/s of weights and "
        f"{figures['operations_per_s'] / 1e12:,.2f} "
        f"Top/s:\n  {'':18}{'memory':>9}{'a line':>12}{'a new file':>12}"
    )
    for one in found:
        print(
            f"  {one.name:18}{one.memory_bytes / 1e9:6.1f} GB{one.line_ms:9,.0f} "
            f"ms{one.file_ms / 1000:10,.1f} s"
            f"   {one.verdict}"
        )
    print(
        f"(a line: {LINE_TOKENS} tokens, none drafted; a new file: {FILE_TOKENS:,} tokens to "
        "read. An estimate.)"
    )
    print(f"\n{recommendation(found)}")
