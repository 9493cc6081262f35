"""The decoder for training: StarCoder2 without caches. `model.decoder.decoder` is the one for
inference; tests compare the two."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.data import IGNORED

ROPE_THETA = 10000.0


@dataclass(frozen=True)
class Shape:
    """[model] of the training config, in the words of a Hugging Face config; context in tokens."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    context: int

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1:
            raise SystemExit("[model]: every value must be positive.")
        if self.context < 32:
            raise SystemExit("[model]: a context of less than 32 tokens holds no sample.")
        if self.vocab_size > 65_536:
            raise SystemExit(
                "[model]: vocab_size must be at most 65,536."
            )  # training/data.py keeps ids in two bytes
        if (
            self.hidden_size % (2 * self.num_attention_heads)
            or self.num_attention_heads % self.num_key_value_heads
        ):
            raise SystemExit(
                "[model]: hidden_size must divide into heads of even size, and the heads into KV "
                "heads."
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def parameters(self) -> int:
        """Of the matrices; biases and norms are a thousandth of that."""
        hidden, kv = self.hidden_size, self.num_key_value_heads * self.head_dim
        layer = 2 * hidden * hidden + 2 * hidden * kv + 2 * hidden * self.intermediate_size
        return self.vocab_size * hidden + self.num_hidden_layers * layer


def document_mask(documents: Tensor) -> Any:
    """documents (rows, context) -> what keeps each position's attention within its own document,
    and causal.

    On a CPU a boolean tensor (rows, 1, context, context); on CUDA a block mask, whose empty blocks
    cost nothing.
    """
    if documents.device.type != "cuda":
        same = documents[:, None, :, None] == documents[:, None, None, :]
        return same & torch.ones_like(same[0, 0]).tril()
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(row: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[row, query] == documents[row, key])

    rows, context = documents.shape
    return create_block_mask(visible, rows, None, context, context, device=documents.device)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """(rows, heads, context, head_dim) and KV heads alike -> (rows, heads, context, head_dim); mask
    None is causal."""
    if mask is None or isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(q, k, v, block_mask=mask, enable_gqa=True)  # type: ignore[return-value]


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, self.head_dim = shape.hidden_size, shape.head_dim
        self.heads, self.kv_heads = shape.num_attention_heads, shape.num_key_value_heads
        self.input_layernorm, self.post_attention_layernorm = (
            nn.LayerNorm(hidden),
            nn.LayerNorm(hidden),
        )
        self.qkv_proj = nn.Linear(hidden, (self.heads + 2 * self.kv_heads) * self.head_dim)
        self.o_proj = nn.Linear(hidden, hidden)
        self.c_fc, self.c_proj = (
            nn.Linear(hidden, shape.intermediate_size),
            nn.Linear(shape.intermediate_size, hidden),
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Any) -> Tensor:
        rows, context, hidden = x.shape
        rotated = self.heads + self.kv_heads
        qkv = self.qkv_proj(self.input_layernorm(x)).view(rows, context, -1, self.head_dim)
        first, second = qkv[:, :, :rotated].chunk(2, dim=-1)
        qk = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(
            qkv.dtype
        )
        q, k = qk.transpose(1, 2).split(
            (self.heads, self.kv_heads), dim=1
        )  # (rows, heads, context, head_dim)
        v = qkv[:, :, rotated:].transpose(1, 2)
        a = attend(q, k, v, mask)
        x = x + self.o_proj(a.transpose(1, 2).reshape(rows, context, hidden))
        return x + self.c_proj(
            F.gelu(self.c_fc(self.post_attention_layernorm(x)), approximate="tanh")
        )


class Network(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.LayerNorm(shape.hidden_size)
        exponents = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
        angles = torch.outer(torch.arange(shape.context).float(), ROPE_THETA**-exponents)
        self.register_buffer("cos", angles.cos()[:, None], persistent=False)
        self.register_buffer("sin", angles.sin()[:, None], persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("o_proj.weight", "c_proj.weight"))
                nn.init.normal_(
                    p, std=0.02 / math.sqrt(2 * shape.num_hidden_layers) if residual else 0.02
                )
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: Tensor, labels: Tensor, mask: Any = None) -> Tensor:
        """Mean cross-entropy (nats a token) of labels (rows, context) under ids (rows, context)."""
        x, context = self.embed_tokens(ids), ids.shape[1]
        for block in self.layers:
            x = block(x, self.cos[:context], self.sin[:context], mask)
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(
            logits.float().view(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED
        )

    def flops_per_token(self) -> float:
        """Of forward and backward: 6 a parameter that multiplies (embeddings do as the head), and
        causal attention."""
        attention = self.shape.num_hidden_layers * self.shape.hidden_size * self.shape.context
        return 6.0 * (self.shape.parameters + attention)
