"""package.json of the VS Code extension against the server's settings and the extension's
sources."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import pytest

from lsp_server.settings import _RULES, MACHINE_SCOPE, Settings, _value, parse
from tests.conftest import ROOT

EXTENSION = ROOT / "editors" / "vscode"
MANIFEST: dict[str, Any] = json.loads((EXTENSION / "package.json").read_text("utf-8"))
CONTRIBUTED = MANIFEST["contributes"]
PROPERTIES: dict[str, dict[str, Any]] = {
    name.removeprefix("fimls."): schema
    for group in CONTRIBUTED["configuration"]
    for name, schema in group["properties"].items()
}
OWN = {"serverCommand", "installSource"}
SOURCES = {path.name: path.read_text("utf-8") for path in (EXTENSION / "src").glob("*.ts")}


def test_the_settings_are_the_servers() -> None:
    assert set(PROPERTIES) == set(_RULES) | OWN


@pytest.mark.parametrize("name", sorted(_RULES))
def test_a_setting_has_the_servers_default_and_a_description(name: str) -> None:
    schema, default = PROPERTIES[name], _value(Settings(), name)
    if name == "model":  # not set: the choice that the server keeps for this machine
        default = ""
    assert schema["default"] == (list(default) if isinstance(default, tuple) else default)
    assert parse(
        {name.partition(".")[0]: {name.partition(".")[2]: schema["default"]}}
        if "." in name
        else {name: schema["default"]}
    ) == (Settings(), ())
    assert schema["markdownDescription"].endswith((".", ".**"))
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    assert ("null" in types) == (default is None or name == "remote.apiKeyEnv")


@pytest.mark.parametrize("name", sorted(name for name in _RULES if "enum" in PROPERTIES[name]))
def test_the_choices_are_the_servers(name: str) -> None:
    schema = PROPERTIES[name]
    assert ", ".join(schema["enum"]) in _RULES[name].expected
    assert len(schema["markdownEnumDescriptions"]) == len(schema["enum"])


@pytest.mark.parametrize(
    "name", sorted(name for name, schema in PROPERTIES.items() if "minimum" in schema)
)
def test_the_bounds_are_the_servers(name: str) -> None:
    schema, accept = PROPERTIES[name], _RULES[name].accept
    accept(schema["minimum"])
    with pytest.raises(ValueError):
        accept(schema["minimum"] - 1)
    if "maximum" in schema:
        accept(schema["maximum"])
        with pytest.raises(ValueError):
            accept(schema["maximum"] + 1)


def test_no_repository_decides_what_is_run_or_asked() -> None:
    machine = {name for name, schema in PROPERTIES.items() if schema["scope"] == "machine"}
    assert machine == MACHINE_SCOPE | OWN
    trust = MANIFEST["capabilities"]["untrustedWorkspaces"]
    assert trust["supported"] == "limited"
    assert set(trust["restrictedConfigurations"]) == {f"fimls.{name}" for name in machine}


def test_every_command_has_a_title_and_is_registered() -> None:
    commands = {entry["command"].removeprefix("fimls."): entry for entry in CONTRIBUTED["commands"]}
    assert all(entry["title"] and entry["category"] == "Fimls" for entry in commands.values())
    assert set(commands) == set(
        re.findall(r'\b(?:register|alias)\("(\w+)"', SOURCES["extension.ts"])
    )
    named = [entry["command"] for menu in CONTRIBUTED["menus"].values() for entry in menu]
    named += [entry["command"] for entry in CONTRIBUTED["keybindings"]]
    named += [name for text in SOURCES.values() for name in re.findall(r'"(fimls\.\w+)"', text)]
    ours = {name.removeprefix("fimls.") for name in named}
    others = {
        "running",
        "status",
        "offer",
        "fill",
        "listModels",
        "chooseModel",
        "pullModel",
        "doctor",
    }  # a context key, two items of the status bar, the server's commands
    assert ours - set(commands) <= others


def test_the_walkthrough_shows_what_is_there() -> None:
    (walkthrough,) = CONTRIBUTED["walkthroughs"]
    assert len(walkthrough["steps"]) == 5
    for step in walkthrough["steps"]:
        assert (EXTENSION / step["media"]["markdown"]).is_file()


def test_the_keys_that_are_ours_are_said_to_be() -> None:
    ours = {"Alt+\\\\": "fimls.trigger", "Alt+End": "fimls.acceptLine"}
    bound = {entry["command"]: entry["key"] for entry in CONTRIBUTED["keybindings"]}
    for page in ("README.md", "media/keys.md"):
        text = (EXTENSION / page).read_text("utf-8")
        for key, command in ours.items():
            assert f"| {key} |" in text and bound[command] == key.lower().replace("\\\\", "\\")
        assert "are keys of this extension" in text


def test_the_pictures_are_there_and_are_packed() -> None:
    """They are copied out of docs where the extension is bundled."""
    pages = [EXTENSION / "README.md", *(EXTENSION / "media").glob("*.md")]
    named = {
        name
        for page in pages
        for name in re.findall(r"!\[.*\]\((?:.*/)?(.*)\)", page.read_text("utf-8"))
    }
    assert len(named) == 3 and all((ROOT / "docs" / name).is_file() for name in named)
    assert "!media/vscode-*.png" in (EXTENSION / ".vscodeignore").read_text("utf-8")


def test_the_version_is_the_servers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lock = json.loads((EXTENSION / "package-lock.json").read_text("utf-8"))
    assert MANIFEST["version"] == lock["version"] == project["version"]
    assert MANIFEST["license"] == project["license"]


def test_what_is_built_with_is_pinned_without_an_address() -> None:
    assert all(
        re.fullmatch(r"\d+\.\d+\.\d+", version) for version in MANIFEST["devDependencies"].values()
    )
    assert '"resolved"' not in (EXTENSION / "package-lock.json").read_text("utf-8")
