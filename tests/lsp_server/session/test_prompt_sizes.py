"""Prompts of several sizes: how many tokens they have, and that a growing one stays what it was."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from lsp_server.completion.answer_cache import AnswerCache
from lsp_server.documents import Snapshot
from lsp_server.session.prompt_sizes import FIRST, UNLIMITED, UNMEASURED, PromptSizes
from lsp_server.session.prompter import Prompter
from lsp_server.settings import parse

TEXT = "".join(f"def function_{n}(a, b):\n    return a * {n} + b\n\n\n" for n in range(400))


@pytest.mark.parametrize(
    ("speed", "budget_ms", "limit", "sizes"),
    [
        (None, 300, 32768, (UNMEASURED, FIRST)),
        (20, 300, 32768, (FIRST,)),
        (400, 300, 32768, (2048, 1024, 256)),
        (8000, 100, 2048, (UNLIMITED, 512)),
        (100, 100, 128, (UNLIMITED,)),
    ],
)
def test_sizes_are_what_is_read_in_the_budget_up_to_what_idle_time_reads(
    speed: float | None, budget_ms: float, limit: int, sizes: tuple[int, ...]
) -> None:
    assert tuple(PromptSizes().at(speed, budget_ms, limit)) == sizes


def test_sizes_stay_while_the_speed_wavers() -> None:
    sizes = PromptSizes()
    before = sizes.at(520, 300, 9999)
    assert sizes.at(500, 300, 9999) == sizes.at(400, 300, 9999) == before
    assert sizes.at(90, 300, 9999) != before


def test_a_smaller_size_is_a_window_around_the_same_cursor() -> None:
    settings, _ = parse({})
    prompter = Prompter.for_settings(settings)
    snapshot = Snapshot("file:///a.py", 1, "python", TEXT, len(TEXT) // 2)
    query = AnswerCache().query(snapshot, "a.py", prompter, settings, "me", (UNLIMITED, 512, 128))
    lengths = [len(query.request.prompt), *map(len, query.request.shorter)]
    assert lengths == sorted(set(lengths), reverse=True) and len(lengths) == 3
    assert lengths[1] <= 512 + 16 and lengths[2] <= 128 + 16
    contexts = list(query.contexts.values())
    for larger, smaller in pairwise(contexts):
        assert larger.prefix.endswith(smaller.prefix) and larger.suffix.startswith(smaller.suffix)
    assert query.context == prompter.context(snapshot, settings, "a.py")


def test_a_text_that_fits_the_smallest_size_is_one_prompt() -> None:
    settings, _ = parse({})
    prompter = Prompter.for_settings(settings)
    snapshot = Snapshot("file:///a.py", 1, "python", "x = 1\n", 6)
    query = AnswerCache().query(snapshot, "a.py", prompter, settings, "me", (UNLIMITED, 512, 128))
    assert query.request.shorter == ()


def test_each_size_keeps_its_edges_while_somebody_types() -> None:
    settings, _ = parse({"layout": "anchored"})
    prompter = Prompter.for_settings(settings)
    cache = AnswerCache()
    offset = TEXT.index("def function_200")
    prompts = []
    typed = ""
    for key in "value = function_7(3":
        typed += key
        text = TEXT[:offset] + typed + "\n" + TEXT[offset:]
        snapshot = Snapshot("file:///a.py", len(typed), "python", text, offset + len(typed))
        query = cache.query(snapshot, "a.py", prompter, settings, "me", (UNLIMITED, 512))
        prompts.append((query.request.prompt, *query.request.shorter))
    for size in range(2):
        first = prompts[0][size]
        assert all(prompt[size][: len(first) - 2] == first[:-2] for prompt in prompts)


def test_the_prompts_of_all_sizes_make_the_key() -> None:
    settings, _ = parse({})
    prompter = Prompter.for_settings(settings)
    snapshot = Snapshot("file:///a.py", 1, "python", TEXT, len(TEXT) // 2)
    query = AnswerCache().query(snapshot, "a.py", prompter, settings, "me", (UNLIMITED, 128))
    other = replace(query, request=replace(query.request, shorter=()))
    assert query.key != other.key
