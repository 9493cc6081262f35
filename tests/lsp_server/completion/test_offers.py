"""What becomes of a suggestion in the text, and what is counted."""

from __future__ import annotations

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fim import Suggestion
from lsp_server.completion.offers import KEPT, Offers
from lsp_server.documents import Snapshot

CURSOR = "▮"


def at(marked: str, uri: str = "file:///a.py") -> Snapshot:
    """A snapshot whose cursor is at the mark."""
    return Snapshot(uri, 1, "python", marked.replace(CURSOR, ""), marked.index(CURSOR))


def suggests(text: str, replaced: int = 0) -> Suggestion:
    return Suggestion(text, (0, replaced), 0.9, (), False)


def offered(marked: str, text: str, replaced: int = 0) -> Offers:
    offers = Offers()
    offer = offers.add(at(marked), suggests(text, replaced))
    offers.answered([offer.id])
    return offers


@pytest.mark.parametrize(
    ("text", "replaced", "now", "rest"),
    [
        ("one two", 0, "x = ▮)", "one two"),
        ("one two", 0, "x = o▮)", "ne two"),
        ("one two", 0, "x = one ▮)", "two"),
        ("one two", 0, "x = one two▮)", None),  # nothing is left
        ("one two", 0, "x = ane▮)", None),  # something else was typed
        ("one two", 0, "x = on▮e)", None),  # the cursor is elsewhere
        ("one two", 0, "x =▮ )", None),
        ("one two", 0, "y = one▮)", None),  # the text around has changed
        ("one two", 0, "x = one▮]", None),
        ("one)", 1, "x = one▮)", ")"),
        ("one\n    two", 0, "x = one\n    ▮)", "two"),
        ("🎉 two", 0, "x = 🎉▮)", " two"),
        ("one   ", 0, "x = one▮)", None),  # blanks are nothing to show
    ],
)
def test_the_rest_goes_on_where_its_beginning_stands(
    text: str, replaced: int, now: str, rest: str | None
) -> None:
    found = offered("x = ▮)", text, replaced).rest_at(at(now))
    assert (found[1].text if found else None) == rest
    if found:
        assert found[1].replace == (0, replaced)


@given(
    st.text("ab(\n", min_size=1, max_size=8),
    st.text("ab)\n"),
    st.text("ab)\n"),
    st.integers(0, 2),
    st.data(),
)
def test_taking_a_part_and_then_the_rest_is_taking_the_whole(
    text: str, prefix: str, suffix: str, replaced: int, data: st.DataObject
) -> None:
    replaced = min(replaced, len(suffix))
    taken = data.draw(st.integers(0, len(text)))
    found = offered(f"{prefix}▮{suffix}", text, replaced).rest_at(
        at(f"{prefix}{text[:taken]}▮{suffix}")
    )
    assert (found is not None) == bool(text[taken:].strip())
    if found is not None:
        accepted = prefix + text[:taken] + found[1].text + suffix[found[1].replace[1] :]
        assert accepted == prefix + text + suffix[replaced:]


def test_another_document_or_a_closed_one_has_no_offer() -> None:
    offers = offered("▮", "one")
    assert offers.rest_at(at("▮", "file:///b.py")) is None
    assert offers.rest_at(at("▮")) is not None
    offers.close("file:///a.py")
    assert offers.rest_at(at("▮")) is None


def test_the_newest_offer_goes_first_and_old_ones_are_let_go() -> None:
    offers = offered("▮", "old")
    offers.add(at("▮"), suggests("new"))
    found = offers.rest_at(at("▮"))
    assert found is not None and found[1].text == "new"
    assert offers.rest_at(at("o▮")) is not None
    for number in range(KEPT):
        offers.add(at("z▮"), suggests(f"more{number}"))
    assert offers.rest_at(at("o▮")) is None


@pytest.mark.parametrize(
    ("edits", "counts"),  # shown, accepted, in part, typed through
    [
        ([], (1, 0, 0, 0)),
        (["x = one two▮)"], (1, 1, 0, 0)),
        (["x = one ▮)"], (1, 0, 1, 0)),
        (["x = one ▮)", "x = one two▮)"], (1, 1, 1, 0)),
        (["x = " + "one two"[:n] + "▮)" for n in range(1, 8)], (1, 0, 0, 1)),
        (["x = o▮)", "x = on▮)", "x = onx▮)"], (1, 0, 0, 0)),
        (["x = one two▮)", "x = ▮)", "x = one two▮)"], (1, 1, 0, 0)),  # undone and redone: once
        (["x = 1▮)"], (1, 0, 0, 0)),
    ],
)
def test_what_became_of_it_shows_in_the_edits(edits: list[str], counts: tuple[int, ...]) -> None:
    offers = offered("x = ▮)", "one two")
    for edit in edits:
        offers.edited(at(edit))
    assert astuple(offers.counts) == counts


def test_what_the_client_says_is_counted_once_beside_what_the_edits_show() -> None:
    offers = offered("▮", "one two")
    (offer,) = (found[0] for found in [offers.rest_at(at("▮"))] if found)
    for _ in range(2):
        offers.shown(offer.id)
    offers.edited(at("one ▮"))
    offers.partly_accepted(offer.id)
    offers.edited(at("one two▮"))
    offers.accepted(offer.id)
    offers.accepted("of somebody else")
    assert astuple(offers.counts) == (1, 1, 1, 0)


def test_a_last_key_that_was_an_accept_is_no_typing() -> None:
    offers = offered("▮", "x")
    offers.edited(at("x▮"))
    assert astuple(offers.counts) == (1, 0, 0, 1)
    offers.accepted("1")
    assert astuple(offers.counts) == (1, 1, 0, 0)


def test_where_the_client_tells_what_it_shows_an_answer_alone_is_not_shown() -> None:
    offers = Offers()
    offers.shown("of before")
    offer = offers.add(at("▮"), suggests("one"))
    offers.answered([offer.id])
    assert offers.counts.shown == 0
    offers.shown(offer.id)
    assert offers.counts.shown == 1


def test_of_alternatives_the_first_goes_on_unless_the_user_has_turned_to_another() -> None:
    offers = Offers()
    third, _, best = (
        offers.add(at("▮"), suggests(text)) for text in ("foo three", "foo two", "foo one")
    )
    found = offers.rest_at(at("foo ▮"))
    assert found is not None and found[0] is best
    offers.shown(third.id)
    found = offers.rest_at(at("foo ▮"))
    assert found is not None and found[0] is third


def test_what_was_offered_at_a_place_keeps_its_id() -> None:
    offers = Offers()
    first = offers.add(at("▮"), suggests("one"))
    offers.add(at("▮"), suggests("two"))
    assert offers.add(at("▮"), suggests("one")) is first
    found = offers.rest_at(at("▮"))
    assert found is not None and found[0] is first


def test_of_a_client_that_tells_keys_that_come_together_are_no_accept() -> None:
    offers = offered("▮", "one two")
    offers.shown("1")
    offers.edited(at("on▮"))
    offers.edited(at("one two▮"))
    assert astuple(offers.counts) == (1, 0, 0, 1)
    offers.accepted("1")
    assert astuple(offers.counts) == (1, 1, 0, 0)
