import math
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fim import FILTERS, FORMATS, Extent, Multiline, Shaper, Suggestion, Sureness, extent_at
from fim.characters import STRANGE, escaped
from tests.fim.toys import context_at


def check(
    text: str, answer: str, expected: str, *reasons: str, multiline: Multiline = "auto"
) -> Suggestion:
    """The text after accepting what is made of `answer` at ‸, and the filters that fired."""
    context = context_at(text)
    shaper = Shaper.at(context, FORMATS["starcoder2"], multiline=multiline)
    found = shaper.shape(answer)
    start, end = found.replace
    assert start == 0
    assert context.prefix + found.text + context.suffix[end:] == expected
    assert found.reasons == reasons
    assert found.hidden == (found.text == "")
    return found


HIDDEN = (
    "\u3164\u115f\u1160\uffa0\u034f\u17b4\u2800\ue000\ufe00\ufe0f\U000e0100\U000f0000\xa0\u2007"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("‸", "block"),
        ("    ‸", "block"),
        ("x = ‸", "line"),
        ("x = ‸\ny", "line"),
        ("x = ‸ + 1", "line"),
        ("    ‸x = 1", "line"),
        ("    ‸}", "block"),
        ("def f(x):‸", "block"),
        ("def f(x): ‸\n", "block"),
        (") -> int:‸", "block"),
        ("else:‸", "block"),
        ("x:‸", "line"),
        ('"key":‸', "line"),
        ("int main() {‸", "block"),
        ("int main() {‸}", "block"),
        ("f(‸", "block"),
        ("f(‸)", "line"),
        ("f(a, ‸);", "line"),
        ("x.map(y =>‸", "block"),
        ("if x then‸", "block"),
        ("undo‸", "line"),
    ],
)
def test_extent(text: str, expected: Extent) -> None:
    assert extent_at(context_at(text)) == expected
    assert extent_at(context_at(text), multiline="always") == "block"
    assert extent_at(context_at(text), multiline="never") == "line"


@pytest.mark.parametrize(
    ("text", "answer", "expected", "reasons"),
    [
        ("x = ‸", "1", "x = 1", []),
        ("x = ‸", "1  ", "x = 1", []),
        ("x = ‸", "1\ny = 2", "x = 1", ["end of line"]),
        ("x = 1‸", "\ny = 2", "x = 1", ["end of line", "blank"]),
        ("x = ‸", "", "x = ", ["blank"]),
        ("x = ‸", " \t", "x = ", ["blank"]),
        # a blank that parts two words stays
        ("x = ‸if y else z", "a ", "x = a if y else z", []),
        # the rest of the line is not written again
        ("f(‸)", "x)", "f(x)", ["repeats right"]),
        ("f(‸)", "g(x)", "f(g(x))", []),
        ("f(‸)", "g(x))", "f(g(x))", ["repeats right"]),
        ("f(‸);", "x);\n", "f(x);", ["end of line", "repeats right"]),
        ("f(‸)", "x);", "f(x);", ["replaces right"]),
        ("f(‸)", "x)[0](y)", "f(x)[0](y)", ["repeats right"]),
        ('f("‸")', 'a")', 'f("a")', ["repeats right"]),
        ('f("‸")', 'a", x)', 'f("a", x)', ["replaces right"]),
        ('f("‸")', 'a", x', 'f("a", x)', ["replaces right"]),
        ('f("‸")', "a (b)", 'f("a (b)")', []),
        ("f(‸)", '")"', 'f(")")', []),
        ("f(‸)", r'"\""', r'f("\"")', []),
        ("f(‸)", r"'\')'", r"f('\')')", []),
        ("f([‸])", "x]", "f([x])", ["repeats right"]),
        ('"""‸"""', 'Doc."""', '"""Doc."""', ["repeats right"]),
        ("f(‸, b)", "a, b)", "f(a, b)", ["repeats right"]),
        ("f(‸x)", "a, x", "f(a, x)", ["repeats right"]),
        ("x = ‸ + y", "a + y", "x = a + y", ["repeats right"]),
        ("f(‸)", ")", "f()", ["repeats right", "blank"]),
        ("range(1‸0)", "20", "range(1200)", []),
        ("def f(‸)", "x):\n    pass", "def f(x):", ["end of line", "replaces right"]),
    ],
)
def test_line(text: str, answer: str, expected: str, reasons: list[str]) -> None:
    check(text, answer, expected, *reasons)


@pytest.mark.parametrize(
    ("text", "answer", "expected", "reasons"),
    [
        # the end of a block
        ("def f():‸", "\n    a\n    b\n\ndef g():\n", "def f():\n    a\n    b", ["end of block"]),
        ("def f():\n    ‸", "a\n    b\nc\n", "def f():\n    a\n    b", ["end of block"]),
        ("def f():\n‸", "    a\n    b\nc\n", "def f():\n    a\n    b", ["end of block"]),
        ("def f():\n    ‸", "if a:\n        b\n    c", "def f():\n    if a:\n        b\n    c", []),
        ("if a:‸", "\nb\n", "if a:", ["end of block", "blank"]),
        ("‸", "a\n\nb\n\n\nc\n", "a\n\nb", ["blank lines"]),
        ("‸", "\n\na", "", ["blank lines", "blank"]),
        ("f() {‸", "\n\ta;\n}\ng();\n", "f() {\n\ta;\n}", ["end of block"]),
        ("f() {\n\t‸", "a;\n}\ng();\n", "f() {\n\ta;\n}", ["end of block"]),
        (
            "if (a) {‸",
            "\n  b;\n} else {\n  c;\n}\n",
            "if (a) {\n  b;\n} else {\n  c;\n}",
            ["end of block"],
        ),
        ("f() {\n  ‸\n}\n", "a;\n}\n", "f() {\n  a;\n}\n", ["closed below"]),
        ("f() {‸\n  b;\n}\n", "\n  a;\n}\n", "f() {\n  a;\n  b;\n}\n", ["closed below"]),
        ("def f():\n    ‸", "a\ndone_it = 1", "def f():\n    a", ["end of block"]),
        # what stands below is not repeated
        (
            "def f():\n    ‸\n    return x\n",
            "a\n    return x\n",
            "def f():\n    a\n    return x\n",
            ["repeats below"],
        ),
        (
            "def f():\n    ‸\n\n    return x",
            "a\n    return x",
            "def f():\n    a\n\n    return x",
            ["repeats below"],
        ),
        (
            "def f():\n‸\n    return x",
            "    return x",
            "def f():\n\n    return x",
            ["repeats below", "blank"],
        ),
        ("    ‸\n    x", "if a:\n        x\n    b", "    if a:\n        x\n    b\n    x", []),
        # a bracket right of the cursor moves with the block
        ("x = {‸}", "\n    a: 1,\n}", "x = {\n    a: 1,\n}", ["replaces right"]),
        ("x = {‸}", "\n    a: 1,\n", "x = {\n    a: 1,\n}", []),
        (
            "x = {‸};",
            "\n    a: 1,\n};\n",
            "x = {\n    a: 1,\n};",
            ["end of block", "replaces right"],
        ),
        (
            "x = {‸}",
            "\n    # don't\n    a: 1,\n}",
            "x = {\n    # don't\n    a: 1,\n}",
            ["replaces right"],
        ),
        # loops
        ("‸", "a\nb\nb\nb\nb\n", "a\nb", ["loops"]),
        ("‸", "a\n\na\n\na\n\na\n", "a", ["loops"]),
        ("‸", "a\nb\nc\n" * 3, "a\nb\nc", ["loops"]),
        ("‸", "0\n" + "a\n\nb\n" * 3, "0\na\n\nb", ["loops"]),
        ("‸", "if a:\n    b\n" + "elif a:\n    b\n" * 3, "if a:\n    b", ["loops"]),
        ("‸", "(\n)\n" * 3 + "a", "(\n)\n(\n)\n(\n)\na", []),
        ("‸", "a\nb\na\nb\na\nc", "a\nb\na\nb\na\nc", []),
        # a line that loops inside
        ("f(‸", "a=self.a, " * 9, "f(", ["loops", "blank"]),
        ("‸", "x = 1\ny = f(" + "self.aa, " * 4, "x = 1", ["loops"]),
        ("x = [‸", "0, 0, 0, 0, 0, 0, 0, 0]", "x = [0, 0, 0, 0, 0, 0, 0, 0]", []),
        ("# ‸", "-" * 60, "# " + "-" * 60, []),
        (
            "‸",
            "".join(f"x{i}\n" for i in range(40)),
            "\n".join(f"x{i}" for i in range(32)),
            ["too long"],
        ),
    ],
)
def test_block(text: str, answer: str, expected: str, reasons: list[str]) -> None:
    check(text, answer, expected, *reasons)


@pytest.mark.parametrize(
    ("text", "answer", "expected", "reasons"),
    [
        ("x = ‸", "1<fim_middle>2", "x = 1", ["sentinel"]),
        ("x = ‸", "<|endoftext|>", "x = ", ["sentinel", "blank"]),
        ("'<fim_middle>'\nx = ‸", "'<fim_middle>'", "'<fim_middle>'\nx = '<fim_middle>'", []),
        ("x = ‸", "1\u202e2", "x = 1", ["strange character"]),
        ("x = ‸", "\u200b1", "x = ", ["strange character", "blank"]),
        ("x = ‸", "1\x1b[31m", "x = 1", ["strange character"]),
        ("x = '\u200b'‸", " + '\u200b'", "x = '\u200b' + '\u200b'", []),
        ("x = ‸", "'é\ufffd", "x = 'é", ["half character"]),
        ("x = ‸", "'\ufffd' + 1", "x = '", ["half character"]),
        ("x = ‸", "'é\ufffd\u2060'", "x = 'é", ["strange character", "half character"]),
        # whatever the text has: a U+FFFD that the model means cannot be told from half a character
        ("'\ufffd'\nx = ‸", "'\ufffd'", "'\ufffd'\nx = '", ["half character"]),
        ("'\ufffd\ufffd'\nx = ‸", "'é\ufffd", "'\ufffd\ufffd'\nx = 'é", ["half character"]),
        ("# 😀\ufffd\nx = ‸", "\ufffd", "# 😀\ufffd\nx = ", ["half character", "blank"]),
        # more that cannot be seen
        *[("x = ‸", f"1{hidden}2", "x = 1", ["strange character"]) for hidden in HIDDEN],
        ("x = ‸", "'❤\ufe0f' + '©\ufe0e'", "x = '❤\ufe0f' + '©\ufe0e'", []),
        ("x = '\u3164'‸", " + '\u3164'", "x = '\u3164' + '\u3164'", []),
        # line ends as the file has them
        ("a\r\n‸", "b\nc", "a\r\nb\r\nc", []),
        ("‸\r\nx", "b\r\nc\r\n", "b\r\nc\r\nx", []),
        ("a\n‸", "b\r\nc", "a\nb\nc", []),
        ("f(‸)\r\nx", "y)", "f(y)\r\nx", ["repeats right"]),
        ("a\r\n‸\r\nx", "b\rc", "a\r\nb\r\nx", ["strange character"]),
    ],
)
def test_characters(text: str, answer: str, expected: str, reasons: list[str]) -> None:
    check(text, answer, expected, *reasons)


def test_what_cannot_be_seen() -> None:
    """All of Unicode's control, format, private and unpaired characters, and its blanks, but those
    that texts are full of and the signs of Arabic and Kaithi that stand around numbers."""
    seen = {*"\t\n \u3000", *map(chr, range(0x600, 0x606)), "\u06dd", "\U000110bd", "\U000110cd"}
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp", "Zs"):
            assert (STRANGE.fullmatch(chr(code)) is None) == (chr(code) in seen), hex(code)


def test_for_a_terminal() -> None:
    assert escaped("a\x1b[31m\u202eb\nc\td é 漢") == "a\\x1b[31m\\u202eb\nc\td é 漢"


def test_multiline_setting() -> None:
    check("def f():‸", "\n    a\n", "def f():", "end of line", "blank", multiline="never")
    check("x = ‸", "1\ny = 2\n", "x = 1\ny = 2", multiline="always")


@pytest.mark.parametrize(
    ("logprob", "confidence"),
    [(0.0, 1.0), (-0.6931471805599453, 0.5), (1e-9, 1.0), (float("nan"), 0.0)],
)
def test_confidence(logprob: float, confidence: float) -> None:
    found = Shaper.at(context_at("x = ‸")).shape("1", Sureness((1,), (logprob,)))
    assert found.confidence == pytest.approx(confidence)


@pytest.mark.parametrize(
    ("text", "answer", "until_done"),
    [
        ("x = ‸", "1\ny", "1\n"),
        ("x = ‸", "1<fim_middle>", "1<fim_middle>"),
        # A dedent shows with the first character of its line, unless that may close the block.
        ("def f():‸", "\n    a\n\ng()", "\n    a\n\ng"),
        ("f() {‸", "\n  a\n}\nb", "\n  a\n}\n"),
        ("if a then‸", "\n  b\nend\nc", "\n  b\nend\n"),
        ("if a then‸", "\n  b\nendless = 1\n", "\n  b\nendless = 1\n"),
        ("x = ‸", "'\ufffd", None),
        ("x = ‸", "1", None),
    ],
)
def test_done(text: str, answer: str, until_done: str | None) -> None:
    shaper = Shaper.at(context_at(text), FORMATS["starcoder2"])
    done = [answer[:end] for end in range(len(answer) + 1) if shaper.done(answer[:end])]
    assert (done[0] if done else None) == until_done


PIECES = st.sampled_from(
    [
        "a",
        "b",
        " ",
        "    ",
        "\n",
        "\n    ",
        "\r\n",
        "\r",
        "(",
        ")",
        "{",
        "}",
        "[",
        '"',
        "'",
        ":",
        ",",
        "def",
        "end",
        "return x",
        "\t",
        "\u200b",
        "\ufffd",
        "é",
        "<fim_middle>",
        "<",
        "else",
        "\\",
        "\n\n",
        "if a:",
        "} else {",
        "self.a, ",
        "self.a, self.a, self.a, ",
    ]
)
CODE = st.lists(PIECES, max_size=24).map("".join)
MULTILINE = st.sampled_from(["auto", "always", "never"])


@settings(max_examples=500, deadline=None)
@given(CODE, CODE, CODE, CODE, MULTILINE)
def test_once_done_more_text_changes_nothing(
    prefix: str, suffix: str, answer: str, more: str, multiline: Multiline
) -> None:
    shaper = Shaper.at(
        context_at(f"{prefix}‸{suffix}"), FORMATS["starcoder2"], multiline=multiline, max_lines=5
    )
    text = answer + more
    for end in range(len(text) + 1):
        if shaper.done(text[:end]):
            shaped = shaper.shape(text[:end])
            assert all(shaper.done(text[:longer]) for longer in range(end, len(text) + 1))
            assert all(
                shaper.shape(text[:longer]) == shaped for longer in range(end, len(text) + 1)
            )
            return


@settings(max_examples=500, deadline=None)
@given(CODE, CODE, CODE, MULTILINE)
def test_a_suggestion_is_sound(prefix: str, suffix: str, answer: str, multiline: Multiline) -> None:
    context = context_at(f"{prefix}‸{suffix}")
    shaper = Shaper.at(context, FORMATS["starcoder2"], multiline=multiline)
    found = shaper.shape(answer, Sureness((len(answer),), (-1.0,)))
    start, end = found.replace
    assert start == 0 <= end <= len(suffix)
    assert "\n" not in suffix[:end]
    assert found.hidden == (not found.text) == (not found.text.strip())
    assert 0 <= found.confidence <= 1
    # What is shown is what the model wrote, cut; nothing is made up but the file's indentation.
    shown = [line.lstrip() for line in found.text.split("\n")]
    written = [line.lstrip() for line in answer.replace("\r\n", "\n").split("\n")]
    assert "\n".join(written).startswith("\n".join(shown).replace("\r\n", "\n"))
    if "\u200b" not in prefix + suffix:
        assert "\u200b" not in found.text


@pytest.mark.parametrize(("logprob", "hidden"), [(-0.5, False), (-0.7, True)])
def test_what_the_model_is_not_sure_of_is_hidden(logprob: float, hidden: bool) -> None:
    found = Shaper.at(context_at("x = ‸"), min_confidence=0.55).shape(
        "1", Sureness((1,), (logprob,))
    )
    assert (found.hidden, found.text) == (hidden, "" if hidden else "1")
    assert found.reasons == (("unsure",) if hidden else ())


def sureness(*pieces: tuple[str, float]) -> tuple[str, Sureness]:
    """The text of pieces, and how sure a model was that gave each this probability."""
    text, logprob = "", 0.0
    ends, logprobs = [], []
    for piece, share in pieces:
        text += piece
        logprob += math.log(share)
        ends.append(len(text))
        logprobs.append(logprob)
    return text, Sureness(tuple(ends), tuple(logprobs))


@pytest.mark.parametrize(
    ("text", "pieces", "expected", "confidence"),
    [
        # The whole text, whole lines, or a part of the first one.
        ("x = ‸", (("first", 0.9), ("(a)", 0.9)), "first(a)", 0.81),
        ("if x:‸", (("\n    a = 1\n", 0.9), ("    b = 2\n", 0.5)), "\n    a = 1", 0.9),
        ("x = ‸", (("first", 0.9), ("(a", 0.9), (")", 0.5)), "first", 0.9),
        ("x = ‸", (("first", 0.9), (".second", 0.9), (" + 1", 0.5)), "first.second", 0.81),
        # Not within what the text itself has opened, nor within a word, nor for three letters.
        ("x = ‸", (("first(", 0.9), ("second", 0.9), (", c)", 0.5)), "first", 0.9),
        ("x = ‸", (("first['", 0.9), ("second", 0.9), ("']", 0.5)), "first", 0.9),
        ("x = ‸", (("first", 0.9), ("born", 0.5)), "", 0.45),
        ("x = ‸", (("abc", 0.9), (" + d", 0.5)), "", 0.45),
        # What was open before does not count.
        ("f('‸')", (("second ", 0.9), ("words", 0.9), (" more", 0.5)), "second words", 0.81),
        ("f(‸)", (("first", 0.9), (")", 0.9), (" + 1", 0.1)), "first", 0.81),
        # A piece that crosses the end of what is shown counts as a whole.
        ("x = ‸", (("first", 0.9), ("()\nfoo", 0.5)), "first", 0.9),
        # Behind the end that a rule finds nothing counts.
        ("x = ‸", (("first", 0.9), ("\n", 0.1)), "first", 0.9),
    ],
)
def test_the_sure_beginning_is_shown(
    text: str, pieces: tuple[tuple[str, float], ...], expected: str, confidence: float
) -> None:
    answer, sure = sureness(*pieces)
    shaper = Shaper.at(context_at(text), min_confidence=0.6)
    found = shaper.shape(answer, sure)
    assert (found.text, found.hidden) == (expected, not expected)
    assert found.confidence == pytest.approx(confidence)
    if sure.of(len(answer)) < 0.6:
        assert shaper.done(answer, sure)
    assert not Shaper.at(context_at(text)).shape(answer, sure).hidden  # whoever wants to see all


@settings(max_examples=300, deadline=None)
@given(CODE, CODE, st.lists(st.tuples(CODE, st.floats(0.3, 1.0)), max_size=6), MULTILINE)
def test_what_is_done_for_doubt_does_not_change(
    prefix: str, suffix: str, pieces: list[tuple[str, float]], multiline: Multiline
) -> None:
    shaper = Shaper.at(context_at(f"{prefix}‸{suffix}"), min_confidence=0.5, multiline=multiline)
    whole = shaper.shape(*sureness(*pieces))
    for count in range(len(pieces)):
        if shaper.done(*sureness(*pieces[:count])):
            assert shaper.shape(*sureness(*pieces[:count])).text == whole.text
            break


@pytest.mark.parametrize(
    ("name", "text", "answer", "expected"),
    [
        ("end-of-line", "x = ‸", "1\ny = 2", "1\ny = 2"),
        ("repeats-below", "‸\na\n", "b\na\nc", "b\na\nc"),
        ("fit-right", "f(‸)", "x)", "x)"),
    ],
)
def test_a_filter_that_is_switched_off(name: str, text: str, answer: str, expected: str) -> None:
    assert Shaper.at(context_at(text)).shape(answer).text != expected
    assert Shaper.at(context_at(text), off=frozenset({name})).shape(answer).text == expected
    assert len(set(FILTERS)) == len(FILTERS)
    with pytest.raises(ValueError, match=r"no filter is named end of line; there are sentinel, "):
        Shaper.at(context_at(text), off=frozenset({"end of line"}))
