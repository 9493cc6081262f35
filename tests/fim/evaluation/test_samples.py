"""What is taken out of files, how answers are judged, and the baseline that copies: the base of
`fimls eval`."""

from __future__ import annotations

import pytest

from fim.evaluation.samples import LONGEST, TASKS, Sample, Task, draw
from fim.evaluation.scoring import (
    Share,
    calibration_error,
    copy_baseline,
    doubles_bracket,
    doubles_line,
    edit_distance,
    is_same,
    parses,
    reliability,
    right_and_wrong,
    similarity,
)

CODE = (
    "import os\n\n\ndef f{0}(a):\n    # a comment\n    if a:\n        return a + {0}\n    "
    "return None\n"
)
TOY: dict[str, list[tuple[str, str]]] = {
    "big": [(f"big/{i}.py", CODE.format(i)) for i in range(9)],
    "small": [("small/x.py", "value = 1\nother = value\n\nthird = other\n")],
}

# What benchmarks/quality.py, which made the figures before `fimls eval`, drew of these files.
AS_EVER: dict[Task, list[tuple[str, int, str]]] = {
    "line": [
        ("small/x.py", 0, "value = 1"),
        ("big/8.py", 43, "if a:"),
        ("big/5.py", 0, "import os"),
        ("big/1.py", 43, "if a:"),
        ("small/x.py", 0, "value = 1"),
        ("small/x.py", 10, "other = value"),
    ],
    "column": [
        ("big/6.py", 67, " 6"),
        ("big/0.py", 59, "turn a + 0"),
        ("small/x.py", 26, "hird = other"),
        ("small/x.py", 7, " 1"),
        ("small/x.py", 7, " 1"),
        ("big/4.py", 75, "eturn None"),
    ],
}


@pytest.mark.parametrize("task", AS_EVER)
def test_the_samples_of_one_line_are_those_of_earlier_figures(task: Task) -> None:
    assert [(s.path, len(s.prefix), s.middle) for s in draw(TOY, task, 6, seed=0)] == AS_EVER[task]


@pytest.mark.parametrize("task", TASKS)
def test_samples_are_whole_files_and_every_package_counts_alike(task: Task) -> None:
    texts = {path: text for files in TOY.values() for path, text in files}
    samples = draw(TOY, task, 400, seed=0)
    assert all(
        s.prefix + s.middle + s.suffix == texts[s.path] and s.middle.strip() for s in samples
    )
    assert samples == draw(TOY, task, 400, seed=0) != draw(TOY, task, 400, seed=1)
    assert samples[:100] == draw(TOY, task, 100, seed=0)
    if task in ("line", "column"):
        assert 150 < sum(s.package == "big" for s in samples) < 250


def test_spans_of_several_lines() -> None:
    samples = draw(
        {"p": [("a.py", (CODE * 20).replace("None", "None or " + "x" * 90))]},
        "multi-line",
        300,
        seed=0,
    )
    assert {s.middle.count("\n") + 1 for s in samples} == {2, 3, 4, 5, 6}
    assert 150 < max(len(s.middle) for s in samples) <= LONGEST
    for s in samples:
        assert not s.prefix.rpartition("\n")[2].strip() and s.suffix.startswith("\n")
        assert all(line.strip() for line in (s.middle.split("\n")[0], s.middle.split("\n")[-1]))
    assert all(len(s.middle) <= 180 for s in draw(TOY, "random-span", 300, seed=0))


@pytest.mark.parametrize("text", ["", "\n \n", "# nothing\n# but comments\n"])
def test_files_without_a_place_are_told(text: str) -> None:
    with pytest.raises(ValueError, match="no place for the task 'line'"):
        draw({"p": [("a.py", text)]}, "line", 3, seed=0)


BASELINE: list[
    tuple[str, str, str, str]
] = [  # prefix, suffix, copy to the line's end, copy of several lines
    ("", "\nfoo", "", ""),
    ("q", "\nqq", "", ""),  # a match has two characters
    ("x = load(path)\ny = lo", "\n", "ad(path)", "ad(path)"),
    ("y = lo", "\nx = load(path)\nz\n", "ad(path)", "ad(path)"),  # found below
    ("aload(1)\nload(2)\n lo", "\n", "ad(2)", "ad(2)"),  # of two as long the lower one
    ("if a:\n    b()\n    c()\nend\nif a", "\nend\n", ":", ":\n    b()\n    c()\n"),
    ("f(a, b)\nf(", ")\n", "a, b)", "a, b"),  # what stands right of the cursor is not copied
    ("ab\nab", "\nzz", "", ""),  # the line that follows is empty
    ("bc" + "-" * 8000 + "bc", "", "", ""),  # further away than the baseline looks
]


@pytest.mark.parametrize(("prefix", "suffix", "line", "lines"), BASELINE)
def test_the_copy_baseline(prefix: str, suffix: str, line: str, lines: str) -> None:
    sample = Sample("p", "a.py", prefix, "?", suffix)
    assert (copy_baseline(sample, one_line=True), copy_baseline(sample, one_line=False)) == (
        line,
        lines,
    )


def test_wilsons_interval() -> None:
    # Brown, Cai, DasGupta 2001 give the formula; the figures are those of statsmodels'
    # proportion_confint.
    assert Share(0, 10).interval == pytest.approx((0.0, 0.27754), abs=1e-4)
    assert Share(5, 10).interval == pytest.approx((0.23659, 0.76341), abs=1e-4)
    assert Share(300, 300).interval == pytest.approx((0.98736, 1.0), abs=1e-4)
    assert Share(0, 0).interval is None and Share(0, 0).value is None


DISTANCES = [
    ("", "", 0),
    ("", "abc", 3),
    ("kitten", "sitting", 3),
    ("flaw", "lawn", 2),
    ("é😀", "e😀", 1),
]


@pytest.mark.parametrize(("a", "b", "distance"), DISTANCES)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


SAME = [  # middle, suffix, text, replaced; whether it is the author's, and how near
    ("x)", "\ny", "x)  ", 0, True, 1.0),
    ("x)", "\ny", "x", 0, False, 0.5),
    ("x", ")\n", "x ", 0, False, 1.0),  # in front of more code a blank counts
    ("x", ")\n", "x)", 1, True, 1.0),  # the closer on the right is replaced by its like
    ("x", ")\n", "x)", 0, False, 0.5),
    ("a\n", "b", "a", 0, False, 1.0),  # the line's end is missing
    ("abcd", "", "", 0, False, 0.0),
    ("  ", "\n", "", 0, True, 1.0),
]


@pytest.mark.parametrize(("middle", "suffix", "text", "replaced", "same", "near"), SAME)
def test_likeness(
    middle: str, suffix: str, text: str, replaced: int, same: bool, near: float
) -> None:
    sample = Sample("p", "a.py", "", middle, suffix)
    assert is_same(sample, text, replaced) is same
    assert similarity(sample, text, replaced) == near


@pytest.mark.parametrize(
    ("middle", "suffix", "text", "replaced", "right", "wrong"),
    [
        ("abc", "\n", "abc", 0, 3, 0),
        ("abc", "\n", "abd", 0, 2, 1),
        ("abc", "\n", "abcd\n", 0, 3, 2),
        ("x", ")\n", "x)", 1, 1, 0),  # the bracket takes the place of its like
        ("x", ")\n", "x)", 0, 1, 1),
        ("x", ")\n", "y)", 1, 0, 2),
        ("abc", "", "", 0, 0, 0),
    ],
)
def test_right_and_wrong_characters(
    middle: str, suffix: str, text: str, replaced: int, right: int, wrong: int
) -> None:
    sample = Sample("p", "a.py", "", middle, suffix)
    assert right_and_wrong(sample, text, replaced) == (right, wrong)


@pytest.mark.parametrize(
    ("prefix", "middle", "suffix", "text", "doubled"),
    [
        ("a\n", "b", "\n\n  c\n", "c", False),  # indented differently: another line
        ("a\n", "b", "\n\nc\n", "c", True),
        ("a\n", "b", "\n\nc\n", "b\nc", True),
        ("c", "", "\nc\n", "", False),  # so it is in the author's file
        ("f(", "", "\n}\n", "\n}", False),  # brackets are counted apart
        ("ret", "urn a", "\nreturn x\n", "urn x", True),
    ],
)
def test_a_line_that_stands_twice(
    prefix: str, middle: str, suffix: str, text: str, doubled: bool
) -> None:
    assert doubles_line(Sample("p", "a.py", prefix, middle, suffix), text) is doubled


@pytest.mark.parametrize(
    ("prefix", "middle", "suffix", "text", "doubled"),
    [
        ("f(", "a", ")\n", "a)", True),
        ("f(", "a", ")\n", "g(a)", False),
        ("f(", "a", ") }\n", "b", False),  # one too many is the author's
        ("if (x) {\n", "a;", "\n}\n", "b;\n}", True),
    ],
)
def test_a_bracket_too_many(
    prefix: str, middle: str, suffix: str, text: str, doubled: bool
) -> None:
    assert doubles_bracket(Sample("p", "a.py", prefix, middle, suffix), text) is doubled


def test_calibration() -> None:
    bins = reliability([(1.0, True), (0.95, False), (0.31, False), (0.39, True), (0.0, False)])
    assert [(each.right.hits, each.right.count) for each in bins] == [(0, 1), (1, 2), (1, 2)]
    assert bins[-1].confidence == pytest.approx(0.975)
    assert calibration_error(bins) == pytest.approx((0 + abs(0.7 - 1) + abs(1.95 - 1)) / 5)
    assert calibration_error([]) == 0


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("x = 1\n", True),
        ("x = '\\d'\n", True),
        ("1 is 1", True),
        ("x = (", False),
        ("\0", False),
        ("\ud800", False),
    ],
)
def test_what_parses(text: str, good: bool) -> None:
    assert parses(text) is good
