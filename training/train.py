"""Trains the bundled model, on CPU or CUDA with the same code.

    python -m training.train training/config.toml training/data training/runs/NAME

Muon (Jordan et al. 2024) for the matrices, AdamW for embeddings, norms and biases; warm-up, stable, decay. A run
resumes from its last checkpoint; checkpoints are replaced atomically. The schedule counts tokens, so a run that has
to end earlier is stopped and resumed with a smaller total_tokens.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn

from training.data import SampleStream

HELD_OUT_TOKENS = 32_768  # looked at with every checkpoint, so few


class Block(nn.Module):
    def __init__(self, hidden: int, intermediate: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, hidden // heads
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv_proj = nn.Linear(hidden, (heads + 2 * kv_heads) * self.head_dim)
        self.o_proj = nn.Linear(hidden, hidden)
        self.c_fc, self.c_proj = nn.Linear(hidden, intermediate), nn.Linear(intermediate, hidden)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, length, hidden = x.shape
        rotated = self.heads + self.kv_heads
        qkv = self.qkv_proj(self.input_layernorm(x)).view(batch, length, -1, self.head_dim)
        first, second = qkv[:, :, :rotated].chunk(2, dim=-1)
        qk = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        q, k = qk.transpose(1, 2).split((self.heads, self.kv_heads), dim=1)  # (batch, heads, length, head_dim)
        v = qkv[:, :, rotated:].transpose(1, 2)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o_proj(a.transpose(1, 2).reshape(batch, length, hidden))
        return x + self.c_proj(F.gelu(self.c_fc(self.post_attention_layernorm(x)), approximate="tanh"))


class Model(nn.Module):
    """StarCoder2's decoder without caches; `model.decoder` runs what this trains (tests compare the two)."""

    def __init__(self, shape: dict[str, int]) -> None:
        super().__init__()
        hidden, layers, heads = shape["hidden_size"], shape["num_hidden_layers"], shape["num_attention_heads"]
        self.embed_tokens = nn.Embedding(shape["vocab_size"], hidden)
        self.layers = nn.ModuleList(
            Block(hidden, shape["intermediate_size"], heads, shape["num_key_value_heads"]) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden)
        head_dim = hidden // heads
        angles = torch.outer(torch.arange(shape["context"]).float(),
                             10000.0 ** (-torch.arange(0, head_dim, 2).float() / head_dim))
        self.register_buffer("cos", angles.cos()[:, None], persistent=False)
        self.register_buffer("sin", angles.sin()[:, None], persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("o_proj.weight", "c_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x, length = self.embed_tokens(ids), ids.shape[1]
        for block in self.layers:
            x = block(x, self.cos[:length], self.sin[:length])
        logits = F.linear(self.norm(x), self.embed_tokens.weight)
        return F.cross_entropy(logits.float().view(-1, logits.shape[-1]), labels.reshape(-1))


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by a quintic Newton-Schulz iteration; the update has AdamW's usual size."""

    def __init__(self, params: Any, lr: float, weight_decay: float, dtype: torch.dtype, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "dtype": dtype, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(momentum, group["momentum"]).to(group["dtype"])
                tall = x.shape[0] > x.shape[1]
                x = x.t().contiguous() if tall else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    a = x @ x.t()
                    x = torch.addmm(x, torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
                x = x.t() if tall else x
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x.float(), alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))


def learning_rate_scale(tokens: int, step: int, config: dict[str, Any]) -> float:
    left = 1 - tokens / config["total_tokens"]
    return min(1.0, (step + 1) / config["warmup_steps"]) * max(0.02, min(1.0, left / config["decay_share"]))


def held_out_batches(tokenizer: Tokenizer, path: Path, rows: int, context: int) -> tuple[list[Any], int]:
    """Plain text of the validation packages, and its size in bytes: loss there is comparable across tokenizers."""
    with path.open() as lines:
        texts = sorted((json.loads(line)["text"] for line in lines), key=lambda t: hash_of(t))
    ids = [i for e in tokenizer.encode_batch(texts) for i in [*e.ids, 0]]
    need = min(len(ids) - 1, HELD_OUT_TOKENS) // (rows * context) * rows * context
    x, y = torch.tensor(ids[:need]), torch.tensor(ids[1 : need + 1])
    size = len(tokenizer.decode(ids[1 : need + 1], skip_special_tokens=True).encode())
    return list(zip(x.view(-1, rows, context), y.view(-1, rows, context), strict=True)), size


def hash_of(text: str) -> int:
    return sum(map(ord, text[:4000])) * 2654435761 % 2**32


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the matmuls have kernels for it; without them it is 200 times slower than float32 on a CPU."""
    native = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    with partial.open("rb") as f:
        os.fsync(f.fileno())
    partial.replace(path)


def main(config_path: Path, data: Path, run: Path) -> None:
    config = tomllib.loads(config_path.read_text())
    shape, train = config["model"], config["train"]
    rows, context = train["rows"], shape["context"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("FIMLS_TRAIN_THREADS", os.cpu_count() or 1)))
    dtype = fastest_dtype(device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
    torch.manual_seed(train["seed"])
    run.mkdir(parents=True, exist_ok=True)

    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    rates = {name: train[name] for name in ("fim_rate", "spm_rate")}
    stream = SampleStream(data / "train.jsonl", tokenizer, context=context, **rates, seed=train["seed"])
    held_out, held_out_bytes = held_out_batches(tokenizer, data / "validation.jsonl", rows, context)

    model = Model(shape).to(device)
    compiled = torch.compile(model)
    parameters = sum(p.numel() for p in model.parameters())
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.dim() == 2 and n != "embed_tokens.weight"]
    others = [p for n, p in named if p.dim() == 1 or n == "embed_tokens.weight"]
    muon = Muon(matrices, train["learning_rate"], train["weight_decay"], dtype)
    adam = torch.optim.AdamW(others, train["learning_rate"], betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    tokens = step = 0
    checkpoint = run / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        stream.restore(state["stream"])
        tokens, step = state["tokens"], state["step"]
        print(f"resumed at step {step}, {tokens / 1e6:.1f}M tokens", flush=True)
    print(f"{parameters / 1e6:.2f}M parameters, {device}, {dtype}, {len(stream.texts)} files", flush=True)

    def held_out_bits_per_byte() -> float:
        with torch.no_grad(), autocast:
            nats = sum(compiled(x.to(device), y.to(device)).item() * x.numel() for x, y in held_out)
        return nats / held_out_bytes / math.log(2)

    def checkpoint_now() -> None:
        bits = held_out_bits_per_byte()
        save(checkpoint, {"model": model.state_dict(), "muon": muon.state_dict(), "adam": adam.state_dict(),
                          "stream": stream.state(), "tokens": tokens, "step": step, "shape": shape, "bits": bits})
        line = {"step": step, "tokens": tokens, "loss": round(smooth, 4), "held_out_bits_per_byte": round(bits, 4),
                "tokens_per_s": round(tokens_per_s), "tflops": round(6 * parameters * tokens_per_s / 1e12, 3)}
        with (run / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(line, flush=True)

    smooth, tokens_per_s = float("nan"), 0.0
    mark_time, mark_tokens = time.monotonic(), tokens
    while tokens < train["total_tokens"]:
        x, y = stream.batch(rows, context)
        scale = learning_rate_scale(tokens, step, train)
        for group in muon.param_groups + adam.param_groups:
            group["lr"] = train["learning_rate"] * scale
        with autocast:
            loss = compiled(x.to(device), y.to(device))
        loss.backward()
        value = loss.item()
        if not math.isfinite(value):
            raise SystemExit(f"The loss is {value} at step {step}; the last checkpoint in {run} is untouched.")
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adam.step()
        model.zero_grad(set_to_none=True)
        smooth = value if math.isnan(smooth) else 0.95 * smooth + 0.05 * value
        step, tokens = step + 1, tokens + x.numel()
        if step == 5:
            mark_time, mark_tokens = time.monotonic(), tokens  # compilation is over
        elapsed = time.monotonic() - mark_time
        if elapsed > train["save_every_s"] or tokens >= train["total_tokens"]:
            tokens_per_s = (tokens - mark_tokens) / max(elapsed, 1e-9)
            checkpoint_now()
            mark_time, mark_tokens = time.monotonic(), tokens


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
