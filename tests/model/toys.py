"""Stand-ins for this room's tests: a cache whose keys are the ids themselves, a decoder that says
what it is told."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from model import LoadedModel, Tokenizer, load_model
from model.decoder.config import DecoderConfig, RopeConfig
from model.decoder.decoder import DecoderOutput
from model.decoder.kv_cache import KVCache
from model.decoder.stopping import Cancelled
from model.engine.queue import Job
from model.engine.request import Event, Failed, Finished, Request
from model.engine.worker import Engine
from model.weights.folder import ModelFolder

END, MIDDLE = 0, 2  # ids of <|endoftext|> and <fim_middle> in the tests' tokenizer
CPU = torch.device("cpu")
FLOAT32 = {"device": "cpu", "dtype": "float32"}


def load(folder: Path) -> LoadedModel:
    return load_model(folder, **FLOAT32)


def toy_config(max_positions: int = 4096) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=320,
        hidden_size=8,
        intermediate_size=8,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        max_positions=max_positions,
        norm="layer_norm",
        norm_eps=1e-5,
        rope=RopeConfig("default", 10000.0, 4, max_positions),
        activation="silu",
        gated_mlp=False,
        stop_ids=(END,),
    )


@torch.inference_mode()
def write_ids(cache: KVCache, layer: int, ids: Sequence[int]) -> None:
    """Appends each id as its own key and value, exact in float32."""
    entry = torch.tensor(ids, dtype=torch.float32)[None, :, None].expand(
        1, len(ids), cache.config.head_dim
    )
    cache.append(layer, entry, -entry)


@torch.inference_mode()
def read_ids(cache: KVCache) -> list[int]:
    """The ids that a cache holds, the same in every layer, keys and values."""
    nothing = torch.empty(1, 0, cache.config.head_dim)
    held = {
        tuple(sign * x for x in t[0, 0, :, d].int().tolist())
        for layer in range(cache.config.num_layers)
        for sign, t in zip((1, -1), cache.append(layer, nothing, nothing), strict=True)
        for d in range(cache.config.head_dim)
    }
    assert len(held) == 1, "layers, keys and values disagree"
    return list(held.pop())


def remember(cache: KVCache, ids: Sequence[int]) -> None:
    """What a forward pass does to a cache."""
    cache.reserve(cache.length + len(ids))
    for layer in range(cache.config.num_layers):
        write_ids(cache, layer, ids)
    cache.commit(len(ids))


@dataclass
class Parrot:
    """In a decoder's place: says `script` behind <fim_middle>, then <|endoftext|>; what it reads is
    in its cache.

    on_layer is called while a layer is computed.
    """

    script: Sequence[int] = ()
    config: DecoderConfig = field(default_factory=toy_config)
    on_layer: Callable[[], None] = lambda: None
    device: torch.device = CPU
    prefill_chunk: int = 512
    row_costs: Mapping[int, float] | None = None
    cache_costs: Mapping[int, float] = field(default_factory=dict)

    def new_cache(self, capacity: int = 0) -> KVCache:
        return KVCache(self.config, dtype=torch.float32, device=self.device, capacity=capacity)

    def __call__(
        self,
        input_ids: torch.Tensor,
        *,
        cache: KVCache,
        logits_to_keep: int,
        should_stop: Callable[[], bool] | None = None,
    ) -> DecoderOutput:
        ids = input_ids[0].tolist()
        assert cache.length + len(ids) <= self.config.max_positions
        cache.reserve(cache.length + len(ids))
        for layer in range(self.config.num_layers):
            if should_stop is not None and should_stop():
                raise Cancelled
            self.on_layer()
            write_ids(cache, layer, ids)
        cache.commit(len(ids))
        rows = logits_to_keep or len(ids)
        logits = torch.zeros(1, rows, self.config.vocab_size)
        seen = read_ids(cache)
        for row in range(rows):
            logits[0, row, self._next(seen[: len(seen) - rows + row + 1])] = 20.0
        return DecoderOutput(logits)

    def _next(self, ids: list[int]) -> int:
        said = len(ids) - 1 - ids.index(MIDDLE) if MIDDLE in ids else 0
        return self.script[said] if said < len(self.script) else END

    def as_model(self, tokenizer: Tokenizer) -> LoadedModel:
        return LoadedModel(ModelFolder(Path("parrot"), {}), tokenizer, self)


@contextlib.contextmanager
def running(model: LoadedModel, upgrade: Iterator[None] | None = None) -> Iterator[Engine]:
    engine = Engine(model, upgrade=upgrade)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


class Answer:
    """The events of one request; `react`, which may cancel the job, sees each of them on the
    engine's thread."""

    def __init__(
        self, engine: Engine, request: Request, react: Callable[[Job, Event], None]
    ) -> None:
        self.events: list[Event] = []
        self._react, self._submitted, self._ended = react, threading.Event(), threading.Event()
        self.job = engine.submit(request, self._emit)
        self._submitted.set()

    def _emit(self, event: Event) -> None:
        self._submitted.wait()
        self.events.append(event)
        try:
            self._react(self.job, event)
        finally:
            if isinstance(event, Finished | Failed):
                self._ended.set()

    def wait(self) -> list[Event]:
        assert self._ended.wait(60), "no answer"
        return self.events


def ask(
    engine: Engine, request: Request, react: Callable[[Job, Event], None] = lambda job, event: None
) -> list[Event]:
    """All events of one request, which has ended."""
    return Answer(engine, request, react).wait()
