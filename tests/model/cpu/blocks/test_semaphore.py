"""Threads sleep on a semaphore until somebody wakes them, as machine code does it."""

from __future__ import annotations

import ctypes
import threading

from model.cpu.blocks.semaphore import FOREVER, Semaphore


def test_each_wake_is_for_one_thread() -> None:
    semaphore = Semaphore()
    assert semaphore.handle
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    wait = kind(semaphore.wait)
    threads = [
        threading.Thread(target=wait, args=(semaphore.handle, FOREVER, 0), daemon=True)
        for _ in range(3)
    ]
    semaphore.wake()  # before anybody waits
    for thread in threads:
        thread.start()
    for awake in (1, 2, 3):
        for _ in range(2000):
            if sum(not thread.is_alive() for thread in threads) >= awake:
                break
            threading.Event().wait(0.005)
        assert sum(not thread.is_alive() for thread in threads) == awake
        if awake < 3:
            semaphore.wake()
