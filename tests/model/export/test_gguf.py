"""Exports as GGUF say what the model is, read back, and do in llama.cpp itself what the model does
here."""

from __future__ import annotations

import inspect
import json
import random
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from model import LoadedModel, Tokenizer
from model.errors import ModelError
from model.export.export import export
from model.weights.files import BUNDLED
from model.weights.folder import find_model
from tests.conftest import LLAMA, STABLELM, STARCODER2, write_model
from tests.model.export.exports import TRICKY, exported, toy, write_pieces
from tests.model.toys import load


def read_back(folder: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    """A GGUF file's metadata and tensors."""
    (file,) = folder.glob("*.gguf")
    reader = gguf.GGUFReader(file)
    return {name: field.contents() for name, field in reader.fields.items()}, {
        t.name: t for t in reader.tensors
    }


def test_a_gguf_file_says_what_the_model_is(tmp_path: Path) -> None:
    source = find_model("bundled")
    metadata, tensors = read_back(exported(source, tmp_path, "gguf"))
    config, tokenizer = source.config, Tokenizer.from_file(BUNDLED / "tokenizer.json")
    expected = {
        "general.architecture": "starcoder2",
        "general.name": "fimls",
        "general.file_type": gguf.LlamaFileType.ALL_F32,
        "starcoder2.context_length": config["max_position_embeddings"],
        "starcoder2.embedding_length": config["hidden_size"],
        "starcoder2.feed_forward_length": config["intermediate_size"],
        "starcoder2.block_count": config["num_hidden_layers"],
        "starcoder2.attention.head_count": config["num_attention_heads"],
        "starcoder2.attention.head_count_kv": config["num_key_value_heads"],
        "starcoder2.attention.layer_norm_epsilon": pytest.approx(config["norm_epsilon"]),
        "starcoder2.rope.dimension_count": config["hidden_size"] // config["num_attention_heads"],
        "starcoder2.rope.freq_base": config["rope_parameters"]["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "starcoder",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        **{
            f"tokenizer.ggml.fim_{key}_token_id": tokenizer.token_id(text)
            for key, text in (
                ("pre", "<fim_prefix>"),
                ("mid", "<fim_middle>"),
                ("suf", "<fim_suffix>"),
                ("pad", "<fim_pad>"),
                ("rep", "<repo_name>"),
                ("sep", "<file_sep>"),
            )
        },
    }
    assert {name: metadata[name] for name in expected} == expected

    raw = json.loads((BUNDLED / "tokenizer.json").read_text())
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert [tokenizer.token_id(token) for token in tokens] == [*range(config["vocab_size"])]
    control = {i for i, kind in enumerate(types) if kind == gguf.TokenType.CONTROL}
    assert control == {token["id"] for token in raw["added_tokens"]}
    assert {types[i] for i in range(len(types)) if i not in control} == {gguf.TokenType.NORMAL}
    assert metadata["tokenizer.ggml.merges"] == [
        " ".join(merge) for merge in raw["model"]["merges"]
    ]

    weights = dict(load(BUNDLED).decoder.named_parameters())
    assert torch.equal(
        torch.tensor(tensors["token_embd.weight"].data), weights["embed_tokens.weight"]
    )
    assert torch.equal(
        torch.tensor(tensors["blk.2.ffn_down.bias"].data), weights["layers.2.mlp.down.bias"]
    )
    qkv = [torch.tensor(tensors[f"blk.1.attn_{part}.weight"].data) for part in "qkv"]
    assert torch.equal(torch.cat(qkv), weights["layers.1.attention.qkv.weight"])
    assert sum(int(tensor.n_elements) for tensor in tensors.values()) == source.parameters
    assert len(tensors) == 3 + 16 * config["num_hidden_layers"]


@pytest.mark.parametrize(
    ("dtype", "kind", "error"),
    [("float16", "F16", 2e-3), ("bfloat16", "BF16", 2e-2), ("q8_0", "Q8_0", 2e-2)],
)
def test_matrices_of_a_gguf_file_are_of_the_type_asked_for(
    dtype: str, kind: str, error: float, tmp_path: Path
) -> None:
    source = toy(tmp_path, how="shards")
    metadata, tensors = read_back(exported(source, tmp_path, "gguf", dtype))
    assert metadata["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{kind}"]
    assert {t.tensor_type.name for t in tensors.values() if len(t.shape) == 2} == {kind}
    assert {t.tensor_type.name for t in tensors.values() if len(t.shape) == 1} == {"F32"}
    down = tensors["blk.1.ffn_down.weight"]
    found = torch.tensor(gguf.dequantize(down.data, down.tensor_type)).reshape(32, 64)
    expected = dict(load(source.path).decoder.named_parameters())["layers.1.mlp.down.weight"]
    torch.testing.assert_close(found, expected, atol=error, rtol=error)
    assert not torch.equal(found, expected)


def test_rows_that_fill_no_block_stay_whole(tmp_path: Path) -> None:
    source = toy(tmp_path, "stablelm")  # 48 wide inside: no multiple of 32
    _, tensors = read_back(exported(source, tmp_path, "gguf", "q8_0"))
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == "Q8_0"


def test_llama_cpp_is_told_of_no_more_context_than_one_window(tmp_path: Path) -> None:
    metadata, _ = read_back(exported(toy(tmp_path, "starcoder2, window"), tmp_path, "gguf"))
    assert metadata["starcoder2.context_length"] == 64


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_epsilon_is_that_of_the_kind_of_norm(family: str, tmp_path: Path) -> None:
    metadata, _ = read_back(exported(toy(tmp_path, family), tmp_path, "gguf"))
    assert metadata["general.architecture"] == family
    assert metadata[f"{family}.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert f"{family}.attention.layer_norm_epsilon" not in metadata
    assert metadata["tokenizer.ggml.pre"] == {"qwen2": "qwen2", "llama": "starcoder"}[family]
    assert f"{family}.attention.key_length" not in metadata


def test_heads_of_a_size_of_their_own_are_stated(tmp_path: Path) -> None:
    metadata, _ = read_back(exported(toy(tmp_path, "llama, wide heads"), tmp_path, "gguf"))
    names = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    assert [metadata[f"llama.{name}"] for name in names] == [16, 16, 16]


def test_llama_cpp_finds_the_rotated_pairs_of_a_llama_side_by_side(tmp_path: Path) -> None:
    source = toy(tmp_path, "llama, all biases")
    _, tensors = read_back(exported(source, tmp_path, "gguf"))
    weights = dict(load(source.path).decoder.named_parameters())
    for kind in ("weight", "bias"):
        fused = weights[f"layers.1.attention.qkv.{kind}"]
        parts = zip("qkv", fused.split([32, 16, 16]), (4, 2, 0), strict=True)
        for part, ours, heads in parts:
            found = torch.tensor(tensors[f"blk.1.attn_{part}.{kind}"].data)
            for head in range(heads):  # dimension i of a head turns together with i + 4
                rows = slice(8 * head, 8 * head + 8)
                assert torch.equal(found[rows][0::2], ours[rows][:4])
                assert torch.equal(found[rows][1::2], ours[rows][4:])
            assert heads or torch.equal(found, ours)


def test_tokens_that_the_tokenizer_lacks_are_marked_unused(tmp_path: Path) -> None:
    source = toy(tmp_path)
    write_pieces(source.path)
    metadata, _ = read_back(exported(source, tmp_path, "gguf"))
    size = Tokenizer.from_file(tmp_path / "toy" / "tokenizer.json").vocab_size
    assert len(metadata["tokenizer.ggml.tokens"]) == STARCODER2["vocab_size"] > size
    assert set(metadata["tokenizer.ggml.token_type"][size:]) == {gguf.TokenType.UNUSED}
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"  # digits stay together


UNLIKE_LLAMA_CPP: dict[str, dict[str, Any]] = {
    "gelu instead of gelu_tanh": STARCODER2 | {"hidden_act": "gelu"},
    "the kind 'linear'": STARCODER2
    | {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
    "no biases": STARCODER2 | {"use_bias": False},
    "norms on queries and keys": STABLELM | {"qk_layernorm": True},
    "tied embeddings": STABLELM | {"tie_word_embeddings": True},
    "partly rotated heads": LLAMA | {"partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("reason", UNLIKE_LLAMA_CPP)
def test_what_llama_cpp_would_compute_otherwise_is_no_gguf_file(
    reason: str, tmp_path: Path
) -> None:
    source = find_model(write_model(tmp_path / "toy", UNLIKE_LLAMA_CPP[reason]))
    write_pieces(source.path)
    with pytest.raises(ModelError, match=f"{reason}.*--format hf"):
        export(source, tmp_path / "out", "gguf", "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    exported(source, tmp_path, "hf")


# ---- llama.cpp ----

SOURCES = (
    "argparse ast bisect calendar cmd codecs configparser contextlib copy csv dataclasses difflib "
    "enum fractions "
    "functools gettext glob heapq inspect ipaddress shutil statistics string textwrap tokenize"
).split()
MAX_TOKENS = 32


def prompts(tokenizer: Tokenizer) -> tuple[list[list[int]], list[str]]:
    """Of each of 25 modules of the standard library a cut as fill-in-the-middle (spm) and one to be
    just continued."""
    chance = random.Random(0)
    before, middle, after = (
        tokenizer.token_id(f"<fim_{part}>") for part in ("prefix", "middle", "suffix")
    )
    assert before is not None and middle is not None and after is not None
    found, texts = [], []
    for name in SOURCES:
        source = Path(inspect.getsourcefile(__import__(name)) or "").read_text(encoding="utf-8")
        for fill in (True, False):
            cut = chance.randrange(1000, len(source) - 500)
            prefix, suffix = source[cut - 1000 : cut], source[cut : cut + 500]
            ids = tokenizer.encode(prefix)
            found.append([before, after, *tokenizer.encode(suffix), middle, *ids] if fill else ids)
            texts.append(prefix)
    return found, texts


def ask_llama_cpp(python: Path, **job: Any) -> dict[str, Any]:
    script = Path(__file__).parent.with_name("llama_cpp_peer.py")
    run = subprocess.run(
        [python, script], input=json.dumps(job), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answer


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "bundled",
        "starcoder2",
        "starcoder2, untied",
        "stablelm",
        "stablelm, parallel",
        "qwen2",
        "qwen2, tied",
        "llama",
        "llama, all biases",
        "llama, wide heads",
        "qwen3",
        "granite",
        "gemma",
        "gpt_bigcode",
    ],
)
def test_llama_cpp_writes_the_same_greedy_text(kind: str, peers: Path, tmp_path: Path) -> None:
    source = find_model("bundled") if kind == "bundled" else toy(tmp_path, kind, "int8 rows")
    ours = load(source.path)
    (file,) = exported(source, tmp_path, "gguf").glob("*.gguf")
    asked, texts = prompts(ours.tokenizer)
    if kind != "bundled":
        asked = [ids[:150] for ids in asked]
    # llama.cpp does not compose characters, as the tokenizers of Qwen2 do.
    tricky = [unicodedata.normalize("NFC", text) for text in TRICKY]
    texts += tricky if kind.startswith("qwen2") else TRICKY
    stop_ids = list(ours.decoder.config.stop_ids)
    theirs = ask_llama_cpp(
        peers, model=str(file), texts=texts, prompts=asked, max_tokens=MAX_TOKENS, stop_ids=stop_ids
    )
    assert theirs["plain"] == [ours.tokenizer.encode(text) for text in texts]
    assert theirs["with_sentinels"] == [ours.tokenizer.encode_prompt(text) for text in texts]
    expected = [
        [token.id for token in ours.generate(ids, max_new_tokens=MAX_TOKENS)] for ids in asked
    ]
    assert len(expected) == 50 and sum(map(len, expected)) > 500
    different = [n for n in range(50) if theirs["written"][n]["ids"] != expected[n]]
    assert len(different) <= 2
    for n in (
        different
    ):  # greedy is whoever rounds up: two tokens that are level in float32, and only there
        assert is_tie(ours, asked[n], expected[n], theirs["written"][n]["ids"])
    for n in set(range(50)) - set(different):
        assert theirs["written"][n]["text"] == ours.tokenizer.decode(expected[n])


def is_tie(model: LoadedModel, prompt: list[int], ours: list[int], theirs: list[int]) -> bool:
    """Where the two part, the model's two best logits are theirs and ours and differ by rounding
    (1e-3 of some 10)."""
    at = next(n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    with torch.inference_mode():
        best = model.decoder(torch.tensor([prompt + ours[:at]])).logits[0, -1].topk(2)
    return {*best.indices.tolist()} == {ours[at], theirs[at]} and float(
        best.values[0] - best.values[1]
    ) < 1e-3
