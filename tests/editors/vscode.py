"""VS Code as users have it: the workbench of code-server in Chromium, with the packed extension,
driven by Playwright.

A `Code` is one code-server with a fresh profile. Its page stays open; a test opens files of its own
and looks at what is drawn and at what comes to stand in the file on disk.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.conftest import ROOT

EDITORS = ROOT / ".editors" / "code" / "node_modules"
EXTENSION = ROOT / "editors" / "vscode"
CANNED = ROOT / "tests" / "editors" / "canned_server.py"
SHOTS = ROOT / "test-output" / "editors"
OF_THE_USER = ("FIMLS_", "VSCODE_", "XDG_", "HF_", "TRANSFORMERS_", "OLLAMA_")  # variables
CHROMIUM = "/usr/bin/chromium"
SIZE = {"width": 1100, "height": 640}
# Nothing that opens by itself, and nothing that writes into the text but the keys and our
# suggestions.
QUIET = {
    "workbench.startupEditor": "none",
    "workbench.secondarySideBar.defaultVisibility": "hidden",
    "chat.disableAIFeatures": True,
    "editor.autoClosingBrackets": "never",
    "editor.autoClosingQuotes": "never",
    "editor.autoIndent": "none",
    "editor.wordBasedSuggestions": "off",
    "editor.detectIndentation": False,
    "editor.minimap.enabled": False,
    "editor.fontFamily": "DejaVu Sans Mono",
    "editor.fontSize": 15,
    "files.eol": "\n",
    "git.enabled": False,
    "security.workspace.trust.enabled": False,
    "workbench.tips.enabled": False,
    "window.commandCenter": False,
    "workbench.layoutControl.enabled": False,
    "workbench.activityBar.location": "hidden",
    "breadcrumbs.enabled": False,
    "editor.lightbulb.enabled": "off",
    "editor.scrollbar.vertical": "hidden",
    "editor.scrollbar.horizontal": "hidden",
    "editor.hideCursorInOverviewRuler": True,
}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Several lines of ghost text are a widget of their own, one line stands within the line of text;
# spaces are U+00A0.
GHOST = """() => {
  const clean = e => e.textContent.replace(/\\u00a0/g, ' ');
  const seen = e => [...e.children].some(c => c.getClientRects().length) || e.getClientRects().length > 0;
  const root = [...document.querySelectorAll('.editor-group-container.active .monaco-editor')]
    .find(e => e.getClientRects().length);
  if (!root) return '';
  const inline = [...root.querySelectorAll('[class*=ghost-text-decoration]')]
    .filter(e => seen(e) && !e.parentElement.closest('[class*=ghost-text-decoration]')).map(clean).join('');
  const below = [...root.querySelectorAll('.suggest-preview-text .view-line')].filter(seen).map(clean);
  return [inline, ...below].join('\\n');
}"""


def canned(log: Path, mode: str = "") -> list[str]:
    """The command of the canned server, writing what it hears to `log`."""
    return ["env", f"FIMLS_CANNED_LOG={log}", f"FIMLS_CANNED={mode}", sys.executable, str(CANNED)]


def heard(log: Path, event: str = "") -> list[dict[str, Any]]:
    """What the canned server wrote, in order."""
    lines = log.read_text("utf-8").splitlines() if log.exists() else []
    entries = [json.loads(line) for line in lines]
    return [entry for entry in entries if not event or entry["event"] == event]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
    """What the condition says, as soon as that is true."""
    end = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)


class Code:
    """One VS Code and its page."""

    def __init__(
        self, page: Page, folder: Path, machine: Path, server: subprocess.Popen[bytes]
    ) -> None:
        self.page, self.folder, self.machine, self.server = page, folder, machine, server
        self.warm = False

    def settings(self, **values: Any) -> None:
        """Write the machine's settings, `__` for a dot: the running VS Code takes them over."""
        self.machine.parent.mkdir(parents=True, exist_ok=True)
        named = {f"fimls.{name.replace('__', '.')}": value for name, value in values.items()}
        self.machine.write_text(json.dumps(named, indent=1), "utf-8")

    # What the user does

    def open(self, name: str, text: str, *, at_end: bool = True) -> Path:
        """A new file with this text, in the editor, the cursor at its end."""
        path = self.folder / name
        path.write_bytes(text.encode())
        self.show(path)
        if not self.warm:
            # VS Code makes what draws ghost text some seconds after a window's first editor, or
            # when it is asked for.
            self.page.keyboard.press("Alt+\\")
            self.page.wait_for_timeout(500)
            self.page.keyboard.press("Escape")
            self.warm = True
        if at_end:
            self.page.keyboard.press("Control+End")
        return path

    def show(self, path: Path) -> None:
        self.page.keyboard.press("Control+p")
        box = self.page.locator(".quick-input-widget input").first
        box.wait_for(state="visible")
        box.fill(str(path))
        self.page.locator(".quick-input-list .monaco-list-row", has_text=path.name).first.wait_for()
        self.page.keyboard.press("Enter")
        self.page.locator(".tab.active", has_text=path.name).first.wait_for()
        self.page.locator(
            ".editor-group-container.active .monaco-editor .view-lines"
        ).first.wait_for()
        self.focus()

    def focus(self) -> None:
        self.page.wait_for_function(
            "() => document.activeElement?.closest('.monaco-editor')", timeout=5_000
        )

    def type(self, text: str, delay: float = 15) -> None:
        self.page.keyboard.type(text, delay=delay)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def reload(self) -> None:
        self.page.reload()
        self.page.locator("[id='fimls.fimls.fimls.status']").first.wait_for(timeout=90_000)
        self.warm = False

    def command(self, title: str) -> None:
        """Through the command palette, as a user finds it."""
        self.page.keyboard.press("F1")
        box = self.page.locator(".quick-input-widget input").first
        box.wait_for(state="visible")
        box.fill(f">{title}")
        row = self.page.locator(".quick-input-list .monaco-list-row", has_text=title).first
        row.wait_for(timeout=10_000)
        row.click()

    def save(self, path: Path, expected: str) -> None:
        """The file on disk has to become exactly this."""
        self.page.keyboard.press("Control+s")
        self.on_disk(path, expected)

    def on_disk(self, path: Path, expected: str) -> None:
        end = time.monotonic() + 5
        while path.read_bytes() != expected.encode() and time.monotonic() < end:
            time.sleep(0.05)
        assert path.read_bytes().decode() == expected

    # What the user sees

    def ghost(self) -> str:
        """The ghost text that is drawn now."""
        return str(self.page.evaluate(GHOST)).strip("\n")

    def wait_ghost(self, text: str, seconds: float = 10) -> None:
        """Until exactly this ghost text is drawn; lines are compared without the spaces around
        them."""
        want, end = _lines(text), time.monotonic() + seconds
        while (seen := _lines(self.ghost())) != want:
            assert time.monotonic() < end, (
                f"ghost text {seen}, expected {want}; the focus is on {self.focused()}"
            )
            time.sleep(0.03)

    def focused(self) -> str:
        return str(
            self.page.evaluate(
                "() => document.hasFocus() + ' ' + document.activeElement?.className"
            )
        )

    def accept(self) -> None:
        self.page.keyboard.press("Tab")

    def status(self) -> str:
        return str(
            self.page.locator("[id='fimls.fimls.fimls.status']").first.inner_text(timeout=10_000)
        ).strip()

    def status_item(self) -> Any:
        return self.page.locator("[id='fimls.fimls.fimls.status']").first

    def wait_state(self, state: str, seconds: float = 20) -> str:
        """Until the status bar says so; what it says to a screen reader."""
        item = self.page.locator("[id='fimls.fimls.fimls.status'] a[aria-label]")
        found = item.and_(self.page.locator(f"a[aria-label^='fimls, {state}']")).first
        found.wait_for(timeout=seconds * 1000)
        return str(found.get_attribute("aria-label"))

    def notifications(self) -> list[str]:
        return [
            text.strip()
            for text in self.page.locator(".notification-list-item-message").all_inner_texts()
        ]

    def shot(self, name: str) -> Path:
        """A picture for the README, without a mouse that hovers over something."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        path = SHOTS / f"vscode-{name}.png"
        self.page.mouse.move(SIZE["width"] / 2, 1)
        self.page.wait_for_timeout(700)
        self.page.screenshot(path=path)
        assert path.stat().st_size < 150_000
        return path


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def packed() -> Path:
    """The .vsix, made after the last change of what is in it."""
    vsix = EXTENSION / "fimls.vsix"
    sources = [
        EXTENSION / "package.json",
        *(EXTENSION / "src").iterdir(),
        *(EXTENSION / "media").iterdir(),
    ]
    newest = max(path.stat().st_mtime for path in sources)
    assert vsix.exists() and vsix.stat().st_mtime >= newest, (
        "the extension is not packed: make vsix"
    )
    return vsix


@contextmanager
def start(
    machine_settings: dict[str, Any], user_settings: dict[str, Any] | None = None
) -> Iterator[Code]:
    """A code-server with a fresh profile that holds the packed extension, and a page of it."""
    with tempfile.TemporaryDirectory(prefix="fimls-code-", ignore_cleanup_errors=True) as name:
        home = Path(name).resolve()
        folder, data, extensions = home / "project", home / "data", home / "extensions"
        folder.mkdir()
        (data / "User").mkdir(parents=True)
        (data / "Machine").mkdir()
        machine = data / "Machine" / "settings.json"
        machine.write_text(json.dumps(machine_settings), "utf-8")
        if user_settings is not None:
            (data / "User" / "settings.json").write_text(json.dumps(user_settings), "utf-8")
        program = [str(EDITORS / ".bin" / "code-server")]
        program += ["--extensions-dir", str(extensions), "--user-data-dir", str(data)]
        # Nothing of this machine's user is seen, and the server under test keeps to this folder.
        env = {key: value for key, value in os.environ.items() if not key.startswith(OF_THE_USER)}
        env |= {
            "PATH": f"{EDITORS / 'node' / 'bin'}:/usr/bin:/bin",
            "HOME": str(home),
            "FIMLS_RUNTIME_DIR": str(home / "run"),
            "FIMLS_LOG_DIR": str(home / "log"),
            "FIMLS_STATE_DIR": str(home / "state"),
            "FIMLS_NO_NOTE": "1",
        }
        done = subprocess.run(
            [*program, "--install-extension", str(packed())],
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        port = _free_port()
        options = [
            "--auth",
            "none",
            "--bind-addr",
            f"127.0.0.1:{port}",
            "--disable-telemetry",
            "--disable-update-check",
            "--disable-getting-started-override",
            "--reconnection-grace-time",
            "2",
        ]
        with (home / "code-server.log").open("wb") as log:
            server = subprocess.Popen(
                [*program, *options], env=env, stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_for(lambda: _answers(port), "code-server", 60)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch_persistent_context(
                    str(home / "browser"),
                    executable_path=CHROMIUM,
                    headless=True,
                    viewport=SIZE,
                    args=FLAGS,
                )
                page = browser.pages[0]
                page.goto(f"http://127.0.0.1:{port}/?folder={urllib.parse.quote(str(folder))}")
                page.locator("[id='fimls.fimls.fimls.status']").first.wait_for(timeout=90_000)
                try:
                    yield Code(page, folder, machine, server)
                except BaseException:
                    SHOTS.mkdir(parents=True, exist_ok=True)
                    page.screenshot(path=SHOTS / "vscode-failure.png")
                    raise
                browser.close()
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def stop_engines(code: Code) -> None:
    """Of the real server under test."""
    home = code.folder.parent
    folders = {"RUNTIME": "run", "LOG": "log", "STATE": "state"}
    env = {f"FIMLS_{name}_DIR": str(home / folder) for name, folder in folders.items()}
    subprocess.run(
        [sys.executable, "-P", "-m", "lsp_server", "engine", "stop"],
        env=os.environ | env | {"HOME": str(home)},
        check=True,
        capture_output=True,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def tidy(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("\u00a0", " ")).strip()
