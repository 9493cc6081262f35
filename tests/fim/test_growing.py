"""Prompts that only grow: whoever types through a file sends the model what was typed, and little
else."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fim
from fim import (
    LAYOUTS,
    CursorContext,
    Encoder,
    Layout,
    PieceEncoder,
    around_cursor,
    build_prompt,
    resolve,
    with_anchor,
)
from fim.anchor import MOST_TYPED
from fim.context import as_trained, without_surrogates
from model.tokenizer import Tokenizer
from model.weights.files import BUNDLED
from tests.fim.test_formats import vocabulary
from tests.fim.toys import CharacterEncoder

GROWING: tuple[Layout, ...] = ("spm", "anchored")
HEADER = 16  # what a prompt may have besides the windows
# All that GPT-2's pre-tokenization may read anew when something is added: the last word, number or
# run of marks, the blanks before it, and one more such run where blanks are the end.
OPEN_END = re.compile(r"\s*(?:[^\W\d_]+|\d|(?:[^\w\s]|_)+)?\s*\Z")

ENCODER = PieceEncoder(Tokenizer.from_file(BUNDLED / "tokenizer.json"))
SENTINELS = resolve(ENCODER, "starcoder2")
ROOM = Path(fim.__file__).parent
SOURCE = "\n\n".join(
    (ROOM / name).read_text(encoding="utf-8")
    for name in ("shaping/ends.py", "shaping/shaper.py", "prompt.py", "editing/outline.py")
)
# A passage that stays the same when the room's code does not: how many ids are lost while it is
# typed depends on its words.
TYPED = """\
    training.

    `layout` None is the family's preferred one. Snippets are written as files of the repository,
    where the family has a mark for files; elsewhere they are left out. The StarCoder2 paper §5 and
    the Qwen2.5-Coder report give the forms.

    heal leaves out the last piece of the prefix that a tokenizer would have joined with what
    follows it, and asks for an answer that begins with it (token healing: model.healing). While a
    word is typed, the ids stay the same. Behind an anchor only what was typed since is healed.

    Raises FormatError: a layout that the family ne"""


@dataclass
class Typist:
    """A document in an editor that asks after every change. Checks what is always true of a
    prompt."""

    text: str
    offset: int
    layout: Layout
    budget: int
    heal: bool = False
    encoder: Encoder = ENCODER
    sentinels: fim.Sentinels = SENTINELS
    context: CursorContext | None = None
    ids: tuple[int, ...] = ()
    moves: int = 0  # questions for which a window's edge or the anchor moved
    asked: int = 0
    lost: list[int] = field(
        default_factory=list
    )  # ids of the prompt before that are computed anew, unless it moved

    def ask(self) -> int | None:
        """The next question. How many ids of the one before are gone; None if an edge or the anchor
        moved."""
        text, offset, before, ids = self.text, self.offset, self.context, self.ids
        context = around_cursor(
            text, offset, encoder=self.encoder, token_budget=self.budget, previous=before
        )
        if self.layout == "anchored":
            context = with_anchor(context, before, self.encoder)
        prompt = build_prompt(context, self.sentinels, self.encoder, self.layout, heal=self.heal)
        # the windows are the text around the cursor
        assert context.prefix == without_surrogates(text[context.before : offset])
        assert context.suffix == without_surrogates(text[offset : len(text) - context.after])
        assert 0 <= context.typed <= len(context.prefix)
        # the budget is kept
        count = len(self.encoder.encode(as_trained(context.prefix))) + len(
            self.encoder.encode(as_trained(context.suffix))
        )
        assert count <= self.budget
        assert len(prompt.ids) <= self.budget + HEADER
        if self.asked % 8 == 0:  # all of it is in the prompt, with what is healed, once
            told = [
                self.encoder.decode(prompt.ids[slice(*part)])
                for part in (prompt.prefix, prompt.typed, prompt.suffix)
            ]
            assert told[0] + told[1] + prompt.begin_with == as_trained(context.prefix)
            assert told[2] == as_trained(context.suffix)
        self.context, self.ids, self.asked = context, prompt.ids, self.asked + 1
        if before is None:
            return None
        anchors = [
            len(c.prefix) - c.typed if self.layout == "anchored" else 0 for c in (context, before)
        ]
        if (
            context.before != before.before
            or context.after != before.after
            or anchors[0] != anchors[1]
        ):
            self.moves += 1
            return None
        self.lost.append(len(ids) - common(ids, prompt.ids))
        return self.lost[-1]

    def type(self, text: str) -> list[tuple[str, int | None]]:
        """Key by key; for each what stood before the cursor, and what `ask` said."""
        told = []
        for key in text:
            was = self.text[: self.offset]
            self.text = was + key + self.text[self.offset :]
            self.offset += 1
            told.append((was, self.ask()))
        return told

    def delete(self, count: int) -> None:
        """Key by key."""
        for _ in range(count):
            self.text = self.text[: self.offset - 1] + self.text[self.offset :]
            self.offset -= 1
            self.ask()


def common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def typist(
    layout: Layout, budget: int, *, heal: bool = False, cut: int = 600, source: str = SOURCE
) -> tuple[Typist, str]:
    """Someone in the middle of the source, and `cut` characters to type there in place of as many
    of its own."""
    at = source.index("\n", len(source) // 2) + 1
    one = Typist(source[:at] + source[at + cut :], at, layout, budget, heal)
    one.ask()
    typed = TYPED.replace("\n", "\r\n") if "\r\n" in source else TYPED
    return one, typed[:cut]


@pytest.mark.parametrize("heal", [False, True])
@pytest.mark.parametrize("budget", [600, 2048, 8192])
@pytest.mark.parametrize("layout", GROWING)
def test_typing_extends_the_prompt(layout: Layout, budget: int, heal: bool) -> None:
    one, text = typist(layout, budget, heal=heal, cut=600 if budget < 8192 else 200)
    for was, lost in one.type(text):
        if lost is not None and not heal:  # what cannot be read anew is still there
            closed = OPEN_END.sub("", was[-200:])
            assert lost <= len(ENCODER.encode(was[-200:][len(closed) :])) + 1
    tokens = len(ENCODER.encode(text))
    # Windows move once in an eighth of the budget, anchors after half of MOST_TYPED at the
    # earliest.
    assert one.moves <= tokens // (budget // 8) + 1 + (
        tokens // (MOST_TYPED // 2) if layout == "anchored" else 0
    )
    assert max(one.lost) <= 8
    assert sorted(one.lost)[len(one.lost) * 95 // 100] <= 2
    assert sum(one.lost) <= len(one.lost) * (0.1 if heal else 1)


def test_psm_keeps_its_prefix() -> None:
    one, text = typist("psm", 2048)
    one.type(text[:200])
    assert one.context is not None
    suffix = len(ENCODER.encode(one.context.suffix))
    assert one.moves == 0 and max(one.lost) <= suffix + 10


@pytest.mark.parametrize("layout", GROWING)
def test_deleting_and_typing_anew(layout: Layout) -> None:
    one, text = typist(layout, 2048, heal=True)
    line = text.index("\n", 200)
    one.type(text[:line])
    end, ids = one.asked, one.ids
    moves = one.moves
    one.delete(12)
    one.type(text[line - 12 : line])
    assert one.ids == ids and one.asked == end + 24
    assert one.moves == moves
    assert max(one.lost[-24:]) <= 12  # of what was deleted, a token a character at most


@pytest.mark.parametrize("layout", GROWING)
def test_a_suffix_of_4096_tokens_costs_nothing(layout: Layout) -> None:
    source = SOURCE * 4
    one, text = typist(layout, 16_384, source=source, cut=200)
    one.type(text)
    assert one.context is not None
    assert len(ENCODER.encode(one.context.suffix)) >= 3500
    assert one.moves <= (2 if layout == "anchored" else 0)
    assert sum(one.lost) <= len(one.lost)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_edits_elsewhere_leave_the_edges_where_they_are_in_the_text(layout: Layout) -> None:
    one, _ = typist(layout, 2048)
    first = one.context
    assert first is not None and first.before > 100 and first.after > 100
    one.text, one.offset = "# more\n" * 9 + one.text, one.offset + 63  # above
    one.ask()
    one.text += "# more\n" * 9  # below
    one.ask()
    assert one.context is not None and (one.context.prefix, one.context.suffix) == (
        first.prefix,
        first.suffix,
    )
    assert (one.context.before, one.context.after) == (first.before + 63, first.after + 63)


def test_a_short_jump_keeps_the_start_and_a_long_one_does_not() -> None:
    one, _ = typist("psm", 2048)
    start = one.context.before if one.context else 0
    one.offset = one.text.index("\n", one.offset + 300) + 1
    one.ask()
    assert one.context is not None and one.context.before == start
    one.offset = one.text.index("\n", start) + 1
    one.ask()
    assert one.context.before < start
    one.offset = len(one.text)
    one.ask()
    assert one.context.after == 0 and len(ENCODER.encode(one.context.prefix)) > 1024


@pytest.mark.parametrize("budget", [300, 2048])
def test_jumps_move_once(budget: int) -> None:
    one, _ = typist("anchored", budget)
    length = len(one.text)
    for number in range(60):
        one.offset = (
            (one.offset + number * 977) % (length + 1) if number % 10 else length - number // 2
        )
        one.ask()
        moved, there = one.moves, one.context
        one.ask()
        assert one.moves == moved and one.context == there


def test_what_is_lost_below_is_taken_from_above() -> None:
    one, _ = typist("spm", 2048)
    assert one.context is not None
    one.offset = one.context.before + len(one.context.prefix) * 6 // 10
    one.ask()
    one.text = one.text[: one.offset + 100]
    one.ask()
    there = one.context
    assert len(ENCODER.encode(there.prefix)) > 1024
    one.ask()
    assert one.context == there


def test_deleting_and_typing_at_the_edge_of_the_budget_moves_once() -> None:
    one, text = typist("spm", 600)
    text *= 2  # enough to move a window
    typed = 0
    while not one.moves:
        one.type(text[typed])
        typed += 1
    assert one.moves == 1
    for _ in range(5):
        one.delete(10)
        one.type(text[typed - 10 : typed])
    assert one.moves == 1


def test_the_top_of_a_file_gives_the_suffix_what_the_prefix_does_not_need() -> None:
    one = Typist(SOURCE, 0, "spm", 1024)
    one.ask()
    assert one.context is not None and len(ENCODER.encode(one.context.suffix)) > 700
    one.type(SOURCE[:3000])
    tokens = len(ENCODER.encode(SOURCE[:3000]))
    assert 1 <= one.moves <= tokens // 128 + 1


def test_the_anchor() -> None:
    def at(prefix: str, suffix: str, previous: CursorContext | None = None) -> CursorContext:
        return with_anchor(CursorContext(prefix, suffix), previous, CharacterEncoder())

    first = at("a\nbc", "\nd")
    assert first.typed == 2  # the line's beginning
    assert at("a\nbc + 1\n    x", "\nd", first).typed == 12
    assert at("a\n", "\nd", first).typed == 0
    assert at("a", "\nd", first).typed == 1  # behind the anchor nothing is left: a new one
    assert at("A\nbc", "\nd", first).typed == 2  # the text before it has changed
    assert at("a\nbc\nd", "x\nd", first).typed == 1  # the suffix has
    assert at("a\nbc\nd(", ")\nd", first).typed == 5  # not by what an editor puts behind a bracket
    assert at("a\n" + "b" * MOST_TYPED, "\nd", first).typed == MOST_TYPED
    assert at("a\n" + "b" * MOST_TYPED + "\nc", "\nd", first).typed == 1  # too much
    assert at("a\n" + "b" * 999, "\nd").typed == MOST_TYPED // 2


SPECIALS = vocabulary(fim.FORMATS["starcoder2"])
ENCODERS: list[Encoder] = [
    ENCODER,
    CharacterEncoder(SPECIALS),
    PieceEncoder(CharacterEncoder(SPECIALS)),
]
TEXT = st.lists(
    st.sampled_from(
        ["a", "bc ", "\n", "\r\n", "\t", "😀", "é", "\ud800", "x = 1\n", "(", "l" * 90]
    ),
    max_size=60,
)
EDIT = st.tuples(
    st.sampled_from(["type", "delete", "jump", "above", "below"]), st.integers(0, 400), TEXT
)


@settings(max_examples=150, deadline=None)
@given(
    TEXT,
    st.lists(EDIT, max_size=8),
    st.integers(0, 90),
    st.sampled_from(LAYOUTS),
    st.booleans(),
    st.sampled_from(ENCODERS),
)
def test_whatever_happens_the_windows_are_the_text(
    text: list[str],
    edits: list[tuple[str, int, list[str]]],
    budget: int,
    layout: Layout,
    heal: bool,
    encoder: Encoder,
) -> None:
    one = Typist("".join(text), 0, layout, budget, heal, encoder, resolve(encoder, "starcoder2"))
    one.ask()
    for what, number, words in edits:
        added = "".join(words)
        if what == "jump":
            one.offset = number % (len(one.text) + 1)
        elif what == "delete":
            start = max(0, one.offset - number % 20)
            one.text, one.offset = one.text[:start] + one.text[one.offset :], start
        elif what == "type":
            one.text = one.text[: one.offset] + added + one.text[one.offset :]
            one.offset += len(added)
        elif what == "above":
            at = number % (one.offset + 1)
            one.text, one.offset = one.text[:at] + added + one.text[at:], one.offset + len(added)
        else:
            one.text += added
        one.ask()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [0, 1, 7])
def test_next_to_no_budget(layout: Layout, budget: int) -> None:
    one, text = typist(layout, budget)
    one.type(text[:40])


@pytest.mark.parametrize("layout", GROWING)
def test_one_overlong_line(layout: Layout) -> None:
    one = Typist("x = [" + "1, " * 5000 + "]", 8000, layout, 512)
    one.ask()
    one.type("f(a, b), " * 20)
    assert one.moves <= 4 and max(one.lost) <= 4


@pytest.mark.parametrize("layout", GROWING)
def test_windows_line_ends(layout: Layout) -> None:
    one, text = typist(layout, 1024, source=SOURCE.replace("\n", "\r\n"))
    for line in text[:400].split("\r\n"):
        one.type(line)
        one.text = one.text[: one.offset] + "\r\n" + one.text[one.offset :]  # one key
        one.offset += 2
        one.ask()
    assert one.moves <= 3 and max(one.lost) <= 8
