"""The way of one request, from the handler to the request on the socket, is short."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import pytest

import lsp_server
from tests.lsp_server.helpers import says, window_on

OURS = str(Path(lsp_server.__file__).parent)
HANDLER = "inline_completion"
WAITING = {"wait_for_lines", "AnswerStream.more", "Bell.wait"}  # beside the way, for the answer


def frames_of(task: asyncio.Task[Any]) -> Iterator[FrameType]:
    """The frames of a task that waits, the outermost first."""
    waiting: Any = task.get_coro()
    while waiting is not None:
        frame = getattr(waiting, "cr_frame", None)
        if frame is not None:
            yield frame
        waiting = getattr(waiting, "cr_await", None)


@pytest.mark.asyncio
async def test_a_request_is_on_the_socket_after_at_most_seven_frames_in_six_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    post = aiohttp.ClientSession.post
    found: list[tuple[str, str]] = []

    def spy(*arguments: Any, **options: Any) -> Any:
        if not found:
            frames = [frame for frame, _ in traceback.walk_stack(sys._getframe(1))]
            tasks = [list(frames_of(task)) for task in asyncio.all_tasks()]
            for stack in [frames, *(s for s in tasks if is_of_request(s))]:
                codes = [frame.f_code for frame in stack]
                found.extend(
                    (c.co_qualname, c.co_filename) for c in codes if c.co_filename.startswith(OURS)
                )
        return post(*arguments, **options)

    async with window_on(says("z\n")) as (window, _):
        monkeypatch.setattr(aiohttp.ClientSession, "post", spy)
        window.change(2, "y = ")
        assert len(await window.ask(0, 4)[1]) == 1
    way = {(name, file) for name, file in found if name not in WAITING}
    names = {name for name, _ in way}
    assert {HANDLER, "Suggestions.suggest", "HttpClient.stream"} <= names
    assert len(way) <= 7, names
    assert len({file for _, file in way}) <= 6


def is_of_request(stack: list[FrameType]) -> bool:
    names = {frame.f_code.co_qualname for frame in stack}
    return bool(names & {HANDLER, "Suggestions._find"})
