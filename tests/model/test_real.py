"""A real model from its GGUF file: Qwen2.5-Coder-0.5B, beside transformers and llama.cpp.

FIMLS_REAL_PROMPTS says for how many prompts the texts are compared: few by default, since float32
weights are slow. benchmarks/RESULTS.md has the figures for 50.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model import LoadedModel
from model.export.export import export
from model.weights.checkpoint import Checkpoint
from model.weights.folder import find_model
from tests.conftest import ROOT
from tests.model.export.test_gguf import ask_llama_cpp, is_tie
from tests.model.toys import load

pytestmark = pytest.mark.real

PROMPTS = int(os.environ.get("FIMLS_REAL_PROMPTS", "8"))
MAX_TOKENS = 8
LINES = 2000
MIXED = [
    "x = '日本語' + \"naïve café\" // 😀👩‍👩‍👧 ﷺ\n",
    "\tif (a&&b||c<<2>=3) { return *p->q[i++]; }\r\n",
    "   \t  \n\n\n    indented\u00a0by\u2003odd\u200bspaces   \n",
    "0x1F 1_000_000 3.14159e-10 ½ ٣٤ １２３ 12345678901234567890\n",
    "e\u0301 A\u030a ﬁ ǅ ß İ ı Ω Привет мир שלום مرحبا नमस्ते 안녕하세요\n",
    "don't WE'LL they've I'm he'd 's 'T\n",
]


@pytest.fixture(scope="module")
def file() -> Path:
    path = os.environ.get("FIMLS_REAL_MODEL")
    if not path:
        pytest.skip("FIMLS_REAL_MODEL names no model")
    return Path(path)


@pytest.fixture(scope="module")
def ours(file: Path) -> LoadedModel:
    """In float32."""
    return load(file)


def sources() -> list[str]:
    """Texts of this repository: code, markup and prose."""
    found = []
    for pattern in ("lsp_server/**/*.py", "fim/**/*.py", "editors/**/*.ts", "editors/**/*.lua"):
        found += [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob(pattern))]
    return [text for text in found if len(text) > 1500]


def fim_prompts(model: LoadedModel, count: int) -> list[list[int]]:
    tokenizer = model.tokenizer
    prompts = []
    for n, text in enumerate(itertools.islice(itertools.cycle(sources()), count)):
        cut = 700 + 13 * n % (len(text) - 900)
        prompts.append(
            tokenizer.encode_prompt("<|fim_prefix|>")
            + tokenizer.encode(text[cut - 400 : cut])
            + tokenizer.encode_prompt("<|fim_suffix|>")
            + tokenizer.encode(text[cut + 20 : cut + 150])
            + tokenizer.encode_prompt("<|fim_middle|>")
        )
    return prompts


def test_logits_are_those_of_transformers_on_the_same_weights(
    ours: LoadedModel, file: Path
) -> None:
    import transformers

    source = find_model(file)
    config = transformers.AutoConfig.for_model(**source.config)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = {name: tensor for _, name, tensor in Checkpoint.open(source).tensors()}
    theirs.load_state_dict(weights, strict=True, assign=True)
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(config)  # its buffers were meta
    for prompt in fim_prompts(ours, 3):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            assert torch.allclose(theirs(ids).logits, ours.decoder(ids).logits, atol=1e-3, rtol=0)


def written(model: LoadedModel, prompts: list[list[int]]) -> Iterator[list[int]]:
    for prompt in prompts:
        yield [token.id for token in model.generate(prompt, max_new_tokens=MAX_TOKENS)]


def test_greedy_text_is_llama_cpps_on_the_same_floats(
    ours: LoadedModel, file: Path, peers: Path, tmp_path: Path
) -> None:
    export(find_model(file), tmp_path / "floats", "gguf", "float32")
    (floats,) = (tmp_path / "floats").glob("*.gguf")
    prompts = fim_prompts(ours, PROMPTS)
    stop_ids = list(ours.decoder.config.stop_ids)
    job = {"texts": [], "prompts": prompts, "max_tokens": MAX_TOKENS, "stop_ids": stop_ids}
    theirs = ask_llama_cpp(peers, model=str(floats), **job)["written"]
    floats.unlink()
    quantized = ask_llama_cpp(peers, model=str(file), **job)["written"]
    expected = list(written(ours, prompts))
    different = [n for n in range(PROMPTS) if theirs[n]["ids"] != expected[n]]
    same = sum(quantized[n]["ids"] == expected[n] for n in range(PROMPTS))
    print(f"{len(different)} of {PROMPTS} part; on the quantized file {same} are the same")
    for n in different:
        assert is_tie(ours, prompts[n], expected[n], theirs[n]["ids"]), n


def test_ids_are_llama_cpps(file: Path, peers: Path) -> None:
    tokenizer = find_model(file).load_tokenizer()
    lines = [line for text in sources() for line in text.splitlines(keepends=True)]
    step = max(1, len(lines) // (LINES - len(MIXED)))
    texts = MIXED + lines[::step][: LINES - len(MIXED)]
    assert len(texts) == LINES
    theirs = ask_llama_cpp(
        peers, model=str(file), texts=texts, prompts=[], max_tokens=0, stop_ids=[]
    )
    assert theirs["plain"] == [tokenizer.encode(text) for text in texts]
    assert all(
        tokenizer.decode(ids) == text for ids, text in zip(theirs["plain"], texts, strict=True)
    )


def test_a_suggestion_comes_through_the_real_server(file: Path, tmp_path: Path) -> None:
    source = tmp_path / "sums.py"
    source.write_text("def add(a, b):\n    return \n\n\nassert add(1, 2) == 3\n")
    places = {f"FIMLS_{name}_DIR": str(tmp_path / name.lower()) for name in ("CACHE", "RUNTIME")}
    run = subprocess.run(
        [sys.executable, "-m", "lsp_server", "complete", f"{source}:2:12", "--json"],
        env=os.environ | places | {"FIMLS_MODEL": str(file), "FIMLS_IDLE_TIMEOUT": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout)["text"].strip() == "a + b"
