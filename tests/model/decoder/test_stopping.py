"""How often a pass asks whether to stop, and what is left when it does."""

from __future__ import annotations

import pytest
import torch

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
