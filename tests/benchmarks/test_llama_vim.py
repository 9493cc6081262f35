"""The recipe that suggestions are compared with, and the keys that suggestions save."""

from __future__ import annotations

import pytest

from benchmarks.llama_vim import CHUNKS, Ending, Ring, question_at, shown
from benchmarks.net_keystrokes import LOOK_S, READ_S, cost_of, tally
from benchmarks.replay import Key
from benchmarks.typing_traces import KEY_S


def at(text: str) -> tuple[str, int]:
    return text.replace("▮", ""), text.index("▮")


def test_what_is_asked() -> None:
    question = question_at(*at("a\nb\n  if x▮:\nc\n"))
    assert question is not None
    assert (question.prefix, question.line, question.indent) == ("a\nb\n", "  if x", 2)
    assert question.suffix == ":\nc\n\n"
    assert question_at(*at("x = ▮123456789")) is None  # too much right of the cursor
    blank = question_at(*at("a\n    ▮\nc"))
    assert blank is not None and (blank.line, blank.indent, blank.suffix) == ("", 0, "\nc\n")


@pytest.mark.parametrize(
    ("document", "content", "what"),
    [
        ("x = ▮\n", "1\n\n", "1"),
        ("x = ▮)\n", ")", ""),
        ("    ▮\nb\n", "        c\n    d", "    c\n    d"),  # its own blanks, less the line's
        ("a▮\n\nbc\n", "\n\nbc", ""),
        ("b▮\nbc\nd\n", "c", ""),  # the line below
        ("b▮\nbc\nde\n", "c\nd", ""),
        ("b▮\nbc\nde\n", "c\nx", "c\nx"),
        ("▮\n", "\n\n", ""),
    ],
)
def test_what_is_shown(document: str, content: str, what: str) -> None:
    assert shown(content, *at(document)) == what


def test_where_the_server_ends_an_answer() -> None:
    ending = Ending(4)
    assert not ending.add("x\n    y\n", seconds=0.1)
    assert not ending.add("  ", seconds=0.1)  # may be four blanks yet
    assert ending.add("z", seconds=0.1) and ending.text == "x\n    y"
    late = Ending(0)
    assert not late.add("x\n", seconds=9) and not late.add("y", seconds=9)
    assert late.add("\n", seconds=9) and late.text == "x\ny\n"


def test_the_ring_keeps_what_differs() -> None:
    ring = Ring()
    for number in range(20):
        ring.pick(f"{number}.py", [f"{number} {line}" for line in range(10)])
        assert ring.take()
    assert len(ring.chunks) == CHUNKS and ring.chunks[-1].name == "19.py"
    ring.pick("twin.py", [f"19 {line}" for line in range(10)])
    assert all(chunk.name != "19.py" for chunk in ring.chunks) and ring.take()
    ring.pick("short.py", ["a", "b"])
    assert not ring.take()


def test_what_looking_costs_and_what_is_saved() -> None:
    assert cost_of("a + b", "a + b\n") == LOOK_S + 3 * READ_S
    assert cost_of("a - b", "a + b\n") == LOOK_S + 2 * READ_S  # up to the wrong one
    keys = [
        Key("key", 10.0, fresh="a + b", ahead="a + b\n", accepted=5, saved=4),
        Key("key", 10.0, fresh="x", ahead="y"),
        Key("through", 10.0),
        Key("key", None),
    ]
    found = tally(keys, 20)
    assert (found.appeared, found.accepted, found.saved) == (2, 1, 3)
    cost = (2 * LOOK_S + 4 * READ_S) / KEY_S
    assert found.cost == pytest.approx(cost)
    assert found.net() == pytest.approx(100 * (3 - cost) / 20)
