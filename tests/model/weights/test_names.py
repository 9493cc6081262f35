"""What the model setting may name: the bundled model, a path, or a name of the catalogue."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from model.catalogue.records import PulledFile, Record, write_record
from model.errors import ModelError
from model.weights.folder import BUNDLED, find_model, find_path


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIMLS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pulled(name: str, folder: Path) -> None:
    files = tuple(
        PulledFile(str(file), file.stat().st_size, "0" * 64) for file in sorted(folder.iterdir())
    )
    write_record(Record(name, str(folder), "hub", "org/repo", "0" * 40, "MIT", files))


def test_a_name_is_found_where_it_was_pulled_to(places: Path, starcoder2_folder: Path) -> None:
    pulled("starcoder2-3b", starcoder2_folder)
    pulled("org/repo", starcoder2_folder)
    assert find_model("starcoder2-3b").path == starcoder2_folder == find_path("StarCoder2-3B")
    assert find_model("org/repo").path == starcoder2_folder
    assert find_model("bundled").path == BUNDLED and find_model(str(BUNDLED)).is_bundled


def test_a_folder_goes_before_a_repository_but_not_before_an_entry(
    places: Path, starcoder2_folder: Path
) -> None:
    """A folder of a repository that is open must not become the model by its name alone."""
    shutil.copytree(starcoder2_folder, places / "starcoder2-3b")
    shutil.copytree(starcoder2_folder, places / "org" / "repo")
    pulled("org/repo", starcoder2_folder)
    assert find_model("org/repo").path == Path("org/repo")
    with pytest.raises(ModelError, match=r"not on this disk. `fimls pull starcoder2-3b` fetches"):
        find_model("starcoder2-3b")
    assert find_model("./starcoder2-3b").path == Path("starcoder2-3b")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/none", r"no model folder org/none..*`fimls pull org/none` fetches one"),
        ("org/none:q4.gguf", r"`fimls pull org/none:q4.gguf` fetches one"),
        ("/nowhere", r"no model folder /nowhere. Use 'bundled', a name .* downloaded model.$"),
        ("../x", r"downloaded model.$"),
        ("~nobody-of-this-name/x", "no model folder"),
        ("nul\0", "no model folder"),
        ("x" * 5000, "no model folder"),
    ],
)
def test_what_is_nowhere_is_told(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_model(name)


def test_a_file_is_no_folder(places: Path) -> None:
    (places / "file.txt").write_text("x")
    with pytest.raises(ModelError, match="There is no model folder"):
        find_model(places / "file.txt")
