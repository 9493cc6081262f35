"""Compares answers that should be equal: from warm and cold caches, with and without drafts, in
int8 and float32.

    python -m benchmarks.agreement [--model bundled] [--samples 200] [--tokens 32] [--seed 0]

Greedy answers at places of the held-out packages (in a clone without them, of this repository's own
files), with the product's prompts, healing and copying. A cold cache computes the prompt at once; a
warm one in two parts, split at a random place, or its last 64 ids in steps of one to eight, as
typing does. "text" is the share of answers that are the same as the cold one's; "log-probability"
the largest difference of a token's, among those answers.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.figures import machine, table
from lsp_server.commands.errors import CommandError
from lsp_server.commands.source_files import read_packages
from lsp_server.documents import Snapshot
from lsp_server.folders import cache_folder
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings
from model import LoadedModel, load_model
from model.cpu.upgrade import upgrade_now
from model.decoder.kv_cache import KVCache
from model.generation.copying import CopyWeights
from model.generation.drafting import DraftHistory
from model.generation.generate import DecodeCounts, Token

OWN = Path(__file__).parent.parent / "lsp_server"
TYPED = 64  # ids
Way = Callable[[LoadedModel, Sequence[int], random.Random], KVCache | None]


def cold(model: LoadedModel, ids: Sequence[int], rng: random.Random) -> KVCache | None:
    return None


@torch.inference_mode()
def split(model: LoadedModel, ids: Sequence[int], rng: random.Random) -> KVCache | None:
    cache = model.decoder.new_cache()
    model.decoder(torch.tensor([ids[: rng.randrange(1, len(ids))]]), cache=cache, logits_to_keep=1)
    return cache


@torch.inference_mode()
def typed(model: LoadedModel, ids: Sequence[int], rng: random.Random) -> KVCache | None:
    cache = model.decoder.new_cache()
    model.decoder(torch.tensor([ids[: max(1, len(ids) - TYPED)]]), cache=cache, logits_to_keep=1)
    while cache.length < len(ids) - 1:
        end = min(cache.length + rng.randint(1, 8), len(ids) - 1)
        model.decoder(torch.tensor([ids[cache.length : end]]), cache=cache, logits_to_keep=1)
    return cache


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        packages, where = read_packages(None), "held-out packages"
    except CommandError:
        packages, where = read_packages(OWN), "this repository's files"
    rng = random.Random(options.seed)
    settings = Settings(model=options.model, max_tokens=options.tokens)
    prompter = Prompter.for_settings(settings)
    copying = CopyWeights(**prompter.copying) if prompter.copying else None
    plain = load_model(options.model, "cpu", "float32")
    int8 = load_model(options.model, "cpu", quantization="int8", measured=cache_folder())
    upgrade_now(int8.decoder, cache_folder())
    counts = DecodeCounts()
    history = DraftHistory(int8.decoder.row_costs, int8.decoder.cache_costs)

    def ask(model: LoadedModel, way: Way, drafts: DraftHistory | None = None) -> list[Token]:
        return list(
            model.generate(
                ids,
                max_new_tokens=options.tokens,
                cache=way(model, ids, rng),
                stop_ids=asked.stop_ids,
                begin_with=asked.begin_with,
                copying=copying,
                history=drafts,
                counts=counts if drafts else None,
            )
        )

    same: dict[str, int] = {}
    widest: dict[str, float] = {}
    for _ in range(options.samples):
        _, text = rng.choice(packages[rng.choice(sorted(packages))])
        snapshot = Snapshot("file:///a.py", 1, "python", text, rng.randrange(len(text) + 1))
        asked, _ = prompter.request(
            prompter.context(snapshot, settings, None), settings, "agreement"
        )
        assert not isinstance(asked.prompt, str)
        ids = asked.prompt
        if len(ids) < 2:
            continue
        reference, other = ask(int8, cold), ask(plain, cold)
        for name, found, wanted in (
            ("int8, warm: two parts", ask(int8, split), reference),
            ("int8, warm: typed", ask(int8, typed), reference),
            ("int8, cold, with drafts", ask(int8, cold, history), reference),
            ("float32, warm: two parts", ask(plain, split), other),
            ("float32, warm: typed", ask(plain, typed), other),
            ("int8, cold, beside float32", reference, other),
        ):
            agree = [t.id for t in found] == [t.id for t in wanted]
            same[name] = same.get(name, 0) + agree
            gaps = (
                [abs(a.logprob - b.logprob) for a, b in zip(found, wanted, strict=True)]
                if agree
                else []
            )
            widest[name] = max([widest.get(name, 0.0), *gaps])
    print(
        f"{machine()}\n{int8.decoder.scheme}; {options.samples} places of {where}, "
        f"{options.tokens} tokens each\n"
    )
    rows = [[name, f"{n / options.samples:.1%}", f"{widest[name]:.2g}"] for name, n in same.items()]
    print(table(["", "text", "log-probability"], rows))
    print(
        f"\ndrafts: {counts.passes} passes behind the prefill, {counts.accepted} of "
        f"{counts.drafted} tokens came true"
    )


if __name__ == "__main__":
    main()
