"""CUDA graphs: a forward pass of a few rows after a cache, recorded once and started by one call.

The several hundred kernels of a step take longer to launch one by one than to run. A recording is
started by one call, but always works on the same addresses and shapes. So ids and positions stand
in fixed buffers, masks are computed from the positions on the device, and attention reads a span of
the cache that is rounded outwards: one recording serves all positions of that span.

A recording belongs to the tensors of one cache. These change seldom: a sequence moves when it has
grown by a quarter, and while a file is edited one sequence is trimmed and grown in place. A fixed
cache that sequences are copied into would hold every position twice, and would have to know whether
its content was overwritten in the original. The first pass of a kind runs unrecorded, which warms
up everything that a recording must find warm. The second is recorded, which takes about as long.
Recordings of caches that are gone are dropped.

Other numbers of rows use other kernels, whose sums have another order: in bfloat16 the logits of a
row after a draft differ from those it has alone in the last bits. So greedy decoding with drafts
gives the same text as without, up to ties of two tokens. With one size of rows only, `sizes=(8,)`,
all sums have one order, at the price of 8 rows for every step.

Shapes: R rows, H heads, K key/value heads, G = H / K, D head dimension, N positions of the span.
"""

from __future__ import annotations

import functools
import logging
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from model.decoder.decoder import Decoder
from model.decoder.kv_cache import KVCache, Unfinished
from model.decoder.layers import Attention, DecoderLayer, normalize_heads
from model.decoder.stopping import ask

log = logging.getLogger(__name__)
SIZES = (1, 2, 4, 8)  # rows that are recorded; others are filled up to the next
# A step reads all weights, whatever the number of rows: more rows cost little beside that.
ROW_COSTS = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.1}
GRAIN = 512  # positions: a span's ends are multiples of it, or of a quarter of its power of two
KEPT = 32  # recordings

Recorder = Callable[[Callable[[], None]], Callable[[], None]]
RecordingKey = tuple[int, int, int, int]  # storage, size, first and end of the span


def span(start: int, stop: int, window: int | None, grain: int) -> tuple[int, int]:
    """The positions that rows at positions `start` up to `stop` see, rounded outwards.

    At most a quarter more at each end, or `grain` positions.
    """
    first = 0 if window is None else max(0, start + 1 - window)
    quarter_of_power_of_two = 1 << (stop - first).bit_length() - 1 >> 2
    step = max(grain, quarter_of_power_of_two)
    rounded_up = -(-stop // step) * step
    return first // step * step, rounded_up


class CudaRecorder:
    """Records the kernels that a function launches.

    All recordings share the memory between their kernels, since one runs at a time. So results go
    to buffers outside of that memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._anchor: torch.cuda.CUDAGraph | None = None

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """Returns a function that starts all that `run` launched. Raises RuntimeError."""
        with torch.cuda.device(self._device):
            if self._anchor is None:
                # The pool ends with its last recording and cannot be begun again: this one stays.
                self._pool = torch.cuda.graph_pool_handle()
                buffer = torch.zeros(1, device=self._device)
                self._anchor = self._graph(lambda: buffer.zero_())
            return self._graph(run).replay

    def _graph(self, run: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads may ask the device for its free memory meanwhile: "thread_local" allows it.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        return graph


class Graphs:
    """The step of a decoder of float matrices."""

    def __init__(
        self,
        decoder: Decoder,
        record: Recorder | None,
        *,
        sizes: Sequence[int] = SIZES,
        grain: int = GRAIN,
    ) -> None:
        """record: None runs every step unrecorded."""
        config = decoder.config
        device = decoder.device
        self.max_rows = sizes[-1]
        self._decoder = decoder
        self._record = record
        self._sizes = sizes
        self._grain = grain
        self._layers = [cast(DecoderLayer, layer) for layer in decoder.layers]
        self._gains = [_gains(layer.attention) for layer in self._layers]
        rotations = decoder.rotations
        half = config.rotated_dim // 2
        self._cos = rotations.cos
        self._sin = torch.cat((-rotations.sin[..., :half], rotations.sin[..., half:]), dim=-1)
        self._slots = torch.arange(config.max_positions, device=device)
        self._ids = torch.zeros(self.max_rows, dtype=torch.long, device=device)
        self._positions = torch.zeros(self.max_rows, dtype=torch.long, device=device)
        logits_shape = (self.max_rows, config.vocab_size)
        self._logits = torch.empty(logits_shape, dtype=decoder.dtype, device=device)
        # The row at each place of a recording. Places beyond the rows repeat the last row, and
        # write the same values to the same positions.
        self._places = {}
        for rows in range(1, self.max_rows + 1):
            places = torch.arange(self._size(rows), device=device)
            self._places[rows] = places.clamp_(max=rows - 1)
        self._storages: dict[int, weakref.ref[Tensor]] = {}
        # By storage, size and span, the last used at the end; None where one pass has run.
        self._recorded: OrderedDict[RecordingKey, Callable[[], None] | None] = OrderedDict()

    def _size(self, rows: int) -> int:
        return next(size for size in self._sizes if size >= rows)

    @torch.inference_mode()
    def __call__(
        self,
        ids: Tensor,
        cache: KVCache,
        keep: int,
        should_stop: Callable[[], bool] | None,
        begun: Unfinished | None = None,
    ) -> Tensor:
        """See model.decoder.decoder.Step. should_stop is asked once, before the pass."""
        ask(should_stop)
        rows = ids.shape[0]
        size = self._size(rows)
        places = self._places[rows]
        config = self._decoder.config
        start = cache.length
        first, end = span(start, start + rows, config.sliding_window, self._grain)
        end = min(end, config.max_positions)
        cache.reserve(end)
        torch.index_select(ids, 0, places, out=self._ids[:size])
        torch.add(places, start, out=self._positions[:size])
        key = (self._storage(cache), size, first, end)
        self._start(
            key, functools.partial(self.compute, size, first, end, cache.keys, cache.values)
        )
        cache.commit(rows)
        return self._logits[rows - keep : rows].clone()  # the next step writes there again

    def _start(self, key: RecordingKey, run: Callable[[], None]) -> None:
        """Runs a pass: the first of its kind as it is, the second recorded, the others replayed."""
        if self._record is None or key not in self._recorded:
            self._recorded[key] = None
            run()
        else:
            replay = self._recorded[key] or self._recording(run)
            self._recorded[key] = replay
            (replay or run)()
        self._recorded.move_to_end(key)
        while len(self._recorded) > KEPT:
            self._recorded.popitem(last=False)

    def _recording(self, run: Callable[[], None]) -> Callable[[], None] | None:
        assert self._record is not None
        try:
            return self._record(run)
        except RuntimeError as error:  # no memory, or a driver that cannot
            log.warning(
                "steps are not recorded as CUDA graphs and take longer (%s)",
                str(error).partition("\n")[0],
            )
            self._record = None
            return None

    def _storage(self, cache: KVCache) -> int:
        """The name of a cache's tensors while they live. New tensors are made ready, and the
        recordings of tensors that are gone are dropped."""
        name = id(cache.keys)
        known = self._storages.get(name)
        if known is None or known() is not cache.keys:
            gone = {each for each, reference in self._storages.items() if reference() is None}
            for each in gone:
                del self._storages[each]
            for key in list(self._recorded):
                if key[0] in gone:
                    del self._recorded[key]
            self._storages[name] = weakref.ref(cache.keys)
            # Zero times whatever the memory held could be no number.
            cache.keys[:, :, cache.length :].zero_()
            cache.values[:, :, cache.length :].zero_()
        return name

    def compute(self, size: int, first: int, end: int, keys: Tensor, values: Tensor) -> None:
        """The pass that is recorded: ids and positions of `size` rows in their buffers -> logits in
        theirs, and the rows' keys and values in the cache's tensors (layers, K, capacity, D).

        Nothing here depends on the content of the buffers.
        """
        decoder = self._decoder
        positions = self._positions[:size]
        rows = Rows(
            positions=positions,
            cos=self._cos[positions],
            sin=self._sin[positions],
            hidden=self._hidden(positions, first, end),
            span=slice(first, end),
        )
        x = decoder.embed(self._ids[:size], positions)  # (R, hidden)
        for i, layer in enumerate(self._layers):
            normed = layer.attention_norm(x)
            attended = self._attend(i, normed, rows, keys[i], values[i])
            x = x + layer.scaled(attended)
            if not layer.parallel:
                normed = layer.mlp_norm(x)
            x = x + layer.scaled(layer.mlp(normed))
        self._logits[:size].copy_(decoder.logits_of(decoder.norm(x)))

    def _hidden(self, positions: Tensor, first: int, end: int) -> Tensor:
        """(1, R G, N): added to the scores; -inf where a row may not look, 0 elsewhere."""
        config = self._decoder.config
        slots = self._slots[first:end]
        rows = positions[:, None]
        unseen = slots > rows
        if config.sliding_window is not None:
            unseen |= slots <= rows - config.sliding_window
        bias = torch.zeros(unseen.shape, dtype=self._logits.dtype, device=unseen.device)
        bias.masked_fill_(unseen, -math.inf)
        group = config.num_heads // config.num_kv_heads
        return bias[:, None].expand(-1, group, -1).reshape(1, -1, end - first)

    def _attend(self, layer: int, x: Tensor, rows: Rows, keys: Tensor, values: Tensor) -> Tensor:
        """x (R, hidden) -> (R, hidden). Writes the rows' keys and values (K, capacity, D).

        The queries of a group are the rows of one product with the group's keys: no key is read
        twice. The kernels with a mask of their own are slower, since none of them reads the keys of
        one head with the whole device.
        """
        attention = self._layers[layer].attention
        config = attention.config
        heads = config.num_heads
        kv_heads = config.num_kv_heads
        width = config.head_dim
        qkv = attention.qkv(x).view(x.shape[0], -1, width)  # (R, H + 2K, D)
        q_and_k = qkv[:, : heads + kv_heads]
        gains = self._gains[layer]
        if gains is not None:
            q_and_k = normalize_heads(q_and_k, config) * gains
        if config.rope:
            _rotate(q_and_k[..., : config.rope.dim], rows.cos, rows.sin)
        keys.index_copy_(1, rows.positions, q_and_k[:, heads:].transpose(0, 1))
        values.index_copy_(1, rows.positions, qkv[:, heads + kv_heads :].transpose(0, 1))
        q = q_and_k[:, :heads].reshape(x.shape[0], kv_heads, -1, width)
        q = q.transpose(0, 1).reshape(kv_heads, -1, width)  # (K, R G, D)
        seen_keys = keys[:, rows.span].transpose(1, 2)
        scores = torch.baddbmm(rows.hidden, q, seen_keys, alpha=config.score_scale)  # (K, R G, N)
        out = torch.bmm(torch.softmax(scores, dim=-1), values[:, rows.span])
        out = out.view(kv_heads, x.shape[0], -1, width).transpose(0, 1)  # (R, K, G, D)
        return cast(Tensor, attention.out(out.reshape(x.shape[0], -1)))


class Rows(NamedTuple):
    """The rows of one pass, as every layer reads them."""

    positions: Tensor  # (R,)
    cos: Tensor  # (R, 1, dim)
    sin: Tensor  # (R, 1, dim), the first half negated
    hidden: Tensor  # see Graphs._hidden
    span: slice  # of the positions that the rows look at


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotates in place the rotated dimensions of heads, x (R, heads, dim)."""
    first, second = x.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    x.mul_(cos).addcmul_(swapped, sin)


def _gains(attention: Attention) -> Tensor | None:
    """The weights of the norms on queries and keys, (H + K, D)."""
    config = attention.config
    if not config.qk_norm:
        return None
    queries = attention.q_norm.expand(config.num_heads, -1)
    return torch.cat((queries, attention.k_norm.expand(config.num_kv_heads, -1)))


def add_graphs(decoder: Decoder) -> None:
    """Gives a decoder on a CUDA device, all of its weights filled, its step."""
    decoder.use_step(Graphs(decoder, CudaRecorder(decoder.device)), ROW_COSTS)
