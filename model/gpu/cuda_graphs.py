"""CUDA graphs: a forward pass of a few rows behind a cache, recorded once and started as one.

Launched one by one, a step's several hundred kernels take longer to launch than to run. A recorded
step is started by one call, but always works on the same addresses and shapes. So ids and positions
stand in fixed buffers, masks are computed from the positions on the device, and attention goes over
a span of the cache that is rounded outwards: one recording serves all positions of that span.

A recording belongs to the storage of one cache. Storages change seldom: a sequence moves when it
has grown by a quarter, and while a file is edited one sequence is cut and grown in place. The other
way, a fixed cache that sequences are copied into, would hold every position twice, and would have
to know whether what it holds was overwritten in the original. What is used for the first time runs
as it is, which also warms up what a recording must find warm; the second time it is recorded, and
that takes about as long as running it so; recordings of caches that are gone are dropped.

Other row counts mean other kernels, whose sums have another order: in bfloat16 a row's logits
behind a draft differ from those it has alone in the last bits. So greedy decoding with drafts says
what it says without, up to ties of two tokens. With one size of rows only, `sizes=(8,)`, there is
one order for all, at the price of 8 rows for every step.

Shapes: R rows, H heads, K key/value heads, G = H / K, D head dimension, N positions of the span.
"""

from __future__ import annotations

import functools
import logging
import math
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from model.decoder.decoder import Cancelled, Decoder
from model.decoder.kv_cache import KVCache
from model.decoder.layers import Attention, DecoderLayer, normalize_heads

log = logging.getLogger(__name__)
SIZES = (1, 2, 4, 8)  # rows that are recorded; others are filled up to the next
# A step reads all weights, whatever the rows; what more of them cost is little beside it.
ROW_COSTS = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.1}
GRAIN = 512  # positions: a span's ends are multiples of it, or of a quarter of its power of two
KEPT = 32  # recordings

Recorder = Callable[[Callable[[], None]], Callable[[], None]]


def span(start: int, stop: int, window: int | None, grain: int) -> tuple[int, int]:
    """What rows at positions `start` up to `stop` look at, rounded outwards: at most a quarter more
    at each end."""
    first = 0 if window is None else max(0, start + 1 - window)
    step = max(grain, 1 << (stop - first).bit_length() - 1 >> 2)
    return first // step * step, -(-stop // step) * step


class CudaRecorder:
    """Records what a function launches; all recordings share the memory between their kernels, for
    one runs at a time.

    Nothing may be left in that memory from one to the next: results go to buffers from outside.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._anchor: torch.cuda.CUDAGraph | None = None

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """What starts all that `run` launched. Raises RuntimeError."""
        with torch.cuda.device(self._device):
            if self._anchor is None:
                # The pool ends with its last recording, and cannot be begun again: this one stays.
                self._pool, buffer = (
                    torch.cuda.graph_pool_handle(),
                    torch.zeros(1, device=self._device),
                )
                self._anchor = self._graph(lambda: buffer.zero_())
            return self._graph(run).replay

    def _graph(self, run: Callable[[], object]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # What other threads ask of the device meanwhile, such as its free memory, is none of the
        # recording's business.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        return graph


class Graphs:
    """Runs a decoder of plain matrices. record: None where nothing can be: every step then runs as
    it is."""

    def __init__(
        self,
        decoder: Decoder,
        record: Recorder | None,
        *,
        sizes: Sequence[int] = SIZES,
        grain: int = GRAIN,
    ) -> None:
        c, device = decoder.config, decoder.device
        self.max_rows = sizes[-1]
        self._decoder, self._record, self._sizes, self._grain = decoder, record, sizes, grain
        self._layers = [cast(DecoderLayer, layer) for layer in decoder.layers]
        self._gains = [
            torch.cat((a.q_norm, a.k_norm)) if c.qk_norm else None for a in self._attentions
        ]
        turns = decoder.rotations
        self._cos, half = turns.cos, c.rope.dim // 2
        self._sin = torch.cat((-turns.sin[..., :half], turns.sin[..., half:]), dim=-1)
        self._slots = torch.arange(c.max_positions, device=device)
        self._ids = torch.zeros(self.max_rows, dtype=torch.long, device=device)
        self._positions = torch.zeros(self.max_rows, dtype=torch.long, device=device)
        self._logits = torch.empty(self.max_rows, c.vocab_size, dtype=decoder.dtype, device=device)
        # Which row stands at each place. Places beyond the rows repeat the last: they write there
        # what it writes.
        self._places = {
            rows: torch.arange(self._size(rows), device=device).clamp_(max=rows - 1)
            for rows in range(1, self.max_rows + 1)
        }
        self._storages: dict[int, weakref.ref[Tensor]] = {}
        # By storage, size and span, the last used at the end; None of what has run once.
        self._recorded: OrderedDict[tuple[int, int, int, int], Callable[[], None] | None] = (
            OrderedDict()
        )

    @property
    def _attentions(self) -> list[Attention]:
        return [layer.attention for layer in self._layers]

    def _size(self, rows: int) -> int:
        return next(size for size in self._sizes if size >= rows)

    @torch.inference_mode()
    def __call__(
        self, ids: Tensor, cache: KVCache, keep: int, should_stop: Callable[[], bool] | None
    ) -> Tensor:
        """See model.decoder.decoder.FewRowsStep. should_stop is asked once, before the pass."""
        if should_stop is not None and should_stop():
            raise Cancelled
        rows, start = ids.shape[0], cache.length
        c, size, places = self._decoder.config, self._size(rows), self._places[rows]
        first, end = span(start, start + rows, c.sliding_window, self._grain)
        end = min(end, c.max_positions)
        cache.reserve(end)
        torch.index_select(ids, 0, places, out=self._ids[:size])
        torch.add(places, start, out=self._positions[:size])
        key = (self._storage(cache), size, first, end)
        run = functools.partial(self.compute, size, first, end, cache.keys, cache.values)
        if self._record is None or key not in self._recorded:
            self._recorded[key] = None
            run()
        else:
            self._recorded[key] = replay = self._recorded[key] or self._recording(run)
            (replay or run)()
        self._recorded.move_to_end(key)
        while len(self._recorded) > KEPT:
            self._recorded.popitem(last=False)
        cache.commit(rows)
        return self._logits[rows - keep : rows].clone()  # the next step writes there again

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
        """What names a cache's tensors while they live. New ones are made ready."""
        name = id(cache.keys)
        known = self._storages.get(name)
        if known is None or known() is not cache.keys:
            gone = {other for other, reference in self._storages.items() if reference() is None}
            for key in [key for key in self._recorded if key[0] in gone]:
                del self._recorded[key]
            self._storages = {
                other: ref for other, ref in self._storages.items() if other not in gone
            }
            self._storages[name] = weakref.ref(cache.keys)
            for held in (
                cache.keys,
                cache.values,
            ):  # times zero, whatever memory held could still be no number
                held[:, :, cache.length :].zero_()
        return name

    def compute(self, size: int, first: int, end: int, keys: Tensor, values: Tensor) -> None:
        """What is recorded: ids and positions of `size` rows in their buffers -> logits in theirs,
        keys and values of the rows (layers, K, capacity, D) in theirs. Nothing here depends on what
        the buffers hold."""
        decoder, positions = self._decoder, self._positions[:size]
        turns = self._cos[positions], self._sin[positions]  # (R, 1, dim) each
        hidden = self._hidden(positions, first, end)
        x = decoder.embed_tokens(self._ids[:size])  # (R, hidden)
        for layer, gains, k, v in zip(
            self._layers, self._gains, keys.unbind(0), values.unbind(0), strict=True
        ):
            normed = layer.attention_norm(x)
            attended = self._attend(layer.attention, normed, gains, turns, hidden, k, v, first, end)
            if layer.parallel:
                x = x + attended + layer.mlp(normed)
            else:
                x = x + attended
                x = x + layer.mlp(layer.mlp_norm(x))
        x = decoder.norm(x)
        self._logits[:size].copy_(decoder.logits_of(x))

    def _hidden(self, positions: Tensor, first: int, end: int) -> Tensor:
        """(1, R G, N): what is added to the scores: -inf where a row may not look."""
        c, slots, rows = self._decoder.config, self._slots[first:end], positions[:, None]
        unseen = slots > rows
        if c.sliding_window is not None:
            unseen |= slots <= rows - c.sliding_window
        bias = torch.zeros(unseen.shape, dtype=self._logits.dtype, device=unseen.device)
        bias.masked_fill_(unseen, -math.inf)
        return (
            bias[:, None].expand(-1, c.num_heads // c.num_kv_heads, -1).reshape(1, -1, end - first)
        )

    def _attend(
        self,
        attention: Attention,
        x: Tensor,
        gains: Tensor | None,
        turns: tuple[Tensor, Tensor],
        hidden: Tensor,
        keys: Tensor,
        values: Tensor,
        first: int,
        end: int,
    ) -> Tensor:
        """x (R, hidden) -> (R, hidden); keys and values (K, capacity, D), with the rows' own
        written into them.

        The queries of a group are the rows of one product with the group's keys: no key is read
        twice, and no kernel with a mask of its own is needed, of which none reads one head's keys
        with the whole device.
        """
        c = attention.config
        heads, kv_heads, width = c.num_heads, c.num_kv_heads, c.head_dim
        qkv = attention.qkv(x).view(x.shape[0], -1, width)  # (R, H + 2K, D)
        turned = qkv[:, : heads + kv_heads]
        if gains is not None:
            turned = normalize_heads(turned, c) * gains
        head, half = turned[..., : c.rope.dim], c.rope.dim // 2
        swapped = torch.cat((head[..., half:], head[..., :half]), dim=-1)
        head.mul_(turns[0]).addcmul_(swapped, turns[1])
        positions = self._positions[: x.shape[0]]
        keys.index_copy_(1, positions, turned[:, heads:].transpose(0, 1))
        values.index_copy_(1, positions, qkv[:, heads + kv_heads :].transpose(0, 1))
        q = (
            turned[:, :heads].reshape(x.shape[0], kv_heads, -1, width).transpose(0, 1)
        )  # (K, R, G, D)
        scores = torch.baddbmm(
            hidden,
            q.reshape(kv_heads, -1, width),
            keys[:, first:end].transpose(1, 2),
            alpha=width**-0.5,
        )  # (K, R G, N)
        out = torch.bmm(torch.softmax(scores, dim=-1), values[:, first:end])  # (K, R G, D)
        out = out.view(kv_heads, x.shape[0], -1, width).transpose(0, 1).reshape(x.shape[0], -1)
        return cast(Tensor, attention.out(out))


def add_graphs(decoder: Decoder) -> None:
    """Gives a decoder on a CUDA device, all of its weights filled, its step."""
    decoder.use_step(Graphs(decoder, CudaRecorder(decoder.device)), ROW_COSTS)
