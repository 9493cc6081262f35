"""Attention in three implementations, by transformers' names for them. They compute the same.

Shapes: B batch, T new positions, S positions seen, H heads, K key/value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from model.decoder.layers import attend, attend_where, causal_mask
from model.errors import ModelError

AttnImplementation = Literal["eager", "sdpa", "flash_attention_2"]
IMPLEMENTATIONS: tuple[AttnImplementation, ...] = get_args(AttnImplementation)
FLASH_DEVICES = ("cuda",)
FLASH_DTYPES = (torch.float16, torch.bfloat16)


class Attend(Protocol):
    """One layer's attention to the positions that this pass may see."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float
    ) -> tuple[Tensor, Tensor | None]:
        """q (B, H, T, D), k and v (B, K, S, D) -> (B, H, T, D), and the weights (B, H, T, S) where
        the implementation makes them. dropout: the share of the weights that is dropped."""


def check_implementation(name: str) -> AttnImplementation:
    """Raises ModelError with the remedy for a name that is unknown or whose package is missing."""
    for known in IMPLEMENTATIONS:
        if name == known:
            if known == "flash_attention_2":
                flash_attn()
            return known
    raise ModelError(
        f"attn_implementation is {name!r}, but must be one of {', '.join(IMPLEMENTATIONS)}"
    )


@dataclass(frozen=True, slots=True)
class Visible:
    """What the new positions may see.

    window: the decoder's. kept: (B, S), true where there is no padding; None where there is none.
    sequences: (B or 1, T), which text of its row each position belongs to, without a cache; None
    where each row is one. scored: what each new position sees, or adds to its scores, in place of
    all these, (B or 1, H or 1, T, S); None where these say it.
    """

    batch: int
    new: int
    seen: int
    window: int | None
    kept: Tensor | None
    sequences: Tensor | None
    scored: Tensor | None
    device: torch.device

    def attend(self, implementation: AttnImplementation, dropout: float) -> Attend:
        """Raises ValueError for what the implementation does not do."""
        if implementation == "flash_attention_2":
            return Flash.of(self)
        if implementation == "eager":
            return Eager(self.mask())
        masks = (self.kept, self.sequences, self.scored)
        whole = not dropout and all(mask is None for mask in masks)
        return Sdpa(None if whole else self.mask(), self.window)

    def mask(self) -> Tensor:
        """(B or 1, H or 1, T, S), true where a position is seen, or what is added to the scores."""
        if self.scored is not None:
            return self.scored
        mask = causal_mask(self.new, self.seen, self.window, self.device)[None, None]
        if self.kept is not None:
            mask = mask & self.kept[:, None, None]
        if self.sequences is not None:
            mask = mask & (self.sequences[:, None, :, None] == self.sequences[:, None, None, :])
        return mask


@dataclass(frozen=True, slots=True)
class Eager:
    """Product, softmax, product.

    mask: (B or 1, H or 1, T, S), true where a position is seen, or added to the scores.
    """

    mask: Tensor

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float
    ) -> tuple[Tensor, Tensor | None]:
        group = q.shape[1] // k.shape[1]
        k = k.repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
        mask = self.mask.to(q.device)
        scores = q @ k.transpose(-1, -2) * scale
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(q.dtype).min)
            weights = scores.softmax(-1, dtype=torch.float32)
            # A row that sees nothing is 0, as in attend_where.
            weights = weights * mask.any(-1, keepdim=True)
        else:
            weights = (scores + mask.to(q.dtype)).softmax(-1, dtype=torch.float32)
        weights = F.dropout(weights.to(q.dtype), dropout)
        return weights @ v, weights


@dataclass(frozen=True, slots=True)
class Sdpa:
    """torch's scaled_dot_product_attention. It takes its flash kernel where that runs: on a GPU in
    half precision where there is no mask, on a CPU where nothing is dropped.

    mask: as Eager's; None where only causality and the window decide.
    """

    mask: Tensor | None
    window: int | None

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float
    ) -> tuple[Tensor, Tensor | None]:
        if self.mask is None:
            return attend(q, k, v, self.window, scale), None
        mask = self.mask.to(q.device, None if self.mask.dtype == torch.bool else q.dtype)
        return attend_where(mask, q, k, v, scale, dropout), None


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a batch end to end, without padding, as flash-attn takes them.

    positions: where they stand in the batch's flattened rows. ends: int32, 0 and the end of each.
    """

    positions: Tensor
    ends: Tensor
    longest: int

    @classmethod
    def of(cls, kept: Tensor, starts: Tensor | None = None) -> Texts:
        """kept: (B, N), true where there is no padding. starts: (B, N), true where a text starts;
        None where each row is one."""
        flat = kept.flatten()
        if starts is None:
            lengths = kept.sum(-1)
        else:
            lengths = torch.diff(F.pad(starts.flatten(), (0, 1), value=True).nonzero()[:, 0])
        ends = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        return cls(flat.nonzero()[:, 0], ends, int(lengths.max()))

    def to(self, device: torch.device) -> Texts:
        return Texts(self.positions.to(device), self.ends.to(device), self.longest)


@dataclass(frozen=True, slots=True)
class Flash:
    """The package flash-attn (Dao 2023, arXiv 2307.08691). Positions of padding give 0."""

    queries: Texts
    keys: Texts
    window: int | None

    @classmethod
    def of(cls, visible: Visible) -> Flash:
        """Raises ValueError."""
        if visible.scored is not None:
            raise ValueError(
                "flash_attention_2 takes no attention_mask of four dimensions: use "
                "attn_implementation='sdpa'"
            )
        kept = visible.kept
        if kept is None:
            shape = (visible.batch, visible.seen)
            kept = torch.ones(shape, dtype=torch.bool, device=visible.device)
        window = visible.window
        if window is not None and window >= visible.seen:
            window = None
        if visible.sequences is not None:
            before = visible.sequences[:, :1] - 1
            starts = torch.diff(visible.sequences, prepend=before) != 0
            texts = Texts.of(kept, starts.expand_as(kept))
            return cls(texts, texts, window)
        runs = torch.diff(kept.int(), prepend=torch.zeros_like(kept[:, :1]).int()) == 1
        if window is not None and (runs.sum(-1) > 1).any():
            raise ValueError(
                "attention_mask is 0 between two tokens. flash_attention_2 does not count such "
                "gaps in the sliding window: use attn_implementation='sdpa'"
            )
        return cls(Texts.of(kept[:, -visible.new :]), Texts.of(kept), window)

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float
    ) -> tuple[Tensor, Tensor | None]:
        if q.device.type not in FLASH_DEVICES or q.dtype not in FLASH_DTYPES:
            raise ValueError(
                "flash_attention_2 computes in float16 and bfloat16 on a CUDA device, not in "
                f"{str(q.dtype).removeprefix('torch.')} on {q.device}. Load the head with "
                "dtype='bfloat16' and device='cuda', or with attn_implementation='sdpa'"
            )
        queries = self.queries.to(q.device)
        keys = self.keys.to(q.device)
        batch, heads, new, dim = q.shape
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (B T, H, D)
        attended = flash_attn()(
            q[queries.positions],
            k[keys.positions],
            v[keys.positions],
            cu_seqlens_q=queries.ends,
            cu_seqlens_k=keys.ends,
            max_seqlen_q=queries.longest,
            max_seqlen_k=keys.longest,
            dropout_p=dropout,
            softmax_scale=scale,
            causal=True,
            window_size=(-1, -1) if self.window is None else (self.window - 1, 0),
        )
        out = q.new_zeros(batch * new, heads, dim)
        out[queries.positions] = attended
        return out.view(batch, new, heads, dim).transpose(1, 2), None


def flash_attn() -> Callable[..., Any]:
    """Raises ModelError where the package is missing."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        raise ModelError(
            f"attn_implementation 'flash_attention_2' needs flash-attn, which cannot be imported "
            f"({error}). Run `pip install flash-attn --no-build-isolation`, or use 'sdpa', which "
            "has a flash kernel of its own."
        ) from None
    function: Callable[..., Any] = flash_attn_varlen_func
    return function
