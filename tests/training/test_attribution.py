"""The attribution filter, from a corpus to what is found with it."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from benchmarks import attribution as benchmark
from fim.attribution import GRAM, Attribution, AttributionError, Match, grams, normalized
from tests.corpora import code, write_corpus
from training import attribution
from training.attribution import build, grams_of, layout, slots_of, solve

SMALL = 22_000  # bytes: room for some 670 grams


def found(filter_: Attribution, text: str) -> set[str]:
    """The packages named for a text, half of it suggested."""
    match = filter_.find(text[: len(text) // 2], text[len(text) // 2 :])
    return set() if match is None else {source.package for source in match.sources}


def passage(text: str, filter_: Attribution, at: int = 0) -> str:
    """The first of the stated length from there on; one that begins or ends with a blank is
    shorter."""
    text = normalized(text)
    spans = (text[start : start + filter_.surely_found] for start in range(at, len(text)))
    return next(span for span in spans if span == span.strip())


@pytest.fixture(scope="module")
def files() -> dict[str, list[str]]:
    return {
        package: [code(f"{package} {n}") for n in range(4)] for package in ("one", "two", "three")
    }


@pytest.fixture(scope="module")
def filter_(files: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Attribution:
    return Attribution(build(write_corpus(tmp_path_factory.mktemp("corpus"), files), SMALL))


def test_every_passage_of_the_stated_length_is_found_and_its_package_named(
    files: dict[str, list[str]], filter_: Attribution
) -> None:
    length, passages = filter_.surely_found, 0
    assert (
        2 * GRAM < length < 400
    )  # the filter was too small for every gram, and yet holds enough of them
    for package, texts in files.items():
        for text in map(normalized, texts):
            for start in range(len(text) - length + 1):
                span = text[start : start + length]
                if span == span.strip():  # or it is a shorter one
                    passages += 1
                    assert package in found(filter_, span), (package, start)
    assert passages > 10_000


def test_layout_does_not_matter(files: dict[str, list[str]], filter_: Attribution) -> None:
    span = passage(files["two"][1], filter_, 500)
    assert found(filter_, span.replace(" ", "\r\n\t\t\t  ")) == {"two"}
    assert found(filter_, span.replace("e", "a").replace("t", "d")) == set()


def test_what_nobody_wrote_is_not_found(filter_: Attribution) -> None:
    text = normalized(code("of nobody", 4000))
    spans = [text[at : at + filter_.surely_found] for at in range(0, len(text) - 400, 200)]
    assert len(spans) > 500
    assert sum(bool(found(filter_, span)) for span in spans) <= len(spans) // 100


def test_a_passage_of_two_packages_names_both_and_is_stored_once(
    tmp_path: Path, files: dict[str, list[str]]
) -> None:
    alone = Attribution(build(write_corpus(tmp_path, files), SMALL))
    shared = Attribution(build(write_corpus(tmp_path, files | {"four": files["one"][:1]}), SMALL))
    assert found(shared, passage(files["one"][0], shared, 300)) == {"one", "four"}
    assert (shared.grams, shared.stride) == (alone.grams, alone.stride)


def test_what_many_packages_have_and_what_has_no_words_is_not_stored(
    tmp_path: Path, files: dict[str, list[str]]
) -> None:
    notice, table = code("notice", 12), "# " + "-" * 60 + "\n" + "0.0, 0.0, " * 60 + "\n"
    more = {f"p{n}": [notice + code(n), table + code(-n)] for n in range(4)}
    filter_ = Attribution(build(write_corpus(tmp_path, files | more), 24_000))
    assert found(filter_, passage(notice, filter_, 100)) == set()
    assert found(filter_, passage(table, filter_)) == set()
    assert found(filter_, passage(code(2), filter_)) == {"p2"}


def test_the_same_corpus_gives_the_same_bytes(tmp_path: Path, files: dict[str, list[str]]) -> None:
    data = write_corpus(tmp_path, files)
    content = build(data, SMALL)
    assert content == build(data, SMALL)
    assert len(content) <= SMALL


@hypothesis_settings(deadline=None, max_examples=200)
@given(st.text("ab_ \n\t#9é日🎉\ud800", max_size=200) | st.text(max_size=200))
def test_both_sides_see_the_same_grams(text: str) -> None:
    text += "telling words of " + code(1, 2) + text
    size, starts, hashes, _ = grams_of(text)
    assert size == len(normalized(text))
    ours = dict(zip(starts.tolist(), hashes.tolist(), strict=True))
    theirs = dict(grams(normalized(text)))
    assert ours
    assert ours == {start: theirs[start] for start in ours}


@pytest.mark.parametrize("count", [1, 2, 50, 5000])
def test_a_table_gives_every_value_back(count: int) -> None:
    rng = np.random.default_rng(count)
    keys = rng.integers(2**64, size=count, dtype=np.uint64)
    values = rng.integers(2**22, size=count).astype(np.uint32)
    segments, bits = layout(count)
    slots = slots_of(keys, segments, bits)
    table = solve(slots, values, (segments + 3) << bits)
    assert table is not None
    assert np.array_equal(np.bitwise_xor.reduce(table[slots], axis=1), values)


def test_a_table_that_is_too_full_is_told() -> None:
    slots = slots_of(np.arange(100, dtype=np.uint64), 1, 4)
    assert solve(slots, np.arange(100, dtype=np.uint32), 64) is None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: (data / "manifest.json").unlink(), "manifest.json cannot be read"),
        (
            lambda data: (data / "manifest.json").write_text('{"packages": {}}'),
            "does not describe the packages",
        ),
        (lambda data: (data / "train.jsonl").unlink(), "train.jsonl cannot be read"),
        (
            lambda data: (data / "train.jsonl").write_text('{"package": "one"}\n'),
            "line 1, is no row of a corpus",
        ),
        (lambda data: (data / "train.jsonl").write_text(""), "has no text"),
    ],
)
def test_a_broken_corpus_is_one_line_that_names_the_remedy(
    spoil,
    message: str,
    tmp_path: Path,
    files: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoil(write_corpus(tmp_path, files))
    monkeypatch.setattr(sys, "argv", ["attribution", str(tmp_path), str(tmp_path / "out.bin")])
    with pytest.raises(SystemExit) as ended:
        attribution.main()
    assert (
        message in str(ended.value)
        and "make corpus" in str(ended.value)
        and "\n" not in str(ended.value)
    )
    assert not (tmp_path / "out.bin").exists()


def run_benchmark(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["attribution", str(data), "--file", str(data / "filter.bin")])
    benchmark.main()


def test_the_benchmark_counts_what_is_found(
    tmp_path: Path,
    files: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_corpus(tmp_path, files)
    (data / "filter.bin").write_bytes(build(data, SMALL))
    with pytest.raises(
        SystemExit, match=r"test\.jsonl cannot be read \(No such file or directory\): make corpus"
    ):
        run_benchmark(data, monkeypatch)
    (data / "test.jsonl").write_text("")
    with pytest.raises(SystemExit, match=r"test\.jsonl is empty: make corpus"):
        run_benchmark(data, monkeypatch)
    (data / "test.jsonl").write_text(
        json.dumps({"package": "own", "path": "a.py", "text": code("of nobody")}) + "\n"
    )
    monkeypatch.setattr(benchmark, "LOOKS", 200)
    run_benchmark(data, monkeypatch)
    said = capsys.readouterr().out
    assert (
        "found, and the package named: 50 of 50, 100.0%" in said
        and "alarms: 0 of 1000, 0.0%" in said
    )


def test_more_packages_than_the_filter_tells_apart(tmp_path: Path) -> None:
    data = write_corpus(tmp_path, {f"p{n}": [code(n, 5)] for n in range(65)})
    with pytest.raises(AttributionError, match="65 packages"):
        build(data, SMALL)


def test_the_command_writes_a_file_that_loads(
    tmp_path: Path,
    files: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_corpus(tmp_path, files)
    monkeypatch.setattr(
        sys,
        "argv",
        ["attribution", str(tmp_path), str(tmp_path / "out.bin"), "--bytes", str(SMALL)],
    )
    attribution.main()
    filter_ = Attribution((tmp_path / "out.bin").read_bytes())
    assert (
        f"a passage of {filter_.surely_found} normalized characters is surely found"
        in capsys.readouterr().out
    )
    text = normalized(files["one"][2])
    match = filter_.find(text[:400], text[400:500])
    assert isinstance(match, Match) and match.sources[0].licence == "MIT"
    described = json.loads((tmp_path / "manifest.json").read_text())["packages"]["one"]
    assert described["version"] == match.sources[0].version


def test_sets_that_are_too_many_still_name_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution, "SET_BITS", 2)
    rng = random.Random(0)
    texts = [code(n, 20) for n in range(12)]
    packages = {
        name: [t for t in texts if rng.random() < 0.6] + [code(name)]
        for name in ("one", "two", "three")
    }
    filter_ = Attribution(build(write_corpus(tmp_path, packages), SMALL))
    for name, owned in packages.items():
        for text in owned:
            holders = {n for n, others in packages.items() if text in others}
            names = found(filter_, passage(text, filter_))
            assert names and names <= holders, name
