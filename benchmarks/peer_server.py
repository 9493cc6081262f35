"""Serves a peer's model in the completions dialect, as llama.cpp's server does: one slot, which
keeps its cache.

    PYTHON -m benchmarks.peer_server KIND MODEL --port 0 [--draft 10]

It costs the peer less than its own server would: no JSON schema, no sampler chain, no chat
templates; the longest common prefix of the cache stays, also after a cancelled request, and a
request that nobody waits for any more is dropped between two tokens or two pieces of 512. --draft:
prompt look-up, with llama-cpp-python's own class. For transformers the answer comes out of its
`generate`, with the cache of the request before, cropped.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from benchmarks.sides import KINDS, Drafter, Transformers, arguments, quiet_stdout, write
from model.generation.text_matches import common_prefix


class Gone(Exception):
    """Nobody waits for the answer."""


class Slot:
    """One model, one request at a time."""

    def __init__(self, kind: str, model: str, threads: int, precision: str, draft: int) -> None:
        self.side = KINDS[kind](model, threads, precision)
        self.cached: list[int] = []
        self.lock = threading.Lock()
        self.draft = draft
        self.drafter = llama_drafter(draft) if draft and kind == "llama" else None

    def answer(self, body: dict[str, Any], gone: Callable[[], bool]) -> Iterator[str]:
        """The text piece by piece; reused ids stand in `self.reused` before the first."""
        ids, stop_ids = [int(i) for i in body["prompt"]], set(body.get("stop_token_ids") or ())
        most = min(int(body.get("max_tokens") or 16), self.side.positions - len(ids))
        self.reused = min(common_prefix(self.cached, ids), len(ids) - 1)
        if isinstance(self.side, Transformers):
            tokens = generated(self.side, self.cached, ids, most, self.draft, gone)
        else:
            tokens = write(self.side, self.cached, ids, most, self.drafter, gone)
        text = self.side.text()
        for token in tokens:
            if token in stop_ids:
                return
            yield text(token)


def llama_drafter(draft: int) -> Drafter:
    import numpy
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    theirs = LlamaPromptLookupDecoding(num_pred_tokens=draft)
    return lambda ids: [int(i) for i in theirs(numpy.array(ids, dtype=numpy.intc))]


def generated(
    side: Transformers,
    cached: list[int],
    ids: list[int],
    most: int,
    draft: int,
    gone: Callable[[], bool],
) -> Iterator[int]:
    """transformers' generate on a thread of its own; tokens as they come."""
    import queue

    import torch
    import transformers

    # With look-up it computes the whole prompt again behind a cache that it is given.
    side.trim(0 if draft else min(common_prefix(cached, ids), len(ids) - 1))
    tokens: queue.Queue[int | None] = queue.Queue()
    left = threading.Event()

    class Stream(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
        prompt = True

        def put(self, value: Any) -> None:
            if self.prompt:
                self.prompt = False
                return
            for token in value.flatten().tolist():
                tokens.put(token)

        def end(self) -> None:
            pass

    class Stop(transformers.StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any, **rest: Any) -> Any:
            return torch.full((input_ids.shape[0],), left.is_set() or gone())

    done: list[int] = []

    def work() -> None:
        try:
            options = {"prompt_lookup_num_tokens": draft} if draft else {}
            whole = side.model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                past_key_values=side._cache,
                max_new_tokens=most,
                do_sample=False,
                streamer=Stream(),
                pad_token_id=0,
                stopping_criteria=transformers.StoppingCriteriaList([Stop()]),
                **options,
            )
            done.extend(whole[0].tolist())
        finally:
            tokens.put(None)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        while (token := tokens.get()) is not None:
            yield token
    finally:
        left.set()
        worker.join()
        cached[:] = done[: side.length]
        side.trim(len(cached))


class Handler(BaseHTTPRequestHandler):
    slot: Slot
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that has cancelled
            super().handle()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            with self.slot.lock:
                if not self.gone():
                    told = False
                    for text in self.slot.answer(body, self.gone):
                        usage = {"prompt_tokens_details": {"cached_tokens": self.slot.reused}}
                        self.event(
                            {"choices": [{"text": text}]} | ({} if told else {"usage": usage})
                        )
                        told = True
            self.send(b"data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client has gone: an ordinary way to end a request
            self.close_connection = True

    def event(self, value: dict[str, Any]) -> None:
        self.send(b"data: " + json.dumps(value).encode() + b"\n\n")

    def send(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def gone(self) -> bool:
        """Whether the client has closed its end."""
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    parser = arguments()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--draft", type=int, default=0, help="tokens of a draft; 0: no speculation")
    options = parser.parse_args()
    out = quiet_stdout()
    Handler.slot = Slot(
        options.kind, options.model, options.threads, options.precision, options.draft
    )
    server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    server.daemon_threads = True
    print(json.dumps({"port": server.server_address[1]}), file=out, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
