"""The benchmarks' arithmetic and parsing, and one tiny replay through the real server."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.busy_machine import report as busy_report
from benchmarks.editor import position
from benchmarks.figures import cpu_seconds, percentile, shown, table
from benchmarks.plots import distribution, nice, over_context, over_length, ticks
from benchmarks.replay import Key, Played, report, summary
from benchmarks.sides import common_prefix, dtype_and_quantization, growing, prefill, write
from benchmarks.targets import Thin, parse_side, parse_trace
from benchmarks.throughput import jobs
from benchmarks.throughput import report as throughput_report
from lsp_server.commands.errors import CommandError
from lsp_server.completion.trace import Trace
from lsp_server.engines.interface import CompletionRequest, Piece
from lsp_server.settings import RemoteSettings
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0], 0.5, 3),
        ([1, 2, 3, 4], 0.5, 2),
        ([4, 1, 3, 2, 5], 0.5, 3),
        (range(1, 101), 0.95, 95),
        (range(1, 21), 0.95, 19),
        (range(1, 11), 0.95, 10),
        ([1, 2], 1.0, 2),
        ([1, 2], 0.0, 1),
    ],
)
def test_a_percentile_is_the_least_value_that_enough_do_not_exceed(
    values: Sequence[float], share: float, expected: float
) -> None:
    assert percentile(values, share) == expected


def test_of_nothing_there_is_no_percentile() -> None:
    assert math.isnan(percentile([], 0.5)) and shown(percentile([], 0.5)) == "–"


def test_tables_and_figures_are_short() -> None:
    assert (
        table(["a", "b"], [["x", 1234.5], ["y", None]])
        == "| a | b |\n| --- | --- |\n| x | 1,234 |\n| y | – |"
    )
    assert [shown(v) for v in (0.5, 12.34, 99999, "text")] == ["0.50", "12.3", "99,999", "text"]
    assert cpu_seconds("self") > 0 and cpu_seconds(2**30) == 0


def test_positions_count_code_points() -> None:
    text = "a\n😀b\n"
    assert [tuple(position(text, n).values()) for n in range(6)] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
    ]


# ---- sides ----


class Counting:
    """A model that says after each id the next one, and forgets nothing that it is not told to."""

    vocabulary, positions = 1000, 200

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.calls: list[int] = []

    @property
    def length(self) -> int:
        return len(self.ids)

    def trim(self, length: int) -> None:
        del self.ids[length:]

    def feed(self, ids: Sequence[int]) -> int:
        return self.rows(ids)[-1]

    def rows(self, ids: Sequence[int]) -> list[int]:
        self.ids += ids
        self.calls.append(len(ids))
        return [i + 1 for i in ids]


def test_a_peer_keeps_what_is_common_and_writes_on() -> None:
    side, cached = Counting(), []  # type: ignore[var-annotated]
    assert list(write(side, cached, [5, 6, 7], 3)) == [8, 9, 10]
    assert side.calls == [3, 1, 1] and side.ids == cached == [5, 6, 7, 8, 9]
    side.calls.clear()
    assert list(write(side, cached, [5, 6, 7, 8, 20], 2)) == [21, 22]
    assert side.calls == [1, 1]
    side.calls.clear()
    assert list(write(side, cached, [5, 6, 7], 1)) == [8] and side.calls == [
        1
    ]  # the last id is always computed


@pytest.mark.parametrize("draft", [[], [9], [9, 10, 11], [9, 50, 51], [50]])
def test_drafts_change_the_calls_and_not_the_text(draft: list[int]) -> None:
    side, cached = Counting(), []  # type: ignore[var-annotated]
    assert list(write(side, cached, [5, 6, 7], 6, lambda ids: draft if ids[-1] == 8 else [])) == [
        *range(8, 14)
    ]
    assert side.ids == cached
    assert cached == [*range(5, 5 + len(cached))]


def test_a_request_that_nobody_waits_for_ends() -> None:
    side, cached = Counting(), []  # type: ignore[var-annotated]
    assert list(write(side, cached, [5, 6], 9, gone=lambda: True)) == [] and side.calls == []
    looks = iter([False, False, True])
    assert list(write(side, cached, [5, 6], 9, gone=lambda: next(looks))) == [7, 8]


def test_a_precision_is_a_dtype_or_a_quantization() -> None:
    assert dtype_and_quantization("int8") == ("auto", "int8") and dtype_and_quantization(
        "float16"
    ) == ("float16", None)
    engine = parse_side("ours:int4", "bundled").settings.engine
    assert (engine.dtype, engine.quantization) == ("auto", "int4")
    engine = parse_side("ours:float32", "bundled").settings.engine
    assert (engine.dtype, engine.quantization) == ("float32", "none")


def test_a_common_prefix_ends_where_two_differ() -> None:
    assert (
        common_prefix([1, 2, 3], [1, 2, 4]) == 2
        and common_prefix([], [1]) == 0
        and common_prefix([1], [1, 2]) == 1
    )


def test_half_a_character_waits_for_its_rest() -> None:
    raw = "é😀x".encode()
    push = growing(lambda ids: bytes(ids).decode("utf-8", "replace"))
    assert [push(byte) for byte in raw] == ["", "é", "", "", "", "😀", "x"]


def test_prefill_is_cold() -> None:
    side = Counting()
    prefill(side, 100)
    prefill(side, 100)
    assert side.calls == [100, 100] and len(set(side.ids)) == 100 and min(side.ids) >= 16


# ---- parsing ----


def test_a_side_is_its_kind_precision_and_options() -> None:
    ours = parse_side("ours,contextTokens=512,multiline=never", "bundled")
    assert (ours.kind, ours.settings.context_tokens, ours.settings.multiline) == (
        "ours",
        512,
        "never",
    )
    assert ours.options == {"model": "bundled", "contextTokens": 512, "multiline": "never"}
    llama = parse_side("llama:q4_0,draft=10,front=1,layout=psm", "there")
    assert (llama.precision, llama.draft, llama.through_front, llama.settings.layout) == (
        "q4_0",
        10,
        True,
        "psm",
    )
    assert (
        parse_side("llama", "m").precision == "q8_0"
        and parse_side("transformers", "m").precision == "float32"
    )


@pytest.mark.parametrize(
    "text", ["theirs", "ours,contextToken=5", "ours,contextTokens=x", "ours,layout"]
)
def test_a_side_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CommandError):
        parse_side(text, "bundled")


def test_traces_are_read_off_the_servers_log() -> None:
    start = "2026-11-21 10:00:00,000 17 INFO lsp_server.completion.suggestions: "
    line = json.dumps(
        Trace("shown", prompt_tokens=9, reused_tokens=7, reasons=("end of line",)).to_json()
    )
    assert parse_trace(start + line) == json.loads(line)
    for other in (
        start + "no suggestion: gone",
        start + '{"prompt_tokens":',
        "nothing",
        start + '{"a": 1}',
    ):
        assert parse_trace(other) is None


# ---- what it comes to ----


def test_a_summary_keeps_the_superseded_apart() -> None:
    keys = [
        Key("jump", 90.0, 90.0, prompt=500, prefilled=400),
        *(
            Key("key", float(n), float(n), prompt=500, prefilled=2, shown=10, right=10)
            for n in range(1, 10)
        ),
        Key("through", 1.0, 1.0, prefilled=0, passes=0),
        Key("through", 1.0, 1.0, prefilled=0, passes=0, counted=1),
        Key("key", None, 120.0),
    ]
    found = summary(
        Played(
            keys, cpu=1.3, memory=[10_000_000, 12_000_000], characters_per_second=[5.0, 7.0, 9.0]
        )
    )
    assert (found["keys"], found["superseded"]) == (13, 1)
    assert (found["p50"], found["p95"], found["p95 at least"]) == (4.0, 90.0, 120.0)
    assert (found["jump p50"], found["prefilled p50"], found["prefilled p95"]) == (90.0, 2.0, 2.0)
    assert (found["free keys"], found["free keys without a pass"]) == (2, 1)
    assert (found["shown"], found["right"], found["characters/s"]) == (90, 90, 7.0)
    assert found["cpu s per 1000 keys"] == pytest.approx(100) and found["MB at last"] == 12
    text = report({"ours": Played(keys, 1.0), "llama:q8_0": Played(keys, 2.0)})
    assert "ours against llama:q8_0: p50 1.00, p95 1.00" in text


def test_throughput_says_who_is_best_and_by_how_much() -> None:
    found = jobs(1024, [512, 2048], [0, 1000], 32, 2)
    assert "prefill 2048, tokens/s" not in found and "decode at 991, tokens/s" in found
    text = throughput_report(
        {
            "ours:int8": {"prefill 512, tokens/s": [200.0, 400.0, 300.0], "step of 1, ms": [2.0]},
            "llama:f32": {"prefill 512, tokens/s": [100.0], "step of 1, ms": [1.0]},
            "llama:q4_0": {"prefill 512, tokens/s": [50.0], "step of 1, ms": [4.0]},
        }
    )
    first, second = text.splitlines()[2:4]
    assert "**300** (200–400)" in first and "| 3.00 | 3.00 llama:f32, 6.00 llama:q4_0 |" in first
    assert (
        "**1.00** (1.00–1.00)" in second and "| 0.50 | 0.50 llama:f32, 2.00 llama:q4_0 |" in second
    )


def test_each_of_ours_is_compared_with_the_best_peer() -> None:
    figures = {
        "ours:blocks": {"step of 1, ms": [2.0], "step of 4, ms": [3.0]},
        "ours:int4": {"step of 1, ms": [1.0], "step of 4, ms": [4.0]},
        "llama:file": {"step of 1, ms": [3.0], "step of 4, ms": [6.0]},
    }
    text = throughput_report(figures)
    assert "| 1.50 | 3.00 | 3.00 llama:file |" in text.splitlines()[2]
    assert "ours:blocks, times its step of 1 row: 4 rows 1.50." in text


def test_a_busy_machine_is_compared_with_the_same_side_alone() -> None:
    found = {
        ("decode", "ours", False): [10.0, 12.0, 11.0],
        ("decode", "ours", True): [22.0, 20.0, 33.0],
    }
    assert "| decode | ours | 11.0 | 22.0 | 33.0 | 2.00 |" in busy_report(found)


@pytest.mark.parametrize(
    "drawn",
    [
        distribution({"ours": [1.0, None, 5.0, 20.0], "a<b": [100.0]}),
        over_context(
            {
                "ours,contextTokens=512": (500, 9),
                "ours,contextTokens=2048": (2000, 11),
                "llama": (400, 30),
            }
        ),
    ],
)
def test_plots_are_svg(drawn: str) -> None:
    root = ET.fromstring(drawn)
    curves = [e for e in root if e.tag.endswith("path") and e.get("fill") == "none"]
    assert len(curves) == 2
    assert {t.text for t in root if t.tag.endswith("text")} >= {"ours"}


def test_rates_over_lengths_are_drawn_as_milliseconds() -> None:
    figures = {
        "ours": {
            "prefill 500, tokens/s": [250.0],
            "prefill 1000, tokens/s": [200.0, 1.0, 999.0],
            "decode at 0, tokens/s": [50.0],
            "decode at 1000, tokens/s": [20.0],
            "step of 1, ms": [7.0],
        }
    }
    root = ET.fromstring(over_length(figures))
    curves = [e for e in root if e.tag.endswith("path") and e.get("fill") == "none"]
    marks = [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in root if "circle" in e.tag]
    assert len(curves) == 2 and len(marks) == 3
    (_, reading), (at, longer), (there, token) = marks
    assert longer < reading < token and at == there  # 5,000, 2,000 and 50 ms
    assert (token - reading) / (token - longer) == pytest.approx(
        math.log(40) / math.log(100), abs=0.01
    )


def test_axes_have_round_ends_and_nothing_is_no_plot() -> None:
    assert [nice(v) for v in (0.7, 1.0, 3.0, 900.0)] == pytest.approx([0.8, 1.0, 4.0, 1000.0])
    assert ticks(4, 60) == [5, 10, 20, 50]
    with pytest.raises(ValueError, match="nothing to draw"):
        distribution({"ours": [None]})


class Stub:
    """An engine that answers with a line, or cannot."""

    def __init__(self) -> None:
        self.prompts: list[Any] = []

    async def complete(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        self.prompts.append(request.prompt)
        if len(self.prompts) > 2:
            raise ValueError("a fault of the benchmark")
        yield Piece("a + b", reused_tokens=1)

    async def close(self) -> None:
        pass


@pytest.mark.asyncio
async def test_a_peers_client_asks_with_our_prompt_and_hides_no_fault() -> None:
    side = parse_side("llama:q8_0,contextTokens=256", "bundled")
    settings = replace(side.settings, remote=RemoteSettings("http://127.0.0.1:9", "peer"))
    thin = Thin(side, settings, [], cast(Any, None))
    await thin._engine.close()
    stub = Stub()
    thin._engine = cast(Any, stub)
    path, text = Path("/tmp/add.py"), "def add(a, b):\n    return \n"
    thin.open(path, "python", text)
    for at in (len(text) - 1, len(text)):
        answer = thin.ask(path, at)
        assert thin._task is not None
        await thin._task
        assert answer.ms is not None and answer.text == "a + b"
        assert answer.prefilled == len(stub.prompts[-1]) - 1
        thin.change(path, len(text) - 1, len(text) - 1, " ")
    assert stub.prompts[0] != stub.prompts[1]
    thin.ask(path, len(text))
    with pytest.raises(ValueError, match="a fault"):
        await asyncio.wait_for(thin._task, 10)
    with pytest.raises(ValueError, match="a fault"):
        thin.ask(path, len(text))


@pytest.mark.slow
def test_a_tiny_replay_through_the_real_server(tmp_path: Path) -> None:
    out, picture = tmp_path / "replay.json", tmp_path / "replay.svg"
    options = (
        f"--keys 50 --speedup 2 --longest 60 --decode 1 --where {ROOT / 'fim'} --side ours "
        "--side transformers"
    )
    command = [
        sys.executable,
        "-m",
        "benchmarks.replay",
        *options.split(),
        "--json",
        str(out),
        "--svg",
        str(picture),
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "ours against transformers" in run.stdout
    found: dict[str, Any] = json.loads(out.read_text())
    for side in ("ours", "transformers"):
        assert found[side]["keys"] >= 40 and len(found[side]["ms"]) == found[side]["keys"]
        assert any(ms is not None for ms in found[side]["ms"])
    assert found["ours"]["MB at last"] > 0 and found["ours"]["cpu s per 1000 keys"] > 0
    ET.fromstring(picture.read_text())
