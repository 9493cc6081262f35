"""Computed prefixes on disk: after a restart a workspace's context is read instead of computed.

Each file is one sequence in safetensors: its `ids`, and its keys and values in blocks of positions
(`block00000`, ...). The metadata has a checksum of the ids and of each block over all that it
depends on: model, layout, ids and numbers. Whatever is in doubt (another model or layout, a damaged
block, a file that others may read) is a miss, and where nothing can be written nothing is kept.
Files are memory-mapped while they are read, as weights are: only whole files take a place, and none
is ever cut.

The ids are the user's code to whoever has the tokenizer, and so, with more work, are the keys and
values. The folder is the user's alone (0700), and so is each file (0600); nothing else protects
them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.decoder.kv_cache import KVCache
from model.errors import ModelError
from model.prefix_cache.packed_ids import WIDTH, shared_ids
from model.private_files import (
    is_private_file,
    make_private_folder,
    new_private_file,
    own_private_folder,
)
from model.weights.files import ModelFiles

log = logging.getLogger(__name__)

FORMAT = "fimls-prefix-3"
# Files of earlier formats are deleted: until the third, secrets could stand in prompts.
SUFFIX = ".3.safetensors"
BLOCK = 256  # positions with a checksum of their own; should_stop is asked before each block
WORTH_READING = 256  # positions that a file must have beyond those in memory
WORTH_WRITING = 512  # positions that a sequence must have beyond those in files
KEPT_FREE = 256 * 2**20  # bytes of the disk that are left to others
ABANDONED_S = 3600.0  # a file that is unfinished for so long never will be finished
SAMPLES = 64  # places of a weight file that are read, to tell one training from another
HEADER_BYTES = 1024  # more than the header has without the entries of its blocks


def model_key(folder: ModelFiles, *details: str) -> str:
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
    folder: Path | None, byte_budget: int, model: ModelFiles, layout: KVCache, *details: str
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


class PrefixStore:
    """The files of one model in a folder that may be shared with other processes and models. One
    thread uses it.

    The budget is the folder's: whoever writes drops the least recently used files, of any model.
    The ids of this model's files are held in memory, so a look-up reads only the folder's time of
    change.
    """

    def __init__(self, folder: Path, key: str, byte_budget: int, layout: KVCache) -> None:
        self.hits = 0  # how many times something was read
        self._folder = folder
        self._key = key
        self._budget = byte_budget
        self._format = PrefixFormat(key, layout)
        self._index: dict[str, bytes] = {}  # packed ids of each file; none for a bad file
        self._seen = -1  # the folder's time of change
        self._usable = True
        self._writable = True
        try:
            own_private_folder(folder)
            self._drop_earlier()
        except OSError as error:
            self._give_up(error)
            self._usable = False

    def find(self, ids: bytes) -> Stored | None:
        """The file that begins with the most of these packed ids."""
        self._refresh()
        best = max(self._index, key=lambda name: shared_ids(self._index[name], ids), default="")
        length = shared_ids(self._index.get(best, b""), ids)
        return Stored(best, length) if length else None

    @torch.inference_mode()
    def restore(
        self, stored: Stored, cache: KVCache, should_stop: Callable[[], bool] | None = None
    ) -> None:
        """Extends a cache, which holds the beginning of the prefix that was found, up to the end of
        the prefix or the first block in doubt."""
        before = cache.length
        path = self._folder / stored.name
        try:
            with _open_private(path, self._format) as file:
                if file.ids != self._index[stored.name]:
                    raise ValueError("its ids have changed")
                for start in range(before // BLOCK * BLOCK, stored.length, BLOCK):
                    if should_stop is not None and should_stop():
                        break
                    block = file.block(start)
                    cache.extend(block[:, :, :, cache.length - start : stored.length - start])
            with contextlib.suppress(OSError):  # a folder that can only be read
                os.utime(path)  # the budget drops the least recently used
        except OSError:
            self._index.pop(stored.name, None)
        except ValueError as error:
            self._discard(stored.name, error)
        self.hits += cache.length > before

    @torch.inference_mode()
    def save(
        self, ids: bytes, cache: KVCache, should_stop: Callable[[], bool] = lambda: False
    ) -> int:
        """Writes a cache, which holds these packed ids, if no file has most of it; returns the
        bytes written.

        should_stop is asked while the blocks are gathered; True leaves the folder as it was.
        """
        room = (self._budget - HEADER_BYTES) // self._format.bytes_per_position
        length = min(cache.length, room)
        if not self._writable or length < WORTH_WRITING:
            return 0
        ids = ids[: WIDTH * length]
        known = self.find(ids)
        if known and length - known.length < WORTH_WRITING:
            return 0
        name = f"{self._key}-{hashlib.sha256(ids).hexdigest()[:16]}{SUFFIX}"
        try:
            size = HEADER_BYTES + length * self._format.bytes_per_position
            if shutil.disk_usage(self._folder).free - size < KEPT_FREE:
                return 0
            tensors, checksums = self._format.blocks(ids, cache, should_stop)
            if not tensors:
                return 0
            with new_private_file(self._folder / name) as partial:
                save_file(tensors, partial, {"model": self._key, "checksums": checksums})
                size = partial.stat().st_size
            self._keep_to_budget()
        except FileNotFoundError:  # somebody has removed the folder: it is made for the next time
            make_private_folder(self._folder)
            return 0
        except (OSError, SafetensorError) as error:
            self._give_up(error)
            return 0
        for other, held in list(self._index.items()):
            if held and ids.startswith(held):  # nothing is left to find there
                self._forget(other)
        self._index[name] = ids
        return size

    def _refresh(self) -> None:
        """Brings the index up to the folder, if that has changed."""
        if not self._usable:
            return
        try:
            changed = self._folder.stat().st_mtime_ns
            if changed == self._seen:
                return
            names = {path.name for path in self._folder.glob(f"{self._key}-*{SUFFIX}")}
        except OSError:
            self._index.clear()
            return
        self._seen = changed
        for name in self._index.keys() - names:
            del self._index[name]
        for name in names - self._index.keys():
            self._index[name] = b""
            try:
                with _open_private(self._folder / name, self._format) as file:
                    self._index[name] = file.ids
            except OSError:
                pass
            except ValueError as error:
                self._discard(name, error)

    def _discard(self, name: str, error: ValueError) -> None:
        log.info("a prefix on disk is no good: %s", error)
        self._forget(name)
        self._index[name] = b""  # it is not read again, even if it could not be removed

    def _forget(self, name: str) -> None:
        self._index.pop(name, None)
        with contextlib.suppress(OSError):
            (self._folder / name).unlink(missing_ok=True)

    def _drop_earlier(self) -> None:
        """Deletes files of earlier formats."""
        for path in self._folder.glob("*.safetensors"):
            if not path.name.endswith(SUFFIX):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _keep_to_budget(self) -> None:
        """Removes the least recently used files until the rest fits the budget, and abandoned ones
        that were never finished."""
        files = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                info = path.stat()
                if path.suffix == ".tmp" and time.time() - info.st_mtime > ABANDONED_S:
                    path.unlink()
                elif path.name.endswith(SUFFIX):
                    files.append((info.st_mtime_ns, info.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._budget:
                break
            self._forget(path.name)
            total -= size

    def _give_up(self, error: Exception) -> None:
        """This process writes no more; a warning says so once."""
        if self._writable:
            log.warning("no prefixes are kept on disk (%s)", error)
        self._writable = False


class PrefixFormat:
    """The content of the files of one model."""

    def __init__(self, key: str, layout: KVCache) -> None:
        self.key = key
        self.dtype = layout.dtype
        self._config = layout.config
        position = self.block_shape(0, 1)
        # One more byte for its share of a block's entries in the header.
        self.bytes_per_position = math.prod(position) * self.dtype.itemsize + WIDTH + 1
        self._digest = hashlib.sha256(repr((key, self.dtype, position)).encode())

    def blocks(
        self, ids: bytes, cache: KVCache, should_stop: Callable[[], bool]
    ) -> tuple[dict[str, Tensor], str]:
        """The tensors of a file with these packed ids, and their checksums. None of either when
        should_stop, asked before each block, answers True."""
        tensors = {"ids": torch.frombuffer(bytearray(ids), dtype=torch.int32)}
        checksums = [self.checksum(ids)]
        length = len(ids) // WIDTH
        for start in range(0, length, BLOCK):
            if should_stop():
                return {}, ""
            block = torch.empty(self.block_shape(start, length), dtype=self.dtype)
            cache.copy_out(start, block)
            tensors[_block_name(start)] = block
            checksums.append(self.checksum(ids[: WIDTH * (start + BLOCK)], block))
        return tensors, " ".join(checksums)

    def block_shape(self, start: int, length: int) -> tuple[int, ...]:
        """The shape of the block from position `start` on, in a file of `length` positions."""
        config = self._config
        positions = min(BLOCK, length - start)
        return (2, config.num_layers, config.num_kv_heads, positions, config.head_dim)

    def checksum(self, ids: bytes, values: Tensor | None = None) -> str:
        """Of a block: all ids up to its end, and its values. Model and layout are part of it."""
        digest = self._digest.copy()
        digest.update(ids)
        if values is not None:
            digest.update(_bytes_of(values).numpy().data)
        return digest.hexdigest()


class PrefixFile:
    """An open file. Raises ValueError where it is damaged, or of another model or layout."""

    def __init__(self, content: Any, form: PrefixFormat) -> None:
        """content: of safe_open."""
        self._content = content
        self._format = form
        metadata = content.metadata() or {}
        self._checksums = metadata.get("checksums", "")
        self.ids: bytes = _bytes_of(content.get_tensor("ids")).numpy().tobytes()
        if metadata.get("model") != form.key or form.checksum(self.ids) not in self._checksums:
            raise ValueError("its ids are damaged, or it is of another model or layout")

    def block(self, start: int) -> Tensor:
        """The block (2, layers, kv_heads, n, head_dim) from position `start` on."""
        values = _bytes_of(self._content.get_tensor(_block_name(start)))
        ids = self.ids[: WIDTH * (start + BLOCK)]
        if self._format.checksum(ids, values) not in self._checksums:
            raise ValueError("a block is damaged")
        shape = self._format.block_shape(start, len(self.ids) // WIDTH)
        return values.view(self._format.dtype).view(shape)


@contextlib.contextmanager
def _open_private(path: Path, form: PrefixFormat) -> Iterator[PrefixFile]:
    """Raises OSError for what is not a file of this user alone, and ValueError as PrefixFile
    does."""
    if not is_private_file(path):
        raise PermissionError(f"{path} is not a private file of this user")
    # Nobody can have exchanged it: the folder is closed to others.
    try:
        with safe_open(path, framework="pt") as content:
            yield PrefixFile(content, form)
    except (SafetensorError, RuntimeError) as error:  # the latter: removed while it was opened
        raise ValueError(str(error)) from None


def _block_name(start: int) -> str:
    return f"block{start // BLOCK:05}"


def _bytes_of(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)
