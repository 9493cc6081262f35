"""Fill-in-the-middle edits over the wire: what is offered, what comes back, and what ends them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.lsp_server.helpers import INLINE, URI, RpcError, Window, says, talks, until, window_on

FUNCTION = 'def area(width, height):\n    """Of a box."""\n    pass\n\n\nprint(area(2, 3))\n'
PREVIEWS = INLINE | {
    "workspace": {"workspaceEdit": {"documentChanges": True, "changeAnnotationSupport": {}}}
}


def around(start: tuple[int, int], end: tuple[int, int]) -> dict[str, Any]:
    return {
        name: {"line": place[0], "character": place[1]}
        for name, place in (("start", start), ("end", end))
    }


def target(kind: str, where: dict[str, Any]) -> dict[str, Any]:
    return {"textDocument": {"uri": URI}, "range": where, "kind": kind}


def applied(text: str, edit: dict[str, Any]) -> str:
    """The text after an edit, in either form of a workspace edit."""
    (change,) = edit["changes"][URI] if "changes" in edit else edit["documentChanges"][0]["edits"]
    lines = text.splitlines(keepends=True)
    start, end = (
        len("".join(lines[: change["range"][name]["line"]])) + change["range"][name]["character"]
        for name in ("start", "end")
    )
    return text[:start] + change["newText"] + text[end:]


CURSOR = around((2, 4), (2, 4))


@pytest.mark.asyncio
async def test_a_body_is_filled_between_its_docstring_and_what_follows() -> None:
    async with window_on(says("return width * height\n\n\nprint(", "more")) as (window, endpoint):
        window.reopen(FUNCTION)
        found = await window.request("fimls/fill", target("body", CURSOR))
        assert found["label"] == "Complete the body of `area`"
        assert applied(FUNCTION, found["edit"]) == FUNCTION.replace("pass", "return width * height")
        (body,) = endpoint.bodies
        assert (
            "pass" not in body["prompt"]
            and '"""Of a box."""' in body["prompt"]
            and "print(area" in body["prompt"]
        )
        assert "Why" in (await window.request("fimls/why", {}))["markdown"]


@pytest.mark.asyncio
async def test_a_client_with_a_preview_gets_an_edit_of_one_version_to_confirm() -> None:
    async with window_on(says("return 1"), capabilities=PREVIEWS) as (window, _):
        window.reopen(FUNCTION)
        edit = (await window.request("fimls/fill", target("body", CURSOR)))["edit"]
    (document,) = edit["documentChanges"]
    assert document["textDocument"] == {"uri": URI, "version": 1}
    assert (
        edit["changeAnnotations"][document["edits"][0]["annotationId"]]["needsConfirmation"] is True
    )


@pytest.mark.asyncio
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
async def test_a_selection_is_written_anew_and_the_rest_stays(newline: str) -> None:
    text = "a = '🎉'\nb = 2\nc = 3\n".replace("\n", newline)
    async with window_on(says("b = 20\nb += 1\n", "c = 3\n")) as (window, _):
        window.reopen(text)
        found = await window.request("fimls/fill", target("selection", around((1, 0), (2, 0))))
        assert applied(text, found["edit"]) == "a = '🎉'\nb = 20\nb += 1\nc = 3\n".replace(
            "\n", newline
        )


@pytest.mark.asyncio
async def test_a_docstring_gets_its_quotes() -> None:
    async with window_on(says('Width times height."""\n    return')) as (window, _):
        window.reopen(FUNCTION)
        found = await window.request("fimls/fill", target("docstring", CURSOR))
        assert applied(FUNCTION, found["edit"]) == FUNCTION.replace(
            "Of a box.", "Width times height."
        )


@pytest.mark.asyncio
async def test_what_is_long_is_written_to_its_end_however_unsure() -> None:
    body = (
        "width = abs(width)\n\n\n    if not width:\n        return 0\n\n    return width * height\n"
    )
    unsure = {"settings": {"fimls": {"minConfidence": 0.99}}}
    async with window_on(says(body, "\n\nprint(")) as (window, _):
        window.notify("workspace/didChangeConfiguration", unsure)

        async def hidden() -> bool:
            return await window.ask(0, 4)[1] == []

        await until(hidden)
        window.reopen(FUNCTION)
        found = await window.request("fimls/fill", target("body", CURSOR))
        assert applied(FUNCTION, found["edit"]) == FUNCTION.replace("pass", body.rstrip())
    words = "The area of a box.\n\n    Args:\n        width: in metres.\n    "
    async with window_on(says(words + '"""\n    return')) as (window, _):
        window.reopen(FUNCTION)
        found = await window.request("fimls/fill", target("docstring", CURSOR))
        assert applied(FUNCTION, found["edit"]) == FUNCTION.replace("Of a box.", words)
        assert (
            "cut where the text that was to be written ends"
            in (await window.request("fimls/why", {}))["markdown"]
        )


@pytest.mark.asyncio
async def test_of_an_answer_that_breaks_off_only_whole_lines_are_taken() -> None:
    pieces = [f"a{n} = {n}\n    " for n in range(70)]  # two tokens a line: more than it may write
    async with window_on(says(*(part for piece in pieces for part in (piece[:3], piece[3:])))) as (
        window,
        _,
    ):
        window.reopen(FUNCTION)
        found = await window.request("fimls/fill", target("body", CURSOR))
    text = applied(FUNCTION, found["edit"])
    assert "a10 = 10\n" in text and "a69" not in text
    assert text.endswith(FUNCTION[FUNCTION.index("pass") + 4 :])


@pytest.mark.asyncio
async def test_a_selection_that_no_answer_could_replace_is_refused() -> None:
    text = "x = 1\n" * 20_000
    async with window_on(says("x")) as (window, endpoint):
        window.reopen(text)
        with pytest.raises(RpcError, match="select less"):
            await window.request("fimls/fill", target("selection", around((0, 0), (20_000, 0))))
        window.reopen("x = 1\n" * 500_000)  # what is asked about is a window of it
        with pytest.raises(RpcError, match="select less"):
            await window.request("fimls/fill", target("selection", around((0, 0), (500_000, 0))))
        assert endpoint.bodies == []


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("params", "message"),
    [
        (target("selection", CURSOR), "Select the text"),
        (target("body", around((5, 0), (5, 0))), "no function here"),
        (target("body", CURSOR) | {"textDocument": {"uri": "file:///other.py"}}, "not open"),
        (target("poem", CURSOR), "kind has to be one of"),
        (target("body", CURSOR) | {"kind": []}, "kind has to be one of"),
        ({"kind": "body"}, "takes"),
        (None, "takes"),
    ],
)
async def test_where_there_is_nothing_to_fill_it_says_so(params: Any, message: str) -> None:
    async with window_on(says("x")) as (window, endpoint):
        window.reopen(FUNCTION)
        with pytest.raises(RpcError, match=message):
            await window.request("fimls/fill", params)
        assert endpoint.bodies == [] and window.shown == []


@pytest.mark.asyncio
async def test_a_model_with_nothing_to_say_is_named() -> None:
    async with window_on(says("  \n")) as (window, _):
        window.reopen(FUNCTION)
        with pytest.raises(RpcError, match="nothing to write") as caught:
            await window.request("fimls/fill", target("body", CURSOR))
        assert caught.value.code == -32803


@pytest.mark.asyncio
async def test_cancelling_ends_the_work() -> None:
    async with window_on(talks) as (window, endpoint):
        window.reopen(FUNCTION)
        number, answer = window.send("fimls/fill", target("selection", around((0, 0), (5, 0))))
        await until(lambda: endpoint.streams == 1)
        window.cancel(number)
        with pytest.raises(RpcError) as caught:
            await answer
        assert caught.value.code == -32800
        await until(lambda: endpoint.streams == 0)


@pytest.mark.asyncio
async def test_an_edit_meanwhile_ends_it_and_a_suggestion_elsewhere_does_not() -> None:
    async with window_on(talks) as (window, endpoint):
        window.reopen(FUNCTION)
        _, answer = window.send("fimls/fill", target("selection", around((0, 0), (5, 0))))
        await until(lambda: endpoint.streams == 1)
        window.open("x = ", "file:///work/place/other.py")
        window.change(2, "x = 1", uri="file:///work/place/other.py")
        await asyncio.sleep(0.05)
        assert not answer.done()
        window.change(2, "x = 1")
        with pytest.raises(RpcError, match="the text has changed"):
            await answer
        await until(lambda: endpoint.streams == 0)


# ---- for clients without a preview: the code action and its command ----


async def actions(window: Window, where: dict[str, Any], **context: Any) -> list[dict[str, Any]]:
    params = {
        "textDocument": {"uri": URI},
        "range": where,
        "context": {"diagnostics": []} | context,
    }
    return await window.request("textDocument/codeAction", params)


@pytest.mark.asyncio
async def test_code_actions_offer_what_there_is() -> None:
    async with window_on(says("x")) as (window, _):
        window.reopen(FUNCTION)
        found = await actions(window, around((2, 4), (2, 8)))
        assert [action["kind"].rpartition(".")[2] for action in found] == [
            "selection",
            "body",
            "docstring",
        ]
        assert found[1]["title"] == "Complete the body of `area` (fimls)"
        assert found[1]["command"]["arguments"] == [
            target("body", around((2, 4), (2, 8))) | {"version": 1}
        ]
        for only, kinds in {
            "refactor": ["body", "docstring"],
            "refactor.rewrite.fimls.body": ["body"],
            "refactor.rewrite.fimls.bodyguard": [],
            "refactor.rewrite.other": [],
        }.items():
            found = await actions(window, CURSOR, only=[only])
            assert [action["kind"].rpartition(".")[2] for action in found] == kinds
        assert await actions(window, CURSOR, only=["source.organizeImports"]) == []
        window.reopen("nothing = 1\n")
        assert [
            a for a in await actions(window, around((0, 0), (0, 0))) if a["kind"].endswith("body")
        ] == []


@pytest.mark.asyncio
async def test_the_command_shows_progress_and_hands_over_the_edit() -> None:
    capabilities = INLINE | {"window": {"workDoneProgress": True}}
    async with window_on(says("return 1"), capabilities=capabilities) as (window, _):
        window.reopen(FUNCTION)
        window.progress.clear()
        (action,) = [a for a in await actions(window, CURSOR) if a["kind"].endswith("body")]
        command = {name: action["command"][name] for name in ("command", "arguments")}
        await window.request("workspace/executeCommand", command)
        assert [applied(FUNCTION, edit) for edit in window.edits] == [
            FUNCTION.replace("pass", "return 1")
        ]
        assert window.progress == ["begin", "end"]


@pytest.mark.asyncio
async def test_cancelling_the_progress_ends_the_command_without_an_edit() -> None:
    capabilities = INLINE | {"window": {"workDoneProgress": True}}
    async with window_on(talks, capabilities=capabilities) as (window, endpoint):
        window.reopen(FUNCTION)
        command = {
            "command": "fimls.fill",
            "arguments": [target("selection", around((0, 0), (5, 0)))],
        }
        _, answer = window.send("workspace/executeCommand", command)
        await until(lambda: endpoint.streams == 1)
        window.notify("window/workDoneProgress/cancel", {"token": window.tokens[-1]})
        await answer
        await until(lambda: endpoint.streams == 0)
        assert window.edits == [] and window.shown == []


@pytest.mark.asyncio
@pytest.mark.parametrize("capabilities", [INLINE, INLINE | {"window": {"workDoneProgress": True}}])
async def test_cancelling_the_commands_request_ends_it_without_an_edit(
    capabilities: dict[str, Any],
) -> None:
    async with window_on(talks, capabilities=capabilities) as (window, endpoint):
        window.reopen(FUNCTION)
        command = {
            "command": "fimls.fill",
            "arguments": [target("selection", around((0, 0), (5, 0)))],
        }
        number, answer = window.send("workspace/executeCommand", command)
        await until(lambda: endpoint.streams == 1)
        window.cancel(number)
        with pytest.raises(RpcError):
            await answer
        await until(lambda: endpoint.streams == 0)
        assert window.edits == [] and window.shown == []


@pytest.mark.asyncio
async def test_an_edit_right_behind_the_command_is_no_text_of_the_past() -> None:
    capabilities = INLINE | {"window": {"workDoneProgress": True}}
    async with window_on(says("return 1"), capabilities=capabilities) as (window, _):
        window.reopen(FUNCTION)
        (action,) = [a for a in await actions(window, CURSOR) if a["kind"].endswith("body")]
        command = {name: action["command"][name] for name in ("command", "arguments")}
        _, answer = window.send("workspace/executeCommand", command)
        window.change(2, "def first():\n    pass\n\n", around((0, 0), (0, 0)))
        await answer
        assert window.edits == [] and "has changed" in window.shown[0]


@pytest.mark.asyncio
async def test_an_editor_that_refuses_the_edit_is_heard() -> None:
    async with window_on(says("return 1")) as (window, _):
        window.reopen(FUNCTION)
        window.applies = {"applied": False, "failureReason": "read-only"}
        command = {"command": "fimls.fill", "arguments": [target("body", CURSOR)]}
        await window.request("workspace/executeCommand", command)
        assert window.shown == ["fimls: the editor did not make the edit (read-only)"]


@pytest.mark.asyncio
async def test_the_command_tells_the_user_why_nothing_came() -> None:
    async with window_on(says("x")) as (window, _):
        window.reopen("nothing = 1\n")
        command = {"command": "fimls.fill", "arguments": [target("body", around((0, 0), (0, 0)))]}
        await window.request("workspace/executeCommand", command)
        assert window.shown == ["fimls: There is no function here whose body could be completed."]
