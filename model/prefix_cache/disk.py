"""Computed prefixes on disk: what a workspace's context cost to compute is there again after a
restart.

Each file is a sequence in safetensors: its ids, and its keys and values in blocks of positions,
each with a checksum over all that it depends on: model, ids and numbers. Files are found by the
model's key in their name; whatever is in doubt (another model, a wrong shape, a block that was
damaged, a file that others may read) is a miss, and where nothing can be written nothing is kept.

The ids are the user's code to whoever has the tokenizer, and so, with more work, are the keys and
values. The folder is the user's alone (0700), and so is each file (0600); nothing else protects
them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any

import torch

from model.decoder.kv_cache import KVCache
from model.errors import ModelError
from model.prefix_cache.packed_ids import WIDTH, common_prefix
from model.private_files import is_mine, make_private_folder, own_private_folder
from model.weights.folder import ModelFolder

log = logging.getLogger(__name__)

FORMAT = "fimls-prefix-1"
SUFFIX = ".safetensors"
BLOCK = 256  # positions with a checksum of their own, and between two looks at whether to stop
WORTH_READING = 256  # positions that a file must have beyond what is in memory
WORTH_WRITING = 512  # positions that a sequence must have beyond what is in files
KEPT_FREE = 256 * 2**20  # bytes of the disk that are left to others
ABANDONED_S = 3600.0  # a file that was not finished in that time never will be
# places at which each weight file is looked at, to tell one training of a model from another
SAMPLES = 64
MAX_HEADER = 2**20
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def model_key(folder: ModelFolder, *details: str) -> str:
    """Names these weights, by path, sizes, times and samples of the content, and whatever else the
    values depend on."""
    digest = hashlib.sha256(repr((FORMAT, folder.identity, details)).encode())
    for file in folder.weight_files:
        with file.open("rb") as raw:
            size = file.stat().st_size
            for i in range(SAMPLES):
                raw.seek(size * i // SAMPLES)
                digest.update(raw.read(4096))
    return digest.hexdigest()[:16]


def open_store(
    folder: Path | None, byte_budget: int, model: ModelFolder, layout: KVCache, *details: str
) -> PrefixStore | None:
    """A model's store in a folder; None where none is wanted. layout is any cache of the model's.

    details: what the values depend on beside the weights' files and the layout: how they are
    quantized, which version of the program computes with them.
    """
    if folder is None or not byte_budget:
        return None
    try:
        key = model_key(model, str(layout.dtype), str(layout.device), *details)
    except (OSError, ModelError) as error:  # the model's files have gone since it was loaded
        log.warning("no prefixes are kept on disk (%s)", error)
        return None
    return PrefixStore(folder, key, byte_budget, layout)


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of the store, and how many ids of a prompt it begins with."""

    name: str
    length: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: its positions, and the checksums of its ids and blocks."""

    length: int
    ids: str
    blocks: list[str]


class PrefixStore:
    """The files of one model in a folder that may be shared with other processes and models. One
    thread uses it.

    The budget is the folder's: whoever writes makes room by what was used least recently, of any
    model. The ids of this model's files are held in memory, so that a look-up reads nothing but the
    folder's time of change.
    """

    def __init__(self, folder: Path, key: str, byte_budget: int, layout: KVCache) -> None:
        self.hits = 0  # how many times something was read
        self._folder, self._key, self._budget = folder, key, byte_budget
        self._dtype, config = layout.dtype, layout.config
        self._shape = (2, config.num_layers, config.num_kv_heads, BLOCK, config.head_dim)
        self._bytes_a_position = (
            2 * config.num_layers * config.num_kv_heads * config.head_dim * self._dtype.itemsize
        )
        self._index: dict[str, bytes] = {}  # packed ids; none for a file that is no good
        self._seen = -1
        self._usable = self._writable = True
        try:
            own_private_folder(folder)
        except OSError as error:
            self._give_up(error)
            self._usable = False

    def find(self, ids: bytes) -> Stored | None:
        """The file that begins with the most of these packed ids."""
        self._refresh()
        found = [
            Stored(name, common_prefix(its_ids, ids))
            for name, its_ids in self._index.items()
            if its_ids
        ]
        best = max(found, key=lambda stored: stored.length, default=None)
        return best if best and best.length else None

    @torch.inference_mode()
    def restore(
        self, stored: Stored, cache: KVCache, should_stop: Callable[[], bool] | None = None
    ) -> None:
        """Extends a cache, which holds the beginning of what was found, by as much of the rest as
        is beyond doubt."""
        before = cache.length
        path = self._folder / stored.name
        try:
            with _open_private(path) as file:
                header = self._read_header(file)
                ids = self._read_ids(file, header)
                if ids != self._index[stored.name]:
                    raise ValueError("its ids have changed")
                self._read_blocks(file, header, ids, stored.length, cache, should_stop)
            with contextlib.suppress(OSError):  # a folder that can only be read
                os.utime(path)  # the budget drops what was used least recently
        except OSError:
            self._index.pop(stored.name, None)
        except ValueError as error:
            self._discard(stored.name, error)
        self.hits += cache.length > before

    @torch.inference_mode()
    def save(
        self, ids: bytes, cache: KVCache, should_stop: Callable[[], bool] = lambda: False
    ) -> int:
        """Writes a cache, which holds these packed ids, if there is enough in it that no file has;
        returns the bytes.

        should_stop, asked between blocks, leaves nothing written, and nothing dropped for it.
        """
        each = self._bytes_a_position + WIDTH + 2  # and a share of the header
        ids = ids[: WIDTH * min(cache.length, self._budget // each)]
        length = len(ids) // WIDTH
        if not self._writable or length < WORTH_WRITING:
            return 0
        known = self.find(ids)
        if known and length - known.length < WORTH_WRITING:
            return 0
        name = f"{self._key}-{hashlib.sha256(ids).hexdigest()[:16]}{SUFFIX}"
        temporary = self._folder / f"{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            size = length * self._bytes_a_position + len(ids) + self._header_size(length)
            if size > self._budget or shutil.disk_usage(self._folder).free - size < KEPT_FREE:
                return 0
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                whole = self._write(file, ids, cache, should_stop)
            if whole:
                self._make_room(size)
                temporary.replace(self._folder / name)
        except (
            FileNotFoundError
        ):  # somebody has cleared the folder away: it is made anew, for the next time
            make_private_folder(self._folder)
            return 0
        except OSError as error:
            self._give_up(error)
            return 0
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if not whole:
            return 0
        superseded = [
            other for other, its_ids in self._index.items() if its_ids and ids.startswith(its_ids)
        ]
        self._index[name] = ids
        for other in superseded:
            if other != name:
                self._forget(other)
        return size

    # The folder.

    def _refresh(self) -> None:
        """Brings the index up to the folder, if that has changed."""
        if not self._usable:
            return
        try:
            changed = self._folder.stat().st_mtime_ns
            if changed == self._seen:
                return
            names = {
                entry.name
                for entry in os.scandir(self._folder)
                if entry.name.startswith(f"{self._key}-") and entry.name.endswith(SUFFIX)
            }
        except OSError:
            self._index.clear()
            return
        self._seen = changed
        self._index = {name: ids for name, ids in self._index.items() if name in names}
        for name in names - self._index.keys():
            try:
                with _open_private(self._folder / name) as file:
                    self._index[name] = self._read_ids(file, self._read_header(file))
            except OSError:
                self._index[name] = b""
            except ValueError as error:
                self._discard(name, error)

    def _discard(self, name: str, error: ValueError) -> None:
        log.info("a prefix on disk is no good: %s", error)
        self._forget(name)
        self._index[name] = b""  # not to be read again, should it not go

    def _forget(self, name: str) -> None:
        self._index.pop(name, None)
        with contextlib.suppress(OSError):
            (self._folder / name).unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Drops what was used least recently until a file of this size fits the budget, and what
        was abandoned."""
        files = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                info = path.stat()
                if path.suffix == ".tmp" and time.time() - info.st_mtime > ABANDONED_S:
                    path.unlink()
                elif path.suffix == SUFFIX:
                    files.append((info.st_mtime_ns, info.st_size, path))
        total = sum(its_size for _, its_size, _ in files)
        for _, its_size, path in sorted(files):
            if total + size <= self._budget:
                break
            self._forget(path.name)
            total -= its_size

    def _give_up(self, error: OSError) -> None:
        """Nothing more is written by this process; that is said once."""
        if self._writable:
            log.warning("no prefixes are kept on disk (%s)", error)
        self._writable = False

    # One file: eight bytes with the header's length, the header as JSON, then the tensors without
    # gaps.

    def _header(self, length: int, checksums: list[str]) -> bytes:
        tensors = [("ids", "I32", [length], WIDTH * length)]
        for start in range(0, length, BLOCK):
            count = min(BLOCK, length - start)
            shape = [*self._shape[:3], count, self._shape[4]]
            tensors.append(
                (
                    f"block{start // BLOCK:05}",
                    DTYPES[self._dtype],
                    shape,
                    count * self._bytes_a_position,
                )
            )
        header: dict[str, Any] = {
            "__metadata__": {
                "format": FORMAT,
                "model": self._key,
                "length": str(length),
                "checksums": " ".join(checksums),
            }
        }
        offset = 0
        for name, dtype, shape, size in tensors:
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        return len(encoded).to_bytes(8, "little") + encoded

    def _header_size(self, length: int) -> int:
        return len(self._header(length, self._no_checksums(length)))

    def _no_checksums(self, length: int) -> list[str]:
        return ["0" * 64] * (1 - (-length // BLOCK))

    def _write(
        self, file: BufferedWriter, ids: bytes, cache: KVCache, should_stop: Callable[[], bool]
    ) -> bool:
        length = len(ids) // WIDTH
        file.write(
            self._header(length, self._no_checksums(length))
        )  # its place: checksums come last
        file.write(ids)
        checksums = [self._checksum(ids, b"")]
        buffer = bytearray(BLOCK * self._bytes_a_position)
        for start in range(0, length, BLOCK):
            if should_stop():
                return False
            count = min(BLOCK, length - start)
            data = memoryview(buffer)[: count * self._bytes_a_position]
            cache.copy_out(start, self._as_block(data, count))
            file.write(data)
            checksums.append(self._checksum(ids[: WIDTH * (start + count)], data))
        file.seek(0)
        file.write(self._header(length, checksums))
        return True

    def _read_header(self, file: BufferedReader) -> Header:
        """Raises ValueError unless all but the checksums is what this store would write."""
        size = int.from_bytes(file.read(8), "little")
        if not size <= MAX_HEADER:
            raise ValueError("its header is too long")
        header = file.read(size)
        try:
            metadata = json.loads(header)["__metadata__"]
            length, checksums = int(metadata["length"]), str(metadata["checksums"]).split(" ")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ValueError("its header cannot be read") from None
        if not 0 < length <= 8 * size or header != self._header(length, checksums)[8:]:
            raise ValueError("its header is of another model or layout")
        if len(checksums) != len(self._no_checksums(length)):
            raise ValueError("it lacks checksums")
        if os.fstat(file.fileno()).st_size != 8 + size + length * (WIDTH + self._bytes_a_position):
            raise ValueError("it is cut off")
        return Header(length, checksums[0], checksums[1:])

    def _read_ids(self, file: BufferedReader, header: Header) -> bytes:
        ids = file.read(WIDTH * header.length)
        if self._checksum(ids, b"") != header.ids:
            raise ValueError("its ids are damaged")
        return ids

    def _read_blocks(
        self,
        file: BufferedReader,
        header: Header,
        ids: bytes,
        length: int,
        cache: KVCache,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        """Extends the cache up to `length`, reading only the blocks that it takes."""
        checksums, held = header.blocks, len(ids) // WIDTH
        first = cache.length // BLOCK
        file.seek(first * BLOCK * self._bytes_a_position, os.SEEK_CUR)
        buffer = bytearray(BLOCK * self._bytes_a_position)
        for start in range(first * BLOCK, length, BLOCK):
            if should_stop is not None and should_stop():
                return
            count = min(BLOCK, held - start)
            data = memoryview(buffer)[: count * self._bytes_a_position]
            if file.readinto(data) != len(data):
                raise ValueError("it is cut off")
            if self._checksum(ids[: WIDTH * (start + count)], data) != checksums[start // BLOCK]:
                raise ValueError("a block is damaged")
            cache.extend(
                self._as_block(data, count)[:, :, :, cache.length - start : length - start]
            )

    def _as_block(self, data: memoryview, count: int) -> torch.Tensor:
        shape = (*self._shape[:3], count, self._shape[4])
        return torch.frombuffer(data, dtype=self._dtype).view(shape)

    def _checksum(self, ids: bytes, data: bytes | memoryview) -> str:
        digest = hashlib.sha256(self._key.encode())
        digest.update(ids)
        digest.update(data)
        return digest.hexdigest()


def _open_private(path: Path) -> BufferedReader:
    """A file that is this user's alone. Raises OSError."""
    flags = (
        os.O_RDONLY
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_BINARY", 0)
    )
    file = os.fdopen(os.open(path, flags), "rb")
    info = os.fstat(file.fileno())
    if (
        not stat.S_ISREG(info.st_mode)
        or not is_mine(info)
        or (os.name != "nt" and stat.S_IMODE(info.st_mode) & 0o077)
    ):
        file.close()
        raise PermissionError(f"{path} is not a private file of this user")
    return file
