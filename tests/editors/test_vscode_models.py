"""Models in VS Code, with the real server: choosing one, fetching one from a hub on loopback, the
doctor's page, and the offer of a larger one."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Error

from tests.editors import offering_server
from tests.editors.vscode import QUIET, Code, start, stop_engines, tidy, wait_for
from tests.model.catalogue.hub_server import Hub, serving
from tests.model.export.exports import exported, toy

pytestmark = pytest.mark.editors
FILE = "toy.gguf"
LETTERS = re.compile(r"[a-z]{8,}")  # what the talkative toy writes


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("hub")
    (file,) = exported(toy(folder), folder, "gguf").glob("*.gguf")
    with serving(Hub({FILE: file.read_bytes()}, slow_s=0.2)) as hub:
        yield hub


def server(hub: Hub, *program: str) -> list[str]:
    where = [f"HF_ENDPOINT={hub.endpoint}", "NO_PROXY=127.0.0.1,localhost"]
    return ["env", *where, sys.executable, "-P", *(program or ("-m", "lsp_server", "lsp"))]


@pytest.fixture(scope="module")
def code(hub: Hub) -> Iterator[Code]:
    with start({"fimls.serverCommand": server(hub)}, QUIET) as code:
        try:
            wait_model(code, "bundled")
            code.press("Control+b")
            yield code
        finally:
            stop_engines(code)


@pytest.fixture(autouse=True)
def quiet(code: Code) -> None:
    code.press("Escape")
    code.command("Notifications: Clear All Notifications")


def rows(code: Code, typed: str = "") -> list[str]:
    """The models to choose from, that are called so."""
    code.command("Fimls: Choose Model")
    code.page.locator(".quick-input-title", has_text="Choose Model").wait_for(timeout=30_000)
    found = code.page.locator(".quick-input-list .monaco-list-row")
    if typed:
        code.type(typed, delay=0)
        found.first.filter(has_text=typed).wait_for()
    return [
        tidy(row)
        for row in code.page.locator(".quick-input-list .monaco-list-row").all_inner_texts()
    ]


def choose(code: Code, name: str) -> None:
    rows(code, name)
    code.page.locator(".quick-input-list .monaco-list-row", has_text=name).first.click()


def choose_other(code: Code, name: str) -> None:
    choose(code, "Another…")
    code.page.get_by_text("The path of a model folder").wait_for()
    code.type(name, delay=0)
    code.press("Enter")


def wait_model(code: Code, name: str) -> None:
    label = f"fimls, ready. The model '{name}' on this machine"
    code.page.locator(f'a[aria-label^="{label}"]').wait_for(timeout=120_000)


def chosen(code: Code) -> Any:
    """What the server keeps for this user."""
    path = code.folder.parent / ".config" / "fimls" / "settings.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def toast(code: Code, text: str) -> Any:
    found = code.page.locator(".notifications-toasts .notification-list-item", has_text=text)
    found.wait_for(timeout=30_000)
    return found


def test_a_model_on_the_disk_is_chosen_and_writes(code: Code, talkative_folder: Path) -> None:
    seen = rows(code)
    code.shot("models")
    assert seen[0].startswith("bundled")
    (row,) = [row for row in seen if row.startswith("qwen2.5-coder-0.5b")]
    assert "Apache-2.0" in row and "MB" in row and "programming languages" in row
    (row,) = [row for row in seen if row.startswith("starcoder2-3b")]
    assert "to be accepted" in row
    code.press("Escape")
    choose_other(code, str(talkative_folder))
    wait_model(code, str(talkative_folder))
    assert chosen(code) == {"model": str(talkative_folder)}
    code.open("chosen.py", "total = ")
    code.press("Alt+\\")
    wait_for(lambda: LETTERS.search(code.ghost()), "the toy's letters", 60)
    code.press("Escape")
    choose(code, "bundled")
    wait_model(code, "bundled")
    assert chosen(code) == {"model": "bundled"}
    assert code.notifications() == []


def test_what_cannot_be_had_is_said(code: Code) -> None:
    choose_other(code, "org/none")
    toast(code, "org/none")
    code.command("Notifications: Clear All Notifications")
    choose_other(code, "/no/such/folder")
    toast(code, "There is no model folder /no/such/folder")
    assert "The model 'bundled'" in code.wait_state("ready")


def test_a_licence_with_conditions_is_asked_about(code: Code, hub: Hub) -> None:
    hub.licence = "gemma"
    choose_other(code, "org/repo")
    question = toast(code, "org/repo comes under the licence gemma")
    question.locator(".monaco-button", has_text="Cancel").click()
    toast(code, "which has conditions of its own")
    assert hub.asked("GET", FILE) == []
    hub.licence = "apache-2.0"


def test_progress_ends_with_the_server(code: Code) -> None:
    choose_other(code, "org/repo")
    getting = toast(code, "getting org/repo")
    code.command("Fimls: Restart the Server")
    getting.wait_for(state="detached")
    code.wait_state("loading")
    wait_model(code, "bundled")


def test_a_model_is_fetched_with_progress_that_can_be_cancelled(code: Code, hub: Hub) -> None:
    choose_other(code, "org/repo")
    getting = toast(code, "getting org/repo")
    wait_for(lambda: re.search(r"\d+ kB of \d+ kB", getting.inner_text()), "how far it is", 30)
    code.shot("pull")
    getting.hover()
    getting.locator(".monaco-button", has_text="Cancel").click()
    toast(code, "Stopped. What was fetched is kept")
    getting.wait_for(state="detached")
    assert "The model 'bundled'" in code.wait_state("ready")
    hub.slow_s = 0.002
    choose_other(code, "org/repo")
    wait_model(code, "org/repo")
    assert chosen(code) == {"model": "org/repo"}
    assert hub.asked("GET", FILE)[-1]["range"].startswith("bytes="), "it goes on from there"
    seen = rows(code, "org/repo")
    assert any(row.startswith(f"org/repo:{FILE}1 MB") for row in seen), seen
    code.press("Escape")


def test_a_setting_that_names_a_model_can_be_removed(
    code: Code, hub: Hub, talkative_folder: Path
) -> None:
    code.settings(serverCommand=server(hub), model=str(talkative_folder))
    wait_model(code, str(talkative_folder))
    choose(code, "bundled")
    message = toast(code, "fimls.model names a model")
    message.locator(".monaco-button", has_text="Remove the Setting").click()
    wait_model(code, "bundled")
    assert "fimls.model" not in json.loads(code.machine.read_text("utf-8"))
    assert chosen(code) == {"model": "bundled"}


def test_the_doctor_has_a_page_and_tells_the_times(code: Code) -> None:
    code.command("Fimls: Doctor")
    toast(code, "The doctor measures this machine")
    code.page.locator(".tab", has_text="fimls doctor").first.wait_for(timeout=180_000)

    def is_drawn() -> bool:
        for frame in code.page.frames[1:]:
            with suppress(Error):  # frames come and go while it is made
                if frame.locator("h2", has_text="This machine").count():
                    return True
        return False

    wait_for(is_drawn, "the page's text", 20)
    code.shot("doctor")
    code.command("View: Close All Editors")
    assert "a line after about" in rows(code)[0], "the list knows the times from now on"
    code.shot("times")
    code.press("Escape")


def test_a_larger_model_is_offered_once(code: Code, hub: Hub) -> None:
    (code.folder.parent / ".config" / "fimls" / "settings.json").unlink(missing_ok=True)
    (code.folder.parent / "state" / "doctor.json").unlink(missing_ok=True)
    offering = ["env", "-u", "FIMLS_NO_NOTE", *server(hub, offering_server.__file__)]
    code.settings(serverCommand=offering)
    offer = toast(code, f"The model {offering_server.NAME} suits this machine")
    code.shot("offer")
    buttons = offer.locator(".monaco-button").all_inner_texts()
    assert [button.split(" (")[0] for button in buttons] == [
        f"Get {offering_server.NAME}",
        "Not now",
        "Never",
    ]
    offer.locator(".monaco-button", has_text="Not now").click()
    offer.wait_for(state="detached")
    assert "a line after about 120 ms" in rows(code, offering_server.NAME)[0]
    code.press("Escape")
    code.reload()
    code.wait_state("ready", 60)
    code.page.wait_for_timeout(3000)
    assert code.notifications() == []
