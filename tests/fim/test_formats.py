import pytest

from fim import FORMATS, LAYOUTS, MODEL_TYPES, FimFormat, FormatError, resolve
from fim.formats import ORDERS
from tests.fim.toys import CharacterEncoder


def vocabulary(family: FimFormat) -> tuple[str, ...]:
    texts = (*family.texts, family.begin) if family.begin else family.texts
    return tuple(
        "▁" + text if family.spaced and text.isupper() and text[0] == "<" else text
        for text in texts
    )


def test_every_layout_has_an_order() -> None:
    assert tuple(ORDERS) == LAYOUTS


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_resolves_with_its_vocabulary(name: str) -> None:
    family = FORMATS[name]
    encoder = CharacterEncoder(vocabulary(family))
    found = resolve(encoder, name)
    assert found.format == family
    names = {id: token.removeprefix("▁") for token, id in encoder.specials.items()}
    assert names[found.prefix] == family.prefix
    assert names[found.suffix] == family.suffix
    assert (names[found.middle] if found.middle else None) == family.middle
    assert (names[found.begin] if found.begin else None) == family.begin
    assert {names[id] for id in found.stop_ids} == set(family.texts)


@pytest.mark.parametrize(
    ("model_type", "name"),
    [(model_type, name) for model_type, names in MODEL_TYPES.items() for name in names],
)
def test_model_types_name_known_formats(model_type: str, name: str) -> None:
    assert name in FORMATS


@pytest.mark.parametrize(
    ("model_type", "specials", "expected"),
    [
        ("starcoder2", FORMATS["starcoder2"].texts, "starcoder2"),
        ("gpt_bigcode", FORMATS["starcoder"].texts, "starcoder"),
        ("gpt_bigcode", FORMATS["santacoder"].texts, "santacoder"),
        ("stablelm", FORMATS["starcoder"].texts, "starcoder"),
        ("stablelm", FORMATS["stablelm2"].texts, "stablelm2"),
        ("llama", ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"), "codellama"),
        ("llama", FORMATS["deepseek-coder"].texts, "deepseek-coder"),
        ("llama", FORMATS["mellum"].texts, "mellum"),
        ("llama", FORMATS["seed-coder"].texts, "seed-coder"),
        ("mistral", ("[PREFIX]", "[SUFFIX]", "</s>"), "codestral"),
        ("qwen2", FORMATS["qwen2.5-coder"].texts, "qwen2.5-coder"),
        ("gemma", FORMATS["codegemma"].texts, "codegemma"),
        (None, FORMATS["qwen2.5-coder"].texts, "qwen2.5-coder"),
        ("never heard of", FORMATS["starcoder2"].texts, "starcoder2"),
        # The config's type only orders the candidates: the vocabulary decides.
        ("starcoder2", FORMATS["deepseek-coder"].texts, "deepseek-coder"),
    ],
)
def test_auto(model_type: str | None, specials: tuple[str, ...], expected: str) -> None:
    assert (
        resolve(CharacterEncoder(specials), config={"model_type": model_type}).format.name
        == expected
    )


def test_a_llama_with_biases_in_its_mlp_is_a_granite_code_and_no_mellum() -> None:
    encoder = CharacterEncoder(FORMATS["mellum"].texts)
    config = {"model_type": "llama", "mlp_bias": True}
    assert resolve(encoder, config=config).format.name == "starcoder"
    assert resolve(encoder, config=config | {"mlp_bias": False}).format.name == "mellum"


def test_what_the_vocabulary_lacks_is_left_out_of_the_format() -> None:
    encoder = CharacterEncoder(("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<|endoftext|>"))
    found = resolve(encoder, "starcoder2")
    assert (found.file_sep, found.format.file_sep, found.format.repo_name) == (None, None, None)
    assert found.format.end == ("<|endoftext|>",)
    assert found.stop_ids == frozenset(encoder.specials.values())


@pytest.mark.parametrize(
    ("specials", "name", "words"),
    [
        (
            ("<fim_prefix>", "<|endoftext|>"),
            "starcoder2",
            ("lacks <fim_suffix>, <fim_middle>,", "'auto'"),
        ),
        (("[PREFIX]", "[SUFFIX]"), "codestral", ("lacks </s>,", "'codestral'")),
        (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "mellum", ("<|endoftext|>",)),
        ((), "starcoder3", ("unknown FIM format 'starcoder3'", *FORMATS)),
        (
            (),
            "auto",
            ("<fim_prefix>, <fim_suffix>, <fim_middle>", "qwen2.5-coder-0.5b", *FORMATS),
        ),
    ],
)
def test_errors_name_what_is_missing_and_the_remedy(
    specials: tuple[str, ...], name: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(FormatError) as caught:
        resolve(CharacterEncoder(specials), name)
    for word in words:
        assert word in str(caught.value)
