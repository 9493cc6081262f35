import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fim import FORMATS, Shaper
from fim.editing.targets import Kind, target_at
from tests.fim.test_postprocess import CODE
from tests.fim.toys import context_at


def check(text: str, answer: str, expected: str, *reasons: str, **rules: object) -> None:
    """What is made of `answer` at ‸ as a span, and the filters that fired."""
    shaper = Shaper.for_span(context_at(text), FORMATS["starcoder2"], **rules)  # type: ignore[arg-type]
    found = shaper.shape(answer)
    assert (found.text, found.reasons, found.replace) == (expected, reasons, (0, 0))
    assert found.hidden == (found.text == "")


@pytest.mark.parametrize(
    ("text", "answer", "expected", "reasons"),
    [
        # neither a line's end nor a dedent ends it
        ("x = ‸\ny\n", "1\nz = 2", "1\nz = 2", []),
        ("    ‸\n", "a\nb\n", "a\nb", []),
        ("f() {\n    ‸\n}\n", "a;\n\n\n    b;", "a;\n\n\n    b;", []),
        # a run of blank lines, repeats, loops
        ("‸", "a\n\n\n\nb", "a", ["blank lines"]),
        ("‸\n\n  b\n", "a\n  b\nc", "a", ["repeats below"]),
        ("f() {\n  ‸\n}\n", "a;\n}\n\ng() {", "a;", ["repeats below"]),
        ("‸", "a\nb\nb\nb\nb\n", "a\nb", ["loops"]),
        ("‸", "a {\n      }\n    }\n  }\n}", "a {\n      }\n    }\n  }\n}", []),
        ("‸", "x = 1\ny = f(" + "self.aa, " * 4, "x = 1", ["loops"]),
        (
            "‸",
            "".join(f"x{i}\n" for i in range(70)),
            "\n".join(f"x{i}" for i in range(64)),
            ["too long"],
        ),
        # characters
        ("‸", "a<fim_middle>b", "a", ["sentinel"]),
        ("‸", "a\u202eb", "a", ["strange character"]),
        ("‸", "a\ufffdbc", "a", ["half character"]),
        ("‸", "\n", "", ["blank"]),
        ("a\r\n‸\r\n", "b\nc", "b\r\nc", []),
        # what stands right of the cursor stays
        ("f(‸)\n", "x,\n  y)", "x,\n  y", ["repeats right"]),
        ("f(‸)\n", "x);\ny()", "x", ["repeats right"]),
        ("f(‸)\n", "g(x),\n  y", "g(x),\n  y", []),
        ("x = {‸}", "\n    a: 1,\n}", "\n    a: 1,\n", ["repeats right"]),
    ],
)
def test_span(text: str, answer: str, expected: str, reasons: list[str]) -> None:
    check(text, answer, expected, *reasons)


def test_the_body_ends_before_a_line_that_is_indented_less() -> None:
    check("def f():\n    ‸", "a\n\ndef g():\n    b", "a", "end of span", least_columns=4)
    check(
        "def f():\n    ‸", "if a:\n        b\n    c\n", "if a:\n        b\n    c", least_columns=4
    )
    check("f() {\n\t‸\n};\n", "a;\n}\n", "a;", "end of span", least_columns=4)
    check("def f():\n\t‸\n\nb\n", "a\n\tc\n", "a\n\tc", least_columns=4)


def test_the_closing_mark_ends_it() -> None:
    check(
        '    """‸"""\n    a\n',
        'Do.\n\n    More.\n    """\n    b',
        "Do.\n\n    More.\n    ",
        "end of span",
        closing='"""',
    )
    check("/**\n * ‸\n */\nf()", "Do. */ f()", "Do.", "end of span", closing="*/")


def test_one_line_and_how_many() -> None:
    check("x = ‸ + 1\n", "1\ny", "1", "end of line", extent="line")
    check("f(‸);\n", "x); // y", "x", "repeats right", extent="line")
    check("‸", "a\nb\nc\n", "a\nb", "too long", max_lines=2)


@pytest.mark.parametrize(
    ("language", "kind", "marked", "answer", "expected"),
    [
        (
            "python",
            "body",
            "def f():‸\n\nx = 1\n",
            "return 1\n\ndef g():\n",
            "def f():\n    return 1\n\nx = 1\n",
        ),
        (
            "go",
            "body",
            "func f() {‸}\n",
            "a()\n\tb()\n}\n\nfunc g",
            "func f() {\n\ta()\n\tb()\n}\n",
        ),
        ("c", "body", "int f() { return ‸1; }\n", "return 2; }\nint g", "int f() { return 2; }\n"),
        (
            "python",
            "docstring",
            "def f():‸\n    a\n",
            'Do."""\n    a\n',
            'def f():\n    """Do."""\n    a\n',
        ),
        (
            "java",
            "docstring",
            "void f() {‸}\n",
            "Do.\n * It.\n */\nvoid",
            "/**\n * Do.\n * It.\n */\nvoid f() {}\n",
        ),
        (
            "rust",
            "docstring",
            "fn f() {‸}\n",
            "Do.\n/// It.\nfn f() {}\n",
            "/// Do.\n/// It.\nfn f() {}\n",
        ),
    ],
)
def test_a_target_and_its_span(
    language: str, kind: Kind, marked: str, answer: str, expected: str
) -> None:
    before, after = marked.split("‸")
    text = before + after
    target = target_at(text, language, len(before), len(before), kind)
    assert target
    prefix, suffix = text[: target.start] + target.lead, target.tail + text[target.end :]
    shaper = Shaper.for_span(
        context_at(f"{prefix}‸{suffix}"),
        extent=target.extent,
        max_lines=target.max_lines,
        least_columns=target.least_columns,
        closing=target.closing,
    )
    assert (
        text[: target.start] + target.fit(shaper.shape(answer).text) + text[target.end :]
        == expected
    )


@pytest.mark.parametrize(
    ("answer", "until_done"),
    [
        ("a\n  b\nc", "a\n  b\nc"),
        ("a\n  end", None),
        ("a*/", "a*/"),
        ("a\n\n\n\nb", "a\n\n\n\n"),
        ("a\n\n\n", None),
    ],
)
def test_done(answer: str, until_done: str | None) -> None:
    shaper = Shaper.for_span(context_at("  ‸"), least_columns=2, closing="*/")
    done = [answer[:end] for end in range(len(answer) + 1) if shaper.done(answer[:end])]
    assert (done[0] if done else None) == until_done


@settings(max_examples=150, deadline=None)
@given(CODE, CODE, CODE, CODE, st.sampled_from([0, 2, 4]), st.sampled_from(["", '"', "}"]))
def test_a_span_is_sound(
    prefix: str, suffix: str, answer: str, more: str, least: int, closing: str
) -> None:
    context = context_at(f"{prefix}‸{suffix}")
    shaper = Shaper.for_span(
        context, FORMATS["starcoder2"], max_lines=5, least_columns=least, closing=closing
    )
    found = shaper.shape(answer)
    assert found.replace == (0, 0)
    assert answer.replace("\r\n", "\n").startswith(found.text.replace("\r\n", "\n"))
    assert not closing or closing not in found.text
    text = answer + more
    ends = [end for end in range(len(text) + 1) if shaper.done(text[:end])]
    if ends:
        assert ends == list(range(ends[0], len(text) + 1))
        assert all(shaper.shape(text[:end]) == shaper.shape(text) for end in ends)
