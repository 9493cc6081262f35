"""Caches of a batch: a text in pieces is the text in one pass, here and in transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model import load_model
from model.heads import BareModel, CausalLM, SequenceClassifier, TokenClassifier
from model.heads.heads import Head
from model.heads.passes import run
from tests.conftest import GPT_BIGCODE
from tests.model.cpu.test_quantized_linear import distance
from tests.model.families.test_rope import FAMILIES, ORIGINAL, ROPES, STRETCHED, newer
from tests.model.heads.test_heads import (
    BATCH,
    CONFIGS,
    LENGTH,
    PAD,
    WINDOW,
    both,
    close,
    make_reference,
    padded,
    random_ids,
)

configs = pytest.mark.parametrize(
    "config",
    [CONFIGS["starcoder2, window, untied"], CONFIGS["stablelm, parallel, all switches"]],
    ids=["starcoder2", "stablelm"],
)
PIECES = (10, 4, 1, 1, 8)  # with the window of 8 before, at and beyond its edge


def in_pieces(m: Any, ids: Tensor, pieces: tuple[int, ...] = PIECES, **given: Any) -> Any:
    """The outputs over each piece, ours or transformers'; given is cut likewise."""
    outputs = []
    cache = None
    start = 0
    for piece in pieces:
        end = start + piece
        now = {
            name: value[:, :end] if name == "attention_mask" else value[:, start:end]
            for name, value in given.items()
        }
        outputs.append(m(ids[:, start:end], cache=cache, use_cache=True, **now))
        cache = outputs[-1].cache
        start = end
    assert start == ids.shape[1]
    return outputs


@configs
@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("positions", [True, False], ids=["positions", ""])
def test_in_pieces_is_in_one_pass(
    config: dict[str, Any], side: str, positions: bool, tmp_path: Path
) -> None:
    ours, theirs = both(CausalLM, tmp_path, config)
    given = {}
    if side == "none":
        ids = random_ids()
        mask = torch.ones_like(ids)
        places = mask.cumsum(-1) + 2  # not from 0
    else:
        ids, mask, places = padded(side)
        given["attention_mask"] = mask
    if positions:
        given["position_ids"] = places
    pieces = in_pieces(ours, ids, **given)
    parts = torch.cat([output.logits for output in pieces], dim=1)
    expected = in_pieces(theirs, ids, **given)
    close(parts[mask == 1], torch.cat([o.logits for o in expected], dim=1)[mask == 1])
    close(parts[mask == 1], ours(ids, **given).logits[mask == 1])
    close(parts[mask == 1], theirs(ids, **given).logits[mask == 1])
    kept = min(LENGTH, WINDOW - 1) if config.get("sliding_window") else LENGTH
    assert (pieces[-1].cache.length, pieces[-1].cache.kept) == (LENGTH, kept)
    assert pieces[-1].past_key_values is pieces[-1].cache


@configs
def test_what_is_inside_with_a_cache(config: dict[str, Any], tmp_path: Path) -> None:
    ours, theirs = both(BareModel, tmp_path, config)
    theirs.set_attn_implementation("eager")
    ids, mask, places = padded("left")
    first = {"attention_mask": mask[:, :15], "position_ids": places[:, :15], "use_cache": True}
    a, b = (m(ids[:, :15], **first).cache for m in (ours, theirs))
    given = {"attention_mask": mask, "position_ids": places[:, 15:]}
    given |= {"output_hidden_states": True, "output_attentions": True}
    x, y = ours(ids[:, 15:], cache=a, **given), theirs(ids[:, 15:], cache=b, **given)
    close(x.hidden_states, y.hidden_states)
    close(x.attentions, y.attentions)


def test_classifiers_continue_too(tmp_path: Path) -> None:
    ours, theirs = both(SequenceClassifier, tmp_path, CONFIGS["starcoder2, window, untied"])
    ids = random_ids()
    ids[0, -3:] = PAD
    a, b = in_pieces(ours, ids), in_pieces(theirs, ids)
    close(a[-1].logits, b[-1].logits)
    assert ours(ids, past_key_values=a[0].cache).cache.length == PIECES[0] + LENGTH
    bare, _ = both(BareModel, tmp_path, CONFIGS["stablelm"])
    states = bare(ids)
    assert states.past_key_values is states.cache
    tokens, _ = both(TokenClassifier, tmp_path, CONFIGS["stablelm"])  # theirs returns no cache
    parts = torch.cat([output.logits for output in in_pieces(tokens, ids)], dim=1)
    close(parts, tokens(ids).logits)


@pytest.mark.parametrize("name", [name for name in ROPES if "," not in name])
@pytest.mark.parametrize("family", FAMILIES)
def test_rope_types_on_both_sides_of_the_original_length(
    family: str, name: str, tmp_path: Path
) -> None:
    """Also where the frequencies change between two pieces."""
    config, partial = FAMILIES[family]
    ours, theirs = both(BareModel, tmp_path, config | newer(name, partial))
    ids = random_ids(length=STRETCHED - 1)
    pieces = (ORIGINAL - 1, 1, 1, 20, STRETCHED - 62)
    a, b = in_pieces(ours, ids, pieces), in_pieces(theirs, ids, pieces)
    for x, y in zip(a, b, strict=True):
        close(x.last_hidden_state, y.last_hidden_state)
    whole = ours(ids).last_hidden_state
    if not ours.decoder.config.rope.varies:
        close(torch.cat([x.last_hidden_state for x in a], dim=1), whole)


def test_an_int8_decoder_continues_too(tmp_path: Path) -> None:
    """Its keys are rotated in place."""
    make_reference(CausalLM, tmp_path, CONFIGS["starcoder2, window, untied"])
    decoder = load_model(tmp_path, device="cpu", quantization="int8").decoder

    def m(ids: Tensor, **given: Any) -> Any:
        return run(decoder, ids, **given)

    ids, mask, places = padded("left")
    given = {"attention_mask": mask, "position_ids": places}
    with torch.inference_mode():
        pieces = in_pieces(m, ids, **given)
        parts = torch.cat([output.last_hidden_state for output in pieces], dim=1)
        whole = m(ids, **given).last_hidden_state
        assert distance(parts[mask == 1], whole[mask == 1]) < 0.03  # of rounding


def test_learned_positions_continue(tmp_path: Path) -> None:
    ours, theirs = both(CausalLM, tmp_path, GPT_BIGCODE | {"multi_query": True})
    ids = random_ids()
    parts = torch.cat([output.logits for output in in_pieces(ours, ids)], dim=1)
    close(parts, theirs(ids).logits)


@configs
def test_gradients_reach_what_is_cached(config: dict[str, Any], tmp_path: Path) -> None:
    ours, _ = both(CausalLM, tmp_path, config)
    ids = random_ids()
    found = []
    ours.train()
    for checkpointing in (False, True):
        ours.gradient_checkpointing = checkpointing
        for pieces in ((LENGTH,), PIECES):
            ours.zero_grad()
            logits = torch.cat([o.logits for o in in_pieces(ours, ids, pieces)], dim=1)
            (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).mean().backward()
            found.append(tuple(p.grad.clone() for p in ours.parameters()))
    for other in found[1:]:
        close(other, found[0])


@pytest.mark.parametrize("stated", [True, False])
def test_config_json_says_whether_there_is_a_cache(stated: bool, tmp_path: Path) -> None:
    ours, theirs = both(CausalLM, tmp_path, CONFIGS["starcoder2"], use_cache=stated)
    ids = random_ids()
    for m in (ours, theirs):
        assert (m(ids).cache is not None) == stated
        assert (m(ids, use_cache=not stated).cache is not None) != stated
    cache = ours(ids, use_cache=True).cache
    assert cache.length == LENGTH
    assert ours(ids, cache=cache).cache.length == 2 * LENGTH
    assert ours(ids, cache=cache, use_cache=False).cache is None
    # Packed rows have none, unless it is asked for: then they are not taken for packed.
    positions = torch.cat((torch.arange(10), torch.arange(LENGTH - 10)))[None]
    packed = ours(ids, position_ids=positions)
    assert packed.cache is None
    close(packed.logits, theirs(ids, position_ids=positions, use_cache=False).logits)
    single = ours(ids, position_ids=positions, use_cache=True).logits
    close(single, theirs(ids, position_ids=positions, use_cache=True).logits)
    assert (single - packed.logits).abs().max() > 0.01
    ours.train()
    assert ours(ids).cache is None


def test_a_cache_is_continued_in_several_ways(tmp_path: Path) -> None:
    ours, _ = both(CausalLM, tmp_path, CONFIGS["stablelm"])
    ids = random_ids()
    cache = ours(ids[:, :15], use_cache=True).cache
    first = ours(ids[:, 15:], cache=cache).logits
    ours(ids[:, :3], cache=cache)
    close(ours(ids[:, 15:], cache=cache).logits, first, 0)


# Masks of four dimensions.


def some_pairs(seed: int, batch: int, heads: int, new: int, seen: int) -> Tensor:
    """Random pairs that are seen, also of later positions; each sees itself."""
    random = torch.rand(batch, heads, new, seen, generator=torch.Generator().manual_seed(seed))
    return (random < 0.5) | torch.eye(new, seen).bool().flip(0).flip(1)


@configs
@pytest.mark.parametrize(("batch", "heads"), [(BATCH, 1), (1, 1), (BATCH, 4)])
def test_masks_of_four_dimensions_decide_alone(
    config: dict[str, Any], batch: int, heads: int, tmp_path: Path
) -> None:
    ours, theirs = both(CausalLM, tmp_path, config)
    ids = random_ids()
    seen = some_pairs(1, batch, heads, LENGTH, LENGTH)
    scores = torch.zeros(seen.shape).masked_fill(~seen, -1e9) + torch.randn(seen.shape)
    for mask in (seen, scores):
        expected = theirs(ids, attention_mask=mask.expand(BATCH, -1, -1, -1)).logits
        for name in ("eager", "sdpa"):
            ours.set_attn_implementation(name)
            close(ours(ids, attention_mask=mask).logits, expected)
    ours.set_attn_implementation("sdpa")
    cache = ours(ids[:, :15], use_cache=True).cache
    now = some_pairs(2, batch, heads, LENGTH - 15, cache.kept + LENGTH - 15)
    their_cache = theirs(ids[:, :15], use_cache=True).cache
    expected = theirs(
        ids[:, 15:], cache=their_cache, attention_mask=now.expand(BATCH, -1, -1, -1)
    ).logits
    close(ours(ids[:, 15:], cache=cache, attention_mask=now).logits, expected)


# Bad inputs.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"attention_mask": torch.ones(2, 9)}, r"\(2, 9\), but must be \(2, 14\).* 10 positions"),
        ({"attention_mask": torch.ones(2, 4)}, r"\(2, 4\), but must be \(2, 14\)"),
        ({"attention_mask": torch.ones(3, 14)}, r"\(3, 14\), but must be \(2, 14\)"),
        (
            {"attention_mask": torch.ones(2, 1, 4, 14)},
            r"must be \(2, 1, 4, 11\) or \(2, 4, 4, 11\)",
        ),
        ({"attention_mask": torch.ones(2, 1, 4, 11).long()}, "torch.int64, but must be torch.bool"),
        ({"cache_position": torch.arange(4)}, r"\[0, 1, 2, 3\], but .* from 10 to 13: the cache"),
        ({"position_ids": torch.arange(14)[None]}, r"position_ids is \(1, 14\), but"),
        ({"input_ids": random_ids(3, 4)}, r"cache is .*\(2, 2, 2, 8\).* must be of \(2, 3, 2, 8\)"),
        ({"past_key_values": 1}, "past_key_values is the older name of cache"),
        ({"cache": [1]}, "cache is a list, but must be what"),
    ],
)
def test_what_does_not_fit_the_cache_is_named(
    given: dict[str, Any], words: str, starcoder2_cached: tuple[Head, Any]
) -> None:
    m, cache = starcoder2_cached
    fitting = {"input_ids": random_ids(2, 4), "cache": cache}
    good = {"attention_mask": torch.ones(2, 14), "cache_position": torch.arange(10, 14)}
    assert m(**fitting, **good).cache.length == 14
    with pytest.raises(ValueError, match=words):
        m(**(fitting | given))


@pytest.fixture(scope="module")
def starcoder2_cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Head, Any]:
    folder = tmp_path_factory.mktemp("toy")
    m, _ = both(CausalLM, folder, CONFIGS["starcoder2, window, untied"])
    return m, m(random_ids(2, 10), use_cache=True).cache
