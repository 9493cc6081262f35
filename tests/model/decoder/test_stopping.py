"""How often a pass asks whether to stop, and what is left when it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from model.decoder.decoder import Decoder
from model.decoder.kv_cache import KVCache
from model.decoder.stopping import ASK_EVERY_S, LEAST_CHUNK, Cancelled, chunk_at
from model.generation.generate import GenerationOptions, generate
from model.loading import LoadedModel

IDS = list(range(40, 100))
PARTS = 3  # of a layer: attention, and the MLP's two products


class StopAfter:
    """Says so after `count` questions."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked > self.count


def test_a_pass_asks_before_each_part_of_a_layer(talkative: LoadedModel) -> None:
    decoder = talkative.decoder
    with torch.inference_mode():
        whole = decoder(torch.tensor([IDS]), cache=decoder.new_cache()).logits
        for last in range(PARTS * decoder.config.num_layers + 1):  # the head is a part, too
            stop = StopAfter(last)
            cache = decoder.new_cache()
            with pytest.raises(Cancelled):
                decoder(torch.tensor([IDS]), cache=cache, should_stop=stop)
            assert cache.length == 0
            assert stop.asked == last + 1
            assert torch.equal(decoder(torch.tensor([IDS]), cache=cache).logits, whole)


@contextmanager
def counted(decoder: Decoder) -> Iterator[list[int]]:
    """The layers that are begun."""
    begun: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, i=i: begun.append(i))
        for i, layer in enumerate(decoder.layers)
    ]
    try:
        yield begun
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("parts", "computed"),
    [(1, [0, 0, 0, 1]), (2, [0, 0, 0, 1]), (3, [0, 1, 1]), (4, [0, 1, 1]), (6, [0, 1])],
)
def test_the_next_pass_goes_on_where_it_was_cancelled(
    talkative: LoadedModel, parts: int, computed: list[int]
) -> None:
    """Two passes that are cancelled after so many parts, and a third. Whole layers stay."""
    decoder = talkative.decoder
    ids = torch.tensor([IDS])
    cache, expected = decoder.new_cache(), decoder.new_cache()
    with torch.inference_mode():
        for each in (cache, expected):
            decoder(ids, cache=each)
        whole = decoder(ids, cache=expected).logits
        with counted(decoder) as begun:
            for stop in (StopAfter(parts), StopAfter(parts), None):
                cache.reserve(cache.capacity + 1)
                try:
                    logits = decoder(ids, cache=cache, should_stop=stop).logits
                    break
                except Cancelled:
                    assert (cache.length, cache.begun(IDS * 2)) == (len(IDS), len(IDS))
    assert begun == computed
    assert torch.equal(logits, whole)
    for held, wanted in ((cache.keys, expected.keys), (cache.values, expected.values)):
        assert torch.equal(held[:, :, : cache.length], wanted[:, :, : cache.length])


OTHERS: dict[str, Callable[[Decoder, KVCache], None]] = {
    "other ids": lambda decoder, cache: None,
    "a trimmed cache": lambda decoder, cache: cache.trim(10) and None,
    "a cache without room": lambda decoder, cache: cache.shrink(),
    "another pass": lambda decoder, cache: other_pass(decoder, cache),
    "positions from elsewhere": lambda decoder, cache: from_elsewhere(cache),
}


def other_pass(decoder: Decoder, cache: KVCache) -> None:
    length = cache.length
    decoder(torch.tensor([[7] * 30]), cache=cache)
    cache.trim(length)


def from_elsewhere(cache: KVCache) -> None:
    length = cache.length
    layers, heads, _, dim = cache.keys.shape
    cache.extend(torch.ones(2, layers, heads, 5, dim))
    cache.trim(length)


@pytest.mark.parametrize("change", OTHERS)
def test_nothing_goes_on_after(talkative: LoadedModel, change: str) -> None:
    decoder = talkative.decoder
    ids = [*IDS[:-1], 7] if change == "other ids" else IDS
    with torch.inference_mode():
        cache = decoder.new_cache(500)
        decoder(torch.tensor([IDS]), cache=cache)
        with pytest.raises(Cancelled):
            decoder(torch.tensor([IDS]), cache=cache, should_stop=StopAfter(PARTS))
        OTHERS[change](decoder, cache)
        with counted(decoder) as begun:
            found = decoder(torch.tensor([ids]), cache=cache).logits
        assert begun == list(range(decoder.config.num_layers))
        fresh = decoder.new_cache()
        decoder(torch.tensor([IDS]), cache=fresh)
        fresh.trim(cache.length - len(ids))
        assert torch.equal(found, decoder(torch.tensor([ids]), cache=fresh).logits)


def test_a_step_is_stopped_within_a_token(talkative: LoadedModel) -> None:
    """Wherever it is: the next request finds the whole tokens before it."""
    decoder = talkative.decoder
    said = [token.id for token in talkative.generate(IDS, max_new_tokens=4)]
    lengths = set()
    for limit in range(PARTS * decoder.config.num_layers, 40):
        cache = decoder.new_cache()
        options = GenerationOptions(max_new_tokens=4, should_stop=StopAfter(limit))
        text = talkative.tokenizer.stream()
        ids = [token.id for token in generate(decoder, cache, IDS, text, options)]
        assert ids == said[: len(ids)]
        assert cache.length >= len(IDS) + len(ids) - 1 or not ids
        lengths.add(cache.length)
        if len(ids) == 4:
            break
    assert lengths == {0, *(len(IDS) + count for count in range(4))}


@pytest.mark.parametrize(
    ("per_s", "layers", "chunk"),
    [(10, 28, LEAST_CHUNK), (500, 24, 176), (154, 28, 64), (10000, 40, 6000)],
)
def test_a_chunk_is_as_long_as_a_layer_may_take(per_s: float, layers: int, chunk: int) -> None:
    assert chunk_at(per_s, layers) == chunk
    assert chunk == LEAST_CHUNK or chunk / per_s / layers < 1.2 * ASK_EVERY_S
