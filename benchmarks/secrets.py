"""Secrets in a salted workspace: how many come into prompts or suggestions, and how much of
ordinary code is taken for one.

    python -m benchmarks.secrets training/data/test.jsonl [--prompts 100000]

Keys of all forms (tests/salt.py) are written into the files of a .jsonl file. A typist goes to
random places, often beside or into a key, types, deletes and pastes, with \\n and \\r\\n. Each
prompt, as ids for the bundled model and as text for an endpoint in turn, is searched for ten
characters in a row of any key; of each tenth, so is what is made of an answer that holds a key. The
engine keeps nothing but the ids of prompts in memory and on disk, and the window logs counts alone.
False alarms are counted in the same files before they are salted.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fim.secrets import mask
from lsp_server.completion.answer_cache import AnswerCache
from lsp_server.completion.query import Query
from lsp_server.documents import Snapshot
from lsp_server.session.prompter import Prompter
from lsp_server.settings import RemoteSettings, Settings
from tests.salt import FORMS, Salt, leaks
from training.corpus.folder import rows

KEYS = 24  # at one place
LOCAL = Settings()
REMOTE = Settings(remote=RemoteSettings("http://endpoint", format="starcoder2"))


@dataclass
class Found:
    prompts: int = 0
    withheld: int = 0
    leaked: Counter[str] = field(default_factory=Counter)  # keys in prompts, by their place
    answers: int = 0
    shown: int = 0  # answers with a key that were shown
    examples: list[str] = field(default_factory=list)


def salted(text: str, salt: Salt, rng: random.Random) -> str:
    """The text with four keys in lines of their own."""
    lines = text.split("\n")
    for form in rng.sample(sorted(FORMS), 4):
        lines.insert(rng.randrange(len(lines) + 1), FORMS[form](salt))
    end = rng.choice(("\n", "\n", "\r\n"))
    return "\n".join(lines).replace("\n", end)


def typed(text: str, salt: Salt, rng: random.Random) -> Iterator[tuple[str, int]]:
    """The text and the cursor after each key."""
    at = rng.randrange(len(text) + 1)
    if rng.random() < 0.4:
        place = text.find(rng.choice(salt.keys)[:12])
        at = max(0, min(len(text), place + rng.randrange(-20, 60)))
    yield text, at
    written = rng.choice(
        ("x = call(a, b)\n    return x", "\n" + FORMS[rng.choice(sorted(FORMS))](salt))
    )
    for key in written[:KEYS]:
        text = text[:at] + key + text[at:]
        at += 1
        yield text, at
    if rng.random() < 0.3:  # all of it at once, as pasted
        rest = written[KEYS:]
        text = text[:at] + rest + text[at:]
        at += len(rest)
        yield text, at
    for _ in range(rng.randrange(6)):
        text = text[: max(0, at - 1)] + text[at:]
        at = max(0, at - 1)
        yield text, at


def measure(files: list[tuple[str, str]], prompts: int, seed: int) -> Found:
    rng = random.Random(seed)
    found = Found()
    prompters = [(Prompter.for_settings(each), each) for each in (LOCAL, REMOTE)]
    number = 0
    while found.prompts < prompts:
        path, text = rng.choice(files)
        number += 1
        salt = Salt(number)
        text = salted(text[:20_000], salt, rng)
        prompter, settings = prompters[number % 2]
        cache = AnswerCache()
        for version, (now, at) in enumerate(typed(text, salt, rng)):  # the first as it was opened
            snapshot = Snapshot(f"file:///work/{path}", version, "python", now, at)
            query = cache.query(snapshot, path, prompter, settings, "bench")
            look(query, salt, found, path)
            if found.prompts % 10 == 0 and query.withheld is None:
                answer(query, salt, rng, found)
    return found


def look(query: Query, salt: Salt, found: Found, path: str) -> None:
    found.prompts += 1
    found.withheld += query.withheld is not None
    prompt = query.request.prompt
    text = prompt if isinstance(prompt, str) else query.prompter.encoder.decode(prompt)
    text += query.request.begin_with
    for key in leaks(salt.keys, text):
        size = min(10, len(key))
        starts = (text.find(key[start : start + size]) for start in range(len(key) - size + 1))
        at = next(start for start in starts if start >= 0)
        found.leaked[f"{path}: {text[max(0, at - 60) : at + 50]!r}"] += 1


def answer(query: Query, salt: Salt, rng: random.Random, found: Found) -> None:
    """A model that answers with one of the text's keys, or with another behind a telling name."""
    inside = [key for key in salt.keys if len(key) > 7 and key in query.snapshot.text]
    known = rng.choice(inside or salt.keys)
    other = Salt(rng.randrange(10**9))
    for text, keys in ((f'"{known}"', [known]), (FORMS["a string"](other), other.keys)):
        found.answers += 1
        found.shown += bool(leaks(keys, query.shaper.shape(text).text))


def alarms(files: list[tuple[str, str]]) -> tuple[int, int]:
    """Lines in which something is written over, and all lines."""
    total = 0
    hit = 0
    for _, text in files:
        masked = mask(text, 0, len(text)).text
        total += text.count("\n") + 1
        if masked is not text:
            pairs = zip(text.split("\n"), masked.split("\n"), strict=True)
            hit += sum(one != two for one, two in pairs)
    return hit, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("file", type=Path, help="rows of files, as of the held-out packages")
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    files = [(row.path, row.text) for row in rows(given.file)]
    hit, total = alarms(files)
    print(f"lines taken for secrets: {hit} of {total:,} ({hit / total:.4%})")
    started = time.perf_counter()
    found = measure(files, given.prompts, given.seed)
    spent = time.perf_counter() - started
    print(
        f"prompts: {found.prompts:,}, of which nothing was asked for {found.withheld:,}; "
        f"{1000 * spent / found.prompts:.1f} ms each\n"
        f"with a key: {sum(found.leaked.values())}\n"
        f"answers with a key: {found.answers:,}, shown: {found.shown}"
    )
    for place, count in found.leaked.most_common(30):
        print(f"  {count} times {place}")


if __name__ == "__main__":
    main()
