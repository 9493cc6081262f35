"""`fimls demo`: suggestions in a real file, through the real server, drawn as ghost text."""

from __future__ import annotations

import os
import random
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lsp_server.commands.errors import CommandError
from lsp_server.commands.source_files import language_of, read_source
from lsp_server.protocol.client import EditorWindow
from model.catalogue.entries import find_entry
from model.catalogue.installed import find_all
from model.errors import ModelError
from model.weights.folder import find_model

SAMPLE = Path(__file__).parent.parent / "settings.py"
SHOWN = 3
ASKED = 40
LINES_ABOVE = 5
LINES_BELOW = 3
LEAST_TEXT = 12  # characters to guess: a closing bracket proves little
LONGEST_S = 30.0  # of asking, where a large model is slow
MOST_PARAMETERS = 2_000_000_000  # of the model that is chosen unasked: a CPU runs so many
BETTER = "qwen2.5-coder-0.5b"  # what somebody with the bundled model alone is told of


@dataclass(frozen=True, slots=True)
class Scene:
    """A place where the end of a line was taken away, and the suggestion there."""

    line: int  # 0-based
    column: int  # 0-based
    suggestion: str
    author: str  # the end of the line as the author wrote it
    ms: float

    @property
    def same(self) -> bool:
        return self.suggestion.rstrip() == self.author.rstrip()


def best_model() -> str:
    """The largest model of the catalogue on this disk that fimls runs and that is not too large to
    wait for; 'bundled' where there is none."""
    best = "bundled"
    most = 0
    for here in find_all():
        entry = find_entry(here.entry)
        parameters = entry.parameters if entry and entry.parameters else 0
        if most < parameters <= MOST_PARAMETERS:
            try:
                find_model(here.name)
            except ModelError:
                continue
            best = here.name
            most = parameters
    return best


async def print_demo(file: Path | None, model: str | None = None, seed: int = 0) -> None:
    """The command; also draws the SVG that FIMLS_DEMO_SVG names. model None: the best on the disk.

    Raises CommandError, OSError.
    """
    if model is None:
        model = os.environ.get("FIMLS_MODEL") or best_model()
    path = (file or SAMPLE).absolute()
    lines = read_source(path).splitlines()
    svg = os.environ.get("FIMLS_DEMO_SVG")
    console = Console(highlight=False, record=bool(svg), width=100 if svg else None)
    async with EditorWindow(path.parent, {"multiline": "never", "model": model}) as window:
        if not await window.wait_until_ready():
            raise CommandError(window.problem)
        scenes: list[Scene] = []
        answered: list[Scene] = []
        deadline = time.monotonic() + LONGEST_S
        for line, column in places(lines, seed):
            late = time.monotonic() - deadline
            if late > 0 and (len(answered) >= SHOWN or late > LONGEST_S):
                break
            scene = await ask_at(window, path, lines, line, column)
            scenes.append(scene)
            if scene.suggestion:
                answered.append(scene)
    if not answered:
        raise CommandError(f"the model had nothing to suggest for {path}; try another file")
    # Those that the author wrote come first, the longest of them before the others.
    answered.sort(key=lambda scene: (scene.same, len(scene.suggestion)), reverse=True)
    chosen = answered[:SHOWN]
    for scene in chosen:
        draw(console, path, lines, scene)
    console.print(
        f"\nAsked at {len(scenes)} random places where the end of a line was taken away: "
        f"{len(answered)} suggestions, {sum(scene.same for scene in answered)} exactly what the "
        f"author wrote; {len(chosen)} are shown above."
    )
    console.print(f"Model: {model}.", end=" ")
    if model == "bundled":
        console.print(
            f"To try a better one: `make demo MODEL={BETTER}`, which is `fimls pull {BETTER}` and "
            f"`fimls demo --model {BETTER}`.",
            end="",
        )
    console.print()
    median = statistics.median_high(scene.ms for scene in scenes)
    console.print(
        f"server answered after {window.initialize_ms:.0f} ms, model ready after "
        f"{window.ready_ms:.0f} ms, a suggestion took {median:.0f} ms (median), "
        f"{scenes[0].ms:.0f} ms the first",
        style="dim",
    )
    if svg:
        write_svg(console, Path(svg))


def places(lines: list[str], seed: int) -> list[tuple[int, int]]:
    """Random cursors (line, column), 0-based, in code, with LEAST_TEXT characters after each."""
    candidates = []
    for number, line in enumerate(lines):
        code = line.strip()
        if not code.startswith(("#", '"""')):
            indent = len(line) - len(line.lstrip())
            for written in range(4, len(code) - LEAST_TEXT):
                candidates.append((number, indent + written))
    return sorted(random.Random(seed).sample(candidates, min(ASKED, len(candidates))))


async def ask_at(
    window: EditorWindow, path: Path, lines: list[str], line: int, column: int
) -> Scene:
    """Takes the rest of the line away and asks for it."""
    text = "\n".join([*lines[:line], lines[line][:column], *lines[line + 1 :]]) + "\n"
    window.put(path, language_of(path), text)
    started = time.perf_counter()
    suggestion = await window.ask(path, line, column)
    ms = (time.perf_counter() - started) * 1000
    return Scene(line, column, suggestion, lines[line][column:], ms)


def draw(console: Console, path: Path, lines: list[str], scene: Scene) -> None:
    """The lines around the cursor, with the suggestion as ghost text."""
    console.print(Text(f"\n{path.name}:{scene.line + 1}:{scene.column + 1}", style="bold"))
    first = max(0, scene.line - LINES_ABOVE)
    last = min(len(lines) - 1, scene.line + LINES_BELOW)
    for number in range(first, last + 1):
        drawn = Text(f"{number + 1:5}  ", style="dim")
        if number == scene.line:
            drawn.append(lines[number][: scene.column], style="not dim")
            drawn.append("▏", style="not dim bold green")
            drawn.append(scene.suggestion, style="not dim italic bright_black")
        else:
            drawn.append(lines[number], style="not dim")
        console.print(drawn, soft_wrap=True)
    verdict = f"the author wrote {scene.author!r}"
    style = "yellow"
    if scene.same:
        verdict = "what the author wrote"
        style = "green"
    console.print(Text(f"       {scene.ms:.0f} ms, {verdict}", style=style))


def write_svg(console: Console, path: Path) -> None:
    """Everything that was printed, as a picture that loads nothing from the network."""
    drawn = console.export_svg(title="fimls demo")
    drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL)  # fonts on a server
    # Some viewers drop no-break spaces at the start of a text; ordinary ones can be kept.
    drawn = drawn.replace("&#160;", " ").replace("<text ", '<text xml:space="preserve" ')
    path.write_text(drawn)
