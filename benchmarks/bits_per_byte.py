"""The loss of a model, in bits per byte, on plain text of packages that it was never trained on.

    python -m benchmarks.bits_per_byte [FOLDER|FILE.jsonl] [--split test] [--model bundled]
    [--windows 120]

Every package counts alike. `fimls eval` measures exact match.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import torch

from lsp_server.commands.source_files import Packages, read_packages
from model import LoadedModel, load_model


def bits_per_byte(model: LoadedModel, packages: Packages, windows: int, seed: int) -> float:
    """Over windows of the model's length, each from a random file of a random package."""
    rng, nats, size = random.Random(seed), 0.0, 0
    names, length = sorted(packages), model.decoder.config.max_positions
    with torch.inference_mode():
        for _ in range(windows):
            _, text = rng.choice(packages[rng.choice(names)])
            ids = model.tokenizer.encode(text)
            start = rng.randrange(max(1, len(ids) - length))
            ids = [0, *ids[start : start + length - 1]]
            log_probabilities = (
                model.decoder(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
            )
            nats -= float(log_probabilities.gather(1, torch.tensor(ids[1:])[:, None]).sum())
            size += len(model.tokenizer.decode(ids[1:]).encode())
    return nats / size / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("where", type=Path, nargs="?")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--windows", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = load_model(options.model)
    packages = read_packages(options.where, options.split)
    parameters = sum(p.numel() for p in model.decoder.parameters())
    size = sum(f.stat().st_size for f in model.folder.path.iterdir() if f.is_file())
    print(
        f"{parameters / 1e6:.2f}M parameters, {size / 1e6:.1f} MB, {model.decoder.dtype}, "
        f"{len(packages)} packages"
    )
    print(f"bits a byte: {bits_per_byte(model, packages, options.windows, options.seed):.3f}")


if __name__ == "__main__":
    main()
