"""How byte-level tokenizers cut a text before they merge bytes, by the names in GGUF files.

Source: llama.cpp, src/llama-vocab.cpp (llm_tokenizer_bpe), with its names and its patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tokenizers import Regex, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_WORDS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_SEED_CODER = rf"{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
_CJK = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")
# The letters that DeepSeek LLM joins: those with two cases, but for some scripts. Code points.
_CASED = """
    41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376-377 37b-37d 37f 386
    388-38a 38c 38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba
    1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59
    1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec
    1ff2-1ff4 1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139
    213c-213f 2145-2149 214e 2183-2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2-2cf3 a640-a66d a680-a69b
    a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f
    104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943
""".split()
_MARKS = "21-2f 3a-7e ff01-ff0f ff1a-ff5e 2018-201f 3000-3002".split()


def _characters(ranges: list[str]) -> str:
    """A class of a regular expression."""
    escaped = ["-".join(rf"\x{{{end}}}" for end in each.split("-")) for each in ranges]
    return f"[{''.join(escaped)}]"


_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?{_characters(_CASED)}+",
    rf"\s?{_characters(_MARKS)}+",
    r"\s+$",
    _CJK,
    r"\p{N}+",
)


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


DEFAULT = "default"  # also of files from before May 2024, which name none
PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    DEFAULT: lambda: _split(*_DEFAULT),
    **dict.fromkeys(("gpt-2", "phi-2", "mellum", "olmo"), _gpt2),
    **dict.fromkeys(
        ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone"), _digits_apart
    ),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), lambda: _split(_QWEN2)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), lambda: _split(_LLAMA3)),
    "seed-coder": lambda: _split(_SEED_CODER),
    "deepseek-coder": lambda: _split(*_DEEPSEEK_CODER),
    "deepseek-llm": lambda: _split(*_DEEPSEEK_LLM),
}
WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3")  # a piece that is a token is not merged
