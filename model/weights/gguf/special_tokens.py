"""The special tokens of a GGUF file: its metadata names them by ids, which are checked against the
tokens' texts here.

Sources: llama.cpp, src/llama-vocab.cpp (the texts by which it finds the tokens of FIM),
conversion/llama.py and conversion/gemma.py (ids that its converter gives to models which do not
have those tokens, too).
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
# Older keys of the same. A converter writes them for every Llama of 32,016 tokens and every Gemma.
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
    _tell_older(metadata, texts)
    for name in ("eos", "eot"):
        number = _id(metadata, name, len(texts))
        if number is None:
            continue
        if _MARK.fullmatch(texts[number]):
            found[number] = CONTROL
        elif name == "eos" and found[number] not in (CONTROL, USER_DEFINED):
            raise ModelError(
                f"{PREFIX}eos_token_id names {texts[number]!r}, which is text and ends none. "
                f"{_REMEDY}"
            )
    return found


def stop_ids(metadata: Mapping[str, Any]) -> list[Any]:
    """The ids that end a text, as far as the file names them; not checked further."""
    found = [metadata[key] for key in (f"{PREFIX}eos_token_id",) if key in metadata]
    second = metadata.get(f"{PREFIX}eot_token_id")
    texts = metadata.get(f"{PREFIX}tokens", ())
    if type(second) is int and 0 <= second < len(texts) and not _MARK.fullmatch(texts[second]):
        log.warning(
            "%seot_token_id names %r, which is text: it ends nothing here", PREFIX, texts[second]
        )
    elif second is not None:
        found.append(second)
    return found


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


def _tell_older(metadata: Mapping[str, Any], texts: Sequence[str]) -> None:
    """The tokens are found by their texts; so such ids do no harm where they are wrong."""
    wrong = []
    for name, role in OLDER.items():
        number = metadata.get(f"{PREFIX}{name}_token_id")
        known = type(number) is int and 0 <= number < len(texts)
        if number is not None and not (known and texts[number] in FIM_TEXTS[role]):
            wrong.append(f"{PREFIX}{name}_token_id")
    if wrong:
        log.warning(
            "%s name no tokens of FIM in this vocabulary, and are not used", ", ".join(wrong)
        )
