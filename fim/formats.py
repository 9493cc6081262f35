"""The layouts of a prompt and the formats of the model families, as data; ids of the sentinels.

To add a format, add one FimFormat to _FORMATS, and the models' `model_type` to MODEL_TYPES. To add
a layout, add its name to Layout and its row to ORDERS.

Sources: Bavarian et al. 2022, https://arxiv.org/abs/2207.14255 (the layouts psm and spm); the
StarCoder2 paper §5; the CodeLlama paper §2.3 and its reference tokenizer; the Qwen2.5-Coder report;
mistral-common (Codestral); and the model cards of the other families.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, Protocol, get_args

Layout = Literal["psm", "spm", "anchored"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

# The parts of a prompt: the sentinels in angle brackets, and the text that goes with them. "typed"
# is the end of the prefix that was typed since the anchor; layouts without it have the whole
# prefix in "prefix".
Part = Literal["<prefix>", "prefix", "<suffix>", "suffix", "<middle>", "typed"]


@dataclass(frozen=True, slots=True)
class Order:
    """One layout: in which order the parts stand, after the header with the other files."""

    parts: tuple[Part, ...]
    trained_as: Layout  # a family must have seen this layout in training


ORDERS: Mapping[Layout, Order] = MappingProxyType(
    {
        "psm": Order(("<prefix>", "prefix", "<suffix>", "suffix", "<middle>"), "psm"),
        # SPMv2 of Bavarian et al. It only grows while someone types.
        "spm": Order(("<prefix>", "<suffix>", "suffix", "<middle>", "prefix"), "spm"),
        # psm with the beginning of the middle already written. It only grows while the anchor
        # stays where it is: fim.anchor decides that.
        "anchored": Order(("<prefix>", "prefix", "<suffix>", "suffix", "<middle>", "typed"), "psm"),
    }
)
_SPM_SUFFIX_FIRST: tuple[Part, ...] = ("<suffix>", "suffix", "<prefix>", "prefix", "<middle>")


class Encoder(Protocol):
    """The part of a tokenizer's interface that this room uses."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as plain text: a sentinel in it does not become the special id."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""

    def token_id(self, token: str) -> int | None:
        """The id of one special token; None where the vocabulary lacks it."""


class FormatError(ValueError):
    """The model or the request does not fit the format. The message names the remedy."""


@dataclass(frozen=True, slots=True)
class FimFormat:
    """How one family marks prefix, suffix and middle; None where it has no such token.

    Families differ by these fields and by nothing else.
    """

    name: str
    prefix: str
    suffix: str
    middle: str | None  # None: the answer follows the prefix directly
    end: tuple[str, ...]  # texts at which the middle ends, besides the sentinels themselves
    # Seen in training, the preferred one first. Of two that is spm: a model that saw both is as
    # good with it or better (Bavarian et al. 2022: .616 psm, .622 spm on single lines), and it only
    # grows while someone types.
    layouts: tuple[Layout, ...]
    begin: str | None = None  # opens every prompt; remote endpoints add it themselves
    repo_name: str | None = None
    file_sep: str | None = None  # stands in front of each file of a repository
    file_end: str = ""  # written after the repository's name and after each file
    path_in_prefix: bool = False  # the path is the prefix's first line; else before the sentinels
    always_names_file: bool = False  # the header names the file even when no other file is shown
    suffix_first: bool = False  # spm is `suffix S prefix P middle`, not `prefix suffix S middle P`
    bare_suffix: bool = False  # SentencePiece's space is not put in front of suffix and middle
    # Tokens of snippets of other files that a prompt may have: as files behind file_sep, or as
    # comments at the beginning of the prefix. Measured alike on Qwen2.5-Coder-0.5B, 512 as good as
    # 256 (benchmarks/cross_file.py).
    snippet_tokens: int = 512
    spaced: bool = False  # `▁<PRE>` in the vocabulary; in text, spaces stand around sentinels

    @property
    def offered(self) -> tuple[Layout, ...]:
        """The layouts that the family saw in training, then those that look the same to it."""
        offered = list(self.layouts)
        for layout, order in ORDERS.items():
            if order.trained_as in self.layouts and layout not in offered:
                offered.append(layout)
        return tuple(offered)

    def checked(self, layout: Layout | None) -> Layout:
        """The layout if the family may be asked for it, and the preferred one for None.

        Raises FormatError: a model scores little on a layout that it never saw (trained on spm
        alone, 2% on psm: Bavarian et al. 2022).
        """
        if layout is None:
            return self.layouts[0]
        if layout not in self.offered:
            seen = " or ".join(self.offered)
            raise FormatError(
                f"{self.name!r} models never saw layout {layout!r} in training: ask for {seen}"
            )
        return layout

    def order(self, layout: Layout) -> tuple[Part, ...]:
        """The order of the parts in this family's prompts."""
        if layout == "spm" and self.suffix_first:
            return _SPM_SUFFIX_FIRST
        return ORDERS[layout].parts

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of every sentinel that has no place in an answer."""
        own = (self.prefix, self.suffix, self.middle, self.repo_name, self.file_sep, *self.end)
        return tuple(dict.fromkeys(filter(None, own)))

    @property
    def marks(self) -> tuple[str, ...]:
        """`texts` and `begin`: all that an endpoint takes for a sentinel."""
        return (*self.texts, self.begin) if self.begin else self.texts


@dataclass(frozen=True, slots=True)
class Sentinels:
    """A format and its ids in one vocabulary. `format` names only what that vocabulary has."""

    format: FimFormat
    ids: Mapping[str, int] = field(hash=False)  # of every sentinel, by its text
    prefix: int
    suffix: int
    middle: int | None
    begin: int | None
    file_sep: int | None
    stop_ids: frozenset[int]  # the ends, and the sentinels: none of them is ever part of an answer


_PLAIN = ("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
_PIPED = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
_FORMATS = (
    # No token ends the middle (bigcode-project/starcoder2#10): the rules of fim.shaping count.
    FimFormat(
        "starcoder2",
        *_PLAIN,
        end=("<|endoftext|>", "<file_sep>"),
        layouts=("spm", "psm"),
        repo_name="<repo_name>",
        file_sep="<file_sep>",
        path_in_prefix=True,
    ),
    # StarCoder 1, Stable Code 3B, Granite 3.
    FimFormat(
        "starcoder",
        *_PLAIN,
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
        *_PIPED,
        end=("<|file_separator|>", "<eos>"),
        layouts=("psm",),
        begin="<bos>",
        file_sep="<|file_separator|>",
    ),
    FimFormat(
        "qwen2.5-coder",
        *_PIPED,
        end=("<|endoftext|>", "<|fim_pad|>"),
        layouts=("psm",),
        repo_name="<|repo_name|>",
        file_sep="<|file_sep|>",
        file_end="\n",
    ),
    # StableLM 2, Granite 4.
    FimFormat("stablelm2", *_PIPED, end=("<|endoftext|>", "<|end_of_text|>"), layouts=("psm",)),
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
    # Seed-Coder's report (arXiv 2506.03524), §2.2: suffix-prefix-middle alone.
    FimFormat(
        "seed-coder",
        "<[fim-prefix]>",
        "<[fim-suffix]>",
        "<[fim-middle]>",
        end=("<[end▁of▁sentence]>",),
        layouts=("spm",),
        begin="<[begin▁of▁sentence]>",
        suffix_first=True,
    ),
    FimFormat(
        "mellum",
        *_PLAIN,
        end=("<|endoftext|>",),
        layouts=("spm",),
        file_sep="<filename>",
        always_names_file=True,
        suffix_first=True,
    ),
)

FORMATS: Mapping[str, FimFormat] = MappingProxyType({family.name: family for family in _FORMATS})

# `model_type` of a Hugging Face config -> the formats to try first, in this order. It only sets
# the order of the candidates.
MODEL_TYPES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "starcoder2": ("starcoder2",),
        "gpt_bigcode": ("starcoder", "santacoder"),
        "stablelm": ("starcoder", "stablelm2"),
        "stablelm_epoch": ("starcoder", "stablelm2"),
        "granite": ("starcoder", "stablelm2"),
        "granitemoe": ("starcoder", "stablelm2"),
        "granitemoehybrid": ("stablelm2",),
        "llama": ("codellama", "deepseek-coder", "seed-coder", "mellum", "starcoder"),
        "deepseek_v2": ("deepseek-coder",),
        "qwen2": ("qwen2.5-coder",),
        "qwen2_moe": ("qwen2.5-coder",),
        "qwen3": ("qwen2.5-coder",),
        "qwen3_moe": ("qwen2.5-coder",),
        "gemma": ("codegemma",),
        "mistral": ("codestral",),
    }
)
# The same where the matrices of the MLP have biases (mlp_bias). Granite Code 3B and 8B are llamas
# with Mellum's tokens, asked in StarCoder's order; Mellum has no biases.
WITH_BIASES: Mapping[str, tuple[str, ...]] = MappingProxyType({"llama": ("starcoder",)})


def resolve(
    encoder: Encoder, name: str = "auto", config: Mapping[str, object] | None = None
) -> Sentinels:
    """The ids of a format's sentinels, taken from the tokenizer by their text.

    `name` is a key of FORMATS, or "auto" for the first one that the vocabulary carries; `config`
    (the content of the model's config.json) says which to try first.

    Raises FormatError: an unknown name, or a vocabulary without the sentinels.
    """
    if name != "auto":
        if name not in FORMATS:
            raise FormatError(
                f"unknown FIM format {name!r}: choose 'auto' or one of {', '.join(FORMATS)}"
            )
        ids = _known_ids(encoder, FORMATS[name])
        missing = _missing(FORMATS[name], ids)
        if missing:
            raise FormatError(
                f"the tokenizer lacks {', '.join(missing)}, which the FIM format {name!r} needs: "
                "set the format to 'auto', or use a model that was trained on this format"
            )
        return _sentinels(FORMATS[name], ids)
    first = _likely(config or {})
    for candidate in (*first, *FORMATS):
        ids = _known_ids(encoder, FORMATS[candidate])
        if not _missing(FORMATS[candidate], ids):
            return _sentinels(FORMATS[candidate], ids)
    likely = FORMATS[first[0] if first else "starcoder2"]
    missing = _missing(likely, _known_ids(encoder, likely))
    raise FormatError(
        f"the tokenizer has the sentinels of no FIM format (for {likely.name!r} it lacks "
        f"{', '.join(missing)}): use a model trained to fill in the middle, such as "
        f"qwen2.5-coder-0.5b; known formats: {', '.join(FORMATS)}"
    )


def _likely(config: Mapping[str, object]) -> tuple[str, ...]:
    """The formats to try first."""
    model_type = str(config.get("model_type"))
    if config.get("mlp_bias") and model_type in WITH_BIASES:
        return WITH_BIASES[model_type]
    return MODEL_TYPES.get(model_type, ())


def _known_ids(encoder: Encoder, family: FimFormat) -> dict[str, int]:
    """The ids of those of the family's sentinels that the vocabulary has."""
    known = {}
    for text in family.marks:
        found = None
        if family.spaced:
            found = encoder.token_id("▁" + text)
        if found is None:
            found = encoder.token_id(text)
        if found is not None:
            known[text] = found
    return known


def _missing(family: FimFormat, known: Mapping[str, int]) -> list[str]:
    """The tokens without which the family cannot be asked; headers and `begin` may be absent."""
    needed = (family.prefix, family.suffix, family.middle)
    missing = [text for text in needed if text and text not in known]
    if known.keys().isdisjoint(family.end):
        missing.append(" or ".join(family.end))
    return missing


def _sentinels(family: FimFormat, ids: Mapping[str, int]) -> Sentinels:
    """`ids` has all that the family needs (`_missing`)."""

    def known(text: str | None) -> str | None:
        return text if text in ids else None

    family = replace(
        family,
        end=tuple(filter(known, family.end)),
        begin=known(family.begin),
        repo_name=known(family.repo_name),
        file_sep=known(family.file_sep),
    )
    return Sentinels(
        format=family,
        ids=ids,
        prefix=ids[family.prefix],
        suffix=ids[family.suffix],
        middle=ids.get(family.middle or ""),
        begin=ids.get(family.begin or ""),
        file_sep=ids.get(family.file_sep or ""),
        stop_ids=frozenset(map(ids.__getitem__, family.texts)),
    )
