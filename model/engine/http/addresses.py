"""Where an engine listens: a private Unix socket, or a network port for those who have its key."""

from __future__ import annotations

import os
import re
import secrets
import socket
import ssl
import sys
from ipaddress import ip_address
from pathlib import Path

from aiohttp import web

from model.engine.http.port import Port
from model.engine.loading import EngineProcess
from model.engine.options import BadOptions, Launch
from model.engine.rendezvous import HOST, PORT, Address, read_address, write_address

BACKLOG = 128
PROBE_S = 1.0


async def listen(runner: web.AppRunner, process: EngineProcess) -> None:
    """Begins to take connections. Raises BadOptions where it cannot listen there, OSError."""
    launch = process.launch
    kind, _, where = launch.listen.partition(":")
    if kind == "unix":
        try:
            await web.SockSite(runner, private_socket(Path(where))).start()
        except OSError as error:
            raise BadOptions(
                f"The socket {where} cannot be made ({error.strerror or error}). Set "
                "FIMLS_RUNTIME_DIR to a folder of your own on a local disk."
            ) from None
        return
    assert runner.server is not None
    if kind == "loopback":
        try:
            listeners = network_sockets(HOST, 0)
        except BadOptions as error:
            raise BadOptions(
                f"{error} The editor reaches its engine over {HOST}: see that no security program "
                "forbids that."
            ) from None
        process.key = secrets.token_urlsafe(32)
        process.port = Port(listeners, runner.server)
        process.port.start()
        write_address(Path(where), Address(listeners[0].getsockname()[1], process.key))
        return
    host, number = split_address(where)
    tls = tls_of(launch)
    listeners = network_sockets(host, number)
    process.port = Port(listeners, runner.server, tls)
    process.port.start()
    scheme = "http" if tls is None else "https"
    shown = f"[{host}]" if ":" in host else host
    port = listeners[0].getsockname()[1]
    print(f"listening on {scheme}://{shown}:{port}/v1", flush=True)
    if tls is None and not is_loopback(host):
        print(
            "fimls engine: the key and the users' code cross the network unencrypted. Name a "
            "certificate with --certificate and --certificate-key, or listen on 127.0.0.1 behind "
            "a tunnel.",
            file=sys.stderr,
            flush=True,
        )


def split_address(where: str) -> tuple[str, int]:
    """HOST:PORT or [IPV6]:PORT -> both. Raises BadOptions."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+(?:%\w+)?)\]|([^\s\[\]:/@]+)):([0-9]{1,5})", where)
    if match is None or int(match[3]) > 65535:
        raise BadOptions(
            f"{where[:60]!r} is no address to listen on. Write HOST:PORT, such as 127.0.0.1:8712 "
            "or [::1]:8712; the port is at most 65535."
        )
    return match[1] or match[2], int(match[3])


def network_sockets(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of the host; one where port is 0, which takes any that
    is free. Raises BadOptions."""
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sockets.append(socket.create_server(address, family=family, backlog=BACKLOG))
            if port == 0:
                break
    except (OSError, UnicodeError) as error:
        for each in sockets:
            each.close()
        reason = getattr(error, "strerror", None) or "it is no name of a host"
        raise BadOptions(
            f"{host}:{port} cannot be listened on ({reason}). Choose an address of this machine "
            "and a free port."
        ) from None
    return sockets


def tls_of(launch: Launch) -> ssl.SSLContext | None:
    """What speaks TLS with the certificate; None where none is named. Raises BadOptions."""
    if not launch.certificate:
        if launch.certificate_key:
            raise BadOptions("There is a key of a certificate, but no certificate: name both.")
        return None
    for path in (launch.certificate, launch.certificate_key):
        if path and not Path(path).is_file():  # a FIFO would be waited for
            raise BadOptions(f"{path} is no file. Name a PEM file.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password: a key with one fails, in place of a question.
        context.load_cert_chain(launch.certificate, launch.certificate_key or None, password="")
    except (OSError, ValueError) as error:  # among them ssl.SSLError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "no PEM"
        raise BadOptions(
            f"The certificate {launch.certificate} cannot be used ({reason}). Name PEM files of a "
            "certificate and of its key without a password."
        ) from None
    return context


def read_key() -> str:
    """The key that clients must send, out of the environment, where no child process finds it.
    Raises BadOptions."""
    key = os.environ.pop("FIMLS_API_KEY", "")
    if not key.strip():
        raise BadOptions("Set FIMLS_API_KEY: an engine on a network port wants a key.")
    if re.fullmatch("[!-~]([ -~]*[!-~])?", key) is None:
        raise BadOptions(
            "FIMLS_API_KEY has to be visible ASCII without blanks around it, as HTTP carries it. "
            "Choose another key."
        )
    return key


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def answers(path: Path) -> bool:
    """Whether a process listens on this Unix socket, or at the address in this file."""
    try:
        if path.suffix == PORT:
            socket.create_connection((HOST, read_address(path).port), PROBE_S).close()
        else:
            with unix_socket() as probe:
                probe.connect(str(path))
    except (OSError, ValueError):
        return False
    return True


def private_socket(path: Path) -> socket.socket:
    """Binds a Unix socket that only this user may open. Whoever holds the lock may remove a stale
    file."""
    path.unlink(missing_ok=True)
    listener = unix_socket()
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    return listener


def unix_socket() -> socket.socket:
    if sys.platform == "win32":
        raise OSError("Windows has no Unix sockets: listen on loopback:PATH")
    return socket.socket(socket.AF_UNIX)
