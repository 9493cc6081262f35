"""Frames in every chunking, the faults that real clients and attackers make, and a toy server as a
process."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsp_server.protocol.transport import MAX_BODY, MAX_HEADER, FrameReader, FrameWriter

ROOT = Path(__file__).parents[3]

TOY = """
from lsp_server.protocol.transport import serve, take_stdio
incoming, outgoing = take_stdio()

import asyncio, logging, os, subprocess, sys
from lsprotocol.types import ConfigurationParams
from pygls.lsp.server import LanguageServer

logging.basicConfig(level=logging.WARNING)
server = LanguageServer("toy", "1")

@server.feature("toy/echo")
def echo(params):
    return params

@server.feature("toy/noise")
def noise(params):
    os.write(1, b"noise from C")
    print("noise from Python", flush=True)
    eaten = subprocess.run(["cat"], capture_output=True).stdout
    inherited = [fd for fd in (incoming, outgoing) if os.get_inheritable(fd)]
    return [sys.stdin.read(), eaten.decode(), inherited]

@server.feature("toy/big")
def big(params):
    return "x" * params

@server.feature("toy/ask")
async def ask(params):
    try:
        asked = ConfigurationParams([])
        return await server.protocol.send_request_async("workspace/configuration", asked)
    except Exception as error:
        return type(error).__name__

sys.exit(asyncio.run(serve(server, incoming, outgoing)))
"""


def frame(body: bytes) -> bytes:
    return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


# ---- frames ----


@settings(max_examples=200, deadline=None)
@given(
    bodies=st.lists(
        st.binary(max_size=40) | st.just(b"\r\n\r\nContent-Length: 9\r\n\r\n"), max_size=6
    ),
    header=st.sampled_from(
        [
            "Content-Length: %d\r\n\r\n",
            "content-length:%d\r\n\r\n",
            "CONTENT-LENGTH : %d \n\n",
            "Content-Length: %d\r\nContent-Type: application/vscode-jsonrpc; charset=utf-8\r\n\r\n",
            "Content-Type: a\r\nX-Other: b\r\nContent-Length: %d\r\n\r\n",
        ]
    ),
    data=st.data(),
)
def test_any_chunking_gives_the_same_bodies(
    bodies: list[bytes], header: str, data: st.DataObject
) -> None:
    stream = b"".join((header % len(body)).encode() + body for body in bodies)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader, seen = FrameReader(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        seen += reader.feed(stream[start:end])
    assert seen == bodies


@settings(max_examples=200, deadline=None)
@given(garbage=st.lists(st.binary(max_size=60), max_size=5), step=st.integers(1, 50))
def test_finds_the_frames_between_garbage(garbage: list[bytes], step: int) -> None:
    stream = b"".join(junk + frame(b"body %d" % index) for index, junk in enumerate(garbage))
    reader, seen = FrameReader(), []
    for start in range(0, len(stream), step):
        seen += reader.feed(stream[start : start + step])
    assert seen == [b"body %d" % index for index in range(len(garbage))]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [b"Content-Length", b":", b" ", b"\r", b"\n", b"\n\n", b"3", b"-", b"{}", b"\xff"]
        )
    )
)
def test_survives_what_looks_like_a_header(parts: list[bytes]) -> None:
    whole = FrameReader().feed(b"".join(parts))
    reader = FrameReader()
    assert [body for part in parts for body in reader.feed(part)] == whole


@pytest.mark.parametrize(
    "fault",
    [
        b"Content-Length: 12345678901234567890\r\n\r\n",
        b"Content-Length: %s\r\n\r\n" % (b"9" * 5000),
        b"Content-Length: 3221225472\r\n\r\n",
        b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1),
        b"Content-Length: -5\r\n\r\n",
        b"Content-Length: +5\r\n\r\n",
        b"Content-Length: 0x10\r\n\r\n",
        b"Content-Length: 1e3\r\n\r\n",
        b"Content-Length:\r\n\r\n",
        b"Content-Length: five\r\n\r\nhello",
        b"Content-Length: 12\r\n",  # cut off: the next header follows at once
        b"X-Endless: " + b"x" * (3 * MAX_HEADER),
        b"Content-Length: 5\r\nX-Endless: " + b"x" * (3 * MAX_HEADER) + b"\r\n\r\n",
        b"\x00" * 100_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=lambda fault: fault[:30].decode("latin-1").strip(),
)
@pytest.mark.parametrize("step", [7, 100_000])
def test_goes_on_after_a_fault(fault: bytes, step: int, caplog: pytest.LogCaptureFixture) -> None:
    stream = frame(b"before") + fault + frame(b"after") + frame(b"last")
    reader, seen = FrameReader(), []
    with caplog.at_level(logging.WARNING):
        for start in range(0, len(stream), step):
            seen += reader.feed(stream[start : start + step])
    assert seen == [b"before", b"after", b"last"]
    assert len(caplog.records) <= 1
    assert "hello" not in caplog.text


def test_reserves_no_memory_for_what_was_only_announced() -> None:
    reader = FrameReader()
    tracemalloc.start()
    try:
        assert reader.feed(b"Content-Length: %d\r\n\r\nbegin" % MAX_BODY) == []
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_large_body_in_small_chunks_takes_no_quadratic_time() -> None:
    body = b"x" * 20_000_000
    stream, reader, seen = frame(body), FrameReader(), []
    began = time.perf_counter()
    for start in range(0, len(stream), 4096):
        seen += reader.feed(stream[start : start + 4096])
    assert seen == [body]
    assert time.perf_counter() - began < 5


# ---- the writer ----


async def write_from_threads(descriptor: int, frames: list[bytes]) -> None:
    writer = FrameWriter(descriptor, on_broken=lambda: None)

    def write_all() -> None:
        for data in frames:
            writer.write(data)

    threads = [threading.Thread(target=write_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    writer.write(b"too late")
    assert await writer.wait_below(0, stall=10)


def test_frames_from_several_threads_do_not_mix() -> None:
    frames = [frame(bytes([65 + n]) * (50_000 + n)) for n in range(8)]
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)  # as a client may have left it
    pieces: list[bytes] = []

    def read_slowly() -> None:
        while piece := os.read(read_end, 30_000):
            pieces.append(piece)

    reading = threading.Thread(target=read_slowly)
    reading.start()
    asyncio.run(write_from_threads(write_end, frames))
    os.close(write_end)
    reading.join(10)
    os.close(read_end)
    bodies = FrameReader().feed(b"".join(pieces))
    assert sorted(bodies) == sorted(f.partition(b"\r\n\r\n")[2] for f in frames * 4)


def test_a_client_that_has_gone_is_told_once_and_no_error() -> None:
    async def write() -> None:
        gone = asyncio.Event()
        writer = FrameWriter(write_end, on_broken=gone.set)
        writer.write(b"x")
        await asyncio.wait_for(gone.wait(), 5)
        writer.write(b"y")
        assert await writer.wait_below(0, stall=5)

    read_end, write_end = os.pipe()
    os.close(read_end)
    asyncio.run(write())
    os.close(write_end)


def test_a_client_that_reads_nothing_is_not_waited_for_for_ever() -> None:
    async def write() -> None:
        writer = FrameWriter(write_end, on_broken=lambda: None)
        writer.write(b"x" * 1_000_000)
        writer.close()
        assert not await writer.wait_below(0, stall=0.05)

    read_end, write_end = os.pipe()
    asyncio.run(write())
    os.close(read_end)  # ends the writer's thread
    os.close(write_end)


# ---- a server ----


class Toy:
    """The toy server as a process, and a client for it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin and process.stdout
        self.process, self.stdin, self.stdout = process, process.stdin, process.stdout
        self.frames = FrameReader()
        self.answers: list[dict[str, Any]] = []

    def send(self, **message: Any) -> None:
        self.send_bytes(frame(json.dumps({"jsonrpc": "2.0", **message}).encode()))

    def send_bytes(self, data: bytes) -> None:
        self.stdin.write(data)
        self.stdin.flush()

    def receive(self, chunk: int = 65536) -> dict[str, Any]:
        while not self.answers:
            data = os.read(self.stdout.fileno(), chunk)
            assert data, "the server has ended"
            self.answers += [json.loads(body) for body in self.frames.feed(data)]
        return self.answers.pop(0)

    def ask(self, method: str, params: Any) -> Any:
        self.send(id=1, method=method, params=params)
        answer = self.receive()
        return answer.get("result", answer.get("error"))

    def end(self) -> tuple[int, str]:
        _, stderr = self.process.communicate(timeout=10)
        return self.process.returncode, stderr.decode()


@pytest.fixture
def toy() -> Iterator[Toy]:
    process = subprocess.Popen(
        [sys.executable, "-c", TOY],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield Toy(process)
        finally:
            process.kill()


def test_noise_never_gets_among_the_frames_and_nothing_eats_them(toy: Toy) -> None:
    assert toy.ask("toy/noise", None) == ["", "", []]
    assert toy.ask("toy/echo", 5) == 5
    code, stderr = toy.end()
    assert code == 1  # the end of stdin without `exit`
    assert "noise from C" in stderr
    assert "noise from Python" in stderr


def test_shutdown_and_exit_end_with_0_and_unread_answers_are_written_first(toy: Toy) -> None:
    toy.send(id=1, method="toy/big", params=3_000_000)
    toy.send(id=2, method="shutdown", params=None)
    toy.send(method="exit", params=None)
    time.sleep(0.2)
    assert toy.receive()["result"] == "x" * 3_000_000
    assert toy.receive() == {"jsonrpc": "2.0", "id": 2, "result": None}
    assert toy.process.wait(5) == 0


def test_a_slow_reader_gets_every_answer_whole(toy: Toy) -> None:
    for number in range(5):  # together more than may wait unsent
        toy.send(id=number, method="toy/big", params=5_000_000)
    time.sleep(0.3)
    for number in range(5):
        assert toy.receive(chunk=20_000) == {
            "jsonrpc": "2.0",
            "id": number,
            "result": "x" * 5_000_000,
        }
    assert toy.ask("toy/echo", "still here") == "still here"


def test_a_client_that_reads_no_more_ends_the_server_quietly(toy: Toy) -> None:
    assert toy.ask("toy/echo", 1) == 1
    toy.stdout.close()
    toy.send(id=2, method="toy/echo", params=2)
    assert toy.process.wait(5) == 1
    assert toy.process.stderr is not None
    assert toy.process.stderr.read() == b""


def test_bad_messages_are_survived_and_requests_among_them_are_answered(toy: Toy) -> None:
    for fault in (
        b"Content-Length: 12345678901234567890\r\n\r\n",
        b"Content-Length: 3000000000\r\n\r\n",
        frame(b'{"jsonrpc": "2.0", "secret'),
        frame(b'"secret \xff\xfe"'),
        frame(b"[" * 100_000),
        frame(b'{"n": ' + b"9" * 5000 + b"}"),
        frame(b'[{"jsonrpc": "2.0", "id": 3, "method": "toy/echo", "params": "secret"}]'),
        frame(b'{"id": 4, "method": "toy/echo", "params": "secret"}'),
        frame(b'{"jsonrpc": "2.0", "method": ["secret"]}'),
        frame(b""),
    ):
        toy.send_bytes(fault)
    toy.send_bytes(
        b'content-length: 61\n\n{"jsonrpc": "2.0", "id": 5, "method": "toy/echo", "params":7}'
    )
    assert toy.receive() == {"jsonrpc": "2.0", "id": 5, "result": 7}
    toy.send(id=6, method="textDocument/hover", params={"position": "nowhere"})
    assert toy.receive()["error"]["code"] == -32602
    inner = {
        "jsonrpc": "2.0",
        "id": 8,
        "method": "shutdown",
    }  # no message, because it is inside of one
    assert toy.ask("toy/echo", [inner]) == [inner]
    code, stderr = toy.end()
    assert code == 1
    assert "secret" not in stderr


def test_an_answer_that_makes_no_sense_ends_the_wait_for_it(toy: Toy) -> None:
    toy.send(id=1, method="toy/ask", params=None)
    question = toy.receive()
    assert question["method"] == "workspace/configuration"
    toy.send(id=question["id"], error={"code": "not a number"})
    assert toy.receive() == {"jsonrpc": "2.0", "id": 1, "result": "JsonRpcInvalidParams"}


def test_taking_stdio_imports_nothing_heavy() -> None:
    code = (
        "import sys, lsp_server.protocol.transport; "
        "print([m for m in ('pygls', 'lsprotocol', 'torch') "
        "if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"


@pytest.mark.skipif(sys.platform == "win32", reason="closes descriptors the POSIX way")
def test_closed_standard_descriptors_are_no_trap() -> None:
    code = """
import os
os.close(0); os.close(2)
from lsp_server.protocol.transport import take_stdio
incoming, outgoing = take_stdio()
assert min(incoming, outgoing) > 2 and os.read(incoming, 1) == b""
os.write(2, b"to nobody")
os.write(outgoing, b"to the client")
"""
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT) == b"to the client"
