"""`fimls models`: lists the models that are here, without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from lsp_server.commands.cli import app
from model.catalogue.entries import entries
from model.weights.files import BUNDLED


@pytest.fixture(autouse=True)
def no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folders in place of the user's models."""
    monkeypatch.delenv("FIMLS_MODEL", raising=False)
    monkeypatch.setenv("FIMLS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    return tmp_path


def test_the_bundled_model_and_the_chosen_one_are_listed(starcoder2_folder: Path) -> None:
    listed = CliRunner().invoke(app, ["models", "--model", str(starcoder2_folder), "--json"])
    assert (listed.exit_code, listed.stderr) == (0, "")
    bundled, toy, *to_be_had = json.loads(listed.stdout)
    assert (bundled["name"], bundled["path"], bundled["languages"]) == (
        "bundled",
        str(BUNDLED),
        ["python"],
    )
    assert bundled["disk_bytes"] == sum(file.stat().st_size for file in BUNDLED.iterdir())
    # Two layers of 32: 320 × 32 embeddings, the last norm, and what a layer has in norms, attention
    # and MLP.
    count = (
        320 * 32
        + 64
        + 2 * (128 + 2 * (32 * 32 + 32) + 2 * (16 * 32 + 16) + (64 * 32 + 64) + (32 * 64 + 32))
    )
    assert toy == {
        "name": str(starcoder2_folder),
        "path": str(starcoder2_folder),
        "architecture": "starcoder2",
        "native": True,
        "parameters": count,
        "max_positions": 256,
        "languages": [],
        "other_languages": "",
        "disk_bytes": sum(file.stat().st_size for file in starcoder2_folder.iterdir()),
        "prepared_bytes": 0,
        "memory_bytes": count * 34 // 32,
        "weights_bytes": {
            "float32": 4 * count,
            "bfloat16": 2 * count,
            "float16": 2 * count,
            "int8": count,
        },
        "chosen": True,
    }
    assert [model["name"] for model in to_be_had] == list(entries())
    assert not bundled["chosen"] and {model["path"] for model in to_be_had} == {None}


def test_the_scales_of_int8_rows_are_no_parameters() -> None:
    bundled, *_ = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
    weights = load_file(BUNDLED / "model.safetensors")
    scales = {name for name in weights if name.endswith("_scale")}
    assert scales and bundled["parameters"] == sum(
        weights[name].numel() for name in weights.keys() - scales
    )


def test_the_list_takes_no_torch() -> None:
    code = (
        "import sys; from lsp_server.commands.cli import app; "
        "app(['models'], standalone_mode=False); "
        "print({*sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        "'lsp_server.commands.models'" in run.stdout
        and "'torch'" not in run.stdout
        and "'numpy'" not in run.stdout
    )


def test_the_list_can_be_read() -> None:
    listed = CliRunner().invoke(app, ["models"])
    assert listed.exit_code == 0
    assert listed.stdout.startswith("bundled (chosen): starcoder2, ")
    assert "trained on python; for others use bigcode/starcoder2-3b" in listed.stdout
    assert "float32" in listed.stdout and "MB on disk" in listed.stdout
    _, _, to_be_had = listed.stdout.partition("To be had with `fimls pull NAME`")
    (row,) = [line for line in to_be_had.splitlines() if "qwen2.5-coder-0.5b" in line]
    assert row.split()[1:6] == ["491", "MB", "491", "MB", "Apache-2.0"]
    (row,) = [line for line in to_be_had.splitlines() if "starcoder2-15b" in line]
    assert "~ 63.8 GB" in row and row.endswith("BigCode OpenRAIL-M (asks)")


def test_what_is_on_the_disk_is_listed_if_fimls_runs_it(
    no_models: Path, starcoder2_folder: Path
) -> None:
    snapshots = no_models / "hub" / "models--bigcode--starcoder2-3b" / "snapshots"
    shutil.copytree(starcoder2_folder, snapshots / ("a" * 40))
    other = no_models / "hub" / "models--org--repo" / "snapshots" / ("a" * 40)
    other.mkdir(parents=True)
    (other / "m.gguf").write_bytes(b"GGUF" + bytes(96))  # nothing that could be run
    listed = CliRunner().invoke(app, ["models", "--json"])
    assert (listed.exit_code, listed.stderr) == (0, "")
    _, *others = json.loads(listed.stdout)
    (here,) = [model for model in others if model["path"]]
    assert (here["name"], here["origin"]) == ("bigcode/starcoder2-3b", "hub")
    assert here["licence"] == "BigCode OpenRAIL-M"
    assert "starcoder2-3b" not in {model["name"] for model in others}
    printed = CliRunner().invoke(app, ["models"]).stdout
    assert printed.index("Also on this disk") < printed.index("bigcode/starcoder2-3b ")
    assert "org/repo" not in printed


def test_the_memory_of_one_model_takes_only_its_configuration(
    starcoder2_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(starcoder2_folder / "config.json", tmp_path)
    before = CliRunner().invoke(app, ["models", "--json", str(tmp_path)])
    assert (before.exit_code, before.stderr) == (0, "")
    behind = CliRunner().invoke(app, ["models", "show", str(tmp_path), "--json"])
    shown = json.loads(before.stdout)
    assert json.loads(behind.stdout) == shown
    listed = CliRunner().invoke(app, ["models", "--json", "--model", str(starcoder2_folder)])
    _, described, *_ = json.loads(listed.stdout)
    for key in ("architecture", "parameters", "max_positions"):
        assert shown[key] == described[key]
    rotary = 256 * 8 * 3 * 4  # cos, sin and both as complex numbers
    assert shown["footprint"]["float32"]["total"] == 4 * described["parameters"] + rotary
    assert shown["footprint"].keys() == {
        "float32",
        "float16",
        "bfloat16",
        "8-bit",
        "4-bit",
        "int8",
        "8 bits",
        "4 bits",
    }
    printed = CliRunner().invoke(app, ["models", str(tmp_path)]).stdout.splitlines()
    assert printed[0].startswith(f"{tmp_path}: starcoder2, ")
    row = next(line.split() for line in printed if line.startswith("  float32 "))
    assert row[-1] == f"{shown['footprint']['float32']['total'] / 1e6:.2f}"


def test_the_memory_of_one_model_takes_no_torch() -> None:
    code = (
        "import sys; from lsp_server.commands.cli import app; "
        "app(['models', 'bundled'], standalone_mode=False); print({*sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "NF4" in run.stdout and "'torch'" not in run.stdout


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "mamba is no native architecture. Use a model in one of"),
        ({"model_type": "starcoder2", "hidden_size": 0}, "hidden_size is 0, but must be positive"),
        ({"model_type": "starcoder2", "rope_scaling": {"type": "x"}}, "rope type 'x'"),
    ],
)
def test_a_configuration_without_a_footprint_is_said(
    config: dict[str, object], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    shown = CliRunner().invoke(app, ["models", "--json", str(tmp_path)])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert message in shown.stderr and shown.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "/nowhere"], "fimls: There is no model folder /nowhere. Use 'bundled'"),
        (["--model", "/nowhere"], "fimls: There is no model folder /nowhere. Use 'bundled'"),
        (
            ["--model", "/nowhere", "export", "x", "--format", "hf"],
            "put the options after 'export'",
        ),
    ],
)
def test_what_cannot_be_listed_is_said(arguments: list[str], message: str) -> None:
    listed = CliRunner().invoke(app, ["models", *arguments])
    assert (listed.exit_code, listed.stdout) == (2, "")
    assert message in listed.stderr


def test_weights_cut_in_their_header_are_named(starcoder2_folder: Path, tmp_path: Path) -> None:
    for file in starcoder2_folder.iterdir():
        (tmp_path / file.name).write_bytes(
            file.read_bytes()[: 200 if file.suffix == ".safetensors" else None]
        )
    listed = CliRunner().invoke(app, ["models", "--model", str(tmp_path)])
    assert listed.exit_code == 2
    assert listed.stderr.count("\n") == 1 and "model.safetensors cannot be read" in listed.stderr


def test_the_model_that_is_used_is_chosen_until_another_is(
    starcoder2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen() -> list[str]:
        listed = CliRunner().invoke(app, ["models", "--json"])
        return [model["name"] for model in json.loads(listed.stdout) if model["chosen"]]

    def use(name: str) -> Result:
        return CliRunner().invoke(app, ["models", "use", name])

    monkeypatch.chdir(starcoder2_folder.parent)
    done = use(starcoder2_folder.name)
    assert (done.exit_code, done.stderr) == (0, "")
    monkeypatch.chdir("/")
    assert chosen() == [str(starcoder2_folder)]
    refused = use("qwen2.5-coder-0.5b")
    assert refused.exit_code == 2 and "fimls pull qwen2.5-coder-0.5b" in refused.stderr
    assert chosen() == [str(starcoder2_folder)]
    monkeypatch.setenv("FIMLS_MODEL", str(starcoder2_folder))
    assert "unset it" in use("bundled").stderr
    monkeypatch.delenv("FIMLS_MODEL")
    assert chosen() == ["bundled"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_settings_file_that_is_a_link_stays_one(
    starcoder2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "dotfiles.json"
    kept.write_text('{"maxTokens": 9}')
    monkeypatch.setenv("FIMLS_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings.json").symlink_to(kept)
    done = CliRunner().invoke(app, ["models", "use", str(starcoder2_folder)])
    assert done.exit_code == 0
    assert (tmp_path / "config" / "settings.json").is_symlink()
    assert json.loads(kept.read_text()) == {"maxTokens": 9, "model": str(starcoder2_folder)}
