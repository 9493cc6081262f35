"""A Hugging Face hub on loopback: lists, checksums, ranges, another host for large files, and the
faults that a test asks for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + "0" * 34
SMALL = 1000  # bytes; larger files are LFS files


@dataclass
class Hub:
    """What the hub holds and how it misbehaves; what it was asked."""

    files: dict[str, bytes]
    repository: str = "org/repo"
    licence: str = "apache-2.0"
    licence_name: str = ""
    # Each is (path's ending, answer); an answer is used up, (…, …, "always") is not.
    faults: list[tuple[Any, ...]] = field(default_factory=list)
    ignores_ranges: bool = False
    slow_s: float = 0.0  # before each kilobyte of a large file
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    endpoint: str = ""
    storage: str = ""  # the other host, for large files
    released: threading.Event = field(default_factory=threading.Event)

    def asked(self, method: str, ending: str) -> list[dict[str, str]]:
        return [h for m, path, h in self.requests if m == method and path.endswith(ending)]

    def fault(self, kind: str, path: str) -> Any:
        for number, (at, ending, answer, *rest) in enumerate(self.faults):
            if at == kind and path.endswith(ending):
                if not rest:
                    del self.faults[number]
                return answer
        return None


def checksum(content: bytes) -> str:
    if len(content) > SMALL:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub = self.hub
        path, _, _ = self.path.partition("?")
        hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        kind = "list" if path.startswith("/api/") else self.command
        fault = hub.fault(kind, path)
        if isinstance(fault, int):
            self.send(fault, {"Retry-After": "0"} if fault == 429 else {})
        elif isinstance(fault, tuple):
            self.send(fault[0], fault[1])
        elif path == f"/api/models/{hub.repository}/revision/main":
            content = fault if isinstance(fault, bytes) else json.dumps(self.listing()).encode()
            self.send(200, {"Content-Type": "application/json"}, content)
        elif match := re.fullmatch(rf"/{hub.repository}/resolve/{COMMIT}/(.+)", path):
            self.resolve(match[1], fault)
        elif path.startswith("/storage/"):
            self.bytes(hub.files[path.removeprefix("/storage/")], fault)
        else:
            self.send(404, {"X-Error-Code": "RepoNotFound"})

    def listing(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.hub.files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
            if len(content) > SMALL:
                sibling["lfs"] = {
                    "sha256": checksum(content),
                    "size": len(content),
                    "pointerSize": 134,
                }
            siblings.append(sibling)
        card = {"license": self.hub.licence}
        if self.hub.licence_name:
            card["license_name"] = self.hub.licence_name
        repository = self.hub.repository
        return {"id": repository, "sha": COMMIT, "siblings": siblings, "cardData": card}

    def resolve(self, name: str, fault: Any) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        etag = f'"{checksum(content)}"'
        if len(content) <= SMALL:
            headers = {"X-Repo-Commit": COMMIT, "ETag": etag}
            self.send(200, headers, content if self.command == "GET" else b"", len(content))
            return
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": fault if isinstance(fault, str) else etag,
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.hub.storage}/storage/{name}",
        }
        self.send(302, headers)

    def bytes(self, content: bytes, fault: Any) -> None:
        """A large file's bytes: a fault is ("cut", n), ("stall",) or other bytes."""
        if isinstance(fault, bytes):
            content = fault
        start = 0
        headers = {}
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and not self.hub.ignores_ranges:
            start = int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        part = content[start:]
        self.send(206 if headers else 200, headers, b"", len(part))
        if isinstance(fault, list):
            self.wfile.write(part[: fault[1]])
            self.wfile.flush()
            if fault[0] == "stall":
                self.hub.released.wait(20)
            self.close_connection = True
            return
        for at in range(0, len(part), 1024):
            if self.hub.slow_s and self.hub.released.wait(self.hub.slow_s):
                return
            self.wfile.write(part[at : at + 1024])

    def send(
        self, status: int, headers: dict[str, str], content: bytes = b"", length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at 127.0.0.1, its large files at another name and port."""

    class Bound(Handler):
        pass

    Bound.hub = hub
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Bound) for _ in range(2)]
    threads = []
    for server in servers:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        threads.append(thread)
    hub.endpoint = f"http://127.0.0.1:{servers[0].server_port}"
    hub.storage = f"http://localhost:{servers[1].server_port}"
    try:
        yield hub
    finally:
        hub.released.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
