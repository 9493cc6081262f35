"""The attribution filter: how much known text it finds, how often it is wrong, and how long a
look-up takes.

    python -m benchmarks.attribution training/data [--file model/bundled/attribution.bin]

A passage or span has the stated length of normalized characters; its first half stands before the
cursor, the rest is the suggestion. Files and offsets are drawn with equal chances. The fifty
passages leave out the text of licences, which many packages share and the filter leaves out by
design; the thousand passages leave out nothing. An alarm on a held-out span is looked up in the
corpus: its gram either stands in the named package word for word, or a fingerprint was the same by
chance.
"""

from __future__ import annotations

import argparse
import random
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fim.attribution import GRAM, Attribution, AttributionError, Match, grams, normalized
from fim.evaluation.scoring import Share
from training.corpus.folder import CorpusError, rows

NOTICE = re.compile(
    r"(?i)licen[cs]e|copyright|warrant|redistribut|liable|liability|\bas is\b|damages"
)
SHOWN = 8
LOOKS = 2000


@dataclass(frozen=True)
class Span:
    package: str
    path: str
    text: str  # normalized

    @property
    def halves(self) -> tuple[str, str]:
        return self.text[: len(self.text) // 2], self.text[len(self.text) // 2 :]


def draw(path: Path, length: int, count: int, seed: int, *, notices: bool) -> list[Span]:
    """`count` spans of `length` characters; of different files, as long as there are so many.
    Raises CorpusError."""
    rng = random.Random(f"{seed} {path.name} {notices}")
    if not (total := sum(1 for _ in rows(path))):
        raise CorpusError(f"{path} is empty: make corpus")
    order = [
        number for _ in range(4 * count // total + 1) for number in rng.sample(range(total), total)
    ][: 4 * count]
    wanted = set(order)
    files = {
        n: row._replace(text=normalized(row.text))
        for n, row in enumerate(rows(path))
        if n in wanted
    }
    spans: list[Span] = []
    for package, name, text in map(files.__getitem__, order):
        starts = (
            [rng.randrange(len(text) - length + 1) for _ in range(200)]
            if len(text) >= length
            else []
        )
        pieces = (text[start : start + length] for start in starts)
        # With a blank at its end it would be a shorter one.
        usable = (
            piece
            for piece in pieces
            if piece == piece.strip() and (notices or not NOTICE.search(piece))
        )
        spans += [Span(package, name, piece) for piece in [next(usable, "")] if piece]
    return spans[:count]


def shown(hits: int, count: int) -> str:
    low, high = Share(hits, count).interval or (0.0, 1.0)
    return f"{hits} of {count}, {100 * hits / count:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def measure_recall(filter_: Attribution, spans: list[Span]) -> list[Span]:
    """Prints how many are found with their package named; returns the others."""
    missed = []
    for span in spans:
        match = filter_.find(*span.halves)
        if match is None or span.package not in {source.package for source in match.sources}:
            missed.append(span)
    print(f"  found, and the package named: {shown(len(spans) - len(missed), len(spans))}")
    return missed


def true_matches(data: Path, alarms: list[tuple[Span, Match]]) -> list[bool]:
    """Whether a gram of each span stands in a package that was named, looked up in the whole
    corpus."""
    pending = {
        n: ([s.text[at : at + GRAM] for at, _ in grams(s.text)], {x.package for x in m.sources})
        for n, (s, m) in enumerate(alarms)
    }
    true = [False] * len(alarms)
    for package, _, raw in rows(data / "train.jsonl"):
        text = normalized(raw)
        for number, (pieces, named) in list(pending.items()):
            if package in named and any(piece in text for piece in pieces):
                true[number] = True
                del pending[number]
    return true


def measure_alarms(filter_: Attribution, data: Path, spans: list[Span]) -> None:
    alarms = [(span, match) for span in spans if (match := filter_.find(*span.halves)) is not None]
    true = true_matches(data, alarms)
    print(
        f"  alarms: {shown(len(alarms), len(spans))}; {sum(true)} of them stand in the named "
        "package word for word, "
        f"{len(alarms) - sum(true)} by chance"
    )
    for (span, match), real in list(zip(alarms, true, strict=True))[:SHOWN]:
        names = ", ".join(source.package for source in match.sources)
        print(
            f"    {'verbatim' if real else 'chance  '} {names}: {span.package}/{span.path}: "
            f"{span.text[:70]!r}…"
        )


def measure_time(filter_: Attribution, spans: list[Span]) -> None:
    for name, before, size in (("a line", 400, 40), ("a block", 400, 600)):
        times = []
        for number in range(LOOKS):
            text = " ".join(spans[(number + n) % len(spans)].text for n in range(6))
            started = time.perf_counter()
            filter_.find(text[:before], text[before : before + size])
            times.append((time.perf_counter() - started) * 1000)
        times.sort()
        print(
            f"  {name} of {size} characters: median {statistics.median(times):.2f} ms, "
            f"99th percentile {times[-LOOKS // 100]:.2f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--file", type=Path, default=Path("model/bundled/attribution.bin"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    try:
        filter_ = Attribution(content := options.file.read_bytes())
    except (OSError, AttributionError) as error:
        sys.exit(f"fimls: {options.file}: {error}. Build it: make attribution")
    loaded = (time.perf_counter() - started) * 1000
    length = filter_.surely_found
    train, test = options.data / "train.jsonl", options.data / "test.jsonl"
    try:
        fifty = draw(train, length, 50, options.seed, notices=False)
        thousand = draw(train, length, 1000, options.seed, notices=True)
        held_out = draw(test, length, 1000, options.seed, notices=True)
    except CorpusError as error:
        sys.exit(f"fimls: {error}")
    print(
        f"{options.file}: {len(content)} bytes, {filter_.grams} grams of {GRAM} characters, "
        f"stride {filter_.stride}; "
        f"a passage of {length} normalized characters is surely found; read and checked in "
        f"{loaded:.0f} ms"
    )
    print("fifty training files, a passage of each, no text of licences:")
    for span in measure_recall(filter_, fifty):
        print(f"    missed {span.package}/{span.path}: {span.text!r}")
    print("a thousand passages of training files, anywhere:")
    missed = measure_recall(filter_, thousand)
    print(
        f"  of the others {sum(bool(NOTICE.search(span.text)) for span in missed)} are text of "
        "licences, as:"
    )
    for span in missed[:SHOWN]:
        print(f"    {span.package}/{span.path}: {span.text[:100]!r}…")
    print("a thousand spans of held-out files, anywhere:")
    measure_alarms(filter_, options.data, held_out)
    print("time of a look, 400 characters before the cursor:")
    measure_time(filter_, held_out)


if __name__ == "__main__":
    main()
