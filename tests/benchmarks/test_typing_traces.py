"""Traces: what is typed is the file, whatever was mistyped, deleted or accepted on the way."""

from __future__ import annotations

import random

import pytest

from benchmarks.typing_traces import (
    MOST,
    Passage,
    Session,
    enough,
    session,
    sessions,
    sources,
    strokes,
)
from tests.corpora import code

PACKAGES = {
    name: [(f"{name}/{n}.py", code((name, n), 200)) for n in range(3)] for name in ("one", "two")
}


def type_all(passage: Passage) -> tuple[str, int]:
    """What the strokes leave behind, and how many deleted something."""
    text, deleted = "", 0
    for stroke in passage.strokes:
        wrong = len(text) - stroke.at
        assert wrong in (0, 1) and text[: stroke.at] == passage.text[: stroke.at]
        text = text[: len(text) - stroke.delete] + stroke.insert
        deleted += stroke.delete > 0
    return text, deleted


def made(count: int, seed: int = 0) -> list[Session]:
    written = sessions(PACKAGES, seed)
    return [next(written) for _ in range(count)]


def test_the_text_typed_is_the_passage_and_deletions_cancel_out() -> None:
    deletions = 0
    for one in made(12):
        assert len({p.start for p in one.passages}) == len(one.passages) > 1
        for passage in one.passages:
            text, deleted = type_all(passage)
            assert (
                text == passage.text == one.text[passage.start : passage.start + len(passage.text)]
            )
            assert len(passage.text) <= MOST
            deletions += deleted
    assert deletions > 20


def test_the_passages_at_their_places_make_the_file() -> None:
    for one in made(12):
        document = one.beginning
        assert len(document) == len(one.text) - sum(len(p.text) for p in one.passages)
        for number, passage in enumerate(one.passages):
            place = one.place(number)
            document = document[:place] + passage.text + document[place:]
        assert document == one.text


def test_the_same_seed_gives_the_same_trace_and_another_seed_another() -> None:
    assert made(3) == made(3)
    assert made(3) != made(3, seed=1)


def test_keys_come_at_a_persons_pace() -> None:
    waits = [s.wait for one in made(20) for p in one.passages for s in p.strokes[1:]]
    assert 0.1 < sorted(waits)[len(waits) // 2] < 0.16
    assert min(waits) > 0 and max(waits) > 0.6  # at a line's end
    assert all(p.strokes[0].wait >= 0.6 for one in made(3) for p in one.passages)


def test_a_lines_end_brings_the_indentation_along() -> None:
    found = [
        s.insert for s in strokes("if a:\n    b\n\n    c", random.Random(0)) if "\n" in s.insert
    ]
    assert found == ["\n    ", "\n", "\n    "]


def test_behind_an_accepted_suggestion_typing_goes_on_where_it_ends() -> None:
    (passage,) = (p for one in made(1) for p in one.passages[:1])
    for accepted_at in range(0, len(passage.strokes), 7):
        at = passage.strokes[accepted_at].at
        end = min(len(passage.text), at + 9)
        number = passage.after(accepted_at, end)
        text = passage.text[:end]
        for stroke in passage.strokes[number:]:
            text = text[: len(text) - stroke.delete] + stroke.insert
        assert text == passage.text or number == len(passage.strokes)
    assert passage.after(0, len(passage.text)) == len(passage.strokes)


@pytest.mark.parametrize("keys", [1, 50, 700])
def test_there_are_as_many_keys_as_asked_for_and_not_many_more(keys: int) -> None:
    taken = enough(sessions(PACKAGES, 0), keys)
    count = sum(one.keys for one in taken)
    assert keys <= count
    assert count - len(taken[-1].passages[-1].strokes) < keys


def test_a_file_without_room_has_no_passages_and_files_without_any_are_refused() -> None:
    assert session("a.py", "x = 1\n", random.Random(0), 4).passages == ()
    with pytest.raises(ValueError, match="nothing to type"):
        next(sessions({"one": [("a.py", "x = 1\n")]}, 0))
    with pytest.raises(ValueError, match="100000 characters"):
        next(sessions(PACKAGES, 0, least=100_000))


def test_a_clone_without_the_corpus_types_its_own_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr("benchmarks.typing_traces.HELD_OUT", tmp_path)
    packages, which = sources(None)
    assert set(packages) == {"lsp_server", "fim", "model"} and "repository" in which
    assert next(sessions(packages, 0)).passages
