import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fim import CursorContext, around_cursor
from fim.context import as_trained
from tests.fim.toys import CharacterEncoder, SpacePairEncoder


def check(marked: str, budget: int, expected: str, encoder: CharacterEncoder | None = None) -> None:
    """The window around ‸ in `marked`, written with the mark at its cursor."""
    offset = marked.index("‸")
    text = marked.replace("‸", "", 1)
    found = around_cursor(text, offset, encoder=encoder or CharacterEncoder(), token_budget=budget)
    assert f"{found.prefix}‸{found.suffix}" == expected


@pytest.mark.parametrize(
    ("marked", "budget", "expected"),
    [
        ("‸", 10, "‸"),
        ("a\nb‸\nc\n", 10, "a\nb‸\nc\n"),
        ("a\nb‸\nc\n", 0, "‸"),
        # 3:1 with an eighth left free, at line starts and behind line ends
        ("11\n22\n33\n44\n55‸\n66\n77\n88\n99\n", 12, "33\n44\n55‸\n"),
        ("11\n22\n33\n44\n55‸\n66\n77\n88\n99\n", 16, "33\n44\n55‸\n66\n"),
        ("11\n22\n33\n44\n55‸\n66\n77\n88\n99\n", 24, "11\n22\n33\n44\n55‸\n66\n77\n"),
        # what one side leaves goes to the other
        ("11\n22\n33\n44\n55‸", 12, "22\n33\n44\n55‸"),
        ("‸\n66\n77\n88\n99\n", 12, "‸\n66\n77\n88\n"),
        ("1‸\n66\n77\n88\n99\n", 12, "1‸\n66\n77\n88\n"),
        # one line alone is over the budget
        ("abcdefghijklmnop‸qrstuvwxyz", 8, "mnop‸qr"),
        ("abcdefghijklmnop\n‸\nqrstuvwxyz", 8, "mnop\n‸\n"),
        ("😀😀😀😀‸😀😀😀", 4, "😀😀😀‸😀"),
        # CRLF
        ("11\r\n22\r\n33‸\r\n44\r\n", 9, "22\r\n33‸\r\n"),
        # at a block's edge, behind a blank line where one is near
        (
            "00\n11\n22\n33\n44\n55\n66\n77\n88\n99\naa\nbb\ncc\ndd‸",
            32,
            "66\n77\n88\n99\naa\nbb\ncc\ndd‸",
        ),
        (
            "00\n11\n22\n33\n44\n\n55\n66\n77\n88\n99\naa\nbb\ncc\ndd‸",
            32,
            "55\n66\n77\n88\n99\naa\nbb\ncc\ndd‸",
        ),
        (
            "00\n11\n22\n33\n44\n \r\n55\n66\n77\n88\n99\naa\nbb\ncc\ndd‸",
            32,
            "55\n66\n77\n88\n99\naa\nbb\ncc\ndd‸",
        ),
    ],
)
def test_window(marked: str, budget: int, expected: str) -> None:
    check(marked, budget, expected)


def test_four_tokens_a_character() -> None:
    check("11\n22\n33‸\n44\n", 4 * 8, "22\n33‸\n", CharacterEncoder(width=4))
    check("11\n22\n33‸\n44\n", 3, "‸", CharacterEncoder(width=4))


def test_the_prefix_edge_stays_put_while_someone_types() -> None:
    lines = "".join(f"line {i}\n" if i % 5 else "\n" for i in range(200))
    encoder = CharacterEncoder()
    starts = set()
    for typed in range(30):
        text = lines + "x" * typed
        starts.add(
            len(text)
            - len(around_cursor(text, len(text), encoder=encoder, token_budget=400).prefix)
        )
    assert len(starts) <= 2


@pytest.mark.parametrize("offset", [-1, 4])
def test_offset_outside(offset: int) -> None:
    with pytest.raises(ValueError, match="outside the text of 3"):
        around_cursor("abc", offset, encoder=CharacterEncoder(), token_budget=8)


def test_negative_budget() -> None:
    with pytest.raises(ValueError, match="not be negative"):
        around_cursor("abc", 0, encoder=CharacterEncoder(), token_budget=-1)


def test_lone_surrogates_become_replacement_characters() -> None:
    check("a\ud800b‸c\udfff", 10, "a\ufffdb‸c\ufffd")


def test_path_and_language_are_carried() -> None:
    found = around_cursor(
        "a", 1, encoder=CharacterEncoder(), token_budget=1, path="a.py", language="python"
    )
    assert found == CursorContext("a", "", path="a.py", language="python")


@pytest.mark.parametrize("where", [0, 0.5, 1])
@pytest.mark.parametrize(
    "text", ["def f(x):\n    return x\n" * 2_300_000, "x" * 2_000_000], ids=["50 MB", "line"]
)
def test_only_what_is_near_is_encoded(text: str, where: float) -> None:
    encoder = CharacterEncoder()
    offset = int(len(text) * where)
    found = around_cursor(text, offset, encoder=encoder, token_budget=1000)
    assert encoder.seen < 20_000
    assert (
        700 <= len(found.prefix) + len(found.suffix) <= 1000
    )  # an eighth is free, and the prefix begins with a block


TEXTS = st.text(alphabet=st.sampled_from("ab \n\r\t😀é\ud800"), max_size=200)
ENCODERS = st.sampled_from([CharacterEncoder(), CharacterEncoder(width=4), SpacePairEncoder()])


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.data(), st.integers(0, 120), ENCODERS)
def test_the_budget_is_kept_and_the_window_is_the_text(
    text: str, data: st.DataObject, budget: int, encoder: CharacterEncoder
) -> None:
    offset = data.draw(st.integers(0, len(text)))
    found = around_cursor(text, offset, encoder=encoder, token_budget=budget)
    # as the model gets them, with \n line ends
    assert (
        len(encoder.encode(as_trained(found.prefix)))
        + len(encoder.encode(as_trained(found.suffix)))
        <= budget
    )
    plain = text.replace("\ud800", "\ufffd")
    assert plain[:offset].endswith(found.prefix)
    assert plain[offset:].startswith(found.suffix)
    if len(encoder.encode(plain)) <= budget * 3 // 4 and len(plain) <= budget:
        assert (found.prefix, found.suffix) == (plain[:offset], plain[offset:])
