"""`fimls demo`: suggestions in a real file, through the real server over stdio, drawn as an editor
draws them."""

from __future__ import annotations

import os
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lsp_server.commands.errors import CommandError
from lsp_server.commands.source_files import language_of, read_source
from lsp_server.protocol.client import EditorWindow

SAMPLE = Path(__file__).parent.parent / "settings.py"
SHOWN, ASKED = 3, 40
LINES_ABOVE, LINES_BELOW = 5, 3
LEAST_TEXT = 12  # characters: a closing bracket proves little


@dataclass(frozen=True, slots=True)
class Scene:
    """A place (0-based) where the end of a line was taken away, what was suggested, and what the
    author wrote."""

    line: int
    column: int
    suggestion: str
    author: str
    ms: float

    @property
    def same(self) -> bool:
        return self.suggestion.rstrip() == self.author.rstrip()


async def show(file: Path | None, seed: int = 0) -> None:
    """Prints suggestions and timings. Raises CommandError when the model has nothing to say about
    the file."""
    path = (file or SAMPLE).absolute()
    lines = read_source(path).splitlines()
    svg = os.environ.get("FIMLS_DEMO_SVG")
    console = Console(highlight=False, record=bool(svg), width=100 if svg else None)
    async with EditorWindow(path.parent, {"multiline": "never"}) as window:
        if not await window.wait_until_ready():
            raise CommandError("; ".join(window.messages) or "the model did not load in time")
        scenes = [await ask_at(window, path, lines, *place) for place in places(lines, seed)]
    answered = [s for s in scenes if s.suggestion]
    if not answered:
        raise CommandError(f"the model had nothing to suggest for {path}; try another file")
    # The ones that hit what the author wrote come first, the longest of them before the others.
    chosen = sorted(answered, key=lambda s: (s.same, len(s.suggestion)), reverse=True)[:SHOWN]
    for scene in chosen:
        draw(console, path, lines, scene)
    warm = sorted(s.ms for s in scenes)
    console.print(
        f"\nAsked at {len(scenes)} random places where the end of a line was taken away: "
        f"{len(answered)} suggestions, "
        f"{sum(s.same for s in answered)} exactly what the author wrote; {len(chosen)} are shown "
        "above."
    )
    console.print(
        f"server answered after {window.initialize_ms:.0f} ms, model ready after "
        f"{window.ready_ms:.0f} ms, "
        f"a suggestion took {warm[len(warm) // 2]:.0f} ms (median), {scenes[0].ms:.0f} ms the "
        "first",
        style="dim",
    )
    if svg:
        drawn = console.export_svg(title="fimls demo")
        # Rich's fonts come from a server elsewhere: the picture does without. Its no-break spaces,
        # which some viewers drop at the start of a text, become spaces that are kept.
        drawn = re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL).replace("&#160;", " ")
        Path(svg).write_text(drawn.replace("<text ", '<text xml:space="preserve" '))


def places(lines: list[str], seed: int) -> list[tuple[int, int]]:
    """Random cursors inside lines of code, with enough of the line to the right to be worth
    guessing."""
    candidates = [
        (number, len(line) - len(line.lstrip()) + rest)
        for number, line in enumerate(lines)
        for rest in range(4, len(line.strip()) - LEAST_TEXT)
        if not line.strip().startswith(("#", '"""'))
    ]
    return sorted(random.Random(seed).sample(candidates, min(ASKED, len(candidates))))


async def ask_at(
    window: EditorWindow, path: Path, lines: list[str], line: int, column: int
) -> Scene:
    """Takes the rest of the line away and asks for it."""
    text = "\n".join([*lines[:line], lines[line][:column], *lines[line + 1 :]]) + "\n"
    window.put(path, language_of(path), text)
    started = time.perf_counter()
    suggestion = await window.ask(path, line, column)
    return Scene(
        line, column, suggestion, lines[line][column:], (time.perf_counter() - started) * 1000
    )


def draw(console: Console, path: Path, lines: list[str], scene: Scene) -> None:
    """The lines around the cursor; the suggestion is drawn as ghost text."""
    console.print(Text(f"\n{path.name}:{scene.line + 1}:{scene.column + 1}", style="bold"))
    for number in range(
        max(0, scene.line - LINES_ABOVE), min(len(lines), scene.line + LINES_BELOW + 1)
    ):
        drawn = Text(f"{number + 1:5}  ", style="dim")
        if number == scene.line:
            drawn.append(lines[number][: scene.column], style="not dim")
            drawn.append("▏", style="not dim bold green")
            drawn.append(scene.suggestion, style="not dim italic bright_black")
        else:
            drawn.append(lines[number], style="not dim")
        console.print(drawn, soft_wrap=True)
    verdict = "what the author wrote" if scene.same else f"the author wrote {scene.author!r}"
    console.print(
        Text(f"       {scene.ms:.0f} ms, {verdict}", style="green" if scene.same else "yellow")
    )
