"""Documents -> samples -> rows: what a batch holds, and that it is the same wherever it is made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fim.context import CursorContext
from fim.prompt import build_prompt
from tests.training.conftest import TEXT
from training.corpus.folder import Row
from training.data import IGNORED, Recipe, SampleStream, pack, read_documents
from training.syntax import SyntaxSpans

EVERYTHING = Recipe(fim_rate=0.8, spm_rate=0.5, syntax_rate=0.5, repository_rate=0.5, heal_rate=0.5)


def stream(
    data: Path, recipe: Recipe = EVERYTHING, context: int = 64, workers: int = 0
) -> SampleStream:
    documents = read_documents(data / "train.jsonl")
    return SampleStream(
        documents, data / "tokenizer.json", context=context, recipe=recipe, seed=1, workers=workers
    )


def unpack(ids: np.ndarray, documents: np.ndarray) -> list[list[int]]:
    rows = zip(ids, documents, strict=True)
    return [row[owner == n].tolist() for row, owner in rows for n in range(1, owner.max() + 1)]


def samples(made: SampleStream, pool: int = 0) -> list[list[int]]:
    return unpack(*made.make_pool(pool))


def test_a_stream_goes_on_where_it_stopped(data: Path) -> None:
    whole, first, second = stream(data), stream(data), stream(data)
    batches = [whole.batch(4)[0] for _ in range(40)]
    assert len({tuple(b.flatten().tolist()) for b in batches}) == 40
    for _ in range(20):
        first.batch(4)
    second.restore(first.state())
    assert all(second.batch(4)[0].equal(b) for b in batches[20:])


def test_workers_make_the_same_batches(data: Path) -> None:
    alone, helped = stream(data), stream(data, workers=2)
    try:
        assert all(alone.batch(3)[1].equal(helped.batch(3)[1]) for _ in range(60))
    finally:
        helped.close()


def test_labels_are_the_next_token_of_the_same_document(data: Path) -> None:
    ids, labels, documents = stream(data).batch(16)
    known = labels != IGNORED
    assert (ids[:, 1:] == labels[:, :-1])[known[:, :-1]].all()
    ends = (documents[:, 1:] != documents[:, :-1]) | (documents[:, 1:] == 0)
    assert (labels[:, :-1][ends] == IGNORED).all()
    assert 0.6 < known.float().mean() < 1


def test_packing_keeps_samples_whole_and_wastes_little() -> None:
    given = [[i] * length for i, length in enumerate([1, 9, 5, 5, 2, 10, 3, 4, 4, 7])]
    ids, documents = pack(given, 10, padding=99)
    assert sorted(unpack(ids, documents)) == sorted(given)
    assert len(ids) == 5  # 50 tokens in rows of ten
    assert (ids[documents == 0] == 99).all()


@pytest.mark.parametrize("layout", ["spm", "psm"])
@pytest.mark.parametrize("heal", [0.0, 1.0])
def test_a_sample_is_the_prompt_of_the_product_and_its_answer(
    data: Path, layout: str, heal: float
) -> None:
    recipe = Recipe(1.0, float(layout == "spm"), 0.0, 0.0, heal)
    made = stream(data, recipe, context=400)
    texts = {d.text for d in made.documents}
    for sample in samples(made):
        text = made.tokenizer.decode(sample)
        assert text.endswith("<|endoftext|>") and text.count("<fim_middle>") == 1
        if layout == "spm":
            head, rest = text.removesuffix("<|endoftext|>").split("<fim_middle>")
            suffix = head.removeprefix("<fim_prefix><fim_suffix>")
            whole = rest + suffix
            assert any(whole in t for t in texts)
            cut = next(
                n for n in range(len(rest) + 1) if is_prompt(made, sample, rest[:n], suffix, heal)
            )
            assert rest[:cut] + rest[cut:] == rest
        else:
            head, middle = text.removesuffix("<|endoftext|>").split("<fim_middle>")
            prefix, suffix = head.removeprefix("<fim_prefix>").split("<fim_suffix>")
            assert any(prefix + middle + suffix in t for t in texts)


def is_prompt(made: SampleStream, sample: list[int], prefix: str, suffix: str, heal: float) -> bool:
    context = CursorContext(prefix, suffix, None, "python", (), None)
    prompt = build_prompt(context, made.sentinels, made.tokenizer, "spm", heal=bool(heal))
    return tuple(sample[: len(prompt.ids)]) == prompt.ids


def test_middles_of_syntax_nodes_are_whole_nodes(data: Path) -> None:
    made = stream(data, Recipe(1.0, 0.0, 1.0, 0.0, 0.0), context=400)
    made.documents = [Row("p", f"{i}.py", TEXT) for i in range(60)]
    middles = {
        made.tokenizer.decode(s).split("<fim_middle>")[1].removesuffix("<|endoftext|>")
        for s in samples(made)
    }
    assert middles >= {"return value + value", "value"}
    nodes = {TEXT[a:b] for a, b in SyntaxSpans(TEXT).nodes}
    assert len(middles & nodes) >= 5  # the rest: a random place between functions is in no node


def test_repository_context_names_other_files_of_the_same_package(data: Path) -> None:
    made = stream(data, Recipe(1.0, 1.0, 0.0, 1.0, 0.0), context=400)
    packages = {d.path: d.package for d in made.documents}
    named = [t for s in samples(made) if (t := made.tokenizer.decode(s)).startswith("<repo_name>")]
    assert named
    for text in named:
        repository, *files = text.split("<fim_prefix>")[0].split("<file_sep>")
        package = repository.removeprefix("<repo_name>")
        assert files[-1] == ""  # the mark before the cursor's own file
        assert [packages[f.split("\n")[0]] for f in files[:-1]] == [package] * (len(files) - 1)


def test_a_sentinel_written_in_code_is_text(data: Path) -> None:
    made = stream(data, Recipe(0.0, 0.0, 0.0, 0.0, 0.0), context=400)
    made.documents = [Row("p", "a.py", 'MARK = "<fim_middle>"\n')]
    (sample,) = samples(made)
    assert made.sentinels.middle not in sample


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ('{"package": "p"}\n', "line 1, is no row"), ("{\n", "line 1, is no row")],
)
def test_a_broken_corpus_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(SystemExit, match=message):
        read_documents(tmp_path / "train.jsonl")
    with pytest.raises(SystemExit, match="make corpus"):
        read_documents(tmp_path / "absent.jsonl")


def test_a_rate_beyond_one_is_refused() -> None:
    with pytest.raises(SystemExit, match="spm_rate is 50"):
        Recipe(0.8, 50, 0.5, 0.5, 0.5)


def test_every_character_is_trained_on(data: Path) -> None:
    made = stream(data, Recipe(0.0, 0.0, 0.0, 0.0, 0.0))
    found = sum(
        len(made.tokenizer.decode(s[:-1]))
        for pool in range(made.pools)
        for s in samples(made, pool)
    )
    assert found == sum(len(d.text) for d in made.documents)
    assert torch.tensor(made.make_pool(0)[0].astype(int)).max() < 320
    assert TEXT in {d.text for d in made.documents}
