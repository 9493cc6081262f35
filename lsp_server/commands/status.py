"""`fimls status`: the engines that run, and the counts of shown and accepted suggestions."""

from __future__ import annotations

import json

from lsp_server.commands.engine import engine_statuses, print_statuses
from lsp_server.session.usage import read_usage, summary


async def print_status(*, as_json: bool) -> None:
    """The command. Raises OSError."""
    engines = await engine_statuses()
    sessions = read_usage()
    if as_json:
        answer = {"engines": engines, "sessions": [session.to_json() for session in sessions]}
        print(json.dumps(answer))
        return
    print_statuses(engines)
    for line in summary(sessions):
        print(line)
