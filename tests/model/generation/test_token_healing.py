"""Token healing: the first tokens spell the given text, which is not part of the answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import LoadedModel, Tokenizer
from model.generation.token_healing import Spelling, TokenHealing

TEXTS = ["x", None, "re", "ret", "return", "returns", "n", "r", "", "n"]


@pytest.mark.parametrize(
    ("begin_with", "allowed"),
    [
        ("return", {"r", "re", "ret", "return", "returns"}),
        ("ret", {"r", "re", "ret", "return", "returns"}),
        ("n", {"n"}),
    ],
)
def test_only_tokens_that_spell_the_text_are_allowed(begin_with: str, allowed: set[str]) -> None:
    row = np.log(np.arange(1, len(TEXTS) + 1, dtype=np.float32))
    TokenHealing(Spelling(TEXTS), begin_with).process(row)
    held = [i for i, text in enumerate(TEXTS) if text in allowed]
    assert np.isfinite(row).nonzero()[0].tolist() == held
    assert np.exp(row[held]) == pytest.approx(
        np.array([i + 1 for i in held]) / sum(i + 1 for i in held)
    )


def test_after_a_typed_blank_no_more_blanks_come() -> None:
    texts = [" a", "  a", " ", "    ", " \tb", "a", " \n", None, "\t"]
    row = np.zeros(len(texts), np.float32)
    TokenHealing(Spelling(texts), " ").process(row)
    assert [texts[i] for i in np.isfinite(row).nonzero()[0]] == [" a", " ", " \n"]
    row = np.zeros(len(texts), np.float32)
    TokenHealing(Spelling(texts), "\t").process(row)
    assert [texts[i] for i in np.isfinite(row).nonzero()[0]] == ["\t"]
    row = np.zeros(2, np.float32)
    TokenHealing(Spelling(["  ", "b"]), " ").process(row)  # a vocabulary without such a token
    assert np.isfinite(row).tolist() == [True, False]


LETTERS = "ab\U0010ffff"


@given(
    texts=st.lists(st.none() | st.text(LETTERS, max_size=4)),
    left=st.text(LETTERS, min_size=1, max_size=4),
)
def test_the_spelling_finds_what_a_look_at_every_text_finds(
    texts: list[str | None], left: str
) -> None:
    expected = [i for i, t in enumerate(texts) if t and (t.startswith(left) or left.startswith(t))]
    assert sorted(Spelling(texts).ids_for(left).tolist()) == expected


@pytest.mark.parametrize(
    ("pieces", "rest"),
    [
        (["return"], [""]),
        (["returns"], ["s"]),
        (["re", "turn"], ["", ""]),
        (["ret", "urn()"], ["", "()"]),
    ],
)
def test_what_comes_behind_the_text_is_the_answer(pieces: list[str], rest: list[str]) -> None:
    healing = TokenHealing(Spelling(TEXTS), "return")
    assert [healing.take(p) for p in pieces] == rest


def test_a_text_that_no_token_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="no token"):
        TokenHealing(Spelling(TEXTS), "q")


def test_texts_are_those_of_whole_characters_and_no_special_token(
    byte_tokenizer: Tokenizer,
) -> None:
    texts = byte_tokenizer.texts
    assert len(texts) == byte_tokenizer.vocab_size
    assert texts[0] is None  # <|endoftext|>
    assert {"a", " ", "\n"} <= {t for t in texts if t}
    assert sum(t is None for t in texts) > 100  # bytes of longer characters


@pytest.mark.parametrize("begin_with", ["Q", "Qu", "== ", "zzz"])
def test_the_answer_is_that_to_a_prompt_that_ends_in_the_text(
    talkative: LoadedModel, begin_with: str
) -> None:
    """With one token a character, healing a text is the same as having it in the prompt."""
    prompt = talkative.tokenizer.encode("x = ")
    healed = list(
        talkative.generate(prompt, max_new_tokens=len(begin_with) + 6, begin_with=begin_with)
    )
    plain = list(
        talkative.generate(prompt + talkative.tokenizer.encode(begin_with), max_new_tokens=6)
    )
    assert "".join(t.text for t in healed) == "".join(t.text for t in plain)
    assert len("".join(t.text for t in healed)) == 6
    # Of several tokens that could spell the text there is one here, so it was certain.
    assert [t.logprob for t in healed[: len(begin_with)]] == pytest.approx(
        [0.0] * len(begin_with), abs=1e-5
    )
