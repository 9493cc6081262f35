"""The code of docs/model.md, run as it stands there: on a toy, and on StarCoder2 where it is on the
disk."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from fim import CursorContext, build_prompt, resolve
from lsp_server.commands.cli import app
from model import LoadedModel
from model.heads import CausalLM
from model.weights.folder import find_model
from tests.conftest import ROOT, STARCODER2, write_model
from tests.model.test_footprint import CARD, STARCODER2_7B, of

PAGE = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
NAME = "bigcode/starcoder2-7b"
FIRST = "def print_hello_world():"
NEW = 20


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def run_page(folder: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each block of Python with what it prints, and the names after it. The model of a block goes
    before the next one is loaded."""
    names: dict[str, Any] = {}
    for code in blocks("python"):
        for name in [
            name for name, value in names.items() if isinstance(value, CausalLM | LoadedModel)
        ]:
            del names[name]
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(code.replace(f'"{NAME}"', repr(str(folder))), "model.md", "exec"), names)
        yield code, printed.getvalue(), names


def check_page(folder: Path) -> dict[str, str]:
    """What every model gives; returns the output of each block by its code."""
    found = {}
    for code, printed, names in run_page(folder):
        found[code] = printed
        m = names.get("m")
        if isinstance(m, CausalLM):
            asked = torch.bfloat16 if '"bfloat16"' in code else torch.float32
            assert m.decoder.dtype == asked
            for kind in ("llm.int8", "nf4-double"):
                assert (kind in m.decoder.scheme) == (f'"{kind}"' in code)
            if "<fim_prefix>" not in code:
                assert printed.startswith(FIRST) and len(printed) > len(FIRST) + 1
    assert len(found) == len(blocks("python")) > 8
    return found


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")
    return write_model(tmp_path_factory.mktemp("toy"), STARCODER2 | {"eos_token_id": None})


def test_the_code_runs_and_writes_what_the_reference_writes(toy: Path) -> None:
    found = check_page(toy)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(toy)
    tokenizer = find_model(toy).load_tokenizer()
    ids = torch.tensor([tokenizer.encode(FIRST)])
    expected = theirs.generate(
        ids, max_new_tokens=NEW, do_sample=False, attention_mask=torch.ones_like(ids)
    )
    [written] = [text for code, text in found.items() if 'load(checkpoint, device="auto")' in code]
    assert written == tokenizer.decode(expected[0].tolist()) + "\n"


def test_the_fim_prompt_is_the_products(toy: Path) -> None:
    tokenizer = find_model(toy).load_tokenizer()
    [page] = [found for found in run_page(toy) if "<fim_prefix>" in found[0]]
    _, printed, names = page
    context = CursorContext(names["prefix"], names["suffix"])
    sentinels = resolve(tokenizer, "starcoder2")
    prompt = build_prompt(context, sentinels, tokenizer, "psm", heal=False)
    assert printed.startswith(tokenizer.decode(prompt.ids))
    text = f"<fim_prefix>{context.prefix}<fim_suffix>{context.suffix}<fim_middle>"
    assert tokenizer.encode_prompt(text) == list(prompt.ids)


def test_the_commands_have_these_options(toy: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    commands = [line.partition("  #")[0].split()[1:] for line in lines if line.startswith("fimls ")]
    assert len(commands) >= 5
    for command in commands:
        assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0, command
        if command[0] == "models":
            done = CliRunner().invoke(app, [str(toy) if word == NAME else word for word in command])
            assert done.exit_code == 0 and "bfloat16" in done.stdout


def test_the_table_has_the_figures_of_the_footprint() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("|")]
    table: Mapping[str, list[str]] = {name: cells for name, *cells in rows}
    precisions = table["StarCoder2-7B, MB of 10⁶ bytes"]
    assert [CARD[precision] for precision in precisions] == list(
        map(float, table["the model card"])
    )
    ours = [f"{of(STARCODER2_7B)[precision].total / 1e6:.2f}" for precision in precisions]
    assert table["fimls"] == ours


@pytest.mark.real
def test_the_code_runs_on_starcoder2() -> None:
    folder = os.environ.get("FIMLS_STARCODER2")
    if not folder:
        pytest.skip("FIMLS_STARCODER2 names no folder")
    for code, printed in check_page(Path(folder)).items():
        print(code, printed, sep="\n")
        if 'load(checkpoint, device="auto")' in code:
            assert "print(" in printed.removeprefix(FIRST)  # as the model card's does
