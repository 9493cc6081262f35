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
from model.decoder.layers import DecoderLayer
from model.decoder.rope import Rotations
from model.heads.attention import AttnImplementation, Visible
from model.heads.cache import BatchCache
from model.heads.layers import NO_DROPOUTS, Dropouts, Layers


class Inputs(TypedDict, total=False):
    """What every head takes beside the ids.

    attention_mask: (B, positions), those behind the cache too, 0 at padding, left or right. Or, in
    place of causality and the window, what each new position sees: (B or 1, H or 1, T, S), true
    where it does, or numbers that are added to the scores.
    position_ids: (B, T) or (1, T), else the positions count from the start, padding too. Positions
    that do not go up by one start a new sequence of a packed row, if there is neither mask nor
    cache, nor use_cache (in transformers with use_cache=False).
    inputs_embeds: (B, T, hidden), in place of ids, as decoder.embed_tokens gives them.
    cache: what the pass before returned; ids and embeddings are those that follow.
    past_key_values: its older name in transformers.
    use_cache: whether a cache is returned. If it is not said: where one is given, and in evaluation
    mode where config.json's use_cache is true or missing, but not of packed rows.
    cache_position: (T,), where the new positions stand behind those of the cache. There is one such
    place only, so it is checked and changes nothing.
    output_attentions: such a pass is eager, whatever the implementation is.
    """

    attention_mask: Tensor | None
    position_ids: Tensor | None
    inputs_embeds: Tensor | None
    cache: BatchCache | None
    past_key_values: BatchCache | None
    use_cache: bool | None
    cache_position: Tensor | None
    output_hidden_states: bool
    output_attentions: bool


@dataclass(frozen=True, slots=True)
class PassOptions:
    """How a pass computes, whatever its inputs.

    use_cache: whether it returns a cache where the inputs do not say it, and no row is packed.
    gradient_checkpointing: a layer keeps only its input for the backward pass, which computes the
    layer again (Chen et al. 2016, arXiv 1604.06174).
    """

    dropouts: Dropouts = NO_DROPOUTS
    attn_implementation: AttnImplementation = "sdpa"
    gradient_checkpointing: bool = False
    use_cache: bool = False


DEFAULT_OPTIONS = PassOptions()


@dataclass(frozen=True, slots=True)
class States:
    """What a pass gives.

    last_hidden_state (B, T, hidden), after the last norm. hidden_states: the input of each layer
    and last_hidden_state. attentions: each layer's weights (B, H, T, S). Both None unless asked
    for. cache: for the pass over what follows; None where there is to be none.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    cache: BatchCache | None

    @property
    def past_key_values(self) -> BatchCache | None:
        """transformers' older name of `cache`."""
        return self.cache


@dataclass(frozen=True, slots=True)
class HeadOutput:
    """loss: None without labels. logits: of the head. The others: see States."""

    loss: Tensor | None
    logits: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor, ...] | None
    cache: BatchCache | None

    @property
    def past_key_values(self) -> BatchCache | None:
        """transformers' older name of `cache`."""
        return self.cache


def run(
    decoder: Decoder,
    input_ids: Tensor | None,
    options: PassOptions = DEFAULT_OPTIONS,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    cache: BatchCache | None = None,
    past_key_values: BatchCache | None = None,
    use_cache: bool | None = None,
    cache_position: Tensor | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
) -> States:
    """Runs input_ids (B, T); see Inputs for the others.

    Frequencies of rotations that depend on the length of the sequence are those for the highest
    position of this pass, as in transformers; the keys in a cache stay as they are. Raises
    ValueError, which names the input.
    """
    x = _embeddings(decoder, input_ids, inputs_embeds)
    given = _one(cache, past_key_values)
    before = given or BatchCache(decoder.config.sliding_window)
    before.check(decoder.config, len(x))
    _check_cache_position(cache_position, before.length, x.shape[1])
    positions = _positions(decoder, position_ids, before.length, x)
    rotations = Rotations.of(
        positions, decoder.config.rope, _length(decoder, positions), decoder.dtype
    )
    sequences = None
    if position_ids is not None and attention_mask is None and given is None and not use_cache:
        sequences = _packed(positions)
    if use_cache is None:
        use_cache = given is not None or (options.use_cache and sequences is None)
    visible = _visible(decoder, attention_mask, sequences, before, x)
    implementation = "eager" if output_attentions else options.attn_implementation
    attend = visible.attend(implementation, options.dropouts.attention)
    layers = Layers(rotations, attend, options.dropouts, before, use_cache)
    run_layer = layers.run
    if options.gradient_checkpointing and torch.is_grad_enabled():
        run_layer = partial(checkpoint, layers.run, use_reentrant=False)
    new = x.shape[1]
    x = F.dropout(decoder.place(x, positions), options.dropouts.embedding)
    states = []
    for index, layer in enumerate(decoder.layers):
        states.append(x)
        x = run_layer(cast(DecoderLayer, layer), index, x)
    x = decoder.norm(x)
    return States(
        x,
        (*states, x) if output_hidden_states else None,
        tuple(layers.attentions.values()) if output_attentions else None,
        before.after(new, layers.kept) if use_cache else None,
    )


def _one(cache: BatchCache | None, past_key_values: BatchCache | None) -> BatchCache | None:
    """The cache under whichever name it was given. Raises ValueError."""
    if cache is not None and past_key_values is not None:
        raise ValueError("past_key_values is the older name of cache: give one of them")
    given = past_key_values if cache is None else cache
    if given is not None and not isinstance(given, BatchCache):
        raise ValueError(
            f"cache is a {type(given).__name__}, but must be what a pass with use_cache=True "
            "returned"
        )
    return given


def _check_cache_position(given: Tensor | None, start: int, new: int) -> None:
    """Raises ValueError unless the new positions stand right behind the cached ones."""
    if given is not None and given.tolist() != list(range(start, start + new)):
        raise ValueError(
            f"cache_position is {given.tolist()}, but must be the numbers from {start} to "
            f"{start + new - 1}: the cache holds {start} positions, and {new} are new"
        )


def _embeddings(decoder: Decoder, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
    """The tokens' embeddings (B, T, hidden), without positions. Raises ValueError."""
    if (ids is None) == (embeds is None):
        raise ValueError("give either input_ids or inputs_embeds")
    config = decoder.config
    if ids is None:
        assert embeds is not None
        if embeds.dim() != 3 or embeds.shape[2] != config.hidden_size or not embeds.numel():
            raise ValueError(
                f"inputs_embeds is {tuple(embeds.shape)}, but must be (batch, positions, "
                f"{config.hidden_size})"
            )
        return embeds
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"input_ids is {tuple(ids.shape)}, but must be (batch, positions)")
    if ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"input_ids is {ids.dtype}, but must be torch.int64 or torch.int32")
    if ((ids < 0) | (ids >= config.vocab_size)).any():
        raise ValueError(f"input_ids must be from 0 to {config.vocab_size - 1}")
    embedded: Tensor = decoder.embed_tokens(ids)
    return embedded


def _visible(
    decoder: Decoder, mask: Tensor | None, sequences: Tensor | None, before: BatchCache, x: Tensor
) -> Visible:
    """What the positions of x (B, T, hidden) may see. Raises ValueError."""
    config = decoder.config
    batch, new = x.shape[:2]
    seen = before.kept + new
    kept = None
    scored = None
    if mask is not None and mask.dim() == 4:
        scored = mask
        if not (
            mask.shape[0] in (1, batch)
            and mask.shape[1] in (1, config.num_heads)
            and mask.shape[2:] == (new, seen)
        ):
            raise ValueError(
                f"attention_mask is {tuple(mask.shape)}, but must be {(batch, 1, new, seen)} or "
                f"{(batch, config.num_heads, new, seen)}: {new} new positions see {before.kept} "
                "cached and the new ones"
            )
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(
                f"attention_mask of four dimensions is {mask.dtype}, but must be torch.bool, true "
                "at what is seen, or of floating-point numbers, which are added to the scores"
            )
    elif mask is not None:
        if mask.shape != (batch, before.length + new):
            raise ValueError(
                f"attention_mask is {tuple(mask.shape)}, but must be "
                f"{(batch, before.length + new)}: the batch, and {before.length} positions of the "
                f"cache and {new} new ones"
            )
        kept = mask[:, -seen:] != 0
        if bool(kept.all()):
            kept = None
    return Visible(batch, new, seen, config.sliding_window, kept, sequences, scored, x.device)


def _positions(decoder: Decoder, given: Tensor | None, start: int, x: Tensor) -> Tensor:
    """The positions of x (B, T, hidden), (B, T) or (1, T). Raises ValueError."""
    batch, new = x.shape[:2]
    if given is None:
        positions = torch.arange(start, start + new, device=x.device)[None]
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


def _length(decoder: Decoder, positions: Tensor) -> int:
    """The length of the sequence for which rotations are made; see model.decoder.rope."""
    rope = decoder.config.rope
    if rope is None or not rope.varies:
        return decoder.config.max_positions
    return int(positions.max()) + 1


def _packed(positions: Tensor) -> Tensor | None:
    """Which sequence of its row each position belongs to, (B or 1, T); None where all rows hold
    one."""
    starts = torch.diff(positions, prepend=positions[:, :1] - 1) != 1
    return starts.cumsum(-1) if bool(starts.any()) else None
