"""The kernel with interleaved weights (layout.py).

Until there is machine code, torch computes the same, slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from model.cpu import code_cache
from model.cpu.interleaved.layout import LARGEST, OFFSET, OUTPUTS, QUAD
from model.cpu.kernels import SMALLEST, Kernel, Product, piece_rows
from model.private_files import own_private_folder

EXACT = 1024  # as many products as this of 127 * 127 have an exact sum in float32
WIDEST = (2**31 - 1) // (2 * OFFSET * LARGEST)  # as many products, at most, in 32 bits
SERIAL = 2**19  # products that are computed before a second thread is awake

Packed = tuple[Tensor, Tensor, Tensor]
"""panels (panels, quads, OUTPUTS, 4) int8; scale (out,) float32; sums (panels * OUTPUTS,) int32 of
each row, times OFFSET. Missing rows and columns are 0."""


class Interleaved(Kernel):
    """Exact sums of 8-bit activations with one scale a row, as FBGEMM's. x86 only."""

    name = "interleaved"
    mappable = True
    readable = True

    def __init__(self) -> None:
        self._multiply: Callable[..., None] | None = None
        self._work = 0
        self._pool: Pool | None = None

    @property
    def ready(self) -> bool:
        return self._multiply is not None

    def load(self, folder: Path) -> None:
        """Loads machine code from a folder that is intact (code_cache.py), or compiles it there.

        Raises OSError if numba would keep it elsewhere.
        """
        if self.ready:
            return
        code_cache.use(folder)
        from model.cpu.interleaved import product  # not before numba knows the folder

        self._work = product.load()
        if self._work:
            self._pool = Pool.of_process()
            self._multiply = product.multiply

    def pack(self, weights: Tensor, scale: Tensor) -> Packed:
        out, width = weights.shape
        if width > WIDEST:
            raise RuntimeError(f"sums of {width} products may overflow")
        shapes = [shape for shape, _ in self.packed_specs(out, width)]
        count, quads, *_ = shapes[0]
        panels = torch.zeros(shapes[0], dtype=torch.int8)
        sums = torch.zeros(shapes[2], dtype=torch.int32)
        step = max(1, piece_rows(width) // OUTPUTS)
        for panel in range(0, count, step):
            part = weights[panel * OUTPUTS : (panel + step) * OUTPUTS]
            sums[panel * OUTPUTS :][: len(part)] = part.sum(1, dtype=torch.int32) * OFFSET
            part = F.pad(part, (0, quads * QUAD - width, 0, -len(part) % OUTPUTS))
            panels[panel : panel + step] = part.view(-1, OUTPUTS, quads, QUAD).transpose(1, 2)
        return panels, scale.clone(), sums

    def packed_specs(self, out: int, width: int) -> Sequence[tuple[tuple[int, ...], torch.dtype]]:
        count = -(-out // OUTPUTS)
        return (
            ((count, -(-width // QUAD), OUTPUTS, QUAD), torch.int8),
            ((out,), torch.float32),
            ((count * OUTPUTS,), torch.int32),
        )

    def product(self, inputs: Tensor, packed: Packed) -> Product:
        if self._multiply is None or self._pool is None:
            return self._slow_product(inputs, packed), None
        panels, scale, sums = packed
        out = len(scale)
        rows, width = inputs.shape
        quads = panels.shape[1]
        inputs = inputs.contiguous()
        # Machine code does not check where it reads and writes.
        if quads != -(-width // QUAD) or inputs.dtype != torch.float32:
            raise ValueError(f"{rows} x {width} {inputs.dtype} do not go with {quads} quads")
        result = torch.empty(rows, out)
        rounded = torch.empty(rows * quads * QUAD, dtype=torch.uint8)
        steps = torch.empty(rows)
        threads = 1
        if rows * width * out > SERIAL:
            threads = self._pool.threads()
        self._multiply(
            inputs.data_ptr(), rows, width, panels.data_ptr(), scale.data_ptr(), sums.data_ptr(),
            out, result.data_ptr(), rounded.data_ptr(), steps.data_ptr(), self._work, threads,
            *self._pool.addresses,
        )  # fmt: skip
        return result, None

    def rows(self, packed: Packed, ids: Tensor) -> Tensor:
        return packed[0][ids // OUTPUTS, :, ids % OUTPUTS].flatten(-2)

    def _slow_product(self, inputs: Tensor, packed: Packed) -> Tensor:
        """In torch: whole numbers in float32, as many at once as have an exact sum."""
        panels, scale, _ = packed
        most = inputs.abs().amax(-1, True).clamp_min_(SMALLEST)
        step = most * (1 / LARGEST) + (inputs * 0).sum(-1, True)  # NaN for what is not finite
        # A number divided by a tensor would be its reciprocal, which is rounded, times the number.
        inverse = torch.full_like(most, LARGEST).div_(most)
        rounded = torch.round(inputs * inverse).nan_to_num_()
        rounded = F.pad(rounded, (0, -rounded.shape[1] % QUAD))
        parts = []
        for part in torch.split(panels, max(1, piece_rows(rounded.shape[1]) // OUTPUTS)):
            # as 32-bit numbers, which are copied four times as fast as 8-bit ones
            fours = part.view(torch.int32).squeeze(-1).transpose(1, 2).flatten()
            matrix = fours.view(torch.int8).view(-1, rounded.shape[1]).float()
            total = torch.zeros(len(inputs), len(matrix), dtype=torch.int32)
            for numbers, weights in zip(
                torch.split(rounded, EXACT, 1), torch.split(matrix, EXACT, 1), strict=True
            ):
                total += F.linear(numbers, weights).int()
            parts.append(total.float())
        return torch.cat(parts, 1)[:, : len(scale)] * (scale * step)


class Pool:
    """Threads of this process that help with a product (sharing.py). They are started when they are
    wanted first, do without Python from then on, and end with the process.

    They are not OpenMP's, because there all threads wait for the last: on a busy machine for one
    that has not even begun.
    """

    SEMAPHORE_BYTES = 64  # a sem_t has 32
    _made: ClassVar[Pool | None] = None

    @classmethod
    def of_process(cls) -> Pool:
        """The one that all kinds of products share."""
        if cls._made is None:
            cls._made = cls()
        return cls._made

    def __init__(self) -> None:
        from model.cpu.interleaved import sharing

        sharing.load()
        self._help = sharing.help_with
        self._job = torch.zeros(sharing.JOB + 8, dtype=torch.int64)
        self._semaphore = ctypes.create_string_buffer(self.SEMAPHORE_BYTES)
        self._helpers = 0
        self._wait = 0
        post = 0
        if sys.platform == "linux":
            library = ctypes.CDLL(None)
            if library.sem_init(self._semaphore, 0, 0) == 0:
                self._wait = _address(library.sem_wait)
                post = _address(library.sem_post)
        start = self._job.data_ptr()
        self._start = start + -start % 64
        self.addresses = (self._start, ctypes.addressof(self._semaphore), post)

    def threads(self) -> int:
        """How many share a product: as many as torch's. One where there are no semaphores."""
        if not self._wait:
            return 1
        count = torch.get_num_threads()
        while self._helpers < count - 1:
            self._helpers += 1
            arguments = (self._start, self.addresses[1], self._wait)
            threading.Thread(target=self._help, args=arguments, daemon=True).start()
        return count


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


INTERLEAVED = Interleaved()


def load_made(cache_dir: Path) -> bool:
    """Loads the machine code that is in the cache folder; whether there is any."""
    folder = code_cache.code_folder(cache_dir)
    if not INTERLEAVED.ready and folder is not None and code_cache.is_intact(folder):
        with contextlib.suppress(OSError):
            INTERLEAVED.load(folder)
    return INTERLEAVED.ready


def can_be_made(cache_dir: Path) -> bool:
    """Whether machine code for this CPU can be compiled and kept in the cache folder."""
    folder = code_cache.code_folder(cache_dir)
    if folder is None or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return False
    try:
        own_private_folder(folder.parent)
    except OSError:
        return False
    return True
