"""Real Neovims for tests: embedded, with every frame of the screen, or in tmux, with the screen of
a terminal."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgpack
import pytest
from rich.text import Text

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "editors" / "nvim"
CANNED = Path(__file__).with_name("canned_server.py")
SCREENS = ROOT / "test-output" / "editors"
VERSIONS = ["0.10", "0.11", "0.12"]
GHOST = 0x5C6370  # the colour of ghost text in these tests, and of nothing else
T = TypeVar("T")


def binary(version: str) -> str:
    path = ROOT / ".editors" / f"nvim-{version}" / "nvim"
    if not path.exists():
        pytest.skip(f"Neovim {version} is not installed: tests/editors/install.sh")
    return str(path)


def until(look: Callable[[], T], seconds: float = 10.0) -> T:
    """Waits for a true value."""
    end = time.monotonic() + seconds
    while True:
        value = look()
        if value:
            return value
        assert time.monotonic() < end, f"timed out; last seen: {value!r}"
        time.sleep(0.01)


class Log:
    """What the canned server heard."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = 0

    def forget(self) -> None:
        self.start = self.path.stat().st_size

    def __call__(self, event: str | None = None) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = self.path.read_bytes()[self.start :].decode().splitlines()
        found = [json.loads(line) for line in lines]
        return [e for e in found if event in (None, e["event"])]


@dataclass(slots=True)
class Frame:
    """One screen as it was drawn: rows of (character, foreground)."""

    time: float
    rows: list[list[tuple[str, int | None]]]

    def lines(self) -> list[str]:
        return ["".join(c for c, _ in row).rstrip() for row in self.rows]

    def ghost(self) -> list[tuple[int, str, str]]:
        """(row, what stands before it, ghost text) for each row that has some."""
        found = []
        for number, row in enumerate(self.rows):
            columns = [i for i, (_, colour) in enumerate(row) if colour == GHOST]
            if columns:
                before = "".join(c for c, _ in row[: columns[0]])
                found.append((number, before, "".join(row[i][0] for i in columns)))
        return found


@dataclass(slots=True)
class Grid:
    """The screen, kept up to date from Neovim's redraw events."""

    width: int
    height: int
    rows: list[list[tuple[str, int]]] = field(init=False)
    colours: dict[int, int | None] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = [[(" ", 0)] * self.width for _ in range(self.height)]

    def redraw(self, events: list[Any]) -> None:
        for name, *calls in events:
            for call in calls:
                handler = getattr(self, f"on_{name}", None)
                if handler:
                    handler(*call)

    def on_hl_attr_define(self, number: int, attributes: dict[str, Any], *_: Any) -> None:
        self.colours[number] = attributes.get("foreground")

    def on_grid_clear(self, _: int) -> None:
        self.rows = [[(" ", 0)] * self.width for _ in range(self.height)]

    def on_grid_line(self, _: int, row: int, column: int, cells: list[Any], *__: Any) -> None:
        colour = 0
        for text, *rest in cells:
            colour = rest[0] if rest else colour
            for _n in range(rest[1] if len(rest) > 1 else 1):
                self.rows[row][column] = (text, colour)
                column += 1

    def on_grid_scroll(
        self, _: int, top: int, bottom: int, left: int, right: int, rows: int, *__: Any
    ) -> None:
        order = range(top, bottom - rows) if rows > 0 else range(bottom - 1, top - rows - 1, -1)
        for row in order:
            self.rows[row][left:right] = self.rows[row + rows][left:right]

    def on_flush(self, *_: Any) -> None:
        rows = [[(text, self.colours.get(colour)) for text, colour in row] for row in self.rows]
        self.frames.append(Frame(time.time(), rows))


class Neovim:
    """`nvim --embed` with this as its screen."""

    def __init__(
        self,
        arguments: list[str],
        env: dict[str, str],
        cwd: Path,
        size: tuple[int, int] = (100, 30),
    ) -> None:
        self.process = subprocess.Popen(
            [arguments[0], "--embed", *arguments[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=env,
            cwd=cwd,
        )
        self.grid = Grid(*size)
        self.answers: dict[int, tuple[Any, Any]] = {}
        self.arrived = threading.Condition()
        self.numbers = itertools.count(1)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.call("nvim_ui_attach", *size, {"rgb": True, "ext_linegrid": True})

    def read(self) -> None:
        unpacker = msgpack.Unpacker(raw=False, strict_map_key=False, unicode_errors="replace")
        assert self.process.stdout
        while data := os.read(self.process.stdout.fileno(), 1 << 16):
            unpacker.feed(data)
            for message in unpacker:
                with self.arrived:
                    if message[0] == 1:
                        self.answers[message[1]] = (message[2], message[3])
                    elif message[1] == "redraw":
                        self.grid.redraw(message[2])
                    self.arrived.notify_all()

    def call(self, method: str, *arguments: Any, seconds: float = 20.0) -> Any:
        number = next(self.numbers)
        assert self.process.stdin
        self.process.stdin.write(msgpack.packb([0, number, method, list(arguments)]))
        self.process.stdin.flush()
        with self.arrived:
            assert self.arrived.wait_for(lambda: number in self.answers, seconds), (
                f"no answer to {method}"
            )
            error, result = self.answers.pop(number)
        assert error is None, f"{method}{arguments}: {error}"
        return result

    def lua(self, code: str, *arguments: Any) -> Any:
        return self.call("nvim_exec_lua", code, list(arguments))

    def command(self, text: str) -> None:
        self.call("nvim_command", text)

    def type(self, keys: str) -> None:
        """Keys as in mappings: <Tab>, <C-c>, <lt>."""
        self.call("nvim_input", keys)

    def lines(self) -> list[str]:
        return self.call("nvim_buf_get_lines", 0, 0, -1, True)

    def frame(self) -> Frame:
        """The newest screen."""
        with self.arrived:
            return self.grid.frames[-1]

    def frames(self) -> list[Frame]:
        with self.arrived:
            return list(self.grid.frames)

    def ghost(self) -> str:
        """The ghost text on the screen, a row a line; empty if there is none."""
        return "\n".join(text for _, _, text in self.frame().ghost())

    def messages(self) -> list[str]:
        """What was said with vim.notify, one by one."""
        return self.lua("return _G.said")

    def close(self) -> None:
        assert self.process.stdin
        with contextlib.suppress(OSError):
            self.process.stdin.write(msgpack.packb([2, "nvim_command", ["qa!"]]))
            self.process.stdin.flush()
        try:
            self.process.wait(3)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.reader.join(5)
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe and pipe.close()


def environment(folder: Path, canned: str = "") -> dict[str, str]:
    """Nothing of the user's Neovim, and the canned server's log in the folder."""
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("NVIM", "VIM", "XDG_", "FIMLS", "TMUX"))
    }
    env |= {
        f"XDG_{name}_HOME": str(folder / f".{name.lower()}")
        for name in ("CONFIG", "DATA", "STATE", "CACHE")
    }
    return env | {
        "FIMLS_CANNED_LOG": str(folder / "canned.jsonl"),
        "FIMLS_CANNED": canned,
        "LC_ALL": "C.UTF-8",
    }


def quoted(text: str | Path) -> str:
    return json.dumps(str(text), ensure_ascii=False)


def init_lua(folder: Path, setup: str = "{}", before: str = "", after: str = "") -> Path:
    """An init.lua with the plugin on the path. In `setup`, COMMAND stands for the canned
    server's."""
    command = f"{{ {quoted(sys.executable)}, {quoted(CANNED)} }}"
    path = folder / "init.lua"
    path.write_text(
        f"""vim.opt.runtimepath:prepend({quoted(PLUGIN)})
vim.opt.swapfile = false
vim.opt.termguicolors = true
vim.opt.shortmess:append('I')
_G.said = {{}}
vim.notify = function(message) table.insert(_G.said, message) end
vim.api.nvim_set_hl(0, 'FimlsGhostText', {{ fg = '#{GHOST:06x}' }})
{before}
require('fimls').setup({setup.replace("COMMAND", command)})
{after}
""",
        encoding="utf-8",
    )
    return path


@dataclass(slots=True)
class Opener:
    """Opens Neovims for a test, and closes them."""

    version: str
    folder: Path
    opened: list[Neovim] = field(default_factory=list)

    @property
    def log(self) -> Log:
        return Log(self.folder / "canned.jsonl")

    def __call__(
        self,
        text: str | bytes | None = "",
        *,
        name: str = "a.py",
        setup: str = "{ cmd = COMMAND }",
        before: str = "",
        after: str = "",
        canned: str = "",
        wait: str | None = "open",
        init: Path | None = None,
        size: tuple[int, int] = (100, 30),
        arguments: tuple[str, ...] = (),
    ) -> Neovim:
        """Neovim with a file of that text (None: no file), once the server's log holds the event
        `wait`."""
        files = []
        if text is not None:
            file = self.folder / name
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
            files = [str(file)]
        init = init or init_lua(self.folder, setup, before, after)
        command = [binary(self.version), "-u", str(init), "-n", "-i", "NONE", *arguments, *files]
        nvim = Neovim(command, environment(self.folder, canned), self.folder, size)
        self.opened.append(nvim)
        if wait:
            until(lambda: self.log(wait))
        return nvim


@contextlib.contextmanager
def opener(version: str, folder: Path) -> Iterator[Opener]:
    binary(version)
    made = Opener(version, folder)
    try:
        yield made
    finally:
        for nvim in made.opened:
            nvim.close()


class Shared:
    """One Neovim for many tests, each with a file and a folder of its own: to start one for each
    takes a second."""

    def __init__(self, open_nvim: Opener) -> None:
        self.log = open_nvim.log
        self.nvim = open_nvim()
        self.folder = open_nvim.folder
        self.numbers = itertools.count(1)

    def __call__(
        self, text: str | bytes = "", *, name: str = "a.py", first: str = "", lua: str = ""
    ) -> Neovim:
        """The Neovim, in normal mode, with nothing but that file open. Lua code runs before and
        after it is read."""
        self.nvim.type("<Esc><Esc>")
        until(lambda: self.nvim.call("nvim_get_mode")["mode"] == "n")
        self.folder = self.folder.parent / f"{next(self.numbers)}"
        self.folder.mkdir()
        file = self.folder / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        self.nvim.lua(
            "_G.said = {} require('fimls').dismiss() require('fimls.suggest').auto = true"
        )
        self.log.forget()
        self.nvim.command("silent! only! | silent! %bwipeout!")
        self.nvim.lua(first)
        self.nvim.command(f"silent edit {file}")
        self.nvim.lua(lua)
        until(
            lambda: any(e["uri"].endswith(f"/{self.folder.name}/{name}") for e in self.log("open"))
        )
        with self.nvim.arrived:
            self.nvim.grid.frames.clear()
        self.nvim.command("redraw!")
        until(self.nvim.frames)
        return self.nvim


class Tmux:
    """A terminal of 80 columns that runs one command."""

    def __init__(
        self, folder: Path, command: list[str], env: dict[str, str], rows: int = 20
    ) -> None:
        if not shutil.which("tmux"):
            pytest.skip("tmux is not installed: tests/editors/install.sh")
        self.socket = folder / "tmux"
        line = shlex.join(["env", *(f"{k}={v}" for k, v in env.items() if k != "TERM"), *command])
        self.tmux(
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            str(rows),
            "-c",
            str(folder),
            line,
        )

    def tmux(self, *arguments: str) -> str:
        env = {k: v for k, v in os.environ.items() if k != "TMUX"} | {
            "TERM": "xterm-256color",
            "LC_ALL": "C.UTF-8",
        }
        done = subprocess.run(
            ["tmux", "-S", str(self.socket), *arguments], env=env, capture_output=True, check=True
        )
        return done.stdout.decode()

    def keys(self, *keys: str) -> None:
        """Names of keys, as tmux has them."""
        self.tmux("send-keys", *keys)

    def text(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)

    def screen(self) -> str:
        """With colours, as ANSI sequences."""
        return self.tmux("capture-pane", "-p", "-e")

    def close(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self.tmux("kill-server")


def plain(screen: str) -> str:
    return Text.from_ansi(screen).plain


def ghost_of(screen: str) -> list[tuple[str, str]]:
    """(what stands before it, ghost text) of each row of a captured screen."""
    found = []
    for row in screen.splitlines():
        text = Text.from_ansi(row)
        spans = [
            s for s in text.spans if s.style.color and s.style.color.triplet.hex == f"#{GHOST:06x}"
        ]
        if spans:
            start, end = min(s.start for s in spans), max(s.end for s in spans)
            found.append((text.plain[:start], text.plain[start:end]))
    return found
