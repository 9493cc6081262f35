"""What an editor's settings and folders do to its session, and who may set what."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lsp_server.protocol import lifecycle
from tests.lsp_server.helpers import (
    INLINE,
    Endpoint,
    answers_with,
    says,
    sends,
    until,
    window_in_process,
    window_on,
)

PULLS = INLINE | {"workspace": {"configuration": True}}


@pytest.mark.asyncio
async def test_a_bad_setting_is_reported_once_and_its_default_is_used() -> None:
    bad = {"maxTokens": "many"}
    async with window_on(says("1\n"), bad) as (window, endpoint):
        window.notify("workspace/didChangeConfiguration", {"settings": {"fimls": bad}})
        await window.suggestion(0, 4)
        assert endpoint.bodies[-1]["max_tokens"] == 64
        assert window.shown == [
            'fimls: fimls.maxTokens is "many", expected a whole number from 1 to 1024; 64 is used '
            "instead"
        ]


@pytest.mark.asyncio
async def test_a_bad_environment_variable_is_reported_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIMLS_MAX_TOKENS", "many")
    async with window_in_process() as window:
        await until(lambda: window.shown)
        assert [re.sub(",.*", "", message) for message in window.shown] == [
            'fimls: fimls.maxTokens is "many"'
        ]


@pytest.mark.asyncio
async def test_a_workspace_decides_neither_model_nor_endpoint() -> None:
    async with Endpoint(says("mine\n")) as hostile, Endpoint(says("1\n")) as chosen:
        workspace = {"remote": {"url": hostile.url}, "model": "/hostile", "maxTokens": 7}
        settings = {"remote": {"url": chosen.url, "format": "starcoder2"}}
        async with window_in_process(settings, PULLS, configuration=workspace) as window:
            window.open("x = ")
            await window.suggestion(0, 4)
        assert (hostile.bodies, chosen.bodies[-1]["max_tokens"]) == ([], 7)
    assert [message.split(";")[0] for message in window.shown] == [
        "fimls: fimls.remote.url cannot be set by a workspace",
        "fimls: fimls.model cannot be set by a workspace",
    ]


@pytest.mark.asyncio
async def test_a_client_that_keeps_its_settings_to_itself_is_served_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lifecycle, "SETTINGS_WAIT_S", 0.05)
    async with window_on(says("1\n"), capabilities=PULLS, configuration=...) as (window, _):
        assert await window.suggestion(0, 4)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "settings", [{"enabled": False}, {"disabledLanguages": ["rust", "python"]}]
)
async def test_what_is_switched_off_is_silent_until_it_is_switched_on(
    settings: dict[str, Any],
) -> None:
    async with window_on(says("1\n")) as (window, endpoint):
        window.notify("workspace/didChangeConfiguration", {"settings": {"fimls": settings}})
        assert await window.ask(0, 4)[1] == []
        assert endpoint.bodies == []
        window.notify("workspace/didChangeConfiguration", {"settings": {"fimls": {}}})
        assert await window.suggestion(0, 4)


@pytest.mark.asyncio
async def test_an_endpoint_that_refuses_is_reported_once() -> None:
    async with window_on(answers_with(401, '{"error": "no such key"}')) as (window, endpoint):
        for _ in range(3):
            assert await window.ask(0, 4)[1] == []
        assert window.shown == [
            f"fimls: {endpoint.url} answered with status 401: no such key. Put its key into the "
            "variable that fimls.remote.apiKeyEnv names (FIMLS_API_KEY)."
        ]


@pytest.mark.asyncio
async def test_an_endpoint_that_breaks_off_is_no_matter_for_the_user() -> None:
    async with window_on(sends(b"data: nonsense\n\n")) as (window, endpoint):
        assert await window.ask(0, 4)[1] == []
        endpoint.answer = says("on\n")
        assert await window.suggestion(0, 4)
        assert window.shown == []


@pytest.mark.asyncio
async def test_a_layout_that_the_model_never_saw_is_reported_once() -> None:
    async with window_on(says("1\n"), {"remote.format": "mellum"}) as (window, _):
        window.notify(
            "workspace/didChangeConfiguration", {"settings": {"fimls": {"layout": "psm"}}}
        )
        while not window.shown:  # the settings are taken in the background
            await window.ask(0, 4)[1]
        assert await window.ask(0, 4)[1] == []
        assert window.shown == [
            "fimls: 'mellum' models never saw layout 'psm' in training: ask for spm"
        ]


# ---- the name of the file ----


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("more", "uri", "name"),
    [
        ({"rootUri": "file:///work/place"}, "file:///work/place/a/b%20c.py", "a/b c.py"),
        ({"rootUri": "file:///work/place"}, "file:///elsewhere/a.py", "a.py"),
        ({"rootUri": "file:///work/place"}, "file:///work/placebo/a.py", "a.py"),
        (
            {"workspaceFolders": [{"uri": "file:///w%C3%B6rk", "name": "w"}]},
            "file:///w%C3%B6rk/a/b.py",
            "a/b.py",
        ),
        ({}, "file:///work/place/a.py", "a.py"),
    ],
)
async def test_the_model_is_told_the_path_within_the_workspace(
    more: dict[str, Any], uri: str, name: str
) -> None:
    async with window_on(says("1\n"), {"remote.format": "mellum"}, **more) as (window, endpoint):
        window.open("x = ", uri)
        await window.suggestion(0, 4, uri)
        assert f"<filename>{name}\n" in endpoint.bodies[-1]["prompt"]


@pytest.mark.asyncio
async def test_a_language_that_the_model_does_not_know_is_told_once_with_the_model_that_does() -> (
    None
):
    async with Endpoint(says("1\n")) as endpoint:
        settings = {
            "remote": {"url": endpoint.url}
        }  # the bundled model's tokenizer and preferences, another engine
        async with window_in_process(settings) as window:
            for number, language in enumerate(("python", "go", "rust", "go")):
                window.open("x = ", uri := f"file:///{number}", language)
                await window.suggestion(0, 4, uri)
            assert window.shown == [
                "fimls: The model 'bundled' was trained on python only; for go set fimls.model to "
                "the folder of "
                "bigcode/starcoder2-3b."
            ]
