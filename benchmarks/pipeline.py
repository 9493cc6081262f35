"""What a suggestion costs without the model in a long file: the prompt made at a key, and the rules
and filters of an answer that comes token by token.

    python -m benchmarks.pipeline --model FILE.gguf [--lines 20000] [--keys 300]

A file of the held-out packages' lines is typed in at places far apart, a dozen keys each; each key
makes the query as the server does (with its cache of contexts), and reads one answer of up to 64
tokens, taken from the text that follows. The first key at a place is a jump. Times are the thread's
CPU times, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.figures import machine, percentile, table
from fim.shaping.sureness import Sureness
from lsp_server.commands.source_files import read_packages
from lsp_server.completion.answer_cache import AnswerCache
from lsp_server.documents import Snapshot
from lsp_server.session.prompt_sizes import PromptSizes
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings

KEYS_AT_A_PLACE = 12
TOKENS = 64


def long_text(where: Path | None, lines: int, rng: random.Random) -> str:
    files = [text for each in read_packages(where).values() for _, text in each]
    rng.shuffle(files)
    taken: list[str] = []
    for text in files:
        taken += text.split("\n")
        if len(taken) >= lines:
            break
    return "\n".join(taken[:lines]) + "\n"


def measure(options: argparse.Namespace) -> list[list[object]]:
    rng = random.Random(options.seed)
    text = long_text(options.where, options.lines, rng)
    settings = Settings(model=options.model)
    prompter = Prompter.for_settings(settings)
    sizes = PromptSizes().at(500.0, prompter.time_budget, prompter.context_tokens)
    cache = AnswerCache()
    jumps: list[float] = []
    keys: list[float] = []
    pieces: list[float] = []
    shapes: list[float] = []
    for number in range(options.keys):
        if number % KEYS_AT_A_PLACE == 0:
            at = rng.randrange(len(text) // 10, len(text) * 9 // 10)
            rest = text[at : at + 400]
            text = text[:at] + text[text.find("\n", at) :]
        text = text[:at] + rest[0] + text[at:]
        at, rest = at + 1, rest[1:]
        snapshot = Snapshot("file:///long.py", number, "python", text, at)
        started = time.thread_time()
        query = cache.query(snapshot, "long.py", prompter, settings, "me", sizes)
        spent = time.thread_time() - started
        (jumps if number % KEYS_AT_A_PLACE == 0 else keys).append(spent * 1000)
        written = ""
        ends: list[int] = []
        sums: list[float] = []
        slowest = 0.0
        for token in [rest[i : i + 4] for i in range(0, 4 * TOKENS, 4)]:
            written += token
            ends.append(len(written))
            sums.append(-0.001 * len(sums))
            started = time.thread_time()
            done = query.shaper.done(written, Sureness(tuple(ends), tuple(sums)))
            slowest = max(slowest, time.thread_time() - started)
            if done:
                break
        pieces.append(slowest * 1000)
        shaper = replace(query.shaper)
        started = time.thread_time()
        shaper.shape(written, Sureness(tuple(ends), tuple(sums)))
        shapes.append((time.thread_time() - started) * 1000)
    together = [a + b for a, b in zip(keys, shapes[: len(keys)], strict=True)]
    rows: list[list[object]] = []
    for name, values in (
        ("query at the first key at a place", jumps),
        ("query at another key", keys),
        ("rules at the slowest token of an answer", pieces),
        ("suggestion made of an answer", shapes),
        ("query at another key and suggestion", together),
    ):
        rows.append([name, percentile(values, 0.5), percentile(values, 0.95), max(values)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--where", type=Path, help="without: the held-out packages")
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--keys", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = measure(options)
    print(
        f"{machine()}; {time.strftime('%Y-%m-%d')}; {options.lines:,} lines; "
        "milliseconds of CPU time"
    )
    print(table(["", "p50", "p95", "most"], rows))


if __name__ == "__main__":
    main()
