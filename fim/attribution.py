"""Whether a suggestion repeats text of the training corpus, and whose: a filter of grams, looked up
in microseconds.

A gram is 50 characters of normalized text (every run of whitespace, line ends included, is one
space) from the start of a word. training/attribution.py stores one gram of twenty, such that among
any `stride` successive characters of a file one is the start of a stored gram. So every passage of
`surely_found` = 50 + stride - 1 normalized characters holds a stored gram, wherever it begins. The
docstring there says which grams are too common to be stored.

The grams are not kept, only fingerprints of their hashes, in a binary fuse filter (Graf and Lemire,
https://arxiv.org/abs/2201.01174) whose values are a fingerprint and the number of a set of
packages. The file:

    MAGIC | size of the header, 4 bytes, little-endian | SHA-256 of all that follows | header, JSON
    | values, bit-packed
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAGIC = b"fimls-attribution-1\n"
HEADER_AT = len(MAGIC) + 4 + 32
GRAM = 50  # normalized characters
BASE = 0x9E3779B97F4A7C15  # of the rolling hash (Karp and Rabin); odd: numpy divides by its powers
WIDEST = 24  # bits of a value, so that it fits into four bytes wherever in a byte it begins
PLACE_BITS = 16  # bits of a hash that give a gram's place in a segment
TAIL = b"\0" * 4  # after the last value, so that four bytes can be read there
ARITY = 4  # slots of a gram; the fourth makes the file 5% smaller
FAR = 16  # characters of raw text read for a normalized one: code may be deeply indented
_BITS = 2**64 - 1
_ROLL = pow(BASE, GRAM, 2**64)
_WORD = re.compile(r"\b(?=\w)", re.ASCII)


class AttributionError(ValueError):
    """The data are not a filter of this version; the message says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Source:
    package: str
    version: str
    licence: str  # SPDX

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.licence})"


@dataclass(frozen=True, slots=True)
class Match:
    """Each of these packages has a passage of the text before the cursor and the suggestion."""

    sources: tuple[Source, ...]
    characters: int  # normalized characters of that passage, at least
    # The passage was found in the user's own text alone, and the suggestion goes on after it.
    continues: bool

    def __str__(self) -> str:
        verb = "continues" if self.continues else "makes"
        names = " and ".join(map(str, self.sources))
        return f"{verb} text of {names}, at least {self.characters} characters"


def normalized(text: str) -> str:
    """The text with one space for every run of whitespace (as in str.split), none at its ends."""
    return " ".join(text.split())


def mixed(value: int) -> int:
    """MurmurHash3's finalizer, 64 bits: every bit of the result depends on every bit of `value`."""
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & _BITS
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & _BITS
    return value ^ value >> 33


def grams(text: str) -> Iterator[tuple[int, int]]:
    """(start, 64-bit hash) of every gram of a normalized text."""
    rolling = [0]
    for character in text:
        rolling.append((rolling[-1] * BASE + ord(character)) & _BITS)
    for word in _WORD.finditer(text, 0, max(0, len(text) - GRAM + 1)):
        start = word.start()
        yield start, mixed((rolling[start + GRAM] - rolling[start] * _ROLL) & _BITS)


class Attribution:
    """The filter over the bytes of its file. Raises AttributionError."""

    def __init__(self, data: bytes) -> None:
        if not data.startswith(MAGIC):
            raise AttributionError("it is no attribution file of this version")
        checksum = hashlib.sha256(memoryview(data)[HEADER_AT:]).digest()
        if data[HEADER_AT - 32 : HEADER_AT] != checksum:
            raise AttributionError("it is damaged or cut short")
        self._data = data
        self._values_at = HEADER_AT + int.from_bytes(data[len(MAGIC) : len(MAGIC) + 4], "little")
        try:
            self._read(json.loads(data[HEADER_AT : self._values_at]))
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
            raise AttributionError(f"its header cannot be read ({type(error).__name__})") from None
        if not 0 <= self._segment_bits <= PLACE_BITS or self._segments < 1 or self.stride < 1:
            raise AttributionError("its header has numbers that cannot be")
        needed = ((self._segments + ARITY - 1) << self._segment_bits) * self._value_bits
        there = (len(data) - self._values_at - len(TAIL)) * 8  # bits
        if not 0 < self._set_bits < self._value_bits <= WIDEST or there < needed:
            raise AttributionError("its header and its size disagree")

    def _read(self, header: dict[str, Any]) -> None:
        sources = [Source(*map(str, source)) for source in header["sources"]]
        self._sets: list[tuple[Source, ...]] = []
        for numbers in header["sets"]:
            self._sets.append(tuple(map(sources.__getitem__, numbers)))
        self.stride = int(header["stride"])
        self.grams = int(header["grams"])
        self._segments = int(header["segments"])
        self._segment_bits = int(header["segment_bits"])
        self._value_bits = int(header["value_bits"])
        self._set_bits = int(header["set_bits"])

    @property
    def surely_found(self) -> int:
        """Normalized characters from which a verbatim passage is found wherever it begins."""
        return GRAM + self.stride - 1

    def find(self, before: str, suggestion: str) -> Match | None:
        """The passage of the corpus that the suggestion makes, or continues from before the cursor.

        Looked up are the last `surely_found` characters of both, and the grams that reach into the
        suggestion. A passage that lies wholly in the user's own text is reported only if it ends
        close enough to the cursor for the suggestion to continue it.
        """
        before = before[-FAR * self.surely_found :]
        text = normalized(before + suggestion)
        cursor = len(normalized(before))
        first = max(0, min(cursor - GRAM + 1, len(text) - self.surely_found))
        found: defaultdict[Source, list[int]] = defaultdict(list)
        for start, gram in grams(text[first:]):
            for source in self._look_up(gram):
                found[source].append(first + start)
        if not found:
            return None
        covered = {source: _covered(starts) for source, starts in found.items()}
        most = max(covered.values())
        sources = tuple(source for source in covered if covered[source] == most)
        reached = max(found[source][-1] for source in sources) + GRAM
        return Match(sources, most, continues=reached <= cursor)

    def _look_up(self, gram: int) -> tuple[Source, ...]:
        """The packages that have a gram; almost always none for a gram that was not stored."""
        segment = (gram >> 32) * self._segments >> 32
        places = mixed(gram ^ BASE)
        value = 0
        for nth in range(ARITY):
            place = (places >> PLACE_BITS * nth) & ((1 << self._segment_bits) - 1)
            bit = ((segment + nth << self._segment_bits) + place) * self._value_bits
            byte = self._values_at + (bit >> 3)
            value ^= int.from_bytes(self._data[byte : byte + 4], "little") >> (bit & 7)
        value &= (1 << self._value_bits) - 1
        number = value & ((1 << self._set_bits) - 1)
        fingerprint = gram & ((1 << self._value_bits - self._set_bits) - 1)
        if value >> self._set_bits != fingerprint or number >= len(self._sets):
            return ()
        return self._sets[number]


def _covered(starts: list[int]) -> int:
    """How many characters the grams at these ascending starts cover."""
    covered = 0
    end = 0
    for start in starts:
        covered += start + GRAM - max(start, end)
        end = start + GRAM
    return covered
