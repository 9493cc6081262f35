"""The special tokens of a GGUF file: its metadata names them by ids, which are checked against the
tokens' texts here.

Sources: llama.cpp, src/llama-vocab.cpp (the texts by which it finds the tokens of FIM), and its
converters. They give the ids of Code Llama (prefix, suffix, middle and eot; in early 2024 to every
Llama and Mistral, even beyond its vocabulary) and of CodeGemma (to every Gemma) to models that do
not have these tokens. Such ids are told and not used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from model.errors import ModelError

log = logging.getLogger(__name__)

PREFIX = "tokenizer.ggml."
# The kinds of tokens (llama.h, llama_token_type).
NORMAL = 1
UNKNOWN = 2
CONTROL = 3
USER_DEFINED = 4
BYTE = 6
# The tokens of FIM by their keys -> the texts that they have in the models that are known. A token
# is never that of another key.
FIM_TEXTS: Mapping[str, Sequence[str]] = {
    "fim_pre": (
        "<|fim_prefix|> <fim_prefix> <fim-prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <[fim-prefix]> "
        "[PREFIX] <|code_prefix|> <|prefix|>"
    ).split(),
    "fim_suf": (
        "<|fim_suffix|> <fim_suffix> <fim-suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <[fim-suffix]> "
        "[SUFFIX] <|code_suffix|> <|suffix|>"
    ).split(),
    "fim_mid": (
        "<|fim_middle|> <fim_middle> <fim-middle> <｜fim▁end｜> <MID> ▁<MID> <[fim-middle]> "
        "[MIDDLE] <|code_middle|> <|middle|>"
    ).split(),
}
# Older keys of the same.
OLDER = {"prefix": "fim_pre", "suffix": "fim_suf", "middle": "fim_mid"}
OTHERS = ("bos", "padding", "unknown", "seperator", "fim_pad", "fim_rep", "fim_sep")  # so spelled
_MARK = re.compile(r"▁?<.*[A-Za-z].*>|\[/?[A-Z_]{3,}\]")
_REMEDY = "Download it again, or use another file of the model."


def checked_kinds(
    metadata: Mapping[str, Any], texts: Sequence[str], kinds: Sequence[int]
) -> list[int]:
    """The kinds of the tokens, with CONTROL for the ends and the tokens of FIM: older files have
    them as text.

    Raises ModelError for an id that is none, and for one that names another token.
    """
    found = list(kinds)
    numbers = {text: number for number, text in enumerate(texts)}
    for name in OTHERS:
        _id(metadata, name, len(texts))
    for role, known in FIM_TEXTS.items():
        own = [text for text in known if text in numbers]
        number = _id(metadata, role, len(texts))
        if number is not None:
            _check_role(role, texts[number], own)
        for text in own:
            found[numbers[text]] = CONTROL
    wrong = _wrong_older_keys(metadata, texts)
    if wrong:
        log.warning("no tokens of FIM in this vocabulary, and not used: %s", ", ".join(wrong))
    end = _id(metadata, "eos", len(texts))
    if end is not None and not _is_mark(end, texts, found):
        raise ModelError(
            f"{PREFIX}eos_token_id names {texts[end]!r}, which is text and ends none. {_REMEDY}"
        )
    for number in stop_ids(metadata):
        found[number] = CONTROL
    return found


def stop_ids(metadata: Mapping[str, Any]) -> list[Any]:
    """The ids that end a text, as far as the file names them. The first is not checked."""
    ends = [metadata[key] for key in (f"{PREFIX}eos_token_id",) if key in metadata]
    key = f"{PREFIX}eot_token_id"
    if key not in metadata:
        return ends
    second = metadata[key]
    texts = metadata.get(f"{PREFIX}tokens", ())
    kinds = metadata.get(f"{PREFIX}token_type", ())
    if type(second) is int and 0 <= second < len(texts) and _is_mark(second, texts, kinds):
        return [*ends, second]
    log.warning("no end in this vocabulary, and not used: %s", key)
    return ends


def _is_mark(number: int, texts: Sequence[str], kinds: Sequence[int]) -> bool:
    """Whether a token is no text: by its kind, or by the looks of older files' special tokens."""
    is_special = number < len(kinds) and kinds[number] in (CONTROL, USER_DEFINED)
    return is_special or _MARK.fullmatch(texts[number]) is not None


def _id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    """The id under a key, of count tokens; None without the key. Raises ModelError."""
    key = f"{PREFIX}{name}_token_id"
    number: int | None = metadata.get(key)
    if number is not None and not (type(number) is int and 0 <= number < count):
        raise ModelError(f"{key} is {number!r}, but it has {count} tokens. Download it again.")
    return number


def _check_role(role: str, text: str, own: Sequence[str]) -> None:
    """own: the known texts of the role that the vocabulary has. An unknown text may be right."""
    if text in own:
        return
    key = f"{PREFIX}{role}_token_id"
    for other, known in FIM_TEXTS.items():
        if text in known:
            raise ModelError(f"{key} names {text!r}, the token of {other}. {_REMEDY}")
    if own:
        raise ModelError(f"{key} names {text!r}, but its token is {own[0]!r}. {_REMEDY}")


def _wrong_older_keys(metadata: Mapping[str, Any], texts: Sequence[str]) -> list[str]:
    """The older keys that name other tokens. FIM's are found by their texts."""
    wrong = []
    for name, role in OLDER.items():
        number = metadata.get(f"{PREFIX}{name}_token_id")
        known = type(number) is int and 0 <= number < len(texts)
        if number is not None and not (known and texts[number] in FIM_TEXTS[role]):
            wrong.append(f"{PREFIX}{name}_token_id")
    return wrong
