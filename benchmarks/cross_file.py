"""What text of other files is worth to a model: places in held-out packages whose text uses a name
that only another file of the package has.

    python -m benchmarks.cross_file --model FILE.gguf [--places 100] [--forms none,files-512]
    [--answers FILE.jsonl]

A place is the end of a line from a word's edge on, up to the name or before it. The name is that of
a function, method, type or constant that another file of the package defines, and stands nowhere
else in the window of --window tokens. Each form of the prompt answers every place: greedy, healed
and laid out as in the product. "exact": the answer's first line is the rest of the line. "has the
name": the snippets do.

A form is KIND-TOKENS: files (signatures as files of the repository), top (as comments at the
prefix's beginning), near (as comments above the cursor's line), bodies (files with whole functions
in place of signatures). none has no snippets. Answers are kept in --answers, by place and form, and
are not asked again.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import builtins
import datetime
import io
import json
import logging
import math
import os
import random
import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.figures import machine, percentile, table
from fim import CursorContext, around_cursor, with_anchor
from fim.evaluation.scoring import Share
from fim.project import Part, Place, Source, choose, imported_names, imported_paths, parts_of
from lsp_server.commands.engine import ready_engine
from lsp_server.engines.interface import Engine
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings
from model.engine.options import EngineOptions

CORPUS = Path("training/data/test.jsonl")
MOST_TOKENS = 48
SHORTEST = 4  # characters of a name
LONGEST = 60  # of what is to be written
MOST_DEFINED = 3  # files that define the name
# Names that a model knows without any file of the package.
KNOWN = (str, list, dict, set, bytes, int, io.TextIOWrapper, logging.Logger, threading.Event)
KNOWN += (re.Pattern, re.Match, datetime.datetime, Path, builtins, os, math, ast.AST)
COMMON = {name for kind in KNOWN for name in dir(kind)}
NAME = re.compile(r"[^\W\d]\w*")
EDGE = re.compile(r"\b(?=\w)|(?<=[(\[{ ,.=])")


@dataclass(frozen=True)
class Spot:
    """A place: the cursor's offset in a file, what follows on its line, and the name in that."""

    package: str
    path: str
    offset: int
    wanted: str
    name: str

    @property
    def key(self) -> str:
        return f"{self.package}/{self.path}:{self.offset}"


Package = dict[str, str]
Row = dict[str, Any]


def read_corpus(path: Path) -> dict[str, Package]:
    packages: dict[str, Package] = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        packages[row["package"]][row["path"]] = row["text"]
    return packages


def defined(text: str) -> set[str]:
    """The names that a module defines: functions, methods, types, and its own constants."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return set()
    names = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def spots(package: str, files: Package, window: int, rng: random.Random) -> list[Spot]:
    """At most one place of each line, in files without those of tests."""
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for path, text in files.items():
        for name in defined(text):
            owners[name].add(path)
    found = []
    for path, text in files.items():
        if "test" in path or len(text) > 200_000:
            continue
        for name, at in used(text):
            others = owners.get(name, set())
            if (
                len(name) < SHORTEST
                or name in COMMON
                or name.startswith("__")
                or not 0 < len(others) <= MOST_DEFINED
                or path in others
            ):
                continue
            spot = spot_at(package, path, text, name, at, window, rng)
            if spot is not None:
                found.append(spot)
    return found


def ordinary(package: str, files: Package, rng: random.Random) -> list[Spot]:
    """Places as they come: a word's edge in a line of code, a few in each file."""
    found = []
    for path, text in files.items():
        if "test" in path:
            continue
        lines = list(re.finditer(r"^[ \t]*[^\s#\"'].{3,}$", text, re.MULTILINE))
        for line in rng.sample(lines, min(4, len(lines))):
            edges = [line.start() + edge.start() for edge in EDGE.finditer(line[0])]
            offset = rng.choice(edges or [line.end() - len(line[0].lstrip())])
            wanted = text[offset : line.end()].rstrip()
            name = NAME.search(wanted)
            if name is not None and len(wanted) <= LONGEST:
                found.append(Spot(package, path, offset, wanted, name[0]))
    return found


def used(text: str) -> list[tuple[str, int]]:
    """The names that a module reads, of variables and attributes, with their offsets."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    starts = [0, *(found.end() for found in re.finditer("\n", text))]
    held = {
        inner for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
        for inner in ast.walk(node)
    }  # fmt: skip
    found = []
    for node in ast.walk(tree):
        if node in held:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            name, line, column = node.id, node.lineno, node.col_offset
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            name, line = node.attr, node.end_lineno or 0
            column = (node.end_col_offset or 0) - len(name.encode())
        else:
            continue
        at = starts[line - 1] + column  # bytes, so only lines of ASCII fit
        if text[at : at + len(name)] == name:
            found.append((name, at))
    return sorted(found, key=lambda each: each[1])


def spot_at(
    package: str, path: str, text: str, name: str, at: int, window: int, rng: random.Random
) -> Spot | None:
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    end = len(text) if end < 0 else end
    line = text[start:end]
    code = start + len(line) - len(line.lstrip())
    edges = [
        start + edge.start() for edge in EDGE.finditer(line) if code <= start + edge.start() <= at
    ]
    offset = rng.choice([*edges, at])
    wanted = text[offset:end].rstrip()
    reach = 4 * window
    around = text[max(0, offset - reach) : offset] + text[end : end + reach // 2]
    again = re.search(rf"\b{name}\b", around + text[offset:at])
    if again or len(wanted) > LONGEST:
        return None
    return Spot(package, path, offset, wanted, name)


def draw(
    packages: dict[str, Package], count: int, window: int, seed: int, *, any_place: bool = False
) -> list[Spot]:
    """So many places, as many from each package as there are; no two of one file and name."""
    rng = random.Random(seed)
    pools = []
    for package in sorted(packages):
        files = packages[package]
        found = ordinary(package, files, rng) if any_place else spots(package, files, window, rng)
        rng.shuffle(found)
        seen: set[tuple[str, str]] = set()
        pool = []
        for spot in found:
            if (spot.path, spot.name) not in seen:
                seen.add((spot.path, spot.name))
                pool.append(spot)
        pools.append(pool)
    drawn: list[Spot] = []
    while len(drawn) < count and any(pools):
        for pool in pools:
            if pool and len(drawn) < count:
                drawn.append(pool.pop())
    return drawn


class Forms:
    """Makes the prompts of one prompter's model."""

    def __init__(self, prompter: Prompter, packages: dict[str, Package], window: int) -> None:
        self.prompter = prompter
        self.packages = packages
        self.window = window
        self._parts: dict[tuple[str, str, str], Sequence[Part]] = {}

    def parts(self, package: str, path: str, kind: str) -> Sequence[Part]:
        key = (package, path, kind)
        if key not in self._parts:
            text = self.packages[package][path]
            parts = parts_of(text, path, "python")
            if kind == "bodies":
                parts = tuple(
                    replace(part, text=text[part.start : part.end])
                    if text.count("\n", part.start, part.end) <= 30
                    else part
                    for part in parts
                )
            self._parts[key] = parts
        return self._parts[key]

    def context(self, spot: Spot, form: str) -> CursorContext:
        text = self.packages[spot.package][spot.path]
        end = spot.offset + len(spot.wanted)
        shown = text[: spot.offset] + text[end:]
        encoder = self.prompter.encoder
        context = around_cursor(
            shown, spot.offset, encoder=encoder, token_budget=self.window, path=spot.path
        )
        kind, _, tokens = form.partition("-")
        if tokens:
            context = self._with_snippets(context, spot, kind, int(tokens))
        if (self.prompter.layout or self.prompter.format.layouts[0]) == "anchored":
            context = with_anchor(context, None, encoder)
        return context

    def _with_snippets(
        self, context: CursorContext, spot: Spot, kind: str, tokens: int
    ) -> CursorContext:
        files = self.packages[spot.package]
        text = files[spot.path]
        imported = imported_paths(text[: spot.offset], spot.path, "python", files)
        sources = []
        for path in files:
            if path == spot.path:
                continue
            weight = 1.5 if path in imported else 1.0
            sources.append(Source("", weight, self.parts(spot.package, path, kind)))
        names = imported_names(text[: spot.offset], "python")
        place = Place(context.prefix, context.suffix, names)
        snippets = choose(place, sources, tokens, self.prompter.count)
        if kind in ("files", "bodies"):
            return replace(context, snippets=snippets, repository=spot.package)
        lines = [f"# {line}" for s in snippets for line in (s.path, *s.text.splitlines())]
        if kind == "top":
            return replace(context, prefix="\n".join((*lines, "", context.prefix)))
        start = context.prefix.rfind("\n") + 1
        line = context.prefix[start:]
        indent = line[: len(line) - len(line.lstrip())]
        block = "".join(f"{indent}{line}\n" for line in lines)
        return replace(context, prefix=context.prefix[:start] + block + line)


async def answers(
    drawn: Sequence[Spot], forms: Sequence[str], maker: Forms, settings: Settings, kept: Path | None
) -> list[Row]:
    """A row for each place and form. Asks only for those that are not kept."""
    known: dict[tuple[str, str], Row] = {}
    if kept is not None and kept.exists():
        for line in kept.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            known[row["key"], row["form"]] = row
    rows = []
    async with ready_engine(settings) as engine:
        for number, spot in enumerate(drawn):
            for form in forms:
                row = known.get((spot.key, form))
                if row is None:
                    row = await ask(engine, spot, form, maker, settings)
                    if kept is not None:
                        with kept.open("a", encoding="utf-8") as file:
                            print(json.dumps(row), file=file)
                rows.append(row)
            if number % 10 == 9:
                print(f"{number + 1} places", flush=True)
    return rows


async def ask(engine: Engine, spot: Spot, form: str, maker: Forms, settings: Settings) -> Row:
    """One greedy answer, up to its first line's end."""
    started = time.perf_counter()
    context = maker.context(spot, form)
    made_ms = (time.perf_counter() - started) * 1000
    request, _ = maker.prompter.request(context, settings, "cross-file")
    text = ""
    started = time.perf_counter()
    async with aclosing(engine.complete(request)) as pieces:
        async for piece in pieces:
            text += piece.text
            if "\n" in text:
                break
    return {
        "key": spot.key,
        "form": form,
        "wanted": spot.wanted,
        "name": spot.name,
        "answer": text,
        "tokens": len(request.prompt),
        "has_name": any(re.search(rf"\b{spot.name}\b", s.text) for s in context.snippets)
        or spot.name in context.prefix,
        "made_ms": made_ms,
        "s": time.perf_counter() - started,
    }


def is_exact(row: Row) -> bool:
    return str(row["answer"]).partition("\n")[0].rstrip() == row["wanted"]


def has_right_name(row: Row) -> bool:
    return re.search(rf"\b{row['name']}\b", str(row["answer"]).partition("\n")[0]) is not None


def report(rows: Sequence[Row], forms: Sequence[str]) -> str:
    by_form: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_form[str(row["form"])].append(row)
    lines = []
    base = None
    for form in forms:
        found = by_form[form]
        exact = Share(sum(map(is_exact, found)), len(found))
        base = exact.value if base is None else base
        named = sum(map(has_right_name, found)) / len(found)
        low, high = exact.interval or (0.0, 0.0)
        ratio = (exact.value or 0) / base if base else float("nan")
        lines.append(
            (
                form,
                len(found),
                f"{exact.value:.1%} [{100 * low:.0f}, {100 * high:.0f}]",
                ratio,
                f"{named:.1%}",
                f"{sum(bool(row['has_name']) for row in found) / len(found):.1%}",
                percentile([float(str(row["tokens"])) for row in found], 0.5),
                percentile([float(str(row["made_ms"])) for row in found], 0.5),
            )
        )
    head = ("form", "places", "exact", "× first", "right name", "has the name", "tokens", "ms")
    return table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--places", type=int, default=100)
    parser.add_argument("--window", type=int, default=768, help="tokens of the file's own text")
    parser.add_argument("--forms", default="none,files-512")
    parser.add_argument("--answers", type=Path, help="a .jsonl file that keeps the answers")
    parser.add_argument(
        "--ordinary", action="store_true", help="places as they come: do snippets harm there?"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    packages = read_corpus(CORPUS)
    drawn = draw(packages, options.places, options.window, options.seed, any_place=options.ordinary)
    print(machine(), dict(Counter(spot.package for spot in drawn)), flush=True)
    without_cache = EngineOptions(cache_memory=0, cache_disk=0)  # no prompt begins as another one
    settings = Settings(model=options.model, max_tokens=MOST_TOKENS, engine=without_cache)
    maker = Forms(Prompter.for_settings(settings), packages, options.window)
    forms = options.forms.split(",")
    rows = asyncio.run(answers(drawn, forms, maker, settings, options.answers))
    print(report(rows, forms))


if __name__ == "__main__":
    main()
