"""A semaphore of the operating system's, for machine code."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

BYTES = 64  # a sem_t of Linux has 32
FOREVER = -1  # for all systems that wait for a time
ONE = 1  # for all systems that may count more than once


class Semaphore:
    """Counts from 0 on. Machine code calls functions by their addresses: wait(handle, FOREVER, 0)
    and post(handle, ONE, 0), of which each system's functions read as many as they have.

    handle is 0 where there is none. That it sleeps and wakes was tried on Linux alone.
    """

    def __init__(self) -> None:
        self.handle = 0
        self.wait = 0
        self.post = 0
        if sys.platform == "linux":
            library = ctypes.CDLL(None)
            self._memory = ctypes.create_string_buffer(BYTES)
            if library.sem_init(self._memory, 0, 0) == 0:
                self.handle = ctypes.addressof(self._memory)
                self._use(library.sem_wait, library.sem_post)
        elif sys.platform == "darwin":
            library = ctypes.CDLL(None)
            create = library.dispatch_semaphore_create
            create.argtypes, create.restype = [ctypes.c_long], ctypes.c_void_p
            self.handle = create(0) or 0
            self._use(library.dispatch_semaphore_wait, library.dispatch_semaphore_signal)
        elif sys.platform == "win32":
            kernel = ctypes.WinDLL("kernel32")
            create = kernel.CreateSemaphoreW
            pointer = ctypes.c_void_p
            create.argtypes = [pointer, ctypes.c_long, ctypes.c_long, pointer]
            create.restype = pointer
            self.handle = create(None, 0, 2**31 - 1, None) or 0
            self._use(kernel.WaitForSingleObject, kernel.ReleaseSemaphore)

    def _use(self, wait: Any, post: Any) -> None:
        self.wait = ctypes.cast(wait, ctypes.c_void_p).value or 0
        self.post = ctypes.cast(post, ctypes.c_void_p).value or 0

    def wake(self) -> None:
        """Wakes one thread that waits, or the next one that will."""
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        kind(self.post)(self.handle, ONE, 0)
