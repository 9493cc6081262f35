"""One of two processes that share decoders: `two_processes.py FOLDER RANK`, started by
test_tensor_parallel.

Loads each model in the folder whole and shared, and writes how far they are apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from model import LoadedModel, load_model
from model.decoder.decoder import Decoder
from model.families.registry import FAMILIES
from model.families.weight_table import WeightSlot
from model.heads import CausalLM, TokenClassifier
from model.placement.tensor_parallel import ParallelDecoder

FLOAT32 = {"device": "cpu", "dtype": "float32"}


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
    whole = load_model(folder, **FLOAT32)
    shared = load_model(folder, **FLOAT32, tensor_parallel=group)
    ids = torch.arange(10, 60)[None]
    answers = [answer(model, ids[0, :12].tolist()) for model in (whole, shared)]
    cache = shared.decoder.new_cache()
    with torch.inference_mode():
        expected = whole.decoder(ids).logits
        pieces = ids.split((30, 19, 1), dim=1)
        cached = [shared.decoder(piece, cache=cache).logits for piece in pieces]
        apart = {
            "logits": distance(shared.decoder(ids).logits, expected),
            "cached": distance(torch.cat(cached, dim=1), expected),
        }
    apart |= heads_apart(folder, group)
    return {
        "apart": apart,
        "answers": answers,
        "kv_heads": cache.keys.shape[1],
        "layer": sum(p.numel() for p in shared.decoder.layers[0].parameters()),
        "whole layer": sum(p.numel() for p in whole.decoder.layers[0].parameters()),
    }


def heads_apart(folder: Path, group: dist.ProcessGroup) -> dict[str, float]:
    """The largest differences between heads, whole and shared, and between what was read and what
    is saved after that."""
    whole = CausalLM.load(folder, device="cpu")
    shared = CausalLM.load(folder, device="cpu", tensor_parallel=group)
    ids = torch.arange(10, 60).view(2, 25)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    results = [m(ids, attention_mask=mask, labels=ids) for m in (whole, shared)]
    for result in results:
        result.loss.backward()
    shared.save(folder.with_suffix(".saved"))
    dist.barrier()  # the first process has written it
    again = CausalLM.load(folder.with_suffix(".saved"), device="cpu")
    stored = zip(again.parameters(), whole.parameters(), strict=True)
    torch.manual_seed(dist.get_rank())  # the new weights are the first process's all the same
    classifier = TokenClassifier.load(folder, device="cpu", tensor_parallel=group)
    new = [torch.empty_like(classifier.score.weight) for _ in range(2)]
    dist.all_gather(new, classifier.score.weight.detach())
    return {
        "batch": distance(results[1].logits[mask == 1], results[0].logits[mask == 1]),
        "loss": distance(results[1].loss, results[0].loss),
        "gradients": gradients_apart(whole, shared),
        "saved": max(distance(a, b) for a, b in stored),
        "new weights": distance(*new),
    }


def answer(model: LoadedModel, ids: list[int]) -> list[int]:
    return [token.id for token in model.generate(ids, max_new_tokens=20)]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).detach().abs().max())


def gradients_apart(whole: CausalLM, shared: CausalLM) -> float:
    """The largest difference of any weight's gradients, beside the largest of that weight."""
    decoder = shared.decoder
    assert isinstance(decoder, ParallelDecoder)
    family = FAMILIES[whole.files.model_type]
    worst = 0.0
    compared = 0
    for slot in family.weight_table(whole.decoder.config).values():
        gradient = slot.read(gradient_of(whole.decoder, slot))
        found = decoder.share.cut(slot, gradient)
        if found is None:
            continue
        first, expected = found
        own = replace(slot, first_row=first, shape=tuple(expected.shape))
        difference = distance(own.read(gradient_of(decoder, own)), expected)
        worst = max(worst, difference / float(gradient.abs().max()))
        compared += 1
    assert compared == len(family.weight_table(decoder.config))
    return worst


def gradient_of(decoder: Decoder, slot: WeightSlot) -> torch.Tensor:
    gradient = decoder.get_parameter(slot.parameter).grad
    assert gradient is not None
    return gradient


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
