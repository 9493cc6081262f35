"""`fimls models`: lists the models that are here, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from lsp_server.commands.cli import app
from model.weights.folder import BUNDLED


def test_the_bundled_model_and_the_chosen_one_are_listed(starcoder2_folder: Path) -> None:
    listed = CliRunner().invoke(app, ["models", "--model", str(starcoder2_folder), "--json"])
    assert (listed.exit_code, listed.stderr) == (0, "")
    bundled, toy = json.loads(listed.stdout)
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
        "parameters": count,
        "max_positions": 256,
        "languages": [],
        "other_languages": "",
        "disk_bytes": sum(file.stat().st_size for file in starcoder2_folder.iterdir()),
        "weights_bytes": {
            "float32": 4 * count,
            "bfloat16": 2 * count,
            "float16": 2 * count,
            "int8": count,
        },
    }


def test_the_scales_of_int8_rows_are_no_parameters() -> None:
    (bundled,) = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)
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
    assert listed.stdout.startswith("bundled: starcoder2, ") and listed.stdout.count("\n") == 2
    assert "trained on python; for others use bigcode/starcoder2-3b" in listed.stdout
    assert "float32" in listed.stdout and "MB on disk" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
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
