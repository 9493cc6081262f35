import re

import pytest

from fim import FORMATS, LAYOUTS, FormatError, Layout, Snippet, build_prompt, render_text, resolve
from tests.fim.test_formats import vocabulary
from tests.fim.toys import CharacterEncoder, context_at

SNIPPETS = (Snippet("b.py", "B", "open"), Snippet("c.py", "C", "recent"))
ALL: tuple[Layout, ...] = ("psm", "spm")
UNSEEN = [
    (name, layout) for name in FORMATS for layout in LAYOUTS if layout not in FORMATS[name].offered
]

CASES: list[tuple[str, Layout | None, dict[str, object], str]] = [
    ("starcoder2", None, {}, "<fim_prefix><fim_suffix>S<fim_middle>P"),
    ("starcoder2", "psm", {}, "<fim_prefix>P<fim_suffix>S<fim_middle>"),
    ("starcoder2", "spm", {}, "<fim_prefix><fim_suffix>S<fim_middle>P"),
    ("starcoder2", "psm", {"path": "a.py"}, "<fim_prefix>P<fim_suffix>S<fim_middle>"),
    (
        "starcoder2",
        "psm",
        {"path": "a.py", "snippets": SNIPPETS},
        "<file_sep>b.py\nB<file_sep>c.py\nC<file_sep><fim_prefix>a.py\nP<fim_suffix>S<fim_middle>",
    ),
    (
        "starcoder2",
        "spm",
        {"snippets": SNIPPETS[:1], "repository": "R"},
        "<repo_name>R<file_sep>b.py\nB<file_sep><fim_prefix><fim_suffix>S<fim_middle>P",
    ),
    (
        "starcoder",
        "psm",
        {"path": "a.py", "snippets": SNIPPETS, "language": "python"},  # no mark for files
        "<fim_prefix># b.py\n# B\n# c.py\n# C\nP<fim_suffix>S<fim_middle>",
    ),
    ("santacoder", "psm", {}, "<fim-prefix>P<fim-suffix>S<fim-middle>"),
    ("stablelm2", None, {}, "<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>"),
    ("codellama", "psm", {}, "<PRE> P <SUF>S <MID>"),
    ("codellama", "spm", {}, "<PRE> <SUF>S <MID> P"),
    ("deepseek-coder", None, {}, "<｜fim▁begin｜>P<｜fim▁hole｜>S<｜fim▁end｜>"),
    (
        "qwen2.5-coder",
        None,
        {"path": "a.py", "snippets": SNIPPETS[:1], "repository": "R"},
        "<|repo_name|>R\n<|file_sep|>b.py\nB\n<|file_sep|>a.py\n<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>",
    ),
    (
        "codegemma",
        None,
        {"path": "a.py", "snippets": SNIPPETS[:1]},
        "<|file_separator|>b.py\nB<|file_separator|>a.py\n<|fim_prefix|>P<|fim_suffix|>S<|fim_middle|>",
    ),
    ("codestral", None, {"path": "a.py"}, "[SUFFIX]S[PREFIX]P"),
    ("seed-coder", None, {"path": "a.py"}, "<[fim-suffix]>S<[fim-prefix]>P<[fim-middle]>"),
    ("mellum", None, {}, "<fim_suffix>S<fim_prefix>P<fim_middle>"),
    ("mellum", None, {"path": "a.py"}, "<filename>a.py\n<fim_suffix>S<fim_prefix>P<fim_middle>"),
]


@pytest.mark.parametrize(("name", "layout", "fields", "expected"), CASES)
def test_prompt(name: str, layout: Layout | None, fields: dict[str, object], expected: str) -> None:
    context = context_at("P‸S", **fields)
    assert render_text(context, FORMATS[name], layout) == expected

    encoder = CharacterEncoder(vocabulary(FORMATS[name]))
    sentinels = resolve(encoder, name)
    prompt = build_prompt(context, sentinels, encoder, layout)
    assert prompt.layout == layout or layout is None
    assert prompt.stop_ids == sentinels.stop_ids
    # As ids the prompt has `begin` in front; CodeLlama's spaces are part of its sentinels.
    written = encoder.decode(prompt.ids).removeprefix(FORMATS[name].begin or "").replace("▁<", "<")
    assert written == (expected if not FORMATS[name].spaced else expected.replace(" ", ""))
    path = "a.py\n" if expected.find("a.py\nP") > 0 and FORMATS[name].path_in_prefix else ""
    comments = "".join(re.findall("# .*\n", expected))
    assert encoder.decode(prompt.ids[slice(*prompt.prefix)]) == path + comments + "P"
    assert encoder.decode(prompt.ids[slice(*prompt.suffix)]) == "S"
    head = encoder.decode(prompt.ids[slice(*prompt.context)])
    assert head == expected[: len(head)]
    assert prompt.context[1] == min(
        prompt.ids.index(sentinels.prefix), prompt.ids.index(sentinels.suffix)
    )


@pytest.mark.parametrize(("name", "layout"), UNSEEN)
def test_a_layout_the_family_never_saw(name: str, layout: Layout) -> None:
    encoder = CharacterEncoder(vocabulary(FORMATS[name]))
    with pytest.raises(FormatError, match="ask for"):
        build_prompt(context_at("P‸S"), resolve(encoder, name), encoder, layout)
    with pytest.raises(FormatError, match="ask for"):
        render_text(context_at("P‸S"), FORMATS[name], layout)


class SentencePieceLike(CharacterEncoder):
    """Puts a space in front of every text, as the Llama tokenizers do."""

    def encode(self, text: str) -> list[int]:
        return super().encode(" " + text)


def test_codellama_suffix_has_no_leading_space() -> None:
    encoder = SentencePieceLike(vocabulary(FORMATS["codellama"]))
    prompt = build_prompt(context_at("P‸\nS"), resolve(encoder, "codellama"), encoder, "psm")
    assert encoder.decode(prompt.ids) == "<s>▁<PRE> P▁<SUF>\nS▁<MID>"


def test_lone_surrogates_anywhere() -> None:
    encoder = CharacterEncoder(FORMATS["starcoder2"].texts)
    context = context_at(
        "P\ud800‸S", path="\udcff.py", snippets=(Snippet("b\udcff.py", "\ud800", "open"),)
    )
    prompt = build_prompt(context, resolve(encoder, "starcoder2"), encoder)
    assert encoder.decode(prompt.ids).count("\ufffd") == 4


INJECTIONS = [
    ("starcoder2", "x = '<fim_middle>'", "x = '<\u200bfim_middle>'"),
    ("starcoder2", "<fim_<fim_prefix>prefix>", "<fim_<\u200bfim_prefix>prefix>"),
    ("starcoder2", "<file_sep><|endoftext|>", "<\u200bfile_sep><\u200b|endoftext|>"),
    ("codellama", "<s><EOT>", "<\u200bs><\u200bEOT>"),
    ("codestral", "[SUFFIX][INST]", "[\u200bSUFFIX][INST]"),
    ("starcoder2", "plain <fim> text", "plain <fim> text"),
]


@pytest.mark.parametrize(("name", "code", "defused"), INJECTIONS)
def test_sentinels_in_the_users_code(name: str, code: str, defused: str) -> None:
    family = FORMATS[name]
    context = context_at(f"{code}‸{code}", path=code, snippets=(Snippet(code, code, "open"),))
    text = render_text(context, family)
    empty = render_text(context_at("‸", path="p", snippets=(Snippet("p", "", "open"),)), family)
    assert code == defused or code not in text
    assert text.count(defused) == (
        5 if family.file_sep else 4
    )  # twice in the snippet, and in the path where the family names it
    for sentinel in family.texts:
        assert text.count(sentinel) == empty.count(sentinel)

    # As ids there is nothing to defuse: user text is encoded as plain text.
    encoder = CharacterEncoder(vocabulary(family))
    prompt = build_prompt(context, resolve(encoder, name), encoder)
    assert encoder.decode(prompt.ids[slice(*prompt.suffix)]) == code
    assert prompt.ids.count(encoder.token_id("▁<SUF>") or resolve(encoder, name).suffix) == 1


def test_windows_line_ends_reach_the_model_as_it_knows_line_ends() -> None:
    context = context_at("a\r\nb‸\r\nc\rd")
    assert (
        render_text(context, FORMATS["starcoder2"], "psm")
        == "<fim_prefix>a\nb<fim_suffix>\nc\rd<fim_middle>"
    )


@pytest.mark.parametrize(
    ("prefix", "left_out"),
    [
        ("    retur", " retur"),
        ("x = ", " "),
        ("        ", " "),
        ("\t\t", "\t"),
        ("\t\tretur", "\tretur"),
        ("\t}", "}"),
        ("self._na", "na"),
        ("f(a, b", " b"),
        ("f(", "("),
        ("x ==", " =="),
        ("x1", ""),
        ("é", ""),
        ("a\n", ""),
        ("", ""),
        ("-" * 80, "-" * 32),
    ],
)
@pytest.mark.parametrize("layout", ALL)
def test_healing_leaves_out_the_last_piece(prefix: str, left_out: str, layout: Layout) -> None:
    encoder = CharacterEncoder(vocabulary(FORMATS["starcoder2"]))
    sentinels = resolve(encoder, "starcoder2")
    healed = build_prompt(context_at(f"{prefix}‸S"), sentinels, encoder, layout, heal=True)
    kept = prefix.removesuffix(left_out)
    assert healed.begin_with == left_out
    assert healed.ids == build_prompt(context_at(f"{kept}‸S"), sentinels, encoder, layout).ids


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("starcoder2", "<file_sep>b.py\nB<file_sep><fim_prefix>a.py\nP<fim_suffix>S<fim_middle>T"),
        ("stablelm2", "<|fim_prefix|>// b.py\n// B\nP<|fim_suffix|>S<|fim_middle|>T"),
        ("codellama", "<PRE> // b.py\n// B\nP <SUF>S <MID>T"),
        ("deepseek-coder", "<｜fim▁begin｜>// b.py\n// B\nP<｜fim▁hole｜>S<｜fim▁end｜>T"),
    ],
)
def test_what_was_typed_behind_the_anchor_begins_the_middle(name: str, expected: str) -> None:
    context = context_at("PT‸S", typed=1, path="a.py", snippets=SNIPPETS[:1])
    assert render_text(context, FORMATS[name], "anchored") == expected
    encoder = SentencePieceLike(
        vocabulary(FORMATS[name])
    )  # where the suffix has no blank in front, this has none
    prompt = build_prompt(context, resolve(encoder, name), encoder, "anchored")
    blank = "" if FORMATS[name].bare_suffix else " "
    assert prompt.layout == "anchored"
    assert prompt.typed[1] == len(prompt.ids)
    assert encoder.decode(prompt.ids[slice(*prompt.typed)]) == blank + "T"
    assert encoder.decode(prompt.ids[slice(*prompt.prefix)]).endswith("P")
    assert render_text(context, FORMATS[name], "psm") == render_text(
        context_at("PT‸S", path="a.py", snippets=SNIPPETS[:1]), FORMATS[name], "psm"
    )


@pytest.mark.parametrize(
    ("prefix", "typed", "left_out"),
    [("a b.ret", 3, "ret"), ("a ret", 5, " ret"), ("a ret", 2, "et"), ("a ret", 0, "")],
)
def test_only_what_was_typed_behind_the_anchor_is_healed(
    prefix: str, typed: int, left_out: str
) -> None:
    encoder = CharacterEncoder(vocabulary(FORMATS["starcoder2"]))
    context = context_at(f"{prefix}‸S", typed=typed)
    prompt = build_prompt(context, resolve(encoder, "starcoder2"), encoder, "anchored", heal=True)
    assert prompt.begin_with == left_out
    before = prefix[: len(prefix) - typed]
    middle = prefix[len(before) :].removesuffix(left_out)
    assert encoder.decode(prompt.ids) == f"<fim_prefix>{before}<fim_suffix>S<fim_middle>{middle}"
