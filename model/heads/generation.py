"""Continues a batch of texts as transformers' `generate` does, each as if it were alone.

Completions in an editor do not come through here: model.generation continues one text, with drafts
and with caches of earlier prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoder.config import DecoderConfig
from model.generation.sampling import Sampler, Sampling
from model.heads.passes import HeadOutput


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """stop_ids: tokens that end a text. pad_id: what stands behind that until all have ended; None
    where a single text needs none."""

    max_new_tokens: int
    sampling: Sampling
    stop_ids: Sequence[int]
    pad_id: int | None

    def check(self, config: DecoderConfig, ids: Tensor, mask: Tensor) -> None:
        """Raises ValueError, which names the input and the remedy."""
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, but must be positive")
        if self.pad_id is None and len(ids) > 1 and self.stop_ids:
            raise ValueError(
                "config.json names no pad_token_id, so that nothing can stand behind texts that "
                "end early. Give pad_token_id, or one text at a time"
            )
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask is {tuple(mask.shape)}, but must be {tuple(ids.shape)} as "
                "input_ids is"
            )
        if not bool(mask[:, -1].all()):
            raise ValueError(
                "attention_mask is 0 at the end of a text. Texts that are continued have their "
                "padding at the left"
            )
        needed = int(mask.sum(-1).max()) + self.max_new_tokens - 1  # the last needs no position
        if needed > config.max_positions:
            raise ValueError(
                f"input_ids and max_new_tokens need {needed} positions, but the model has "
                f"{config.max_positions}. Lower max_new_tokens"
            )


@torch.no_grad()
def continue_batch(
    head: Callable[..., HeadOutput],
    config: DecoderConfig,
    ids: Tensor,
    attention_mask: Tensor | None,
    options: BatchOptions,
) -> Tensor:
    """ids (B, T) -> those and the new ones, (B, at most T + max_new_tokens). Raises ValueError.

    head: a causal language model. attention_mask: see CausalLM.generate.
    """
    if ids.dim() != 2 or not ids.numel():
        raise ValueError(f"input_ids is {tuple(ids.shape)}, but must be (batch, positions)")
    if attention_mask is None:
        attention_mask = torch.ones_like(ids)
        if options.pad_id is not None and options.pad_id not in options.stop_ids:
            attention_mask = ids != options.pad_id
    mask = (attention_mask != 0).to(ids)
    options.check(config, ids, mask)
    samplers = [Sampler(options.sampling, row) for row in range(len(ids))]
    ends = torch.tensor(options.stop_ids, dtype=ids.dtype, device=ids.device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    new, cache = ids, None
    for _ in range(options.max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        output = head(
            new,
            attention_mask=mask,
            position_ids=positions,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.cache
        new = choose(output.logits[:, 0], samplers)[:, None].to(ids)
        if options.pad_id is not None:
            new = new.masked_fill(ended[:, None], options.pad_id)
        ids = torch.cat((ids, new), dim=1)
        mask = torch.cat((mask, torch.ones_like(new)), dim=1)
        ended |= torch.isin(new[:, 0], ends)
        if bool(ended.all()):
            break
    return ids


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Logits (B, vocabulary) -> a token each, (B,)."""
    if samplers[0].is_greedy:
        return logits.argmax(-1)
    scores = logits.float().log_softmax(-1).cpu().numpy()
    return torch.tensor([sample(row) for sample, row in zip(samplers, scores, strict=True)])
