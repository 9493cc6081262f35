"""What the tests of this room share: toy models and two tokenizers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from model import LoadedModel, Tokenizer
from model.cpu.code_cache import code_folder, is_intact, start, use
from tests.conftest import SENTINELS, write_tokenizer
from tests.model.toys import load

torch.set_num_threads(1)  # at toy sizes a second thread only waits
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def talkative(talkative_folder: Path) -> LoadedModel:
    """Random weights and real arithmetic; writes lower-case letters without an end."""
    return load(talkative_folder)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with machine code, made as an engine has it made, by a process that compiles."""
    made = code_folder(tmp_path_factory.mktemp("cache"))
    assert made is not None
    assert not is_intact(made)
    process = start(made, awaited=True)
    status = process.wait(240)
    with process:  # closes its input
        assert status == 0
    return made


@pytest.fixture(scope="session")
def code(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that numba uses, for what a test compiles beyond that."""
    copy = shutil.copytree(made, tmp_path_factory.mktemp("code") / "copy")
    use(copy)
    return copy


@pytest.fixture
def folder(starcoder2_folder: Path, tmp_path: Path) -> Path:
    """A whole model, tied, to be changed or broken."""
    return shutil.copytree(starcoder2_folder, tmp_path / "toy")


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One id a byte: every character beyond ASCII is split."""
    folder = tmp_path_factory.mktemp("bytes")
    write_tokenizer(folder)
    return Tokenizer.from_file(folder / "tokenizer.json")


@pytest.fixture(scope="session")
def merging_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Byte pairs learned from a text of many rare characters: tokens begin and end within them."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SENTINELS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    lines = [f"x = {chr(c)} {chr(c + 1)}{chr(0x4E00 + c % 500)}" for c in range(0x1F600, 0x1F640)]
    backend.train_from_iterator(lines, trainer)
    path = tmp_path_factory.mktemp("merging") / "tokenizer.json"
    backend.save(str(path))
    return Tokenizer.from_file(path)
