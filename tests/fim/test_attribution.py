"""What is said of a suggestion, and of files that are no filter."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fim import Attribution, AttributionError, Match
from fim.attribution import GRAM, HEADER_AT, MAGIC, Source, normalized
from tests.corpora import code, write_corpus
from training.attribution import build

KNOWN = code("known")
ONE = Source("one", "1.0", "MIT")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    packages = {"one": [KNOWN], "two": [code("two", 200)]}
    return build(write_corpus(tmp_path_factory.mktemp("corpus"), packages), 22_000)


@pytest.fixture(scope="module")
def filter_(data: bytes) -> Attribution:
    return Attribution(data)


def test_a_suggestion_that_makes_a_passage(filter_: Attribution) -> None:
    match = filter_.find("x = 1\n", KNOWN[: 2 * filter_.surely_found])
    assert match is not None
    assert (match.sources, match.continues) == ((ONE,), False)
    assert GRAM <= match.characters <= 2 * filter_.surely_found
    assert str(match) == f"makes text of one 1.0 (MIT), at least {match.characters} characters"


def test_a_suggestion_that_continues_a_passage(filter_: Attribution) -> None:
    """However short it is: what was found is then the user's own text."""
    kinds = set()
    for cut in range(600, 700):
        before, suggestion = KNOWN[:cut], KNOWN[cut : cut + 8]
        match = filter_.find(before, suggestion)
        assert match is not None and match.sources == (ONE,)
        kinds.add(match.continues)
        if match.continues:
            assert "continues text of one" in str(match)
    assert kinds == {True, False}


def test_the_users_own_text_alone_is_not_reported(filter_: Attribution) -> None:
    """A passage that ended further up, and text of nobody's behind it."""
    own = normalized(code("own", 30))[: filter_.surely_found + GRAM]
    assert filter_.find(KNOWN + "\n\n", own) is None
    assert filter_.find(KNOWN + own, " = call(") is None
    assert filter_.find("", own) is None


def test_blanks_and_line_ends_do_not_count(filter_: Attribution) -> None:
    wide = normalized(KNOWN).replace(" ", " \r\n" + " " * 12)
    half = len(wide) // 2
    assert filter_.find(wide[:half], wide[half : half + 40]) is not None


@pytest.mark.parametrize(
    ("before", "suggestion"),
    [("", ""), ("", "x"), (KNOWN, ""), ("é🎉\ud800" * 300, "\ud800" * 300)],
)
def test_any_text_gets_an_answer(before: str, suggestion: str, filter_: Attribution) -> None:
    match = filter_.find(before, suggestion)
    assert match is None or isinstance(match, Match)


def test_of_two_packages_the_one_with_more_of_the_text_is_named(filter_: Attribution) -> None:
    two, length = normalized(code("two", 200)), filter_.surely_found
    match = filter_.find("", two[: 4 * length] + " " + normalized(KNOWN)[:length])
    assert match is not None
    assert [source.package for source in match.sources] == ["two"]
    assert match.characters > 2 * GRAM


def test_a_file_of_something_else(data: bytes) -> None:
    for other in (b"", b"GGUF" + b"\0" * 1000, MAGIC[:-2] + b"2" + data[len(MAGIC) - 1 :]):
        with pytest.raises(AttributionError, match="no attribution file of this version"):
            Attribution(other)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_cut_short_or_damaged(share: float, data: bytes) -> None:
    place = HEADER_AT + int(share * (len(data) - HEADER_AT))
    flipped = data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]
    for broken in (data[:place], flipped):
        with pytest.raises(AttributionError, match="damaged or cut short"):
            Attribution(broken)


@hypothesis_settings(max_examples=200)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_a_filter_or_an_attribution_error(noise: bytes, whole: bool) -> None:
    with pytest.raises(AttributionError):
        Attribution(
            MAGIC + b"\x20\0\0\0" + (hashlib.sha256(noise).digest() + noise if whole else noise)
        )


def with_header(data: bytes, **changes: object) -> bytes:
    """The filter with other numbers in its header, and the hash of what it now is."""
    size = int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
    header = json.loads(data[HEADER_AT : HEADER_AT + size])
    assert changes.keys() <= header.keys()
    head = json.dumps(header | changes, separators=(",", ":")).encode()
    body = head + data[HEADER_AT + size :]
    return MAGIC + len(head).to_bytes(4, "little") + hashlib.sha256(body).digest() + body


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("segments", 10**30, "disagree"),
        ("segments", 0, "cannot be"),
        ("segment_bits", -1, "cannot be"),
        ("segment_bits", 17, "cannot be"),
        ("segment_bits", 10**18, "cannot be"),
        ("segment_bits", float("inf"), "OverflowError"),
        ("stride", 0, "cannot be"),
        ("value_bits", 10**18, "disagree"),
        ("set_bits", -1, "disagree"),
    ],
)
def test_a_header_of_other_numbers(name: str, value: float, message: str, data: bytes) -> None:
    """As in the folder of someone else's model: its hash is right, and yet it is no filter."""
    assert with_header(data) == data
    with pytest.raises(AttributionError, match=message):
        Attribution(with_header(data, **{name: value}))
