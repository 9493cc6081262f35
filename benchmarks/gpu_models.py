"""The models that benchmarks.gpu measures: StarCoder2's shapes with random weights made on the
device, as ours and as transformers'."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import STARCODER2_3B
from model.decoder.decoder import Decoder
from model.decoder.factory import Factory
from model.decoder.kv_cache import KVCache
from model.families.native.starcoder2 import decoder_config
from model.gpu.cuda_graphs import CudaRecorder, Graphs, add_graphs
from model.precision.bitsandbytes_linear import BitsFactory, BitsLinear

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As the released checkpoints' config.json have them.
RELEASED = {
    "sliding_window": 4096,
    "norm_epsilon": 1e-5,
    "use_bias": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SHAPES: dict[str, dict[str, Any]] = {
    "3b": STARCODER2_3B | RELEASED,
    "7b": STARCODER2_3B
    | RELEASED
    | {
        "hidden_size": 4608,
        "intermediate_size": 18432,
        "num_hidden_layers": 32,
        "num_attention_heads": 36,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    },
}
KIND = {8: "llm.int8", 4: "nf4-double"}  # of bitsandbytes' matrices, by their bits
SPREAD = 0.02  # of the weights, as they are initialized


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device, times: int = 1) -> float:
    """Of one run, from a device at rest to a device at rest, as the mean of so many in a row."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        run()
    synchronize(device)
    return (time.perf_counter() - started) / times


@torch.inference_mode()
def memory_speeds(
    device: torch.device, dtype: torch.dtype, rows: int, width: int
) -> dict[str, float]:
    """Bytes/s of passes over a matrix of such a size."""
    big = torch.randn(rows, width, device=device, dtype=dtype)
    vector, halves = torch.randn(width, device=device, dtype=dtype), big.view(2, -1)
    runs: dict[str, Callable[[], object]] = {
        "sum": lambda: big.view(torch.int32).sum(dtype=torch.int32),
        "copy": lambda: halves[0].copy_(halves[1]),
        "matrix times vector": lambda: big @ vector,
    }
    for run in runs.values():
        seconds(run, device, 3)
    return {
        name: big.nbytes / min(seconds(run, device, 5) for _ in range(4))
        for name, run in runs.items()
    }


@torch.inference_mode()
def make_decoder(
    shape: dict[str, Any], device: torch.device, dtype: torch.dtype, bits: int = 0
) -> Decoder:
    """The same weights at every precision. bits: of bitsandbytes, 8 or 4; 0 leaves floats. No
    graphs yet."""
    with torch.inference_mode(False):
        factory = BitsFactory(device, dtype, KIND[bits]) if bits else Factory(device, dtype)
        decoder = Decoder(decoder_config(shape), factory).eval().requires_grad_(False)
    for number, (name, module) in enumerate(decoder.named_modules()):
        chance = torch.Generator(device).manual_seed(number)
        if isinstance(module, BitsLinear):
            out, width = module.out_features, module.in_features
            module.fill(
                0,
                torch.empty(out, width, device=device, dtype=dtype).normal_(
                    0, SPREAD, generator=chance
                ),
            )
            module.finish()
        elif isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            module.weight.normal_(0, SPREAD, generator=chance)
        elif isinstance(module, torch.nn.LayerNorm):
            module.weight.fill_(1)
        for parameter, tensor in module.named_parameters(recurse=False):
            if parameter == "bias":
                tensor.zero_()
            elif not isinstance(module, torch.nn.Linear | torch.nn.Embedding | torch.nn.LayerNorm):
                raise TypeError(f"{name}.{parameter} of {type(module).__name__} is not filled")
    return decoder


def record(decoder: Decoder) -> None:
    """Gives a decoder its graphs; on a CPU, in tests, the same steps without recording."""
    if decoder.device.type == "cuda":
        add_graphs(decoder)
    else:
        decoder.use_step(Graphs(decoder, None))


def recorder(decoder: Decoder) -> CudaRecorder | None:
    return CudaRecorder(decoder.device) if decoder.device.type == "cuda" else None


def matrices(decoder: Decoder) -> list[BitsLinear]:
    """Those of few bits."""
    return [module for module in decoder.modules() if isinstance(module, BitsLinear)]


def weight_bytes(decoder: Decoder) -> int:
    """What a step reads: all matrices, the head among them; not the embeddings, where they are
    another matrix."""
    total = sum(p.nbytes for p in decoder.parameters()) + sum(m.nbytes for m in matrices(decoder))
    tied = decoder.config.tie_embeddings
    return int(total if tied else total - sum(p.nbytes for p in decoder.embed_tokens.parameters()))


def cache_bytes(decoder: Decoder, length: int) -> int:
    """What a step reads of the cache at such a length: no more than the window."""
    c = decoder.config
    seen = length if c.sliding_window is None else min(length, c.sliding_window)
    return 2 * c.num_layers * c.num_kv_heads * c.head_dim * decoder.dtype.itemsize * seen


def random_ids(count: int, device: torch.device, vocabulary: int, seed: int = 1) -> Tensor:
    return torch.randint(8, vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).to(
        device
    )


@torch.inference_mode()
def cache_of(decoder: Decoder, length: int, room: int) -> KVCache:
    """A cache of random positions."""
    cache = decoder.new_cache(min(length + room, decoder.config.max_positions))
    for held in (cache.keys, cache.values):
        held.normal_()
    cache.commit(length)
    return cache


# ---- transformers ----


def make_reference(shape: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    config = transformers.AutoConfig.for_model(**{"model_type": "starcoder2"} | shape)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="sdpa"
        ).eval()


class Clock:
    """In a streamer's place: when each token was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def reference_speed(model: Any, ids: Tensor, new: int, kind: str) -> float:
    """Tokens/s of transformers' generate behind ids, the first token apart. kind: "dynamic", or
    "static" for its fixed cache and the compiled forward that comes with it; the first run, which
    compiles, does not count."""
    options: dict[str, Any] = {"cache_implementation": "static"} if kind == "static" else {}
    spans = []
    for _ in range(2):
        clock = Clock()
        model.generate(
            ids[None],
            attention_mask=torch.ones_like(ids[None]),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
            **options,
        )
        times = clock.times[1:]  # the first put is the prompt
        spans.append((len(times) - 1) / (times[-1] - times[0]))
    return spans[-1]
