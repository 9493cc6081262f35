"""One of two processes that share decoders: `two_processes.py FOLDER RANK`, started by
test_tensor_parallel.

Loads each model in the folder whole and shared, and writes how far they are apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from model import LoadedModel, load_model
from model.decoder.decoder import Decoder
from model.decoder.factory import Factory
from model.placement.shares import Share, SharedCheckpoint
from model.placement.tensor_parallel import ParallelDecoder
from model.weights.checkpoint import Checkpoint

CPU = torch.device("cpu")


def run(folder: Path, rank: int) -> None:
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "store").as_uri(),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    models = sorted(path for path in folder.iterdir() if path.is_dir())
    found = {path.name: measure(path) for path in models}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    with contextlib.suppress(RuntimeError):  # the other one may be gone
        dist.barrier()
    os._exit(0)  # gloo's threads sometimes abort an interpreter that ends


def measure(folder: Path) -> dict[str, object]:
    """The largest differences between a whole and a shared decoder, and what this process has."""
    group = dist.group.WORLD
    assert group is not None
    whole = load_model(folder, device="cpu", dtype="float32")
    checkpoint = Checkpoint.open(whole.folder)
    factory = Factory(CPU, torch.float32)
    share = Share.of(checkpoint.config, group)
    decoder = ParallelDecoder(share, factory, group)
    with torch.no_grad():
        SharedCheckpoint.of(checkpoint, share).fill(decoder, factory, lambda share: None)
    shared = LoadedModel(whole.folder, whole.tokenizer, decoder)
    ids = torch.arange(10, 60)[None]
    # First, since what is made for inference once is of no use for gradients.
    gradients = gradients_apart(whole.decoder, decoder, checkpoint, ids)
    answers = [answer(model, ids[0, :12].tolist()) for model in (whole, shared)]
    cache = decoder.new_cache()
    with torch.inference_mode():
        expected = whole.decoder(ids).logits
        pieces = [decoder(piece, cache=cache).logits for piece in ids.split((30, 19, 1), dim=1)]
        apart = {
            "logits": distance(decoder(ids).logits, expected),
            "cached": distance(torch.cat(pieces, dim=1), expected),
            "gradients": gradients,
        }
    return {
        "apart": apart,
        "answers": answers,
        "kv_heads": cache.keys.shape[1],
        "layer": sum(p.numel() for p in decoder.layers[0].parameters()),
        "whole layer": sum(p.numel() for p in whole.decoder.layers[0].parameters()),
    }


def answer(model: LoadedModel, ids: list[int]) -> list[int]:
    return [token.id for token in model.generate(ids, max_new_tokens=20)]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def gradients_apart(
    whole: Decoder, decoder: ParallelDecoder, checkpoint: Checkpoint, ids: torch.Tensor
) -> float:
    """The largest difference of any weight's gradients, beside the largest of that weight."""
    seed = torch.Generator().manual_seed(0)
    weights = torch.randn(1, ids.shape[1], checkpoint.config.vocab_size, generator=seed)
    for model in (whole, decoder):
        model.requires_grad_(True)
        (model(ids).logits * weights).mean().backward()
    worst = 0.0
    shared = SharedCheckpoint.of(checkpoint, decoder.share)
    compared = 0
    for slot in checkpoint.table.values():
        gradient = part_of(whole, slot.parameter, slot.first_row, slot.shape)
        found = decoder.share.cut(slot, gradient)
        if found is None:
            continue
        first, expected = found
        own = part_of(decoder, slot.parameter, first, tuple(expected.shape))
        worst = max(worst, distance(own, expected) / float(gradient.abs().max()))
        compared += 1
    assert compared == len(shared.table)
    return worst


def part_of(decoder: Decoder, parameter: str, first: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The gradient of some rows of a parameter."""
    gradient = decoder.get_parameter(parameter).grad
    assert gradient is not None
    rows = 1 if gradient.dim() > len(shape) else shape[0]
    return gradient[first : first + rows].reshape(shape)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
