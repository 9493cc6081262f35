"""Tokenizers made from the vocabulary of a GGUF file give llama.cpp's ids."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from model.errors import ModelError
from model.weights.folder import find_model
from model.weights.gguf.cutting import PRE_TOKENIZERS
from model.weights.gguf.vocabulary import make_tokenizer
from tests.conftest import ROOT

STRANGE = [
    "I'm I'LL it’s 'Sword don'T",
    "<|im_start|> <fim_prefix> <|endoftext|> <s>",
    "x\r\n\r\n  y\r",
    "\n\n\n   \n\tz",
    "    " * 10,
    "12345678 1e9 0xff ٣½²",
    "漢字かなカナ한글😀👩‍👩‍👧🏳️‍🌈e\u0301a\u0308\u200b",
    " leading",
    "  two",
    "trailing ",
    " ",
    "a",
]
ALPHABET = (
    " \t\r\n  \u00a0\u3000aZéß'’0123456789٣²½_-+=(){}[]<>|&!?.,;:\"`~@#$%^*/\\漢字かカナ한글😀"
    "\u0301\u0308\u200b\u200dنצבעไทย\u0e33ΩжяΣ∑→‽«»▁"
)
PEER = (
    "import json, sys; from llama_cpp import Llama; path, lines = json.load(sys.stdin); "
    "llama = Llama(path, vocab_only=True, verbose=False); "
    "ids = [llama.tokenize(line.encode(), add_bos=False, special=False) for line in lines]; "
    "print(json.dumps(ids))"
)


def mixed_lines(count: int) -> list[str]:
    """Lines of this repository's files in several languages, and lines of strange characters."""
    chance = random.Random(0)
    found: list[str] = []
    for suffix in ("py", "ts", "lua", "el", "md", "json", "sh"):
        for path in sorted((ROOT / "editors").rglob(f"*.{suffix}")) + sorted(
            (ROOT / "fim").rglob(f"*.{suffix}")
        ):
            if "node_modules" not in path.parts and path.stat().st_size < 2**18:
                found += path.read_text(encoding="utf-8").split("\n")
    lines = chance.sample(found, count // 2)
    while len(lines) < count:
        lines.append("".join(chance.choices(ALPHABET, k=chance.randint(1, 30))))
    return [*STRANGE, *lines]


def peers_ids(python: Path, model: Path, lines: list[str]) -> list[list[int]]:
    run = subprocess.run(
        [python, "-c", PEER],
        input=json.dumps([str(model), lines]),
        capture_output=True,
        text=True,
        check=True,
    )
    ids: list[list[int]] = json.loads(run.stdout)
    return ids


@pytest.mark.real
def test_the_ids_of_a_real_vocabulary_are_those_of_llama_cpp(peers: Path) -> None:
    path = os.environ.get("FIMLS_REAL_MODEL")
    if not path:
        pytest.skip("FIMLS_REAL_MODEL names no model")
    lines = mixed_lines(2000)
    tokenizer = find_model(path).load_tokenizer()
    ours = [tokenizer.encode(line) for line in lines]
    assert sum(map(len, ours)) > 10_000
    different = [
        line
        for line, mine, theirs in zip(lines, ours, peers_ids(peers, Path(path), lines), strict=True)
        if mine != theirs
    ]
    assert different == []


def sentencepiece(prefix: bool = True) -> dict[str, Any]:
    """A vocabulary in SentencePiece's manner: pieces of words by how often they occur."""
    counts: Counter[str] = Counter()
    for line in mixed_lines(400)[len(STRANGE) : 200 + len(STRANGE)]:
        for word in ("▁" + line.replace(" ", "▁")).split("▁"):
            for end in range(2, min(len(word), 6) + 1):
                counts["▁" + word[: end - 1]] += 1
                counts[word[:end]] += 1
                counts[word[-end:]] += 1
    letters = sorted(set("".join(counts)) | {"▁"})
    pieces = ["▁▁", "▁▁▁▁"] + [word for word, n in counts.most_common(600) if n > 1]
    pieces = list(dict.fromkeys(piece for piece in pieces if len(piece) > 1))
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    scores = [0.0] * len(texts) + [float(-n) for n in range(len(pieces) + len(letters))]
    texts += [*pieces, *letters]
    kinds += [1] * (len(pieces) + len(letters))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": tuple(scores),
        "tokenizer.ggml.token_type": tuple(kinds),
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def write_vocabulary(path: Path, metadata: dict[str, Any]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in metadata.items():
        if isinstance(value, tuple | list):
            inner = gguf.GGUFValueType.get_type(value[0])
            writer.add_key_value(key, list(value), gguf.GGUFValueType.ARRAY, inner)
        elif key.endswith("_id"):
            writer.add_uint32(key, value)
        else:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def bytes_vocabulary() -> dict[str, Any]:
    """Byte pairs that were learned without cutting, so that every cut changes the ids."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, show_progress=False, initial_alphabet=alphabet, max_token_length=12
    )
    backend.train_from_iterator(mixed_lines(1200), trainer)
    model = json.loads(backend.to_str())["model"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": sorted(model["vocab"], key=model["vocab"].__getitem__),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
    }


@pytest.mark.slow
@pytest.mark.parametrize("cutting", PRE_TOKENIZERS)
def test_every_cutting_gives_the_ids_of_llama_cpp(
    cutting: str, peers: Path, bytes_vocabulary: dict[str, Any], tmp_path: Path
) -> None:
    metadata = bytes_vocabulary | {"tokenizer.ggml.pre": cutting}
    tokenizer = make_tokenizer(metadata)
    lines = [line for line in mixed_lines(2000) if line]
    if cutting.startswith("deepseek"):
        # Their pattern for Chinese and Japanese has this space, too. llama.cpp loses that, as it
        # puts another in the place of all wide spaces; the models' own tokenizer.json does not.
        lines = [line for line in lines if "\u3000" not in line]
    theirs = peers_ids(peers, write_vocabulary(tmp_path / "toy.gguf", metadata), lines)
    ours = [tokenizer.encode(line) for line in lines]
    assert [lines[n] for n in range(len(lines)) if ours[n] != theirs[n]] == []


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_gives_the_ids_of_llama_cpp(
    prefix: bool, peers: Path, tmp_path: Path
) -> None:
    metadata = sentencepiece(prefix)
    tokenizer = make_tokenizer(metadata)
    lines = [line for line in mixed_lines(600) if line]
    theirs = peers_ids(peers, write_vocabulary(tmp_path / "toy.gguf", metadata), lines)
    ours = [tokenizer.encode(line) for line in lines]
    assert [lines[n] for n in range(len(lines)) if ours[n] != theirs[n]] == []


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_text_comes_back_and_unknown_characters_become_bytes(prefix: bool) -> None:
    tokenizer = make_tokenizer(sentencepiece(prefix))
    for line in [line for line in STRANGE if "▁" not in line]:
        assert tokenizer.decode(tokenizer.encode(line)) == line
    first = tokenizer.encode("a")[0]
    assert tokenizer.texts[first] == (" a" if prefix else "a")
    ids = tokenizer.encode("\U0001f9a9")[-4:]
    assert [tokenizer.texts[i] for i in ids] == [None] * 4
    assert tokenizer.encode("<s>")[-1] != 1 and tokenizer.encode_prompt("<s>") == [1]


@pytest.mark.parametrize(
    ("key", "value", "fault"),
    [
        ("scores", (0.0,), "differ in number"),
        ("scores", None, "differ in number"),
        ("token_type", (1,), "differ in number"),
        ("model", "bert", "'gpt2' and 'llama'"),
        ("eos_token_id", 10**9, "eos_token_id"),
        ("tokens", [], "lacks"),
    ],
)
def test_a_damaged_vocabulary_is_refused(key: str, value: object, fault: str) -> None:
    metadata = sentencepiece() | {f"tokenizer.ggml.{key}": value}
    with pytest.raises(ModelError, match=fault):
        make_tokenizer(metadata)
