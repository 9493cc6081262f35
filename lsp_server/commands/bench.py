"""`fimls bench`: how fast the model is on this machine, and which others would be fast enough.

Measured: prefill and decode through the engine process, and keys typed in a file through the real
server over stdio. Estimated: models of other sizes, from how fast this machine reads weights and
multiplies (model/probe.py).
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fim.characters import escaped
from lsp_server.commands.demo import SAMPLE, places
from lsp_server.commands.doctor.machine import measure_machine
from lsp_server.commands.engine import ready_engine
from lsp_server.commands.errors import CommandError
from lsp_server.commands.source_files import language_of, read_source
from lsp_server.documents import Snapshot
from lsp_server.engines.interface import CompletionRequest, Engine
from lsp_server.protocol.client import EditorWindow
from lsp_server.session.prompter import TIME_BUDGET_MS, Prompter
from lsp_server.settings import Settings
from model.catalogue.recommend import (
    FILE_TOKENS,
    LINE_TOKENS,
    Estimate,
    advice,
    estimates,
    recommend,
)

REPEATS = 3
TRIAL_TOKENS = 64  # of the prompt that is tried first
MAX_TOKENS = 2048
PREFILL_S = 1.5  # of one measured prompt
JUMPS = 6  # places to type at
KEYS = 10  # at each place
KEY_S = 0.1  # between two keys


@dataclass(frozen=True, slots=True)
class Measured:
    """The model that was measured. Times in milliseconds."""

    model: str
    where: str
    prompt_tokens: int
    prefill_per_s: float
    decode_per_s: float | None  # None: the model wrote nothing
    jump_ms: float
    key_ms: float
    key_p95_ms: float
    keys: int
    suggestions: int


async def print_bench(file: Path | None, settings: Settings, *, as_json: bool) -> None:
    """The command. Raises CommandError, ModelError, FormatError, EngineUnavailable, OSError."""
    measured = await measure(file, settings)
    machine = measure_machine(settings.engine)
    found = estimates(machine)
    words = advice(recommend(found, machine, TIME_BUDGET_MS))
    if as_json:
        answer = {
            "measured": asdict(measured),
            "probe": machine,
            "estimates": [asdict(estimate) for estimate in found],
            "recommendation": words,
        }
        print(json.dumps(answer))
        return
    print_measured(measured)
    print_estimates(found, machine)
    print(f"\n{words}")


async def measure(file: Path | None, settings: Settings, seed: int = 0) -> Measured:
    path = (file or SAMPLE).absolute()
    text = read_source(path)
    if settings.remote.url:
        raise CommandError(
            "the model runs elsewhere (remote.url); measure there, or unset it for this command"
        )
    prompter = Prompter.for_settings(settings)
    cursors = places(text.splitlines(), seed)
    if not cursors:
        raise CommandError(f"there are no lines of code in {path} to type; name another file")
    lines = text.splitlines(keepends=True)
    snapshots = []
    for line, column in cursors[:JUMPS]:
        offset = sum(map(len, lines[:line])) + column
        snapshots.append(Snapshot(path.as_uri(), 1, language_of(path), text, offset))
    async with ready_engine(settings) as engine:
        tokens, prefill = await prefill_per_s(engine, prompter, text)
        greedy = replace(settings, temperature=0.0)
        decode = await decode_per_s(engine, prompter, greedy, snapshots)
        spread = cursors[:: max(1, len(cursors) // JUMPS)][:JUMPS]
        jumps, keys, suggestions = await type_at(spread, path, text, settings)
    keys.sort()
    return Measured(
        settings.model,
        str(path),
        tokens,
        prefill,
        decode,
        jump_ms=statistics.median(jumps),
        key_ms=statistics.median(keys),
        key_p95_ms=keys[int(0.95 * (len(keys) - 1))],
        keys=len(jumps) + len(keys),
        suggestions=suggestions,
    )


async def prefill_per_s(engine: Engine, prompter: Prompter, text: str) -> tuple[int, float]:
    """The length of the measured prompts in tokens, and the median of their tokens per second."""
    ids = prompter.encoder.encode(text)
    chance = random.Random(time.time_ns())

    async def prefill_s(tokens: int) -> float:
        prompt = tuple(chance.choices(ids, k=tokens))  # no cache has seen it
        request = CompletionRequest(prompt, 1, client="bench")
        started = time.perf_counter()
        async with aclosing(engine.complete(request)) as pieces:
            async for piece in pieces:
                if piece.text or piece.logprobs:
                    break
        return time.perf_counter() - started

    most = min(MAX_TOKENS, prompter.context_tokens - 1)
    trial_tokens = min(TRIAL_TOKENS, most)
    await prefill_s(trial_tokens)  # warms up
    trial_s = await prefill_s(trial_tokens)
    tokens = min(most, max(TRIAL_TOKENS, int(TRIAL_TOKENS * PREFILL_S / trial_s)))
    rates = [tokens / await prefill_s(tokens) for _ in range(REPEATS)]
    return tokens, statistics.median(rates)


async def decode_per_s(
    engine: Engine, prompter: Prompter, settings: Settings, snapshots: Sequence[Snapshot]
) -> float | None:
    """The median of tokens per second after an answer's first piece; None if there was none."""
    rates = []
    for snapshot in snapshots:
        context = prompter.context(snapshot, settings, None)
        request, _ = prompter.request(context, settings, "bench")
        times = []
        counts = []
        async with aclosing(engine.complete(request)) as pieces:
            async for piece in pieces:
                if piece.logprobs:
                    times.append(time.perf_counter())
                    counts.append(len(piece.logprobs))
        if len(times) > 1:
            rates.append(sum(counts[1:]) / (times[-1] - times[0]))
    return statistics.median(rates) if rates else None


async def type_at(
    cursors: Sequence[tuple[int, int]], path: Path, text: str, settings: Settings
) -> tuple[list[float], list[float], int]:
    """Types KEYS keys of the file at each cursor, in a window of the real server.

    Milliseconds to the answer at the first key of each place, those at the next keys, and the
    number of suggestions.
    """
    lines = text.splitlines()
    jumps: list[float] = []
    keys: list[float] = []
    suggestions = 0
    async with EditorWindow(path.parent, {"model": settings.model}) as window:
        if not await window.wait_until_ready():
            raise CommandError(window.problem)
        for line, start in cursors:
            for column in range(start, start + KEYS):
                written = lines[line][:column]
                typed = [*lines[:line], written, *lines[line + 1 :]]
                window.put(path, language_of(path), "\n".join(typed) + "\n")
                started = time.perf_counter()
                suggestions += bool(await window.ask(path, line, len(written)))
                spent = time.perf_counter() - started
                times = jumps if column == start else keys
                times.append(spent * 1000)
                await asyncio.sleep(max(0.0, KEY_S - spent))
    return jumps, keys, suggestions


def print_measured(measured: Measured) -> None:
    decode = "nothing said"
    if measured.decode_per_s is not None:
        decode = f"{measured.decode_per_s:,.0f} tokens/s"
    rows = {
        f"prefill of {measured.prompt_tokens:,} tokens": f"{measured.prefill_per_s:,.0f} tokens/s",
        "decode, drafts included": decode,
        "first key at a new place": f"{measured.jump_ms:,.0f} ms (median)",
        "next keys": f"{measured.key_ms:,.0f} ms (median), {measured.key_p95_ms:,.0f} ms (95%)",
        "answered with a suggestion": f"{measured.suggestions} of {measured.keys} keys",
    }
    print(escaped(f"{measured.model}, measured in {measured.where}:"))
    for name, value in rows.items():
        print(f"  {name:32}{value}")


def print_estimates(found: Sequence[Estimate], machine: dict[str, Any]) -> None:
    print(
        f"\nOther models in {machine['precision']} on this machine's {machine['device']}, "
        f"estimated from {machine['read_bytes_per_s'] / 1e9:,.1f} GB/s of weights and "
        f"{machine['operations_per_s'] / 1e12:,.2f} Top/s:\n"
        f"  {'':20}{'memory':>9}{'a line':>12}{'a new file':>12}"
    )
    for estimate in found:
        print(
            f"  {estimate.name:20}{estimate.memory_bytes / 1e9:6.1f} GB"
            f"{estimate.line_ms:9,.0f} ms{estimate.file_ms / 1000:10,.1f} s   {estimate.verdict}"
        )
    print(
        f"(a line: {LINE_TOKENS} tokens, none drafted; a new file: {FILE_TOKENS:,} tokens to "
        "read. An estimate.)"
    )
