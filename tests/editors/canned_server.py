"""A language server with canned answers that speaks editors/PROTOCOL.md: what the clients are
tested against.

What it says is told by the text before the cursor (see `ANSWERS`), so that a test reads as what a
user does. It writes what it hears, one JSON object a line, to the file named by FIMLS_CANNED_LOG,
and what is in FIMLS_CANNED decides how it behaves: "dies" (at the first request), "deaf" (from the
first request on), "fails" (its state), "loads" (for ever).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException
from pygls.lsp.server import LanguageServer

MODE = os.environ.get("FIMLS_CANNED", "")
LOG = os.environ.get("FIMLS_CANNED_LOG")
SLOW_S = 30.0
# The end of the text before the cursor -> the alternatives; the first is what automatic requests
# get.
ANSWERS = {
    "def fib(n):": [
        "\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a",
        "\n    return n if n < 2 else fib(n - 1) + fib(n - 2)",
        '\n    raise NotImplementedError("fib")',
    ],
    "print(": ['"héllo wörld 🎉")', "*lines)"],
    "total = ": ["sum(price * count for price, count in items)"],
    "money = ": ['f"${cost} {rest} ${1:name}"'],  # would be eaten if it were taken for a snippet
    "\tif tabs:": ["\n\t\treturn True"],
    "call(one": [", two"],  # in front of a closing bracket
    "known = ": ["text_of_two(here)"],  # repeats a package
    "borrowed = ": [
        "mine(here)",
        "text_of_two(there)",
        "text_of_three(there)",
    ],  # so do alternatives
}
FILLED = {
    "selection": "    return 42\n",
    "body": "    return 'a body'\n",
    "docstring": '    """A docstring."""\n',
}

# What those who read the mirror are owed: the document as the server sees it.
server = LanguageServer("fimls-canned", "0.1")
_id = 0
_asked = 0
_shown = {"shown": 0, "accepted": 0, "partlyAccepted": 0, "typedThrough": 0}
_snoozed = False


def log(event: str, **what: Any) -> None:
    if LOG:
        with Path(LOG).open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({"t": round(time.time(), 4), "event": event, **what}, ensure_ascii=False)
                + "\n"
            )


def status() -> dict[str, Any]:
    state, message = "ready", "canned answers"
    if MODE == "fails":
        state, message = (
            "failed",
            "There is no model in /nowhere. Set fimls.model to the folder of a model.",
        )
    elif MODE == "loads":
        state, message = "loading", "loading the model"
    elif _snoozed:
        state, message = "off", "snoozed; end it with the command Snooze"
    return {
        "state": state,
        "message": message,
        "progress": 0.4 if MODE == "loads" else None,
        "model": "canned",
    }


def tell() -> None:
    server.protocol.notify("fimls/didChangeStatus", status())


@server.feature(lsp.INITIALIZED)
def initialized(params: lsp.InitializedParams) -> None:
    capabilities = server.client_capabilities
    experimental = capabilities.experimental
    log(
        "initialized",
        experimental=json.loads(json.dumps(experimental, default=lambda o: o._asdict())),
        inline=bool(capabilities.text_document and capabilities.text_document.inline_completion),
    )
    tell()


@server.feature(lsp.TEXT_DOCUMENT_DID_OPEN)
def did_open(params: lsp.DidOpenTextDocumentParams) -> None:
    document = params.text_document
    log("open", uri=document.uri, language=document.language_id, text=document.text)


@server.feature(lsp.TEXT_DOCUMENT_DID_CHANGE)
def did_change(params: lsp.DidChangeTextDocumentParams) -> None:
    document = server.workspace.get_text_document(params.text_document.uri)
    log("change", version=params.text_document.version, text=document.source)


@server.feature("textDocument/didFocus")
def did_focus(params: Any) -> None:
    at = getattr(params, "position", None)
    log("focus", at=None if at is None else [at.line, at.character])
    tell()


@server.feature("textDocument/didShowCompletion")
def did_show(params: Any) -> None:
    _shown["shown"] += 1
    log("shown", text=params.item.insertText)


@server.feature("textDocument/didPartiallyAcceptCompletion")
def did_partially_accept(params: Any) -> None:
    _shown["partlyAccepted"] += 1
    log("partly", text=params.item.insertText, length=params.acceptedLength)


@server.feature(lsp.TEXT_DOCUMENT_INLINE_COMPLETION, lsp.InlineCompletionOptions())
async def inline_completion(params: lsp.InlineCompletionParams) -> lsp.InlineCompletionList:
    global _asked
    if MODE == "dies":
        os._exit(3)
    if MODE == "deaf":
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    document = server.workspace.get_text_document(params.text_document.uri)
    offset = document.offset_at_position(params.position)
    before = document.source[:offset]
    line, version = before.rpartition("\n")[2], document.version
    kind = params.context.trigger_kind
    selected = params.context.selected_completion_info
    _asked += 1
    number = _asked
    wanted = selected.text if selected else None
    log("asked", number=number, line=line, kind=int(kind), version=version, selected=wanted)
    try:
        if "SLOW" in line:
            await asyncio.sleep(SLOW_S)
        elif "LATE" in line:
            await asyncio.sleep(0.3)
    except asyncio.CancelledError:
        log("cancelled", number=number, line=line)
        raise
    found: list[str] = []
    for end, texts in ANSWERS.items():
        start = before.rfind(end)
        # What was typed or accepted of the first answer is taken off, as the real server does.
        typed = before[start + len(end) :].replace("\r\n", "\n") if start >= 0 else None
        if typed is not None and not typed:
            found = texts
        elif typed and texts[0].startswith(typed) and len(typed) < len(texts[0]):
            found = [texts[0][len(typed) :]]
    if MODE or _snoozed:
        found = []
    if kind == lsp.InlineCompletionTriggerKind.Automatic:
        found = found[:1]
    log("answered", number=number, items=len(found))
    return lsp.InlineCompletionList(items=[item(text, params.position) for text in found])


def item(text: str, position: lsp.Position) -> lsp.InlineCompletionItem:
    global _id
    _id += 1
    source = re.match(r"text_of_(\w+)", text)
    arguments = [str(_id)] + ([f"makes text of {source[1]} 1.0 (BSD-3-Clause)"] if source else [])
    command = lsp.Command(title="Accepted", command="fimls.didAccept", arguments=arguments)
    return lsp.InlineCompletionItem(
        insert_text=text, range=lsp.Range(position, position), command=command
    )


@server.command("fimls.didAccept")
def did_accept(*arguments: Any) -> None:
    _shown["accepted"] += 1
    log("accepted", id=arguments[0])


@server.feature(
    lsp.TEXT_DOCUMENT_CODE_ACTION,
    lsp.CodeActionOptions(code_action_kinds=[f"refactor.rewrite.fimls.{kind}" for kind in FILLED]),
)
def code_action(params: lsp.CodeActionParams) -> list[lsp.CodeAction]:
    target = {
        "textDocument": {"uri": params.text_document.uri},
        "range": {
            "start": {"line": params.range.start.line, "character": params.range.start.character},
            "end": {"line": params.range.end.line, "character": params.range.end.character},
        },
    }
    return [
        lsp.CodeAction(
            title=f"Fill in anew: {kind} (fimls)",
            kind=f"refactor.rewrite.fimls.{kind}",
            command=lsp.Command("Fill in", "fimls.fill", arguments=[target | {"kind": kind}]),
        )
        for kind in FILLED
    ]


@server.feature("fimls/fill")
async def fill(params: Any) -> dict[str, Any]:
    """Replaces the range; a file whose text holds SLOW takes its time, one that holds NOTHING has
    nothing to fill."""
    document = server.workspace.get_text_document(params.textDocument.uri)
    log("fill", kind=params.kind)
    if "NOTHING" in document.source:
        raise JsonRpcException(
            "There is no function here to fill.", code=lsp.LSPErrorCodes.RequestFailed.value
        )
    try:
        await asyncio.sleep(SLOW_S if "SLOW" in document.source else 0.1)
    except asyncio.CancelledError:
        log("fill cancelled")
        raise
    start, end = params.range.start, params.range.end
    where = {
        "start": {"line": start.line, "character": start.character},
        "end": {"line": end.line, "character": end.character},
    }
    return {
        "label": f"Fill in: {params.kind}",
        "edit": {
            "changeAnnotations": {"fimls": {"label": "fimls", "needsConfirmation": True}},
            "documentChanges": [
                {
                    "textDocument": {"uri": params.textDocument.uri, "version": document.version},
                    "edits": [
                        {"range": where, "newText": FILLED[params.kind], "annotationId": "fimls"}
                    ],
                }
            ],
        },
    }


@server.command("fimls.fill")
def fill_by_command(*arguments: Any) -> None:
    """For clients without a preview of their own; this server only writes down that it was
    asked."""
    log("fill command")


@server.feature("fimls/status")
def full_status(params: Any) -> dict[str, Any]:
    return status() | {"version": "0.1", "log": "/nowhere", "counts": dict(_shown)}


@server.feature("fimls/snooze")
def snooze(params: Any) -> dict[str, Any]:
    global _snoozed
    _snoozed = params.minutes > 0
    tell()
    return full_status(params)


@server.feature("fimls/why")
def why(params: Any) -> dict[str, Any]:
    return {
        "markdown": "# Why this suggestion?\n\nIt is canned: `total = ` is always followed by the "
        "same text.\n"
    }


@server.feature(lsp.WORKSPACE_DID_CHANGE_CONFIGURATION)
def settings_changed(params: lsp.DidChangeConfigurationParams) -> None:
    log("settings")


if __name__ == "__main__":
    log("started", arguments=sys.argv[1:], pid=os.getpid())
    server.start_io()
    if MODE == "deaf":
        time.sleep(SLOW_S)
