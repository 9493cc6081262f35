"""What rounded weights cost: exact match of a model's greedy answers at each precision.

    python -m benchmarks.precisions [FOLDER|FILE.jsonl] [--model bundled]
    [--precisions float32,int8,int4] [--samples 600] [--tokens 512] [--seed 0]

Of each place one pass over the prompt and the text that stood there tells whether a greedy answer
would be that text, token by token: as exact as decoding, and much faster. Prompts are the
product's, at most --tokens long, and answers are healed as there. "gained" and "lost" are places
that are right at one precision, but not at the first, and the other way round. "blocks" are a GGUF
file's own.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.figures import machine, table
from benchmarks.sides import dtype_and_quantization
from fim.evaluation.samples import TASKS, Sample, Task, draw
from lsp_server.commands.evaluation.contestants import ONE_LINE, snapshot_of
from lsp_server.commands.source_files import read_packages
from lsp_server.folders import cache_folder
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings
from model import LoadedModel, load_model
from model.cpu.upgrade import upgrade_now
from model.generation.token_healing import TokenHealing


@dataclass
class Found:
    """What one precision makes of the places of a task."""

    right: list[bool] = field(default_factory=list)
    nats: float = 0.0
    tokens: int = 0


def load(name: str, precision: str) -> LoadedModel:
    dtype, quantization = dtype_and_quantization(precision)
    model = load_model(name, "cpu", dtype, quantization, measured=cache_folder())
    upgrade_now(model.decoder, cache_folder())
    return model


@torch.inference_mode()
def look(
    model: LoadedModel, prompt: list[int], begin_with: str, answer: list[int], found: Found
) -> None:
    decoder = model.decoder
    cache = decoder.new_cache()
    for start in range(0, len(prompt) - 1, decoder.prefill_chunk):
        ids = prompt[start : min(start + decoder.prefill_chunk, len(prompt) - 1)]
        decoder(torch.tensor([ids]), cache=cache, logits_to_keep=1)
    ids = prompt[-1:] + answer[:-1]
    logits = decoder(torch.tensor([ids]), cache=cache, logits_to_keep=len(answer)).logits
    if begin_with:  # as the product limits the first tokens
        healing = TokenHealing(model.spelling, begin_with)
        for scores, token in zip(logits[0].numpy(), answer, strict=True):
            healing.process(scores)
            healing.take(model.tokenizer.decode([token]))
    wanted = torch.tensor(answer)
    *firsts, last = logits[0].argmax(-1).tolist()
    # The line's end may be part of the last token: the product cuts there.
    text, best = model.tokenizer.decode(answer[-1:]), model.tokenizer.decode([last])
    ends = last == answer[-1] or best.startswith(text + "\n")
    found.right.append(firsts == answer[:-1] and ends)
    found.nats += float(
        torch.nn.functional.cross_entropy(logits[0].float(), wanted, reduction="sum")
    )
    found.tokens += len(answer)


def look_at_all(
    model: LoadedModel, prompter: Prompter, settings: Settings, samples: list[Sample]
) -> Found:
    found = Found()
    for sample in samples:
        context = prompter.context(snapshot_of(sample), settings, sample.path)
        asked, _ = prompter.request(context, settings, "precisions")
        assert not isinstance(asked.prompt, str)
        answer = model.tokenizer.encode(asked.begin_with + sample.middle)
        if answer:
            look(model, list(asked.prompt), asked.begin_with, answer, found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--precisions", default="float32,int8,int4")
    parser.add_argument("--tasks", default=",".join(ONE_LINE))
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    packages = read_packages(options.path)
    tasks: list[Task] = [task for task in TASKS if task in options.tasks.split(",")]
    places = {task: draw(packages, task, options.samples, options.seed) for task in tasks}
    settings = Settings(model=options.model, context_tokens=options.tokens)
    prompter = Prompter.for_settings(settings)
    print(f"{machine()}\n{options.model}; {options.samples} places a task\n")
    rows: list[list[object]] = []
    first: dict[str, Found] = {}
    for precision in options.precisions.split(","):
        model = load(options.model, precision)
        for task in tasks:
            found = look_at_all(model, prompter, settings, places[task])
            reference = first.setdefault(task, found)
            pairs = list(zip(reference.right, found.right, strict=True))
            share = f"{100 * sum(found.right) / len(found.right):.2f}%"
            changes = pairs.count((False, True)), pairs.count((True, False))
            rows.append(
                [
                    precision,
                    model.decoder.scheme,
                    task,
                    share,
                    *changes,
                    f"{found.nats / found.tokens:.4f}",
                ]
            )
            print(rows[-1], flush=True)
        del model
        gc.collect()
    print(
        table(
            ["precision", "weights", "task", "exact match", "gained", "lost", "nats a token"], rows
        )
    )


if __name__ == "__main__":
    main()
