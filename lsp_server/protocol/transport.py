"""LSP frames over two descriptors: cuts bytes into bodies, hands them to pygls, writes answers.

A single bad header stalls or ends pygls' own reader, and it shares a thread pool with handlers.
Here one thread only reads, another only writes, and the rest happens on the event loop. Threads
work alike for pipes, sockets, files and terminals on every system, and asyncio's pipes would set
O_NONBLOCK on a descriptor that other processes may share.

Absent on purpose: imports beyond the standard library, so that `take_stdio` can run before anything
that might print; and bodies in the log, which holds sizes only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import select
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pygls.protocol import JsonRPCProtocol
    from pygls.server import JsonRPCServer

logger = logging.getLogger(__name__)

# In bytes:
MAX_BODY = 64 * 2**20
MAX_HEADER = 8 * 2**10
MAX_UNSENT = 8 * 2**20  # while more is unread, no requests are read
STALL = 1.0  # seconds to wait at the end for a client that reads nothing
_SLICE = 64 * 2**10
_READ_AHEAD = 16  # slices
_INVALID_PARAMS = -32602
_NAME = rb"content-length"
_LENGTH = re.compile(_NAME + rb"[ \t]*:", re.IGNORECASE)
_LENGTH_VALUE = re.compile(rb"[ \t]*([0-9]{1,19})[ \t]*\r?\n")
_OTHER_HEADERS = re.compile(rb"\s*(?:[\w-]+[ \t]*:[^\n]*\n\s*)*")
_HEADER_END = re.compile(rb"\n\r?\n")


def take_stdio() -> tuple[int, int]:
    """Makes private descriptors of stdin and stdout: one to read from, one to write to.

    After that descriptor 0 is empty, and descriptor 1 and sys.stdout lead to stderr: nothing in
    this process or its children can print among the frames or eat any. Call it once, before heavy
    imports.
    """
    # If the caller closed one of the three, the private descriptors must not take its place.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    if sys.stdout is not None:
        sys.stdout.flush()
    incoming, outgoing = os.dup(0), os.dup(1)  # neither is inherited by child processes
    os.dup2(spare, 0)
    os.dup2(2, 1)
    os.close(spare)
    sys.stdout = sys.stderr
    if sys.platform == "win32":
        import msvcrt

        for descriptor in (incoming, outgoing):
            msvcrt.setmode(descriptor, os.O_BINARY)
    return incoming, outgoing


class FrameReader:
    """Cuts a stream of bytes into bodies, however the bytes are chunked. Never raises.

    Bytes that make no frame are skipped up to the next `Content-Length:`, with one line in the log.
    No memory is taken for bytes that were announced but have not come.
    """

    def __init__(self, max_body: int = MAX_BODY) -> None:
        self._max_body = max_body
        self._buffer = bytearray()
        self._awaited: int | None = None  # length of the body; None while a header is awaited
        self._skipping = False  # bytes that make no frame: the log has been told

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the next bytes; returns the bodies that they complete."""
        self._buffer += data
        bodies = []
        while (body := self._next_body()) is not None:
            bodies.append(body)
        return bodies

    def _next_body(self) -> bytes | None:
        """Takes the next body off the buffer; None while it is not complete."""
        if self._awaited is None:
            self._awaited = self._next_length()
        if self._awaited is None or len(self._buffer) < self._awaited:
            return None
        body = bytes(self._buffer[: self._awaited])
        del self._buffer[: self._awaited]
        self._awaited = None
        return body

    def _next_length(self) -> int | None:
        """Takes the next good header off the buffer; returns the length that it states."""
        buffer = self._buffer
        while self._seek():
            end = _HEADER_END.search(buffer, 0, MAX_HEADER)
            if end is None:
                if len(buffer) < MAX_HEADER:
                    return None
                self._skip(len(_NAME), "a header block of more than %d bytes", MAX_HEADER)
                continue
            # Of several lengths the last counts: the others are left from frames that were cut.
            *_, name = _LENGTH.finditer(buffer, 0, end.end())
            value = _LENGTH_VALUE.match(buffer, name.end())
            length = int(value[1]) if value else None
            if length is not None and length <= self._max_body:
                del buffer[: end.end()]
                self._skipping = False
                return length
            self._skip(end.end(), "a Content-Length that is no number or above %d", self._max_body)
        return None

    def _seek(self) -> bool:
        """Makes the buffer begin with the next `Content-Length:`; False if there is none yet."""
        buffer = self._buffer
        name = _LENGTH.search(buffer)
        if name is None:
            if len(buffer) > MAX_HEADER:
                # The bytes that stay may begin the name.
                self._skip(len(buffer) - len(_NAME), "no Content-Length in %d bytes", len(buffer))
            return False
        if _OTHER_HEADERS.fullmatch(buffer, 0, name.start()):
            del buffer[: name.start()]
        else:
            self._skip(name.start(), "%d bytes between frames", name.start())
        return True

    def _skip(self, count: int, reason: str, number: int) -> None:
        if not self._skipping:
            logger.warning("looking for the next frame: " + reason, number)
        self._skipping = True
        del self._buffer[:count]


class FrameWriter:
    """Writes whole frames, in order, on a thread of its own. It is a writer as pygls wants it.

    `write` and `close` can be called from any thread and never block; `wait_below` is for the
    loop's. Frames after a `close`, or for a client that has gone, are dropped.
    """

    def __init__(self, descriptor: int, on_broken: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._progress = asyncio.Event()
        self._frames: SimpleQueue[bytes | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._unsent = 0
        self._open = True
        threading.Thread(target=self._run, name="lsp-writer", daemon=True).start()

    def write(self, data: bytes) -> None:
        """Sends a frame as soon as those before it are sent."""
        with self._lock:
            if self._open:
                self._unsent += len(data)
                self._frames.put(data)

    def close(self) -> None:
        """Takes no more frames; those taken are still written."""
        with self._lock:
            if self._open:
                self._open = False
                self._frames.put(None)

    async def wait_below(self, unsent: int, stall: float | None = None) -> bool:
        """Waits until at most so many bytes are unsent; False if none was sent for `stall` s."""
        while self._unsent > unsent:
            # Only callbacks on this loop set it: not between the check and the wait.
            self._progress.clear()
            try:
                await asyncio.wait_for(self._progress.wait(), stall)
            except TimeoutError:
                return False
        return True

    def _run(self) -> None:
        while (frame := self._frames.get()) is not None:
            view = memoryview(frame)
            while view:
                try:
                    sent = os.write(self._descriptor, view[:_SLICE])
                except BlockingIOError:  # a sharer made it non-blocking
                    select.select([], [self._descriptor], [])
                    continue
                except OSError as error:
                    logger.info("the client reads no more: %s", error)
                    self._give_up()
                    return
                view = view[sent:]
                with self._lock:
                    self._unsent -= sent
                _call_on(self._loop, self._progress.set)

    def _give_up(self) -> None:
        with self._lock:
            self._open = False
            self._unsent = 0
        _call_on(self._loop, self._progress.set)
        _call_on(self._loop, self._on_broken)


async def serve(server: JsonRPCServer, incoming: int, outgoing: int) -> int:
    """Runs a pygls server over two descriptors until the client ends its side, has gone, or sends
    `exit`.

    Returns LSP's exit status: 0 after `shutdown` and `exit`, else 1. Answers are written before,
    unless the client reads none for STALL seconds. The caller owns the descriptors and the loop,
    where requests may still be running. pygls' thread pool is not waited for.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes] = asyncio.Queue()
    read_ahead = threading.Semaphore(_READ_AHEAD)
    threading.Thread(
        target=_read, args=(incoming, loop, chunks, read_ahead), name="lsp-reader", daemon=True
    ).start()
    writer = FrameWriter(outgoing, on_broken=lambda: chunks.put_nowait(b""))
    server.protocol.set_writer(writer)
    frames = FrameReader()
    try:
        while chunk := await chunks.get():
            for body in frames.feed(chunk):
                dispatch(server.protocol, body, writer)
                # A request's handler is a task, which begins in the loop's next turn: it has to see
                # the text before an edit that was read together with the request.
                await asyncio.sleep(0)
            read_ahead.release()
            await writer.wait_below(MAX_UNSENT)
    except SystemExit as exit_:  # how pygls ends at `exit`
        return exit_.code if isinstance(exit_.code, int) else 1
    finally:
        writer.close()
        if not await writer.wait_below(0, STALL):
            logger.warning("the client left answers unread")
    return 1


def dispatch(protocol: JsonRPCProtocol, body: bytes, writer: FrameWriter) -> None:
    """Hands one body to pygls. One that does not fit is logged, and a request then gets an error.

    A body that is not JSON gets no answer: some clients fail on an answer without an id. Raises
    SystemExit for `exit`.
    """
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        logger.warning(
            "ignored a body of %d bytes that is not JSON: %s", len(body), type(error).__name__
        )
        return
    if not isinstance(raw, dict) or "jsonrpc" not in raw:
        logger.warning("ignored a body of %d bytes that is no JSON-RPC message", len(body))
        return
    try:
        # Only the outermost object is a message: pygls' own reader also takes inner ones for it.
        message = protocol.structure_message(raw)
    except Exception as error:
        logger.warning(
            "a body of %d bytes does not fit its method: %s", len(body), type(error).__name__
        )
        refusal = _refusal(raw)
        if refusal is None:
            return
        if "method" in raw:
            writer.write(_frame(refusal))
            return
        # It answers a request of ours: whoever waits gets an error in its place.
        message = protocol.structure_message(refusal)
    try:
        protocol.handle_message(message)
    except Exception:
        logger.exception("a body of %d bytes could not be handled", len(body))


def _refusal(raw: dict[str, Any]) -> dict[str, Any] | None:
    """The error that answers a request; None for a notification."""
    if not isinstance(raw.get("id"), int | str):
        return None
    error = {"code": _INVALID_PARAMS, "message": "the message does not fit its method"}
    return {"jsonrpc": "2.0", "id": raw["id"], "error": error}


def _frame(message: dict[str, Any]) -> bytes:
    body = json.dumps(message).encode()
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def _read(
    descriptor: int,
    loop: asyncio.AbstractEventLoop,
    chunks: asyncio.Queue[bytes],
    ahead: threading.Semaphore,
) -> None:
    """Reads chunks on a thread, a few ahead of the loop; the last one is empty."""
    while ahead.acquire():
        try:
            chunk = os.read(descriptor, _SLICE)
        except BlockingIOError:  # as in the writer
            select.select([descriptor], [], [])
            ahead.release()
            continue
        except OSError as error:
            logger.info("reading from the client failed: %s", error)
            chunk = b""
        if not _call_on(loop, chunks.put_nowait, chunk) or not chunk:
            return


def _call_on(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> bool:
    """Schedules a call from another thread; False if the loop is closed."""
    try:
        loop.call_soon_threadsafe(call, *args)
    except RuntimeError:
        return False
    return True
