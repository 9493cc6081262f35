"""Reads the header of a GGUF file: its metadata and its table of tensors.

Source: the specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and
3, little-endian).
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.errors import ModelError
from model.regular_files import check_regular, open_regular, reason

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_NAME = 2**16  # bytes of a key
# Beyond any model: they would fill the memory. The largest vocabularies take 16 MB.
MAX_METADATA = 2**26  # bytes
MAX_ARRAY = 2**21
MAX_KEYS = 2**12
MAX_TENSORS = 2**17
STRING = 8
ARRAY = 9
# The types of metadata values by number -> their struct formats.
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
# The types of tensors by number: name, weights in a block, bytes of a block (ggml.h).
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}


class Malformed(ValueError):
    """The file breaks the format. The message says how."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file. shape: rows first, as in torch."""

    name: str
    shape: tuple[int, ...]
    kind: str  # a name in TENSOR_TYPES
    offset: int  # bytes from the file's beginning
    bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """The metadata by key, arrays as tuples; and the tensors by name, in the file's order."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]


@dataclass(frozen=True, slots=True)
class StringArray(Sequence[str]):
    """An array of strings that is decoded when it is first read: a vocabulary has 150,000."""

    path: Path
    offset: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if type(index) is not int or not 0 <= index < self.length:
            return self.decoded()[index]
        with _mapped(self.path) as data:
            cursor = _Cursor(data, self.offset)
            cursor.skip_texts(index)
            return cursor.text()

    def __iter__(self) -> Iterator[str]:
        return iter(self.decoded())

    def decoded(self) -> list[str]:
        """All strings. Bytes that are no UTF-8 become U+FFFD, as llama.cpp shows them."""
        with _mapped(self.path) as data:
            return _Cursor(data, self.offset).texts(self.length)


def read_header(path: Path) -> Header:
    """Raises ModelError with the remedy."""
    try:
        check_regular(path)
        status = path.stat()
        return _read_header(path, status.st_size, status.st_mtime_ns)
    except FileNotFoundError:
        raise ModelError(f"There is no file {path}. Download the model again.") from None
    except (Malformed, OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({reason(error)}). Download it again.") from None


@lru_cache(maxsize=8)
def _read_header(path: Path, size: int, changed_ns: int) -> Header:
    """size and changed_ns make a changed file another one."""
    with _mapped(path) as data:
        cursor = _Cursor(data, 0)
        if cursor.bytes(4) != MAGIC:
            raise Malformed("it is no GGUF file")
        version = cursor.number("I")
        if version not in VERSIONS:
            if version & 0xFFFF == 0:
                raise Malformed("it is big-endian; take a little-endian one")
            raise Malformed(f"it has version {version} of the format; known are 2 and 3")
        tensor_count = cursor.count(24, MAX_TENSORS)
        key_count = cursor.count(13, MAX_KEYS)
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = cursor.text(MAX_NAME)
            if key in metadata:
                raise Malformed(f"the key {key} comes twice")
            metadata[key] = _value(cursor, cursor.number("I"), path)
            if cursor.offset > MAX_METADATA:
                raise Malformed("its metadata are longer than any model's")
        infos = [_tensor_info(cursor) for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment % 8:
            raise Malformed(f"the alignment is {alignment!r}")
        start = -(-cursor.offset // alignment) * alignment
        return Header(metadata, _placed(infos, start, alignment, len(data)))


def read_floats(path: Path, info: TensorInfo) -> tuple[float, ...]:
    """The values of a small tensor of the type F32. Raises ModelError, OSError."""
    with _mapped(path) as data:
        return struct.unpack_from(f"<{info.bytes // 4}f", data, info.offset)


def _mapped(path: Path) -> mmap.mmap:
    descriptor = open_regular(path)
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


class _Cursor:
    """Reads values one after the other. Each method raises Malformed beyond the file's end."""

    def __init__(self, data: mmap.mmap, offset: int) -> None:
        self.data = data
        self.offset = offset

    def bytes(self, count: int) -> bytes:
        end = self.offset + count
        if end > len(self.data):
            raise Malformed("it is cut off")
        found = self.data[self.offset : end]
        self.offset = end
        return found

    def number(self, form: str) -> Any:
        size = struct.calcsize(f"<{form}")
        return struct.unpack(f"<{form}", self.bytes(size))[0]

    def count(self, least_bytes: int, most: int) -> int:
        """A number of things that take at least so many bytes each, no more than `most`."""
        count: int = self.number("Q")
        if count * least_bytes > len(self.data) - self.offset:
            raise Malformed(f"it says to hold {count} things, more than there is room for")
        if count > most:
            raise Malformed(f"it says to hold {count:,} things, where no model has {most:,}")
        return count

    def text(self, most: int = MAX_METADATA) -> str:
        length = self.count(1, most)
        return self.bytes(length).decode("utf-8", "replace")

    def texts(self, count: int) -> list[str]:
        """As `text`, so many times, and several times as fast."""
        unpack = struct.Struct("<Q").unpack_from
        data = self.data
        offset = self.offset
        self.skip_texts(count)
        found = []
        for _ in range(count):
            start = offset + 8
            offset = start + unpack(data, offset)[0]
            found.append(str(data[start:offset], "utf-8", "replace"))
        return found

    def skip_texts(self, count: int) -> None:
        unpack = struct.Struct("<Q").unpack_from
        data = self.data
        offset = self.offset
        last = len(data) - 8
        for _ in range(count):
            if offset > last:
                raise Malformed("it is cut off")
            offset += 8 + unpack(data, offset)[0]
        if offset > len(data):
            raise Malformed("it is cut off")
        self.offset = offset


def _value(cursor: _Cursor, kind: int, path: Path) -> Any:
    if kind in SCALARS:
        return cursor.number(SCALARS[kind])
    if kind == STRING:
        return cursor.text()
    if kind != ARRAY:
        raise Malformed(f"it has a value of the unknown type {kind}")
    inner = cursor.number("I")
    if inner == STRING:
        count = cursor.count(8, MAX_ARRAY)
        texts = StringArray(path, cursor.offset, count)
        cursor.skip_texts(count)
        return texts
    if inner not in SCALARS:
        raise Malformed(f"it has an array of the type {inner}")
    size = struct.calcsize(f"<{SCALARS[inner]}")
    count = cursor.count(size, MAX_ARRAY)
    return struct.unpack(f"<{count}{SCALARS[inner]}", cursor.bytes(count * size))


def _tensor_info(cursor: _Cursor) -> TensorInfo:
    """A row of the table; its offset is still from the beginning of the data."""
    name = cursor.text(MAX_NAME)
    dimensions = cursor.number("I")
    if not 0 < dimensions <= MAX_DIMENSIONS:
        raise Malformed(f"the tensor {name} has {dimensions} dimensions")
    shape = tuple(reversed([cursor.number("Q") for _ in range(dimensions)]))
    number = cursor.number("I")
    offset = cursor.number("Q")
    if number not in TENSOR_TYPES:
        known = ", ".join(kind for kind, _, _ in TENSOR_TYPES.values())
        raise Malformed(
            f"the tensor {name} is of the type {number}, which fimls does not read; it reads "
            f"{known}"
        )
    kind, block, block_bytes = TENSOR_TYPES[number]
    if 0 in shape or shape[-1] % block:
        raise Malformed(f"the tensor {name} of the type {kind} has the shape {shape}")
    return TensorInfo(name, shape, kind, offset, math.prod(shape) // block * block_bytes)


def _placed(
    infos: Sequence[TensorInfo], start: int, alignment: int, size: int
) -> dict[str, TensorInfo]:
    """The tensors by name with offsets from the file's beginning, none beyond its end or over
    another."""
    found: dict[str, TensorInfo] = {}
    for info in infos:
        offset = start + info.offset
        if info.name in found:
            raise Malformed(f"the tensor {info.name} comes twice")
        if info.offset % alignment or offset + info.bytes > size:
            raise Malformed(f"the tensor {info.name} lies beyond its end or at no right place")
        found[info.name] = TensorInfo(info.name, info.shape, info.kind, offset, info.bytes)
    end = start
    for info in sorted(found.values(), key=lambda info: info.offset):
        if info.offset < end:
            raise Malformed(f"the tensor {info.name} lies over another")
        end = info.offset + info.bytes
    return found
