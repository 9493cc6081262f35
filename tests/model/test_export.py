"""Exports do elsewhere what the model does here: in transformers, read back as GGUF, and in llama.cpp itself."""

from __future__ import annotations

import functools
import inspect
import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from model import LoadedModel, Tokenizer
from model.errors import ModelError
from model.export import export, main
from model.hub import BUNDLED, ModelFolder, find_model
from tests.conftest import SENTINELS, STABLELM, STARCODER2, write_model, write_tokenizer
from tests.model.toys import load
from training.export import INT8_ROWS, int8_rows

TRICKY = [
    "def f(x):\n\treturn {'😀': 'é日本', \"it's\": x[-1]}  # we'LL\n\n\n",
    "0x1F + 1234567.89e-10 == ٣٤ ½² 100\u00a0000",
    "a\r\n  b \r\n\t\t c   \n    d     ",
    "<fim_prefix>one<fim_suffix> two<fim_middle><|endoftext|><file_sep>a.py\n<not_one>",
    "e\u0301\u200b\ufeff\U0001f468\u200d\U0001f469\u200d\U0001f467 ﬁ ǅ",
    " ",
    "",
]
MODELS = {
    "starcoder2": STARCODER2,
    "starcoder2, untied": STARCODER2 | {"tie_word_embeddings": False},
    "starcoder2, window": STARCODER2 | {"sliding_window": 64},
    "stablelm": STABLELM,
    "stablelm, parallel": STABLELM | {"use_parallel_residual": True, "use_qkv_bias": True},
}
STORED = ("float32", "int8 rows", "shards")


def store(folder: Path, how: str) -> Path:
    """Changes how a toy's weights lie on disk."""
    weights = load_file(folder / "model.safetensors")
    if how == "int8 rows":
        save_file(int8_rows(weights), folder / "model.safetensors")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": INT8_ROWS}}))
    elif how == "shards":
        names = sorted(weights, key=lambda name: name[::-1])  # no shard has neighbours only
        files = {name: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, name in enumerate(names)}
        (folder / "model.safetensors").unlink()
        for file in set(files.values()):
            save_file({n: weights[n] for n in names if files[n] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


def write_pieces(folder: Path, *before: pre_tokenizers.PreTokenizer) -> None:
    """A tokenizer in place of the folder's, with merges of its own; llama.cpp reads none without."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=310, special_tokens=SENTINELS, show_progress=False, initial_alphabet=alphabet
    )
    backend.train_from_iterator([inspect.getsource(functools)], trainer)
    backend.save(str(folder / "tokenizer.json"))


def toy(folder: Path, kind: str = "starcoder2", how: str = "float32") -> ModelFolder:
    path = store(write_model(folder / "toy", MODELS[kind]), how)
    write_pieces(path, pre_tokenizers.Digits(individual_digits=True))
    return find_model(path)


def exported(folder: ModelFolder, tmp_path: Path, layout: str, dtype: str = "float32") -> Path:
    export(folder, tmp_path / "out", layout, dtype)
    return tmp_path / "out"


def read_back(folder: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    """A GGUF file's metadata and tensors."""
    (file,) = folder.glob("*.gguf")
    reader = gguf.GGUFReader(file)
    return {name: field.contents() for name, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- transformers ----


def agree_with_transformers(source: LoadedModel, out: Path, ids: list[int]) -> None:
    import transformers

    reference, report = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report.values()), report
    assert reference.dtype == torch.float32
    with torch.inference_mode():
        ours, theirs = source.decoder(torch.tensor([ids])).logits, reference(torch.tensor([ids])).logits
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    for text in TRICKY:
        assert tokenizer.encode(text) == source.tokenizer.encode_prompt(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    end = source.tokenizer.token_id("<|endoftext|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (end, end)
    assert "<fim_middle>" in tokenizer.all_special_tokens


@pytest.mark.parametrize(("kind", "how"), [(kind, how) for kind in MODELS for how in STORED])
def test_transformers_loads_an_export_and_computes_the_same(kind: str, how: str, tmp_path: Path) -> None:
    source = toy(tmp_path, kind, how)
    out = exported(source, tmp_path, "hf")
    ids = torch.randint(8, 260, (100,), generator=torch.Generator().manual_seed(1)).tolist()
    agree_with_transformers(load(source.path), out, ids)


def test_transformers_computes_what_the_bundled_model_does(tmp_path: Path) -> None:
    out = exported(find_model("bundled"), tmp_path, "hf")
    source = load(BUNDLED)
    ids = source.tokenizer.encode(inspect.getsource(functools))[:900]
    agree_with_transformers(source, out, ids)
    assert snapshot(BUNDLED)[BUNDLED / "MODEL_CARD.md"] == (out / "MODEL_CARD.md").read_bytes()
    assert find_model(out).preferences == find_model("bundled").preferences


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_export_can_be_used_here_and_exported_again(dtype: str, tmp_path: Path) -> None:
    source = toy(tmp_path, how="int8 rows")
    out = exported(source, tmp_path, "hf", dtype)
    assert find_model(out).config["dtype"] == dtype
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {getattr(torch, dtype)}
    for name, parameter in load(source.path).decoder.named_parameters():
        again = dict(load(out).decoder.named_parameters())[name]
        assert torch.equal(again, parameter.to(getattr(torch, dtype)).float())
    export(find_model(out), tmp_path / "again", "hf", dtype)
    assert [*snapshot(tmp_path / "again").values()] == [*snapshot(out).values()]


def test_files_of_the_hub_are_copied(tmp_path: Path) -> None:
    source = toy(tmp_path)
    files = {"tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast"}', "LICENSE": "free",
             "README.md": "a card", "generation_config.json": "{}"}  # fmt: skip
    for name, text in files.items():
        (source.path / name).write_text(text)
    (source.path / "pytorch_model.bin").write_text("pickled")
    out = exported(source, tmp_path, "hf")
    assert {path.name for path in out.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors", *files}
    assert {name: (out / name).read_text() for name in files} == files


# ---- GGUF, read back ----


def test_a_gguf_file_says_what_the_model_is(tmp_path: Path) -> None:
    source = find_model("bundled")
    metadata, tensors = read_back(exported(source, tmp_path, "gguf"))
    config, tokenizer = source.config, Tokenizer(BUNDLED / "tokenizer.json")
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
        **{f"tokenizer.ggml.fim_{key}_token_id": tokenizer.token_id(text) for key, text in (
            ("pre", "<fim_prefix>"), ("mid", "<fim_middle>"), ("suf", "<fim_suffix>"), ("pad", "<fim_pad>"),
            ("rep", "<repo_name>"), ("sep", "<file_sep>"))},
    }  # fmt: skip
    assert {name: metadata[name] for name in expected} == expected

    raw = json.loads((BUNDLED / "tokenizer.json").read_text())
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert [tokenizer.token_id(token) for token in tokens] == [*range(config["vocab_size"])]
    control = {i for i, kind in enumerate(types) if kind == gguf.TokenType.CONTROL}
    assert control == {token["id"] for token in raw["added_tokens"]}
    assert {types[i] for i in range(len(types)) if i not in control} == {gguf.TokenType.NORMAL}
    assert metadata["tokenizer.ggml.merges"] == [" ".join(merge) for merge in raw["model"]["merges"]]

    weights = dict(load(BUNDLED).decoder.named_parameters())
    assert torch.equal(torch.tensor(tensors["token_embd.weight"].data), weights["embed_tokens.weight"])
    assert torch.equal(torch.tensor(tensors["blk.2.ffn_down.bias"].data), weights["layers.2.mlp.down.bias"])
    qkv = [torch.tensor(tensors[f"blk.1.attn_{part}.weight"].data) for part in "qkv"]
    assert torch.equal(torch.cat(qkv), weights["layers.1.attention.qkv.weight"])
    assert sum(int(tensor.n_elements) for tensor in tensors.values()) == source.parameters
    assert len(tensors) == 3 + 16 * config["num_hidden_layers"]


@pytest.mark.parametrize(
    ("dtype", "kind", "error"), [("float16", "F16", 2e-3), ("bfloat16", "BF16", 2e-2), ("q8_0", "Q8_0", 2e-2)]
)
def test_matrices_of_a_gguf_file_are_of_the_type_asked_for(dtype: str, kind: str, error: float, tmp_path: Path) -> None:
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


def test_tokens_that_the_tokenizer_lacks_are_marked_unused(tmp_path: Path) -> None:
    source = toy(tmp_path)
    write_pieces(source.path)
    metadata, _ = read_back(exported(source, tmp_path, "gguf"))
    size = Tokenizer(tmp_path / "toy" / "tokenizer.json").vocab_size
    assert len(metadata["tokenizer.ggml.tokens"]) == STARCODER2["vocab_size"] > size
    assert set(metadata["tokenizer.ggml.token_type"][size:]) == {gguf.TokenType.UNUSED}
    assert metadata["tokenizer.ggml.pre"] == "gpt-2"  # digits stay together


# ---- what is refused ----

UNLIKE_LLAMA_CPP: dict[str, dict[str, Any]] = {
    "gelu instead of gelu_tanh": STARCODER2 | {"hidden_act": "gelu"},
    "the kind 'linear'": STARCODER2 | {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
    "no biases": STARCODER2 | {"use_bias": False},
    "norms on queries and keys": STABLELM | {"qk_layernorm": True},
    "tied embeddings": STABLELM | {"tie_word_embeddings": True},
}


@pytest.mark.parametrize("reason", UNLIKE_LLAMA_CPP)
def test_what_llama_cpp_would_compute_otherwise_is_no_gguf_file(reason: str, tmp_path: Path) -> None:
    source = find_model(write_model(tmp_path / "toy", UNLIKE_LLAMA_CPP[reason]))
    write_pieces(source.path)
    with pytest.raises(ModelError, match=f"{reason}.*--format hf"):
        export(source, tmp_path / "out", "gguf", "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    exported(source, tmp_path, "hf")


def tokenizer_with(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def rename_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.c_fc.wait"] = weights.pop("model.layers.0.mlp.c_fc.weight")
    save_file(weights, folder / "model.safetensors")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "other tensors": (rename_a_tensor, "c_fc.wait is .*no such tensor.*belong together"),
    "cut weights": (cut_short, "cannot be read.*Download"),
    "a header without end": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), "cannot be read.*Download"),
    "other pieces": (tokenizer_with(pre_tokenizer={"type": "Whitespace"}), "not a byte-level BPE.*--format hf"),
    "no pieces": (tokenizer_with(pre_tokenizer=None), "not a byte-level BPE.*--format hf"),
    "lower case": (tokenizer_with(normalizer={"type": "Lowercase"}), "not a byte-level BPE.*--format hf"),
    "bytes alone": (write_tokenizer, "not a byte-level BPE.*--format hf"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_named_and_nothing_is_left(fault: str, tmp_path: Path) -> None:
    source = toy(tmp_path)
    spoil, message = FAULTS[fault]
    spoil(source.path)
    with pytest.raises(ModelError, match=message):
        export(source, tmp_path / "out", "gguf", "float32")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_nothing_is_overwritten(layout: str, tmp_path: Path) -> None:
    source = toy(tmp_path)
    before = snapshot(tmp_path)
    for target in (source.path, source.path / "config.json"):
        with pytest.raises(ModelError, match="is there already and not empty"):
            export(source, target, layout, "float32")
    assert snapshot(tmp_path) == before


def test_an_empty_folder_is_filled_and_parents_are_made(tmp_path: Path) -> None:
    source = toy(tmp_path)
    (tmp_path / "empty").mkdir()
    inode = (tmp_path / "empty").stat().st_ino
    export(source, tmp_path / "empty", "hf", "float32")
    export(source, tmp_path / "a" / "b", "hf", "float32")
    assert (tmp_path / "empty").stat().st_ino == inode  # someone may stand in it
    assert [*snapshot(tmp_path / "empty").values()] == [*snapshot(tmp_path / "a").values()] != []
    assert {path.name for path in tmp_path.iterdir()} == {"toy", "empty", "a"}


def run_export(*arguments: str, room: int = resource.RLIM_INFINITY) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it; no file may grow beyond room bytes."""
    return subprocess.run(
        [sys.executable, "-m", "lsp_server", "models", "export", *arguments], capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_a_full_disk_is_one_line_and_leaves_nothing(layout: str, tmp_path: Path) -> None:
    ended = run_export(str(tmp_path / "out"), "--format", layout, room=10**6)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith(f"fimls: {tmp_path / 'out'} cannot be written")
    assert [*tmp_path.iterdir()] == []


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    made = run_export(str(tmp_path / "out"), "--format", "gguf", "--dtype", "q8_0")
    assert (made.returncode, made.stderr) == (0, "")
    assert [*tmp_path.glob("out/*.gguf")] == [tmp_path / "out" / "fimls-q8_0.gguf"]
    assert str(tmp_path / "out") in made.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bundled", "--format", "pdf"], "There is no format 'pdf'. Use one of hf, gguf."),
        (["bundled", "--format", "hf", "--dtype", "q8_0"], "has no dtype 'q8_0'. Use one of float32"),
        (["/nowhere", "--format", "hf"], "There is no model folder /nowhere."),
    ],
)
def test_a_bad_argument_is_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["export", *arguments, str(tmp_path / "out")])
    assert main() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err
    assert [*tmp_path.iterdir()] == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelError, match="pip install gguf"):
        export(toy(tmp_path), tmp_path / "out", "gguf", "float32")
    assert not (tmp_path / "out").exists()


# ---- llama.cpp ----

SOURCES = (
    "argparse ast bisect calendar cmd codecs configparser contextlib copy csv dataclasses difflib enum fractions "
    "functools gettext glob heapq inspect ipaddress shutil statistics string textwrap tokenize"
).split()
MAX_TOKENS = 32


def prompts(tokenizer: Tokenizer) -> tuple[list[list[int]], list[str]]:
    """Of each of 25 modules of the standard library a cut as fill-in-the-middle (spm) and one to be just continued."""
    chance = random.Random(0)
    before, middle, after = (tokenizer.token_id(f"<fim_{part}>") for part in ("prefix", "middle", "suffix"))
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
    script = Path(__file__).with_name("llama_cpp_peer.py")
    run = subprocess.run([python, script], input=json.dumps(job), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return answer


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bundled", "starcoder2", "starcoder2, untied", "stablelm", "stablelm, parallel"])
def test_llama_cpp_writes_the_same_greedy_text(kind: str, peers: Path, tmp_path: Path) -> None:
    source = find_model("bundled") if kind == "bundled" else toy(tmp_path, kind, "int8 rows")
    ours = load(source.path)
    (file,) = exported(source, tmp_path, "gguf").glob("*.gguf")
    asked, texts = prompts(ours.tokenizer)
    if kind != "bundled":
        asked = [ids[:150] for ids in asked]
    texts += TRICKY
    stop_ids = list(ours.decoder.config.stop_ids)
    theirs = ask_llama_cpp(
        peers, model=str(file), texts=texts, prompts=asked, max_tokens=MAX_TOKENS, stop_ids=stop_ids
    )
    assert theirs["plain"] == [ours.tokenizer.encode(text) for text in texts]
    assert theirs["with_sentinels"] == [ours.tokenizer.encode_prompt(text) for text in texts]
    expected = []
    for ids in asked:
        written = [token.id for token in ours.generate(ids, max_new_tokens=MAX_TOKENS)]
        expected.append({"ids": written, "text": ours.tokenizer.decode(written)})
    assert len(expected) == 50 and sum(len(e["ids"]) for e in expected) > 500
    assert theirs["written"] == expected
