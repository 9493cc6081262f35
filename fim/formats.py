"""The sentinel layouts of each model family, as data, and their ids in one tokenizer.

Sources: Bavarian et al. 2022 (the layouts psm and spm), the StarCoder2 paper §5, the CodeLlama
paper §2.3 and its reference tokenizer, mistral-common, and the model cards of the other families.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, Protocol

Layout = Literal["psm", "spm", "anchored"]


class Encoder(Protocol):
    """What this room needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as plain text: a sentinel written in it does not become the special
        id."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""

    def token_id(self, token: str) -> int | None:
        """The id of one special token; None where the vocabulary lacks it."""


class FormatError(ValueError):
    """A format that the model or the request does not fit. The message names the remedy."""


@dataclass(frozen=True, slots=True)
class FimFormat:
    """How one family marks prefix, suffix and middle.

    The fields with a default are what sets families apart; None means that the family has no such
    token.
    """

    name: str
    prefix: str
    suffix: str
    middle: str | None  # None: the answer follows the prefix directly
    end: tuple[str, ...]  # texts at which the middle ends, besides the sentinels themselves
    # Seen in training, the preferred one first: of two spm, since a model that saw both is as good
    # with it or better (Bavarian et al. 2022: .616 psm, .622 spm on single lines), and while
    # someone types it only grows.
    layouts: tuple[Layout, ...]
    begin: str | None = None  # opens every prompt; remote endpoints add it themselves
    repo_name: str | None = None
    file_sep: str | None = None  # stands in front of each file of a repository
    file_end: str = ""  # written after the repository's name and after each file
    path_in_prefix: bool = (
        False  # the path is the first line of the prefix, not a line before the sentinels
    )
    always_names_file: bool = False  # the file's header is written even when no other file is shown
    suffix_first: bool = False  # spm is `suffix S prefix P middle`, not `prefix suffix S middle P`
    bare_suffix: bool = (
        False  # suffix and middle are encoded without the space that SentencePiece puts in front
    )
    spaced: bool = (
        False  # the vocabulary spells sentinels `▁<PRE>`; in text, spaces stand around them
    )

    @property
    def offered(self) -> tuple[Layout, ...]:
        """What the family may be asked: "anchored" is psm with the beginning of the middle told
        (fim.anchor)."""
        return (*self.layouts, "anchored") if "psm" in self.layouts else self.layouts

    @property
    def texts(self) -> tuple[str, ...]:
        """Every sentinel's text that has no place in an answer."""
        own = (self.prefix, self.suffix, self.middle, self.repo_name, self.file_sep, *self.end)
        return tuple(dict.fromkeys(text for text in own if text))


@dataclass(frozen=True, slots=True)
class Sentinels:
    """A format and its ids in one vocabulary. `format` names only what that vocabulary has."""

    format: FimFormat
    prefix: int
    suffix: int
    middle: int | None
    begin: int | None
    repo_name: int | None
    file_sep: int | None
    stop_ids: frozenset[int]  # the ends, and the sentinels: none of them is ever part of an answer


_FORMATS = (
    # No token ends the middle (bigcode-project/starcoder2#10): the stop rules of postprocess.py
    # matter here.
    FimFormat(
        "starcoder2",
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        end=("<|endoftext|>", "<file_sep>"),
        layouts=("spm", "psm"),
        repo_name="<repo_name>",
        file_sep="<file_sep>",
        path_in_prefix=True,
    ),
    # StarCoder 1, Stable Code 3B, Granite 3.
    FimFormat(
        "starcoder",
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        end=("<|endoftext|>", "<file_sep>", "<|end_of_text|>"),
        layouts=("spm", "psm"),
    ),
    FimFormat(
        "santacoder",
        "<fim-prefix>",
        "<fim-suffix>",
        "<fim-middle>",
        end=("<|endoftext|>",),
        layouts=("spm", "psm"),
    ),
    # Trained on spm too, but no source gives its order of tokens: psm only.
    FimFormat(
        "codegemma",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        end=("<|file_separator|>", "<eos>"),
        layouts=("psm",),
        begin="<bos>",
        file_sep="<|file_separator|>",
    ),
    FimFormat(
        "qwen2.5-coder",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        end=("<|endoftext|>", "<|fim_pad|>"),
        layouts=("psm",),
        repo_name="<|repo_name|>",
        file_sep="<|file_sep|>",
        file_end="\n",
    ),
    # StableLM 2, Granite 4.
    FimFormat(
        "stablelm2",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        end=("<|endoftext|>", "<|end_of_text|>"),
        layouts=("psm",),
    ),
    FimFormat(
        "codellama",
        "<PRE>",
        "<SUF>",
        "<MID>",
        end=("<EOT>", "</s>"),
        layouts=("spm", "psm"),
        begin="<s>",
        bare_suffix=True,
        spaced=True,
    ),
    # The card's names mislead: "hole" stands where the suffix begins, "end" where the middle does.
    FimFormat(
        "deepseek-coder",
        "<｜fim▁begin｜>",
        "<｜fim▁hole｜>",
        "<｜fim▁end｜>",
        end=("<｜end▁of▁sentence｜>", "<|EOT|>"),
        layouts=("psm",),
        begin="<｜begin▁of▁sentence｜>",
    ),
    FimFormat(
        "codestral",
        "[PREFIX]",
        "[SUFFIX]",
        None,
        end=("</s>",),
        layouts=("spm",),
        begin="<s>",
        suffix_first=True,
        bare_suffix=True,
    ),
    FimFormat(
        "mellum",
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        end=("<|endoftext|>",),
        layouts=("spm",),
        file_sep="<filename>",
        always_names_file=True,
        suffix_first=True,
    ),
)

FORMATS: Mapping[str, FimFormat] = MappingProxyType({family.name: family for family in _FORMATS})

# `model_type` of a Hugging Face config -> the formats to try first, in this order. It orders the
# candidates and no more. Mellum and the Granite Code models of type llama share their tokens: there
# the user names "starcoder".
MODEL_TYPES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "starcoder2": ("starcoder2",),
        "gpt_bigcode": ("starcoder", "santacoder"),
        "stablelm": ("starcoder", "stablelm2"),
        "stablelm_epoch": ("starcoder", "stablelm2"),
        "granite": ("starcoder", "stablelm2"),
        "granitemoe": ("starcoder", "stablelm2"),
        "granitemoehybrid": ("stablelm2",),
        "llama": ("codellama", "deepseek-coder", "mellum", "starcoder"),
        "deepseek_v2": ("deepseek-coder",),
        "qwen2": ("qwen2.5-coder",),
        "qwen2_moe": ("qwen2.5-coder",),
        "qwen3": ("qwen2.5-coder",),
        "qwen3_moe": ("qwen2.5-coder",),
        "gemma": ("codegemma",),
        "mistral": ("codestral",),
    }
)


def resolve(encoder: Encoder, name: str = "auto", model_type: str | None = None) -> Sentinels:
    """The ids of a format's sentinels, taken from the tokenizer by their text.

    `name` is a key of FORMATS, or "auto" for the first one that the vocabulary carries;
    `model_type` (from the model's config.json) says which to try first.

    Raises FormatError: an unknown name, or a vocabulary without the sentinels.
    """
    if name != "auto":
        if name not in FORMATS:
            raise FormatError(
                f"unknown FIM format {name!r}: choose 'auto' or one of {', '.join(FORMATS)}"
            )
        if missing := _missing(encoder, FORMATS[name]):
            raise FormatError(
                f"the tokenizer lacks {', '.join(missing)}, which the FIM format {name!r} needs: "
                "set the "
                "format to 'auto', or use a model that was trained on this format"
            )
        return _sentinels(encoder, FORMATS[name])
    first = MODEL_TYPES.get(model_type or "", ())
    for candidate in dict.fromkeys((*first, *FORMATS)):
        if not _missing(encoder, FORMATS[candidate]):
            return _sentinels(encoder, FORMATS[candidate])
    likely = FORMATS[first[0] if first else "starcoder2"]
    raise FormatError(
        f"the tokenizer has the sentinels of no FIM format (for {likely.name!r} it lacks "
        f"{', '.join(_missing(encoder, likely))}): use a model trained to fill in the middle, "
        "such as "
        f"bigcode/starcoder2-3b; known formats: {', '.join(FORMATS)}"
    )


def _token_id(encoder: Encoder, family: FimFormat, text: str | None) -> int | None:
    if text is None:
        return None
    found = encoder.token_id("▁" + text) if family.spaced else None
    return encoder.token_id(text) if found is None else found


def _missing(encoder: Encoder, family: FimFormat) -> list[str]:
    """The tokens without which the family cannot be asked; headers and `begin` may be absent."""
    needed = [text for text in (family.prefix, family.suffix, family.middle) if text is not None]
    missing = [text for text in needed if _token_id(encoder, family, text) is None]
    if all(_token_id(encoder, family, text) is None for text in family.end):
        missing.append(" or ".join(family.end))
    return missing


def _sentinels(encoder: Encoder, family: FimFormat) -> Sentinels:
    def known(text: str | None) -> str | None:
        return None if _token_id(encoder, family, text) is None else text

    family = replace(
        family,
        end=tuple(text for text in family.end if known(text)),
        begin=known(family.begin),
        repo_name=known(family.repo_name),
        file_sep=known(family.file_sep),
    )
    prefix, suffix = (
        _token_id(encoder, family, family.prefix),
        _token_id(encoder, family, family.suffix),
    )
    assert prefix is not None and suffix is not None  # _missing() found none
    stops = (_token_id(encoder, family, text) for text in family.texts)
    return Sentinels(
        format=family,
        prefix=prefix,
        suffix=suffix,
        middle=_token_id(encoder, family, family.middle),
        begin=_token_id(encoder, family, family.begin),
        repo_name=_token_id(encoder, family, family.repo_name),
        file_sep=_token_id(encoder, family, family.file_sep),
        stop_ids=frozenset(stop for stop in stops if stop is not None),
    )
