"""The tokenizer that the bundled model is trained with."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.training.corpus_recipe import Recipe, source
from training.tokenizer import INDENTATIONS, SPECIAL_TOKENS, main, split_indentations, train

NESTED = (
    "".join("    " * depth + f"if value_{depth}:\n" for depth in range(6))
    + "    " * 6
    + "return 'é', 2026\n"
)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return [source(seed) + NESTED * 10 for seed in range(5)]


def test_special_tokens_come_first_in_starcoder2s_order(corpus: list[str]) -> None:
    tokenizer = train(corpus, 400)
    assert [tokenizer.id_to_token(i) for i in range(len(SPECIAL_TOKENS))] == SPECIAL_TOKENS
    assert (
        SPECIAL_TOKENS[:5]
        == "<|endoftext|> <fim_prefix> <fim_middle> <fim_suffix> <fim_pad>".split()
    )
    assert len(SPECIAL_TOKENS) == 38
    assert tokenizer.get_vocab_size() == 400


def test_any_text_comes_back(corpus: list[str]) -> None:
    tokenizer = train(corpus, 400)
    for text in (NESTED, "\t\r\n \x00 日本語 🎉 naïve\n\n\n", "1234567890"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert len(tokenizer.encode("2026").ids) == 4  # digits one by one


def test_an_indentation_is_one_token(corpus: list[str]) -> None:
    assert [len(run) for run in INDENTATIONS] == [
        4,
        8,
        12,
        16,
        20,
    ]  # a newline in place of the last space
    tokenizer = train(corpus, 500)
    assert split_indentations(tokenizer) == []
    assert split_indentations(train(["x = 1\n" * 100], 300)) == list(INDENTATIONS)
    assert tokenizer.encode("x:\n        return").tokens[2:] == ["ĊĠĠĠĠĠĠĠ", "Ġreturn"]


def test_the_command_reports_both_sizes_and_writes_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe(tmp_path)
    recipe.add("more", "train", {f"more/{i}.py": source(i) + NESTED for i in range(20)})
    recipe.build()
    assert main([str(recipe.data), "320", "--compare", "450"]) == 0
    first = (recipe.data / "tokenizer.json").read_bytes()
    assert len(json.loads(first)["model"]["vocab"]) == 320
    said = capsys.readouterr().out
    figures = re.findall(
        r"^(\d+) entries, ([\d.]+) characters a token on the validation packages", said, re.M
    )
    (small, per_token), (large, per_larger_token) = figures
    assert (small, large) == ("320", "450")
    assert 1 <= float(per_token) < float(per_larger_token)
    assert main([str(recipe.data), "320"]) == 0
    assert (recipe.data / "tokenizer.json").read_bytes() == first
