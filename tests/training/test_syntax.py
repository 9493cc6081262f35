from __future__ import annotations

from random import Random

import pytest

from training.syntax import SyntaxSpans

TEXT = 'größe = "äöü🙂" + f(1)\nif größe:\n    print(größe, "🙂", end="")\n'


def middles(text: str, start: int = 0, stop: int | None = None) -> set[str]:
    spans, rng = SyntaxSpans(text), Random(0)
    found = [spans.middle(start, len(text) if stop is None else stop, rng) for _ in range(400)]
    return {text[slice(*f)] for f in found if f}


def test_nodes_are_found_in_code_points_beside_wide_characters() -> None:
    assert middles(TEXT) >= {'"äöü🙂"', "f(1)", 'print(größe, "🙂", end="")', "größe"}
    assert '"äöü🙂" + f(1)' in middles(TEXT)


def test_a_middle_stays_in_its_window_and_leaves_half_of_it() -> None:
    start = TEXT.index("if")
    assert all(
        m in TEXT[start:] and len(m) <= (len(TEXT) - start) // 2 for m in middles(TEXT, start)
    )


@pytest.mark.parametrize("text", ["def f(:\n", "x = '\0'\n", "a = 1\rb = 22\n", "(" * 5000])
def test_what_python_cannot_parse_or_counts_otherwise_has_no_nodes(text: str) -> None:
    assert middles(text) == set()
