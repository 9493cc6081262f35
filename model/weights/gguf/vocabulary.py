"""The tokenizer of a GGUF file, made from its tokens, merges and the name of its pre-tokenizer.

Source of the pre-tokenizers: llama.cpp, src/llama-vocab.cpp (llm_tokenizer_bpe), by their names
there. llama.cpp normalizes nothing, and so does this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from model.errors import ModelError
from model.tokenizer import Tokenizer

PREFIX = "tokenizer.ggml."
# The kinds of tokens (llama.h, llama_token_type).
NORMAL = 1
CONTROL = 3
USER_DEFINED = 4
SPECIAL_IDS = (
    "bos_token_id",
    "eos_token_id",
    "eot_token_id",
    "padding_token_id",
    "unknown_token_id",
    "seperator_token_id",  # so spelled
    "fim_pre_token_id",
    "fim_suf_token_id",
    "fim_mid_token_id",
    "fim_pad_token_id",
    "fim_rep_token_id",
    "fim_sep_token_id",
)
_WORDS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_SEED_CODER = rf"{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")


def _split(*patterns: str) -> pre_tokenizers.PreTokenizer:
    """Cuts at each pattern in turn, then only maps bytes to characters."""
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits_apart() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mellum"), _gpt2),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone"), _digits_apart
    ),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), lambda: _split(_QWEN2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), lambda: _split(_LLAMA3)),
    "seed-coder": lambda: _split(_SEED_CODER),
    "deepseek-coder": lambda: _split(*_DEEPSEEK_CODER),
}
WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3")  # a piece that is a token is not merged


def make_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Raises ModelError for a vocabulary that is damaged or of an unknown kind."""
    kind = metadata.get(f"{PREFIX}model")
    if kind != "gpt2":
        raise ModelError(
            f"its tokenizer is of the kind {kind!r}, which fimls does not read from a GGUF file; "
            "it reads 'gpt2'. Use the model's folder with tokenizer.json."
        )
    cutting = metadata.get(f"{PREFIX}pre")
    if not isinstance(cutting, str) or cutting not in PRE_TOKENIZERS:
        raise ModelError(
            f"its pre-tokenizer is {cutting!r}, which fimls does not know; it knows "
            f"{', '.join(PRE_TOKENIZERS)}. Use the model's folder with tokenizer.json, or a file "
            "that a newer converter made."
        )
    texts = _strings(metadata, "tokens")
    kinds = metadata.get(f"{PREFIX}token_type", (NORMAL,) * len(texts))
    if not isinstance(kinds, tuple) or len(kinds) != len(texts):
        raise ModelError("its tokens and their types differ in number. Download it again.")
    _check_special_ids(metadata, len(texts))
    backend = Backend(_bpe(texts, metadata, cutting in WHOLE_WORDS_FIRST))
    backend.pre_tokenizer = PRE_TOKENIZERS[cutting]()
    backend.decoder = decoders.ByteLevel()
    _add_tokens(backend, texts, kinds)
    if backend.get_vocab_size(with_added_tokens=True) != len(texts):
        raise ModelError("its vocabulary names a token twice. Download it again.")
    return Tokenizer(backend)


def _strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    values = metadata.get(PREFIX + name)
    if not isinstance(values, Sequence) or isinstance(values, str | tuple) or not values:
        raise ModelError(f"it lacks {PREFIX}{name}. Download it again.")
    return list(values)


def _bpe(texts: Sequence[str], metadata: Mapping[str, Any], whole_first: bool) -> models.BPE:
    vocabulary = {text: number for number, text in enumerate(texts)}
    merges = []
    for merge in _strings(metadata, "merges"):
        # A piece may begin with a space in no byte-level vocabulary, so the first one divides.
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    try:
        return models.BPE(vocabulary, merges, ignore_merges=whole_first)
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


def _check_special_ids(metadata: Mapping[str, Any], count: int) -> None:
    for name in SPECIAL_IDS:
        number = metadata.get(PREFIX + name)
        if number is not None and not (type(number) is int and 0 <= number < count):
            raise ModelError(
                f"{PREFIX}{name} is {number!r}, but it has {count} tokens. Download it again."
            )
