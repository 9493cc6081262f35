"""The attribution filter of the bundled model, from the corpus that it was trained on.

    python -m training.attribution training/data model/bundled/attribution.bin [--bytes 5000000]

fim/attribution.py defines a gram, states what the filter promises, and reads its file. This module
chooses the grams, for every file of the corpus in turn: the next one is the last that begins within
`stride` characters after the one before, or, where none does, the first after that. A gram that is
stored already is taken in preference, so a copied passage costs nothing twice, and so is one whose
words are not everybody's, which makes fewer false alarms. The stride is the smallest whose grams
fit the file.

Two kinds of grams are not stored, so passages of only these are never found: a gram with fewer than
TELLING letters and digits that differ from both characters before them (rules, zeros), and one
whose first WORDS words, whatever stands between them, also follow each other in more than COMMON
packages (licence texts, imports that everybody has, common idioms).
"""

from __future__ import annotations

import argparse
import bisect
import hashlib
import json
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fim.attribution import (
    ARITY,
    BASE,
    GRAM,
    MAGIC,
    TAIL,
    Attribution,
    AttributionError,
    normalized,
)
from training.corpus.folder import CorpusError, rows

TELLING = 20  # characters
WORDS = 4
COMMON = 3  # packages
SET_BITS = 7  # of a value: the set of packages; the 128 most frequent sets are told apart
# 15 of them the fingerprint: one gram in 32,768 that was never stored is taken for one that was
VALUE_BITS = 22
MAX_PACKAGES = 64  # the bits of a mask
U64 = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]
_ASCII = np.arange(128)
_IS_WORD = np.array([chr(c).isalnum() or c == ord("_") for c in _ASCII])


@dataclass(frozen=True)
class Corpus:
    """The grams worth a look, file by file in the order of train.jsonl. n of them, u different
    ones."""

    packages: list[str]
    characters: int  # normalized
    files: npt.NDArray[np.int64]  # (files + 1,): where a file's grams begin
    starts: npt.NDArray[np.integer[Any]]  # (n,): inside the file's normalized text
    ids: npt.NDArray[np.int32]  # (n,): which of `hashes`
    rank: npt.NDArray[
        np.uint8
    ]  # (n,): 0 too common to store, 1 of a few packages, 2 of one package
    hashes: U64  # (u,)
    owners: U64  # (u,): a bit for each package that has the gram


def mixed(values: U64) -> U64:
    """fim.attribution.mixed on arrays."""
    values = (values ^ values >> np.uint64(33)) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ values >> np.uint64(33)) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ values >> np.uint64(33)


@lru_cache(maxsize=4)
def powers(base: int, count: int) -> U64:
    """base ** 0 .. base ** (count - 1), modulo 2 ** 64."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def hash_spans(values: U64, first: Ints, end: Ints, length: int) -> U64:
    """Rolling hashes, mixed, of values[first:end]; of spans of `length` values, those of
    fim.attribution.grams."""
    size = 1 << (len(values) + length).bit_length()
    up, down = powers(BASE, size), powers(pow(BASE, -1, 2**64), size)
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * down[: len(values)], out=sums[1:])
    return mixed((sums[end] - sums[first]) * up[first + (length - 1)])


def grams_of(text: str) -> tuple[int, Ints, U64, U64]:
    """Characters of the normalized text; starts, hashes and word runs (their hashes) of its telling
    grams."""
    raw = normalized(text).encode("utf-32-le", "surrogatepass")
    characters = np.frombuffer(raw, np.uint32).astype(np.uint64)
    plain = np.minimum(characters, 127).astype(np.intp)  # 127 stands for all that is not ASCII
    if len(plain) < GRAM:
        return len(plain), np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    edges = np.diff(np.concatenate([[False], _IS_WORD[plain], [False]]).astype(np.int8))
    words, word_ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    telling = _IS_WORD[plain] & (plain != ord("_"))
    telling[1:] &= plain[1:] != plain[:-1]
    telling[2:] &= plain[2:] != plain[:-2]
    before = np.concatenate([[0], np.cumsum(telling)])

    number = np.flatnonzero(words <= len(plain) - GRAM)
    number = number[before[words[number] + GRAM] - before[words[number]] >= TELLING]
    starts = words[number]
    lower = characters + np.where((characters >= 65) & (characters <= 90), 32, 0).astype(np.uint64)
    runs = hash_spans(
        hash_spans(lower, words, word_ends, 1), number, np.minimum(number + WORDS, len(words)), 1
    )
    return len(plain), starts, hash_spans(characters, starts, starts + GRAM, GRAM), runs


def owners_of(keys: U64, package: npt.NDArray[np.uint8]) -> tuple[U64, npt.NDArray[np.int32], U64]:
    """Different keys, which of them each key is, and a bit for each package that has it."""
    different, ids = np.unique(keys, return_inverse=True)
    owners = np.zeros(len(different), np.uint64)
    np.bitwise_or.at(owners, ids, np.uint64(1) << package.astype(np.uint64))
    return different, ids.astype(np.int32), owners


def read(path: Path) -> Corpus:
    """Raises AttributionError, CorpusError."""
    packages: dict[str, int] = {}
    columns: list[tuple[npt.NDArray[np.int32], U64, U64]] = []
    counts, numbers, total = [], [], 0
    for package, _, text in rows(path):
        size, starts, hashes, runs = grams_of(text)
        total += size
        counts.append(len(starts))
        numbers.append(packages.setdefault(package, len(packages)))
        columns.append((starts.astype(np.int32), hashes, runs))
    if len(packages) > MAX_PACKAGES:
        raise AttributionError(
            f"the corpus has {len(packages)} packages; the filter tells up to {MAX_PACKAGES} apart"
        )
    if not sum(counts):
        raise AttributionError(f"{path} has no text to recognize: make corpus")
    package_of = np.repeat(np.array(numbers, np.uint8), counts)
    starts = np.concatenate([column[0] for column in columns])
    keys, words = (np.concatenate([column[n] for column in columns]) for n in (1, 2))
    del columns
    _, ids, owners = owners_of(words, package_of)
    sharing = np.bitwise_count(owners)[ids]
    rank = np.where(sharing > COMMON, 0, np.where(sharing > 1, 1, 2)).astype(np.uint8)
    hashes, ids, owners = owners_of(keys, package_of)
    files = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Corpus(list(packages), total, files, starts, ids, rank, hashes, owners)


def choose(corpus: Corpus, stride: int) -> Bools:
    """(u,): which grams to store. Of `stride` successive starts in a file at least one, if one of
    them may be."""
    stored = np.zeros(len(corpus.hashes), bool)
    for first, end in zip(corpus.files, corpus.files[1:], strict=False):
        usable = np.flatnonzero(corpus.rank[first:end]) + first
        ids, rank, starts = corpus.ids[usable], corpus.rank[usable], corpus.starts[usable].tolist()
        place, begin = -1, 0
        while begin < len(starts):
            reach = max(bisect.bisect_right(starts, place + stride, begin), begin + 1)
            worth = 2 * rank[begin:reach] + stored[ids[begin:reach]]
            chosen = reach - 1 - int(worth[::-1].argmax())  # the last of the best
            stored[ids[chosen]] = True
            place, begin = starts[chosen], chosen + 1
    return stored


def fit(corpus: Corpus, room: int) -> tuple[int, Bools]:
    """The smallest stride, nearly, whose grams are at most `room`; and those."""
    low, stride = 0, max(1, round(0.87 * corpus.characters / room))
    while True:
        stored = choose(corpus, stride)
        count = int(stored.sum())
        print(f"stride {stride}: {count} grams, room for {room}", flush=True)
        if count > room:
            low, stride = stride, max(stride + 1, math.ceil(stride * count / room))
        elif (better := max(low + 1, math.ceil(stride * count / room * 1.002))) >= stride:
            return stride, stored
        else:
            stride = better


def layout(count: int) -> tuple[int, int]:
    """(segments, bits of a segment's size) of a filter for so many grams; the paper's sizes for
    four slots a gram."""
    bits = min(16, max(2, math.floor(math.log(max(count, 2)) / math.log(2.91) - 0.5)))
    factor = max(1.075, 0.77 + 0.305 * math.log(600_000) / math.log(max(count, 2)))
    return max(1, math.ceil(count * factor / 2**bits) - ARITY + 1), bits


def slots_of(hashes: U64, segments: int, bits: int) -> Ints:
    """(count, ARITY): the slots of each gram, as fim.attribution looks for them."""
    segment = ((hashes >> np.uint64(32)) * np.uint64(segments) >> np.uint64(32)).astype(np.int64)
    places = mixed(hashes ^ np.uint64(BASE))
    mask = np.uint64((1 << bits) - 1)
    columns = [
        (segment + n << bits) + (places >> np.uint64(16 * n) & mask).astype(np.int64)
        for n in range(ARITY)
    ]
    return np.stack(columns, axis=1)


def solve(slots: Ints, values: npt.NDArray[np.uint32], size: int) -> npt.NDArray[np.uint32] | None:
    """A table whose entries at each gram's slots give its value by exclusive or; None where peeling
    gets stuck."""
    degree = np.bincount(slots.ravel(), minlength=size)
    total = np.zeros(
        size, np.int64
    )  # of the numbers of the grams at a slot: of the only one that is left, its number
    np.add.at(total, slots.ravel(), np.repeat(np.arange(len(slots)), ARITY))
    alone, rounds, peeled = np.flatnonzero(degree == 1), [], 0
    while len(alone):
        numbers, first = np.unique(total[alone], return_index=True)
        rounds.append((numbers, alone[first]))
        peeled += len(numbers)
        touched = slots[numbers].ravel()
        np.subtract.at(degree, touched, 1)
        np.subtract.at(total, touched, np.repeat(numbers, ARITY))
        touched = np.unique(touched)
        alone = touched[degree[touched] == 1]
    if peeled < len(slots):
        return None
    table = np.zeros(size, np.uint32)
    for numbers, own in reversed(rounds):
        table[own] = values[numbers] ^ np.bitwise_xor.reduce(table[slots[numbers]], axis=1)
    return table


def number_sets(owners: U64) -> tuple[list[int], npt.NDArray[np.uint32]]:
    """Masks of the sets that are told apart, and for each gram its set's number.

    A set too rare for a number of its own gets that of the most frequent of its subsets: a package
    is named, not all.
    """
    counts = Counter(owners.tolist())
    used = 0
    for owner in counts:
        used |= owner
    singles = [1 << n for n in range(MAX_PACKAGES) if used >> n & 1]
    several = sorted((s for s in counts if s.bit_count() > 1), key=lambda s: (-counts[s], s))
    listed = sorted(
        [*singles, *several[: 2**SET_BITS - len(singles)]], key=lambda s: (-counts[s], s)
    )
    numbers = {
        s: next(
            n
            for n, known in enumerate(listed)
            if known == s or (s not in listed and not known & ~s)
        )
        for s in counts
    }
    return listed, np.array([numbers[owner] for owner in owners.tolist()], np.uint32)


def pack(header: dict[str, object], table: npt.NDArray[np.uint32]) -> bytes:
    """The file's bytes: see fim.attribution."""
    bits = (table[:, None] >> np.arange(VALUE_BITS, dtype=np.uint32) & 1).astype(np.uint8)
    head = json.dumps(header, separators=(",", ":")).encode()
    body = head + np.packbits(bits.ravel(), bitorder="little").tobytes() + TAIL
    return MAGIC + len(head).to_bytes(4, "little") + hashlib.sha256(body).digest() + body


def build(data: Path, max_bytes: int) -> bytes:
    """The filter of data/train.jsonl, at most so large. Raises AttributionError, CorpusError."""
    try:
        described = json.loads((data / "manifest.json").read_text(encoding="utf-8"))["packages"]
        corpus = read(data / "train.jsonl")
        sources = [
            [name, described[name]["version"], described[name]["licence"]]
            for name in corpus.packages
        ]
    except OSError as error:
        raise AttributionError(
            f"{data}/manifest.json cannot be read ({error.strerror}): make corpus"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, AttributionError):
            raise
        raise AttributionError(
            f"{data}/manifest.json does not describe the packages: make corpus"
        ) from None
    print(
        f"{corpus.characters / 1e6:.0f}M characters, {len(corpus.starts)} grams, "
        f"{len(corpus.hashes)} different, "
        f"{np.mean(corpus.rank == 0):.1%} too common",
        flush=True,
    )
    room = int(
        (max_bytes - 20_000) * 8 / VALUE_BITS / 1.08
    )  # without the header and what peeling needs
    if room < 1:
        raise AttributionError(f"{max_bytes} bytes hold no filter: ask for 100000 or more")
    stride, stored = fit(corpus, room)
    hashes = corpus.hashes[stored]
    listed, numbers = number_sets(corpus.owners[stored])
    fingerprints = hashes & np.uint64((1 << VALUE_BITS - SET_BITS) - 1)
    values = fingerprints.astype(np.uint32) << np.uint32(SET_BITS) | numbers
    segments, bits = layout(len(hashes))
    while (
        table := solve(slots_of(hashes, segments, bits), values, (segments + ARITY - 1) << bits)
    ) is None:
        segments += 1 + segments // 64
    return pack(
        {
            "sources": sources,
            "sets": [[n for n in range(len(sources)) if mask >> n & 1] for mask in listed],
            "stride": stride,
            "grams": len(hashes),
            "segments": segments,
            "segment_bits": bits,
            "value_bits": VALUE_BITS,
            "set_bits": SET_BITS,
        },
        table,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds the attribution filter of a corpus.")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--bytes", type=int, default=5_000_000, help="the most that the file may have"
    )
    options = parser.parse_args()
    began = time.perf_counter()
    try:
        content = build(options.data, options.bytes)
    except (AttributionError, CorpusError) as error:
        sys.exit(f"fimls: {error}")
    filter_ = Attribution(content)
    unfinished = options.out.with_name(options.out.name + ".part")
    unfinished.write_bytes(content)
    unfinished.replace(options.out)
    print(
        f"{options.out}: {len(content)} bytes, {filter_.grams} grams; a passage of "
        f"{filter_.surely_found} normalized "
        f"characters is surely found; {time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    main()
