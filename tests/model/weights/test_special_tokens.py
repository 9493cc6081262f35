"""The special tokens that a GGUF file names by ids are those that their texts say."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from fim import FORMATS
from model.errors import ModelError
from model.weights.gguf.special_tokens import FIM_TEXTS, stop_ids
from model.weights.gguf.vocabulary import make_tokenizer

TEXTS = ["<unk>", "<s>", "</s>", "▁", "<", "P", ">", "▁<", "P>", "▁<P>"]
FIM = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]


def vocabulary(*more: str, kinds: int = 1, **ids: int) -> dict[str, Any]:
    """A SentencePiece vocabulary, as Code Llama's: its sentinels are pieces of text.

    kinds: of the tokens in more.
    """
    texts = [*TEXTS, *(f"<0x{byte:02X}>" for byte in range(256)), *"ERSUFMIDOT", *more]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": tuple(-float(n) for n in range(len(texts))),
        "tokenizer.ggml.token_type": (
            *(2, 3, 3, *(1,) * 7, *(6,) * 256, *(1,) * 10),
            *(kinds,) * len(more),
        ),
    } | {f"tokenizer.ggml.{name}_token_id": number for name, number in ids.items()}


FIRST = len(vocabulary()["tokenizer.ggml.tokens"])  # of the tokens in more


@pytest.mark.parametrize("name", FORMATS)
def test_the_sentinels_of_every_format_are_known(name: str) -> None:
    family = FORMATS[name]
    spaced = "▁" if family.spaced else ""
    assert spaced + family.prefix in FIM_TEXTS["fim_pre"]
    assert spaced + family.suffix in FIM_TEXTS["fim_suf"]
    assert family.middle is None or spaced + family.middle in FIM_TEXTS["fim_mid"]


@pytest.mark.parametrize("kinds", [1, 3, 4])
def test_sentinels_that_a_file_holds_as_text_are_found_only_in_prompts(kinds: int) -> None:
    pieces = ["▁<PR", "▁<PRE", *FIM]
    tokenizer = make_tokenizer(vocabulary(*pieces, kinds=kinds))
    number = tokenizer.token_id("▁<PRE>")
    assert number == FIRST + 2
    assert number not in tokenizer.encode("P <PRE> P")
    assert number in tokenizer.encode_prompt("▁<PRE>P")
    assert tokenizer.texts[number] is None


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ({"fim_pre": FIRST + 1}, ["fim_pre_token_id names '▁<SUF>'", "the token of fim_suf"]),
        ({"fim_mid": 5}, ["fim_mid_token_id names 'P'", "its token is '▁<MID>'"]),
        ({"fim_suf": 9999}, ["fim_suf_token_id is 9999", "tokens"]),
        ({"fim_rep": -1}, ["fim_rep_token_id is -1"]),
        ({"eos": 5}, ["eos_token_id names 'P'", "is text"]),
        ({"bos": 10**6}, ["bos_token_id is 1000000"]),
    ],
)
def test_ids_that_name_another_token_are_refused(ids: dict[str, int], words: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        make_tokenizer(vocabulary(*FIM, **ids))
    assert all(word in str(caught.value) for word in [*words, "Download it again"])


def test_ids_that_a_converter_gives_to_every_model_are_told_and_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Gemma's keep naming CodeGemma's tokens, and a second end that is text ends nothing."""
    wrong = vocabulary("<|fim_prefix|>", prefix=5, suffix=4, middle=10**6, eos=2, eot=5)
    with caplog.at_level(logging.WARNING):
        make_tokenizer(wrong)
        assert stop_ids(wrong) == [2]
    for key in ("prefix", "suffix", "middle", "eot"):
        assert f"tokenizer.ggml.{key}_token_id" in caplog.text
    beyond = vocabulary(eos=2, eot=32010)
    make_tokenizer(beyond)
    assert stop_ids(beyond) == [2]
    caplog.clear()
    right = vocabulary(*FIM, prefix=FIRST, suffix=FIRST + 1, middle=FIRST + 2, eos=2, eot=FIRST + 3)
    make_tokenizer(right)
    assert stop_ids(right) == [2, FIRST + 3]
    assert caplog.text == ""


def test_an_unknown_sentinel_that_contradicts_nothing_is_left_alone() -> None:
    make_tokenizer(vocabulary("<before>", fim_pre=FIRST))


def test_tokens_without_a_text_are_tokens_all_the_same() -> None:
    tokenizer = make_tokenizer(vocabulary("", ""))
    assert tokenizer.vocab_size == FIRST + 2
    assert tokenizer.token_id(f"[EMPTY_{FIRST}]") == FIRST
