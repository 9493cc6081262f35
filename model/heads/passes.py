"""A pass through a decoder's layers with masks, positions and embeddings of the caller's.

Shapes: B batch, T new positions, S positions seen (those of the cache and the new ones), H heads,
K key/value heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TypedDict, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.decoder.decoder import Decoder
from model.decoder.kv_cache import KVCache
from model.decoder.layers import DecoderLayer
from model.decoder.rope import Rotations
from model.heads.attention import AttnImplementation, Visible
from model.heads.layers import NO_DROPOUTS, Dropouts, Layers


class Inputs(TypedDict, total=False):
    """What every head takes beside the ids; see `run`."""

    attention_mask: Tensor | None
    position_ids: Tensor | None
    inputs_embeds: Tensor | None
    cache: KVCache | None
    output_hidden_states: bool
    output_attentions: bool


@dataclass(frozen=True, slots=True)
class PassOptions:
    """How a pass computes, whatever its inputs.

    gradient_checkpointing: a layer keeps only its input for the backward pass, which computes the
    layer again (Chen et al. 2016, arXiv 1604.06174).
    """

    dropouts: Dropouts = NO_DROPOUTS
    attn_implementation: AttnImplementation = "sdpa"
    gradient_checkpointing: bool = False


DEFAULT_OPTIONS = PassOptions()


@dataclass(frozen=True, slots=True)
class States:
    """What a pass gives.

    last_hidden_state (B, T, hidden), after the last norm. hidden_states: the input of each layer
    and last_hidden_state. attentions: each layer's weights (B, H, T, S). Both None unless asked
    for. cache: the one that was given.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    cache: KVCache | None


def run(
    decoder: Decoder,
    input_ids: Tensor | None,
    options: PassOptions = DEFAULT_OPTIONS,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    cache: KVCache | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
) -> States:
    """Runs input_ids (B, T), or the embeddings inputs_embeds (B, T, hidden) as decoder.embed_tokens
    gives them.

    attention_mask: (B, S), 0 at padding, left or right. position_ids: (B, T) or (1, T), else the
    positions count from the start, padding too. Positions that do not go up by one start a new
    sequence of a packed row, if there is neither mask nor cache (in transformers with
    use_cache=False). cache: holds what comes before (batch 1), and takes the new keys and values;
    for inference. output_attentions: this pass is eager, whatever options.attn_implementation is.
    Raises ValueError, which names the input.
    """
    x = _embeddings(decoder, input_ids, inputs_embeds)
    batch, new = x.shape[:2]
    if cache is not None:
        if torch.is_grad_enabled():
            raise ValueError("a cache keeps no gradients: pass it under torch.inference_mode()")
        decoder.make_room(x[..., 0], cache)
    before = 0 if cache is None else cache.length
    positions = _positions(decoder, position_ids, batch, before, new, x.device)
    rotations = Rotations.of(
        positions, decoder.config.rope, _length(decoder, positions, cache), decoder.dtype
    )
    sequences = None
    if position_ids is not None and attention_mask is None and cache is None:
        sequences = _packed(positions)
    kept = _kept(attention_mask, batch, before + new)
    window = decoder.config.sliding_window
    visible = Visible(batch, new, before + new, window, kept, sequences, x.device)
    implementation = "eager" if output_attentions else options.attn_implementation
    attend = visible.attend(implementation, options.dropouts.attention)
    x = F.dropout(decoder.place(x, positions), options.dropouts.embedding)
    layers = Layers(rotations, attend, options.dropouts, cache)
    run_layer = layers.run
    if options.gradient_checkpointing and torch.is_grad_enabled():
        run_layer = partial(checkpoint, layers.run, use_reentrant=False)
    states = []
    for index, layer in enumerate(decoder.layers):
        states.append(x)
        x = run_layer(cast(DecoderLayer, layer), index, x)
    if cache is not None:
        cache.commit(new)
    x = decoder.norm(x)
    return States(
        x,
        (*states, x) if output_hidden_states else None,
        tuple(layers.attentions.values()) if output_attentions else None,
        cache,
    )


def _embeddings(decoder: Decoder, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
    """The tokens' embeddings (B, T, hidden), without positions. Raises ValueError."""
    if (ids is None) == (embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")
    config = decoder.config
    if ids is None:
        assert embeds is not None
        if embeds.dim() != 3 or embeds.shape[2] != config.hidden_size or not embeds.shape[1]:
            raise ValueError(
                f"inputs_embeds is {tuple(embeds.shape)}, but must be (batch, positions, "
                f"{config.hidden_size})"
            )
        return embeds
    if ids.dim() != 2 or not ids.shape[1]:
        raise ValueError(f"input_ids is {tuple(ids.shape)}, but must be (batch, positions)")
    if ((ids < 0) | (ids >= config.vocab_size)).any():
        raise ValueError(f"input_ids must be from 0 to {config.vocab_size - 1}")
    embedded: Tensor = decoder.embed_tokens(ids)
    return embedded


def _kept(attention_mask: Tensor | None, batch: int, seen: int) -> Tensor | None:
    """(B, S), true where there is no padding; None where there is none. Raises ValueError."""
    if attention_mask is None:
        return None
    if attention_mask.shape != (batch, seen):
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)}, but must be {(batch, seen)}: the "
            "batch, and the cached and new positions"
        )
    return attention_mask != 0


def _positions(
    decoder: Decoder,
    given: Tensor | None,
    batch: int,
    before: int,
    new: int,
    device: torch.device,
) -> Tensor:
    """The position of each new token, (B, T) or (1, T). Raises ValueError."""
    if given is None:
        positions = torch.arange(before, before + new, device=device)[None]
    elif given.shape in ((batch, new), (1, new)):
        positions = given
    else:
        raise ValueError(
            f"position_ids is {tuple(given.shape)}, but must be {(batch, new)} or {(1, new)}"
        )
    config = decoder.config
    # A rotation knows no last position; a table of learned vectors has one.
    if config.rope is None and not 0 <= int(positions.min()) <= int(positions.max()) < (
        config.max_positions
    ):
        raise ValueError(f"positions must be from 0 to {config.max_positions - 1}")
    return positions


def _length(decoder: Decoder, positions: Tensor, cache: KVCache | None) -> int:
    """The length of the sequence for which rotations are made; see model.decoder.rope."""
    rope = decoder.config.rope
    if rope is None or not rope.varies or cache is not None:
        return decoder.config.max_positions
    return int(positions.max()) + 1


def _packed(positions: Tensor) -> Tensor | None:
    """Which sequence of its row each position belongs to, (B or 1, T); None where all rows hold
    one."""
    starts = torch.diff(positions, prepend=positions[:, :1] - 1) != 1
    return starts.cumsum(-1) if bool(starts.any()) else None
