"""The tokenizer of a GGUF file, made from its tokens, their merges or scores, and the name of its
pre-tokenizer. llama.cpp normalizes nothing, and so does this."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from model.errors import ModelError
from model.tokenizer import Tokenizer
from model.weights.gguf.cutting import DEFAULT, PRE_TOKENIZERS, WHOLE_WORDS_FIRST
from model.weights.gguf.special_tokens import (
    BYTE,
    CONTROL,
    NORMAL,
    PREFIX,
    UNKNOWN,
    USER_DEFINED,
    checked_kinds,
)

log = logging.getLogger(__name__)

SPACE = "▁"  # SentencePiece's stand-in for a space


def make_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Raises ModelError for a vocabulary that is damaged or of an unknown kind."""
    kind = str(metadata.get(f"{PREFIX}model"))
    if kind not in MAKERS:
        raise ModelError(
            f"its tokenizer is of the kind {kind!r}, which fimls does not read from a GGUF file; "
            f"it reads {' and '.join(map(repr, MAKERS))}. Use the model's folder with "
            "tokenizer.json."
        )
    texts = _strings(metadata, "tokens")
    for number, text in enumerate(texts):
        if not text:  # as llama.cpp does
            texts[number] = f"[EMPTY_{number}]"
    kinds = metadata.get(f"{PREFIX}token_type", (NORMAL,) * len(texts))
    if not isinstance(kinds, tuple) or len(kinds) != len(texts):
        raise ModelError("its tokens and their types differ in number. Download it again.")
    kinds = checked_kinds(metadata, texts, kinds)
    backend = MAKERS[kind](texts, kinds, metadata)
    _add_tokens(backend, texts, kinds)
    if backend.get_vocab_size(with_added_tokens=True) != len(texts):
        raise ModelError("its vocabulary names a token twice. Download it again.")
    return Tokenizer(backend)


def _byte_level(texts: Sequence[str], kinds: Sequence[int], metadata: Mapping[str, Any]) -> Backend:
    """Byte pairs, as GPT-2 has them: cut by the pre-tokenizer, merged in the order of a list."""
    cutting = metadata.get(f"{PREFIX}pre")
    if cutting is None:
        log.warning(
            "An old GGUF file does not say how its tokenizer cuts text. It is cut as llama.cpp "
            "does then; a file from a newer converter gives better suggestions."
        )
        cutting = DEFAULT
    if not isinstance(cutting, str) or cutting not in PRE_TOKENIZERS:
        raise ModelError(
            f"its pre-tokenizer is {cutting!r}, which fimls does not know; it knows "
            f"{', '.join(PRE_TOKENIZERS)}. Use the model's folder with tokenizer.json, or a file "
            "that a newer converter made."
        )
    merges = []
    for merge in _strings(metadata, "merges"):
        # A piece may begin with a space in no byte-level vocabulary, so the first one divides.
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    backend = Backend(_bpe(texts, merges, ignore_merges=cutting in WHOLE_WORDS_FIRST))
    backend.pre_tokenizer = PRE_TOKENIZERS[cutting]()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(
    texts: Sequence[str], kinds: Sequence[int], metadata: Mapping[str, Any]
) -> Backend:
    """SentencePiece's byte pairs: nothing is cut, the pair whose token has the best score is merged
    first, and a character that is no token becomes its bytes.

    Source: llama.cpp, src/llama-vocab.cpp (llm_tokenizer_spm_session). The list of merges is made
    as transformers makes it (convert_slow_tokenizer.py, generate_merges).
    """
    scores = metadata.get(f"{PREFIX}scores")
    if not isinstance(scores, tuple) or len(scores) != len(texts):
        raise ModelError("its tokens and their scores differ in number. Download it again.")
    if UNKNOWN not in kinds:
        raise ModelError("its vocabulary has no unknown token. Download it again.")
    backend = Backend(
        _bpe(
            texts,
            _merges(texts, kinds, scores),
            unk_token=texts[kinds.index(UNKNOWN)],
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    spaces = normalizers.Replace(" ", SPACE)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get(f"{PREFIX}add_space_prefix", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = spaces
    backend.decoder = decoders.Sequence(steps)
    return backend


MAKERS: Mapping[str, Callable[..., Backend]] = {"gpt2": _byte_level, "llama": _sentencepiece}


def _merges(
    texts: Sequence[str], kinds: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """The pairs of tokens that make a token, those of the best score first."""
    numbers = {}
    for number, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
        if kind not in (UNKNOWN, CONTROL, BYTE):
            numbers[text] = number
    found = []
    for text, number in numbers.items():
        for cut in range(1, len(text)):
            left = numbers.get(text[:cut])
            right = numbers.get(text[cut:])
            if left is not None and right is not None:
                found.append((-scores[number], number, left, right))
    found.sort()
    return [(texts[left], texts[right]) for _, _, left, right in found]


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    values = metadata.get(PREFIX + name)
    if not isinstance(values, Sequence) or isinstance(values, str | tuple) or not values:
        raise ModelError(f"it lacks {PREFIX}{name}. Download it again.")
    return list(values)


def _bpe(texts: Sequence[str], merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    vocabulary = {text: number for number, text in enumerate(texts)}
    try:
        return models.BPE(vocabulary, merges, **options)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(
            f"its merges do not fit its tokens ({error}). Download it again."
        ) from None


def _add_tokens(backend: Backend, texts: Sequence[str], kinds: Sequence[int]) -> None:
    """Makes tokens that are no text special, and others that were added match as wholes."""
    special = []
    plain = []
    for text, kind in zip(texts, kinds, strict=True):
        if kind == CONTROL:
            special.append(AddedToken(text, special=True, normalized=False))
        elif kind == USER_DEFINED:
            plain.append(AddedToken(text, special=False, normalized=False))
    backend.add_special_tokens(special)
    backend.add_tokens(plain)
