"""How a matrix of few bits lies in memory.

Numbers are quantized in blocks of BLOCK columns of one row. A panel holds OUTPUTS rows: all their
first blocks, then all their second ones, and so on. In a block of a panel, the first QUAD columns
of each row come first, then the next QUAD, since vector instructions add four products of 8-bit
numbers to each 32-bit sum. Behind the numbers stand the scales of the block's rows, so that a
product reads a panel from its beginning to its end.

    number = scale * (u - 2**(bits - 1))     without a minimum
    number = scale * u - minimum             with one

A scale, and a minimum, is either a half-precision number of its block, or one of the block in 8
bits times a half-precision one of its super-block of SUPER blocks, which stands before these.
"""

from __future__ import annotations

from typing import NamedTuple

OUTPUTS = 32
QUAD = 4
BLOCK = 32
SUPER = 8
QUADS = BLOCK // QUAD
PLANE = OUTPUTS * BLOCK // 8  # bytes of one bit of every number of a panel's block
LARGEST = 127  # of an activation's 8-bit number; none is -128
SMALLEST = 1e-20  # divides a block of zeros

# A wide block (tiles/wide.py): bytes, and where its parts begin.
AT_ONCE = SUPER  # that are widened
NUMBERS = OUTPUTS * BLOCK
WIDE_SUMS = NUMBERS
WIDE_FACTORS = WIDE_SUMS + 2 * 4 * OUTPUTS  # two, of a block's halves, as in Format.scales
WIDE_MINIMUMS = WIDE_FACTORS + 2 * 4 * OUTPUTS
WIDE_BLOCK = WIDE_MINIMUMS + 4 * OUTPUTS

# Cached positions as attention takes them (tiles/attention.py).
POSITIONS = 32  # that are widened
WIDTHS = (4, 8, 16, 32)  # queries of a tile
LARGEST_DIM = 256  # of a head
# Bytes of a widened key or value: whole cache lines, an odd number, for an even one of rows would
# fall to the same few places of a cache.
ROW = 4 * (LARGEST_DIM + 16)


class Format(NamedTuple):
    """One way of quantizing. The names are those of GGUF where it has the same numbers."""

    name: str
    bits: int
    minimum: bool = False
    two_level: bool = False
    scales: int = 1  # of a row's block, each for as many columns

    @property
    def offset(self) -> int:
        """What is subtracted from the unsigned numbers."""
        return 0 if self.minimum else 2 ** (self.bits - 1)

    @property
    def number_bytes(self) -> int:
        """Of a panel's block: the lower four bits of two columns in a byte, then a plane for each
        bit above; or eight bits in a byte."""
        return self.bits * PLANE

    @property
    def scale_bytes(self) -> int:
        """Of all scales of a panel's block, without its minimums."""
        return OUTPUTS * (self.scales if self.two_level else 2)

    @property
    def block_bytes(self) -> int:
        """Of a panel's block."""
        minimums = OUTPUTS * (1 if self.two_level else 2) if self.minimum else 0
        return self.number_bytes + self.scale_bytes + minimums

    @property
    def header_bytes(self) -> int:
        """Of a panel's super-block, before its blocks."""
        return OUTPUTS * 2 * (1 + self.minimum) if self.two_level else 0

    @property
    def columns(self) -> int:
        """The width of a matrix is a multiple of it."""
        return BLOCK * SUPER if self.two_level else BLOCK

    def panel_bytes(self, width: int) -> int:
        blocks = width // BLOCK
        return blocks * self.block_bytes + blocks // SUPER * self.header_bytes

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.panel_bytes(BLOCK * SUPER) / (OUTPUTS * BLOCK * SUPER)


FORMATS = (
    Format("q4_0", 4),
    Format("q4_1", 4, minimum=True),
    Format("q5_0", 5),
    Format("q5_1", 5, minimum=True),
    Format("q8_0", 8),
    Format("q4_k", 4, minimum=True, two_level=True),
    Format("q5_k", 5, minimum=True, two_level=True),
    Format("q6_k", 6, two_level=True, scales=2),
)
BY_NAME = {each.name: each for each in FORMATS}
