"""Exports in the Hugging Face layout do in transformers what the model does here; what is refused
leaves nothing."""

from __future__ import annotations

import functools
import inspect
import json
import resource
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import LoadedModel
from model.errors import ModelError
from model.export.__main__ import main
from model.export.export import export
from model.weights.files import BUNDLED
from model.weights.folder import find_model
from tests.conftest import write_tokenizer
from tests.model.export.exports import MODELS, TRICKY, exported, toy
from tests.model.toys import load

STORED = ("float32", "int8 rows", "shards")


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- transformers ----


def agree_with_transformers(source: LoadedModel, out: Path, ids: list[int]) -> None:
    import transformers

    reference, report = transformers.AutoModelForCausalLM.from_pretrained(
        out, output_loading_info=True
    )
    assert not any(report.values()), report
    assert reference.dtype == torch.float32
    with torch.inference_mode():
        ours, theirs = (
            source.decoder(torch.tensor([ids])).logits,
            reference(torch.tensor([ids])).logits,
        )
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    for text in TRICKY:
        assert tokenizer.encode(text) == source.tokenizer.encode_prompt(text)
        # The tokenizers of Qwen2 compose characters.
        composed = unicodedata.normalize("NFC", text)
        expected = composed if reference.config.model_type == "qwen2" else text
        assert tokenizer.decode(tokenizer.encode(text)) == expected
    end = source.tokenizer.token_id("<|endoftext|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (end, end)
    assert "<fim_middle>" in tokenizer.all_special_tokens


@pytest.mark.parametrize(("kind", "how"), [(kind, how) for kind in MODELS for how in STORED])
def test_transformers_loads_an_export_and_computes_the_same(
    kind: str, how: str, tmp_path: Path
) -> None:
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
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {
        getattr(torch, dtype)
    }
    for name, parameter in load(source.path).decoder.named_parameters():
        again = dict(load(out).decoder.named_parameters())[name]
        assert torch.equal(again, parameter.to(getattr(torch, dtype)).float())
    export(find_model(out), tmp_path / "again", "hf", dtype)
    assert [*snapshot(tmp_path / "again").values()] == [*snapshot(out).values()]


def test_files_of_the_hub_are_copied(tmp_path: Path) -> None:
    source = toy(tmp_path)
    files = {
        "tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast"}',
        "LICENSE": "free",
        "README.md": "a card",
        "generation_config.json": "{}",
    }
    for name, text in files.items():
        (source.path / name).write_text(text)
    (source.path / "pytorch_model.bin").write_text("pickled")
    out = exported(source, tmp_path, "hf")
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        *files,
    }
    assert {name: (out / name).read_text() for name in files} == files


def test_a_folder_of_licences_stays_where_it_is(tmp_path: Path) -> None:
    source = toy(tmp_path)
    (source.path / "LICENSES").mkdir()
    (source.path / "LICENSE").write_text("free")
    out = exported(source, tmp_path, "hf")
    assert {path.name for path in out.glob("LICEN*")} == {"LICENSE"}


@pytest.mark.parametrize("ends", [[0, 2], None, {"id": 0}])
def test_ends_that_are_no_single_token_are_not_named(ends: object, tmp_path: Path) -> None:
    source = toy(tmp_path)
    config = source.path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": ends}))
    source = find_model(source.path)
    if isinstance(ends, dict):
        with pytest.raises(ModelError, match="eos_token_id is"):
            exported(source, tmp_path, "hf")
    else:
        made = json.loads((exported(source, tmp_path, "hf") / "tokenizer_config.json").read_text())
        assert made["bos_token"] == "<|endoftext|>" and "eos_token" not in made


def test_home_is_found_behind_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["export", str(toy(tmp_path).path), "~/out", "--format", "hf"])
    assert main() == 0
    assert (tmp_path / "out" / "config.json").exists()
    assert str(tmp_path / "out") in capsys.readouterr().out
    monkeypatch.setattr(
        sys, "argv", ["export", "bundled", "~nobody-of-this-name/out", "--format", "hf"]
    )
    assert main() == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- what is refused ----


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


def split_at(pattern: str) -> dict[str, Any]:
    """As the tokenizers of Qwen2 cut text, but with another pattern."""
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    last = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, last]}


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "other tensors": (rename_a_tensor, "c_fc.wait is .*no such tensor.*belong together"),
    "cut weights": (cut_short, "cannot be read.*Download"),
    "a header without end": (
        lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64),
        "cannot be read.*Download",
    ),
    "other pieces": (
        tokenizer_with(pre_tokenizer={"type": "Whitespace"}),
        "not a byte-level BPE.*--format hf",
    ),
    "a pattern of its own": (
        tokenizer_with(pre_tokenizer=split_at(r"\w+")),
        "not a byte-level BPE.*--format hf",
    ),
    "no pieces": (tokenizer_with(pre_tokenizer=None), "not a byte-level BPE.*--format hf"),
    "lower case": (
        tokenizer_with(normalizer={"type": "Lowercase"}),
        "not a byte-level BPE.*--format hf",
    ),
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


def run_export(
    *arguments: str, room: int = resource.RLIM_INFINITY
) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it; no file may grow beyond room bytes."""
    return subprocess.run(
        [sys.executable, "-m", "lsp_server", "models", "export", *arguments],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_a_full_disk_is_one_line_and_leaves_nothing(layout: str, tmp_path: Path) -> None:
    ended = run_export(str(tmp_path / "out"), "--format", layout, room=10**6)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith(
        f"fimls: {tmp_path / 'out'} cannot be written"
    )
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
        (
            ["bundled", "--format", "hf", "--dtype", "q8_0"],
            "has no dtype 'q8_0'. Use one of float32",
        ),
        (["/nowhere", "--format", "hf"], "There is no model folder /nowhere."),
    ],
)
def test_a_bad_argument_is_one_clear_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
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
