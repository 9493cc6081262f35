"""Trains the bundled model, on CPU or CUDA with the same code.

    python -m training.train training/config.toml training/data training/runs/NAME [--minutes 9]

Muon for the matrices, AdamW for embeddings, norms and biases; warm-up, stable, decay. The schedule
counts tokens, so a run that has to end earlier is stopped and resumed with a smaller total_tokens.
Ctrl-C, a SIGTERM or the end of the minutes leaves a checkpoint; after a kill -9 the run goes on
from the last one with the same losses.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import time
import tomllib
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from fim.formats import FormatError
from model.errors import ModelError
from model.tokenizer import Tokenizer
from training.checkpoint import load, save
from training.corpus.folder import Row
from training.data import Recipe, SampleStream, read_documents
from training.muon import Muon
from training.network import Network, Shape, document_mask

HELD_OUT_TOKENS = 32_768  # looked at with every checkpoint, so few
LOG_EVERY = 10  # steps
T = TypeVar("T")


@dataclass(frozen=True)
class Schedule:
    """[train] of the config."""

    seed: int
    rows: int  # sequences a step
    rows_at_once: int  # of them through the model together: what memory holds
    total_tokens: int
    warmup_steps: int
    decay_share: float  # of total_tokens: linear to nearly zero
    learning_rate: float
    weight_decay: float
    save_every_s: float

    def __post_init__(self) -> None:
        for name in (
            "rows",
            "rows_at_once",
            "total_tokens",
            "warmup_steps",
            "decay_share",
            "learning_rate",
        ):
            if getattr(self, name) <= 0:
                raise SystemExit(f"[train] of the training config: {name} must be positive.")
        if self.rows % self.rows_at_once:
            raise SystemExit(
                f"[train]: rows ({self.rows}) must be a multiple of rows_at_once "
                f"({self.rows_at_once})."
            )

    def learning_rate_at(self, tokens: int, steps: int) -> float:
        """tokens and steps since the run began."""
        left = 1 - tokens / self.total_tokens
        warmth = min(1.0, (steps + 1) / self.warmup_steps)
        return self.learning_rate * warmth * max(0.02, min(1.0, left / self.decay_share))


def section(kind: type[T], name: str, values: dict[str, Any]) -> T:
    """A section of the config as its dataclass. Exits naming the key that is missing, unknown or no
    number."""
    if not isinstance(values, dict):
        raise SystemExit(f"[{name}] of the training config must be a table.")
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if wrong := known ^ values.keys():
        raise SystemExit(
            f"[{name}] of the training config: {', '.join(sorted(wrong))} missing or unknown."
        )
    for f in fields(kind):  # type: ignore[arg-type]
        wanted = (int,) if f.type == "int" else (int, float)
        if type(values[f.name]) not in wanted:
            kind_of = "whole number" if f.type == "int" else "number"
            raise SystemExit(f"[{name}] of the training config: {f.name} must be a {kind_of}.")
    return kind(**values)


def held_out_batches(
    tokenizer: Tokenizer, documents: list[Row], rows: int, context: int
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], int]:
    """Plain text of the validation packages, and its size in bytes: loss there is comparable across
    tokenizers."""
    texts = [d.text for d in documents]
    random.Random(0).shuffle(texts)
    ids: list[int] = []
    enough = max(HELD_OUT_TOKENS, rows * context)
    for text in texts:
        if len(ids) > enough:
            break
        ids += [*tokenizer.encode(text), 0]
    need = min(len(ids) - 1, enough) // (rows * context) * rows * context
    if not need:
        raise SystemExit(
            "The validation packages are smaller than one batch: lower rows_at_once or build the "
            "corpus."
        )
    x, y = torch.tensor(ids[:need]), torch.tensor(ids[1 : need + 1])
    size = len(tokenizer.decode([i for i in ids[1 : need + 1] if i]).encode())
    return list(zip(x.view(-1, rows, context), y.view(-1, rows, context), strict=True)), size


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the matmuls have kernels for it; without them it is 200 times slower than
    float32 on a CPU."""
    native = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: what utilization is measured by."""
    size = 8192 if device.type == "cuda" else 1024
    a, best = torch.randn(size, size, device=device, dtype=dtype), math.inf
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def free_memory() -> int | None:
    """Bytes; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None
    )


def check_memory(shape: Shape, train: Schedule, device: torch.device) -> None:
    """Exits with the figures where the run cannot fit; a rough lower bound, so that what passes may
    still fail."""
    places = train.rows_at_once * shape.context
    need = 16 * shape.parameters + 4 * places * (
        shape.vocab_size + 8 * shape.num_hidden_layers * shape.hidden_size
    )
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory() or need
    if need > free:
        raise SystemExit(
            f"This run needs at least {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: lower "
            "rows_at_once or the model's size in the training config."
        )


class Stopper:
    """True once the user or the clock asks the run to end; a second Ctrl-C ends it at once."""

    def __init__(self, minutes: float) -> None:
        self._deadline = time.monotonic() + 60 * minutes
        self._asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True
        signal.signal(number, signal.SIG_DFL)

    def __call__(self) -> bool:
        return self._asked or time.monotonic() > self._deadline


class Trainer:
    """The network, its optimizers and its place in the corpus: all that a checkpoint holds."""

    def __init__(
        self,
        shape: Shape,
        train: Schedule,
        stream: SampleStream,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.shape, self.train, self.stream, self.device = shape, train, stream, device
        self.dtype = dtype
        self.autocast = torch.autocast(
            device.type, self.dtype, enabled=self.dtype is not torch.float32
        )
        check_memory(shape, train, device)
        self.network = Network(shape).to(device)
        self.compiled: Callable[..., torch.Tensor] = torch.compile(self.network)
        self.make_mask = torch.compile(document_mask) if device.type == "cuda" else document_mask
        named = list(self.network.named_parameters())
        matrices = [p for n, p in named if p.dim() == 2 and n != "embed_tokens.weight"]
        others = [p for n, p in named if p.dim() == 1 or n == "embed_tokens.weight"]
        self.muon = Muon(matrices, train.learning_rate, train.weight_decay, self.dtype)
        self.adam = torch.optim.AdamW(
            others, train.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self.tokens = self.steps = 0

    def state(self) -> dict[str, Any]:
        return {
            "model": self.network.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "stream": self.stream.state(),
            "tokens": self.tokens,
            "step": self.steps,
            "shape": asdict(self.shape),
        }

    def restore(self, state: dict[str, Any]) -> None:
        fixed = {
            k: v for k, v in asdict(self.shape).items() if k != "context"
        }  # positions hold no weights
        if {k: state["shape"].get(k) for k in fixed} != fixed:
            raise SystemExit(
                f"The checkpoint's shape is {state['shape']}, not the config's: name a new run "
                "folder."
            )
        self.network.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        for group in self.muon.param_groups:  # the config's, not the checkpoint's
            group.update(weight_decay=self.train.weight_decay, dtype=self.dtype)
        self.stream.restore(state["stream"])
        self.tokens, self.steps = state["tokens"], state["step"]

    def step(self) -> float:
        """One update; returns its loss in nats a token. Where loss or gradient is not finite,
        nothing is applied."""
        rate = self.train.learning_rate_at(self.tokens, self.steps)
        for group in self.muon.param_groups + self.adam.param_groups:
            group["lr"] = rate
        ids, labels, documents = (
            t.to(self.device, non_blocking=True) for t in self.stream.batch(self.train.rows)
        )
        total = torch.zeros((), device=self.device)
        pieces = self.train.rows // self.train.rows_at_once
        for x, y, owner in zip(
            ids.chunk(pieces), labels.chunk(pieces), documents.chunk(pieces), strict=True
        ):
            with self.autocast:
                loss = self.compiled(x, y, self.make_mask(owner)) / pieces
            loss.backward()
            total += loss.detach()
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), 1.0))
        value = total.item() if math.isfinite(norm) else math.inf
        if math.isfinite(value):
            self.muon.step()
            self.adam.step()
        self.network.zero_grad(set_to_none=True)
        self.steps, self.tokens = self.steps + 1, self.tokens + ids.numel()
        return value

    @torch.no_grad()
    def bits_per_byte(self, batches: list[tuple[torch.Tensor, torch.Tensor]], size: int) -> float:
        with self.autocast:
            nats = sum(
                self.compiled(x.to(self.device), y.to(self.device)).item() * x.numel()
                for x, y in batches
            )
        return nats / size / math.log(2)


class Log:
    """log.jsonl of a run, a line every LOG_EVERY steps and one a checkpoint; and a line on the
    terminal."""

    def __init__(self, path: Path, steps: int) -> None:
        """Forgets what was written after the step that the run goes on from."""
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= steps]
        path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, line: dict[str, object]) -> None:
        try:
            with self.path.open("a") as f:
                f.write(json.dumps(line) + "\n")
        except OSError as error:  # a full disk is no reason to end a run
            print(f"{self.path} lacks step {line['step']}: {error.strerror}", flush=True)

    def show(self, text: str, *, lasting: bool) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="\n" if lasting else "", file=sys.stderr, flush=True)
        elif lasting:
            print(text, file=sys.stderr, flush=True)


def run(
    config_path: Path, data: Path, folder: Path, minutes: float, in_float32: bool = False
) -> None:
    try:
        config = tomllib.loads(config_path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SystemExit(f"{config_path} cannot be read: {error}") from None
    shape = section(Shape, "model", config.get("model", {}))
    train = section(Schedule, "train", config.get("train", {}))
    recipe = section(Recipe, "samples", config.get("samples", {}))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(train.seed)
    torch.set_float32_matmul_precision("high")
    folder.mkdir(parents=True, exist_ok=True)

    documents = read_documents(data / "train.jsonl")
    workers = max(1, (os.cpu_count() or 2) - 2) if device.type == "cuda" else 0
    tokenizer = (
        folder / "tokenizer.json"
    )  # the run's own: the corpus may be built anew while it lasts
    if not tokenizer.exists():
        shutil.copyfile(data / "tokenizer.json", tokenizer)
    stream = SampleStream(
        documents, tokenizer, context=shape.context, recipe=recipe, seed=train.seed, workers=workers
    )
    if stream.tokenizer.vocab_size > shape.vocab_size:
        raise SystemExit(
            f"vocab_size is {shape.vocab_size}, the tokenizer has {stream.tokenizer.vocab_size} "
            "entries."
        )
    held_out, held_out_bytes = held_out_batches(
        stream.tokenizer,
        read_documents(data / "validation.jsonl"),
        train.rows_at_once,
        shape.context,
    )
    dtype = torch.float32 if in_float32 else fastest_dtype(device)
    trainer = Trainer(shape, train, stream, device, dtype)
    if state := load(folder):
        trainer.restore(state)
        print(f"resumed at step {trainer.steps}, {trainer.tokens / 1e6:.1f}M tokens", flush=True)
    log = Log(folder / "log.jsonl", trainer.steps)
    parameters = sum(p.numel() for p in trainer.network.parameters())
    peak, flops = matmul_peak(device, trainer.dtype), trainer.network.flops_per_token()
    print(
        f"{parameters / 1e6:.2f}M parameters, {device}, {trainer.dtype}, a matmul at "
        f"{peak / 1e12:.2f} TFLOP/s, "
        f"{len(documents)} files",
        flush=True,
    )

    if trainer.tokens >= train.total_tokens:
        print(
            f"total_tokens ({train.total_tokens:,}) has been reached: raise it to go on.",
            flush=True,
        )
    stop = Stopper(minutes)
    losses: list[float] = []
    since = saved = time.monotonic()
    since_tokens = trainer.tokens
    while trainer.tokens < train.total_tokens:
        loss = trainer.step()
        if not math.isfinite(loss):
            raise SystemExit(
                f"The loss is {loss} at step {trainer.steps}; the checkpoint in {folder} is from "
                "before. "
                "Resume with a lower learning_rate."
            )
        losses.append(loss)
        ended = stop() or trainer.tokens >= train.total_tokens
        if trainer.steps % LOG_EVERY and not ended:
            continue
        mean, losses = sum(losses) / len(losses), []
        now = time.monotonic()
        speed, since, since_tokens = (
            (trainer.tokens - since_tokens) / (now - since),
            now,
            trainer.tokens,
        )
        log.write(
            {
                "step": trainer.steps,
                "tokens": trainer.tokens,
                "loss": round(mean, 4),
                "tokens_per_s": round(speed),
            }
        )
        line = progress(trainer, mean, speed, flops / peak)
        log.show(line, lasting=False)
        if ended or now - saved > train.save_every_s:
            bits = trainer.bits_per_byte(held_out, held_out_bytes)
            save(folder, trainer.state() | {"bits": bits})
            log.write(
                {
                    "step": trainer.steps,
                    "tokens": trainer.tokens,
                    "held_out_bits_per_byte": round(bits, 4),
                }
            )
            log.show(f"{line} · {bits:.4f} bits a byte held out", lasting=True)
            saved = since = time.monotonic()
        if ended:
            break
    stream.close()


def progress(trainer: Trainer, loss: float, speed: float, utilization: float) -> str:
    """utilization: the share of the machine's matmul peak that one token a second uses."""
    total = trainer.train.total_tokens
    left = (total - trainer.tokens) / speed / 60
    done = int(20 * trainer.tokens / total)
    return (
        f"{'█' * done}{'·' * (20 - done)} {trainer.tokens / 1e6:.2f} of {total / 1e6:.0f}M tokens "
        "· "
        f"loss {loss:.3f} · {speed:,.0f} tokens/s · MFU {100 * speed * utilization:.0f}% · "
        f"{left:.0f} min left"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("config", "data", "run"):
        parser.add_argument(name, type=Path)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop, with a checkpoint, after this time"
    )
    parser.add_argument(
        "--float32",
        action="store_true",
        help="also where bfloat16 is faster, with which a resumed run's losses may differ a little",
    )
    options = parser.parse_args()
    try:
        run(options.config, options.data, options.run, options.minutes, options.float32)
    except torch.OutOfMemoryError:
        raise SystemExit(
            "The device's memory is full: lower rows_at_once in the training config."
        ) from None
    except BrokenProcessPool:
        raise SystemExit(
            "A process that prepares data died, likely for want of memory: free some, resume."
        ) from None
    except (ModelError, FormatError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
