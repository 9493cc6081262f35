"""PieceEncoder: the ids of the whole text, whatever it remembers."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Sequence, Split
from tokenizers.trainers import BpeTrainer

import fim
from fim import PieceEncoder
from fim.pieces import LONGEST
from model.tokenizer import Tokenizer
from model.weights.files import BUNDLED
from tests.fim.toys import CharacterEncoder, SpacePairEncoder

FILES = sorted(Path(fim.__file__).parent.parent.glob("*/*.py"))
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def trained(path: Path, pre_tokenizer: object) -> Tokenizer:
    """A vocabulary of this repository's source, with a pre-tokenization of its own."""
    backend = Backend(BPE())
    backend.pre_tokenizer = pre_tokenizer  # type: ignore[assignment]
    backend.train(
        [str(file) for file in FILES[:40]], BpeTrainer(vocab_size=2000, show_progress=False)
    )
    backend.save(str(path))
    return Tokenizer.from_file(path)


TOKENIZERS: dict[str, Callable[[Path], Tokenizer]] = {
    "bundled": lambda path: Tokenizer.from_file(BUNDLED / "tokenizer.json"),
    "gpt2": lambda path: trained(path, ByteLevel(add_prefix_space=False)),
    "llama3": lambda path: trained(
        path,
        Sequence(
            [Split(Regex(LLAMA_3), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
        ),
    ),
    "sentencepiece": lambda path: trained(path, Metaspace(prepend_scheme="first", split=False)),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Tokenizer]:
    return request.param, TOKENIZERS[request.param](
        tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    )


class Counting:
    """Notes how much of it is encoded."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.seen = tokenizer, 0

    def encode(self, text: str) -> list[int]:
        self.seen += len(text)
        return self.tokenizer.encode(text)

    decode = token_id = None  # never called


def test_real_files(tokenizer: tuple[str, Tokenizer]) -> None:
    name, whole = tokenizer
    pieces = PieceEncoder(whole)
    assert pieces.cuts == (name != "sentencepiece")
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert pieces.encode(text) == whole.encode(text), file.name
        assert pieces.encode(text[1000:]) == whole.encode(text[1000:]), file.name


# Where a token might reach across: blanks, marks and letters of all kinds beside line ends.
MIXED = st.lists(
    st.sampled_from(
        [
            "\n",
            "\n\n",
            " ",
            "    ",
            "\t",
            "\r",
            ")",
            "'",
            "'s",
            "{}",
            "end",
            "_x",
            "10",
            "é",
            "漢",
            "😀",
            "\u3000",
            "\u00a0",
            "\u0301",
            ":\n    ",
            '"""',
            "a" * LONGEST,
            "b c." * 100,
        ]
    ),
    max_size=60,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(MIXED)
def test_mixed_text(text: str) -> None:
    for whole, pieces in PAIRS:
        assert pieces.encode(text) == whole.encode(text)


BUNDLED_TOKENIZER = Tokenizer.from_file(BUNDLED / "tokenizer.json")
PAIRS = [
    (whole, PieceEncoder(whole))
    for whole in (BUNDLED_TOKENIZER, CharacterEncoder(), SpacePairEncoder())
]


@settings(max_examples=200, deadline=None)
@given(MIXED)
def test_mixed_text_where_punctuation_takes_line_ends(
    llama3: tuple[Tokenizer, PieceEncoder], text: str
) -> None:
    whole, pieces = llama3
    assert pieces.encode(text) == whole.encode(text)


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, PieceEncoder]:
    whole = TOKENIZERS["llama3"](tmp_path_factory.mktemp("llama3") / "tokenizer.json")
    return whole, PieceEncoder(whole)


def test_only_what_changed_is_encoded() -> None:
    encoder = Counting(BUNDLED_TOKENIZER)
    pieces = PieceEncoder(encoder)  # type: ignore[arg-type]
    text = "".join(file.read_text(encoding="utf-8") for file in FILES[:6])[:40_000]
    pieces.encode(text)
    for edited in (text + "x", text[:20_000] + "x" + text[20_000:], "x" + text):
        encoder.seen = 0
        pieces.encode(edited)
        assert 0 < encoder.seen <= 3 * LONGEST
    encoder.seen = 0
    assert pieces.encode(text) == BUNDLED_TOKENIZER.encode(text)
    assert encoder.seen == 0
