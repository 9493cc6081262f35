"""A TCP port, where strangers cannot keep those out who have the key.

asyncio's own servers take every connection for as long as it likes. Here one that has not shown the
key is closed after ADMISSION_S seconds, and where there are more than MAX_STRANGERS of them the
oldest is: who has the key shows it at once. Of those that have shown it MAX_ADMITTED may be open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

log = logging.getLogger(__name__)
ADMISSION_S = 10.0  # for TLS, the header and the key
MAX_STRANGERS = 64
MAX_ADMITTED = 256
RETRY_S = 0.1  # where the process may open no more files
SWEEP_S = 1.0
CLOSING_TURNS = 100  # of the event loop; a few are enough


class Port:
    """Takes the connections of some listening sockets.

    make_protocol: of a connection, as asyncio wants it. tls: None speaks plain HTTP.
    """

    def __init__(
        self,
        listeners: Iterable[socket.socket],
        make_protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listeners = tuple(listeners)
        self._make_protocol = make_protocol
        self._tls = tls
        self._strangers: OrderedDict[Any, tuple[socket.socket, float]] = OrderedDict()  # by peer
        self._admitted: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        for listener in self._listeners:
            listener.setblocking(False)
            self._run(self._accept(listener))
        self._run(self._sweep())

    def admit(self, peer: Any) -> bool:
        """The connection from this address has shown the key. Whether it may stay."""
        if peer not in self._strangers:
            return True
        self._admitted = [each for each in self._admitted if each.fileno() != -1]
        if len(self._admitted) >= MAX_ADMITTED:
            return False
        self._admitted.append(self._strangers.pop(peer)[0])
        return True

    async def close(self) -> None:
        """Takes no more connections; those that are there stay."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()

    def _run(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("a connection could not be taken: %s", error.strerror)
                await self._turn_out_oldest()
                await asyncio.sleep(RETRY_S)
                continue
            self._strangers[peer] = (connection, time.monotonic())
            self._run(self._connect(connection))
            if len(self._strangers) > MAX_STRANGERS:
                await self._turn_out_oldest()

    async def _connect(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        patience_s = ADMISSION_S if self._tls is not None else None
        try:
            await loop.connect_accepted_socket(
                self._make_protocol, connection, ssl=self._tls, ssl_handshake_timeout=patience_s
            )
        except OSError:  # among them that of TLS
            connection.close()

    async def _sweep(self) -> None:
        """Closes those that take too long."""
        while True:
            await asyncio.sleep(min(SWEEP_S, ADMISSION_S))
            latest = time.monotonic() - ADMISSION_S
            while self._strangers and next(iter(self._strangers.values()))[1] < latest:
                await self._turn_out_oldest()

    async def _turn_out_oldest(self) -> None:
        """Waits until it is closed: more are not taken faster than others go."""
        if not self._strangers:
            return
        _, (connection, _) = self._strangers.popitem(last=False)
        for _ in range(CLOSING_TURNS):
            with contextlib.suppress(OSError):  # it has gone
                connection.shutdown(socket.SHUT_RDWR)  # asyncio, which holds it, then closes it
            if connection.fileno() == -1:
                return
            await asyncio.sleep(0)
