"""Text <-> ids: plain text stays plain, and a stream of tokens never shows half a character."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from model import Tokenizer
from model.errors import ModelError
from model.generation.generate import GenerationOptions, generate
from tests.conftest import SENTINELS, write_tokenizer
from tests.model.toys import END, MIDDLE, Parrot

CHARACTERS = ["é", "漢", "😋", "👩‍👩‍👧", "🇨🇭", "e\u0301", "\u2028", "𝔘"]
TEXTS = [*CHARACTERS, "a😋b漢c", "😋😋😋", "def f():\n\treturn 'naïve'\r\n", ""]


@pytest.fixture(params=["byte_tokenizer", "merging_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue(request.param)
    return found


def test_the_merging_tokenizer_cuts_characters(merging_tokenizer: Tokenizer) -> None:
    """Else the tests below would prove less than they seem to."""
    halves = [merging_tokenizer.decode([i]) for i in merging_tokenizer.encode("x = 😋 漢")]
    assert "x" in halves and any("\ufffd" in h for h in halves)
    assert len(halves) < len("x = 😋 漢".encode())


@pytest.mark.parametrize("sentinel", SENTINELS)
def test_a_sentinel_written_in_code_is_plain_text(tokenizer: Tokenizer, sentinel: str) -> None:
    ids = tokenizer.encode(f"x = '{sentinel}'")
    assert min(ids) >= len(SENTINELS)
    assert tokenizer.decode(ids) == f"x = '{sentinel}'"


def test_a_sentinel_in_a_whole_prompt_is_one_and_only_there(tokenizer: Tokenizer) -> None:
    text = "<fim_prefix>a<fim_suffix>b<fim_middle>"
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert tokenizer.encode_prompt(text) == [1, *a, 3, *b, 2]
    assert not set(tokenizer.encode(text)) & {1, 2, 3}  # the next plain text is plain again
    assert [tokenizer.token_id(t) for t in ("<fim_prefix>", "<fim_middle>", "<nonsense>")] == [
        1,
        2,
        None,
    ]


def test_sentinels_that_a_file_lists_as_text_are_plain_text_too(tmp_path: Path) -> None:
    """As tokenizer.json of Qwen2.5-Coder and of DeepSeek-Coder do. Other added text is text."""
    write_tokenizer(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    sentinels = ["<|fim_prefix|>", "<｜fim▁hole｜>", "<[fim-middle]>"]
    backend.add_tokens([AddedToken(t, normalized=False) for t in [*sentinels, "<tool_call>"]])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    numbers = [tokenizer.token_id(text) for text in sentinels]
    assert numbers == [263, 264, 265]
    for text, number in zip(sentinels, numbers, strict=True):
        assert tokenizer.decode(tokenizer.encode(f"x{text}y")) == f"x{text}y"
        assert number not in tokenizer.encode(f"x{text}y")
        assert number in tokenizer.encode_prompt(f"x{text}y")
        assert number is not None and tokenizer.texts[number] is None
    assert tokenizer.encode("<tool_call>") == [266]
    assert tokenizer.vocab_size == 267


@given(text=st.text())
def test_decoding_undoes_encoding(
    byte_tokenizer: Tokenizer, merging_tokenizer: Tokenizer, text: str
) -> None:
    for tokenizer in (byte_tokenizer, merging_tokenizer):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "read_as"),
    [
        ("a\ud800b", "a\ufffdb"),
        ("\udc00", "\ufffd"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud83d\ude0b", "😋"),  # the two halves that JSON may carry
        ("<fim_middle>\ud800", "<fim_middle>\ufffd"),
    ],
)
def test_a_lone_surrogate_counts_as_a_replacement_character(
    tokenizer: Tokenizer, text: str, read_as: str
) -> None:
    assert tokenizer.encode(text) == tokenizer.encode(read_as)


def said(tokenizer: Tokenizer, ids: list[int], limit: int) -> str:
    """What a model that generates these ids shows, stopped after `limit` tokens."""
    parrot = Parrot(ids)
    tokens = generate(
        parrot,
        parrot.new_cache(),
        [MIDDLE],
        tokenizer.stream(),
        GenerationOptions(max_new_tokens=limit, stop_ids={END}),
    )
    return "".join(t.text for t in tokens)


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_cut_at_every_token_shows_whole_characters_only(
    tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert said(tokenizer, ids, len(ids) + 1) == text
    for limit in range(len(ids)):
        whole = tokenizer.decode(ids[:limit]).rstrip("\ufffd")
        assert text.startswith(whole)
        assert said(tokenizer, ids, limit) == whole


def byte_ids(tokenizer: Tokenizer) -> list[int]:
    """The id of each byte, by GPT-2's table of printable stand-ins."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    stand_ins = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    found = [tokenizer.token_id(stand_ins[b]) for b in range(256)]
    return [i for i in found if i is not None]


@given(
    raw=st.lists(
        st.binary(max_size=6) | st.sampled_from(CHARACTERS).map(str.encode), max_size=6
    ).map(b"".join)
)
def test_bytes_that_are_no_text_hold_up_only_themselves(
    byte_tokenizer: Tokenizer, raw: bytes
) -> None:
    """They read as U+FFFD once something valid follows; at the end of a stream they stay unsaid."""
    byte_id = byte_ids(byte_tokenizer)
    ids = [byte_id[b] for b in raw + b"end"]
    stream = byte_tokenizer.stream()
    assert "".join(map(stream.push, ids)) == (raw + b"end").decode("utf-8", "replace")


def test_special_tokens_are_not_shown(tokenizer: Tokenizer) -> None:
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert said(tokenizer, [*a, 4, *b], 9) == "ab"
    assert tokenizer.decode([*a, 4, *b]) == "a<fim_pad>b"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": 3}', "\x00"])
def test_a_broken_tokenizer_is_refused_with_the_remedy(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(
        ModelError, match=r"tokenizer\.json cannot be read .* Download the model again"
    ):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


PIECES = ["▁", "▁return", "▁5", "a", "b", "return", "5", "r"]


def sentencepiece_like(tmp_path: Path, *, as_metaspace: bool) -> Tokenizer:
    """The two ways in which a tokenizer.json writes SentencePiece's space and its bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    steps = [decoders.ByteFallback(), decoders.Fuse()]
    if as_metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        backend.decoder = decoders.Sequence(
            [*steps[:1], decoders.Metaspace(prepend_scheme="first", split=False)]
        )
    else:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), *steps, decoders.Strip(" ", 1, 0)]
        )
    backend.add_special_tokens([AddedToken("<MID>", special=True)])
    path = tmp_path / "tokenizer.json"
    backend.save(str(path))
    return Tokenizer.from_file(path)


@pytest.mark.parametrize("as_metaspace", [True, False])
def test_the_space_that_a_completion_begins_with_is_kept(
    tmp_path: Path, as_metaspace: bool
) -> None:
    tokenizer = sentencepiece_like(tmp_path, as_metaspace=as_metaspace)

    def written(*pieces: str) -> str:
        stream = tokenizer.stream()
        ids = [tokenizer.token_id(piece) for piece in pieces]
        return "".join(stream.push(i) for i in ids if i is not None)

    assert written("▁5") == " 5"
    assert written("return", "▁5") == "return 5"
    assert written("▁", "▁return", "<MID>", "▁5") == "  return 5"
    assert written("<0x0A>", "▁", "a") == "\n a"
    assert written("<0xE6>", "<0xBC>", "<0xA2>", "▁5") == "漢 5"
    assert written("<0xE6>", "<0xBC>") == ""
    texts = tokenizer.texts
    found = [texts[tokenizer.token_id(piece) or 0] for piece in PIECES]
    assert found == [piece.replace("▁", " ") for piece in PIECES]
    for split in ("<0xE6>", "<0xBC>", "<MID>"):
        assert texts[tokenizer.token_id(split) or 0] is None
    assert texts[tokenizer.token_id("<0x0A>") or 0] == "\n"
