"""How good the bundled model is, on packages that it was never trained on.

    python -m benchmarks.quality training/data [--samples 500] [--model bundled]

Bits a byte on plain text of the test packages, and exact match of the rest of a line, through the whole product
(context window, post-processing), per layout, beside a copy baseline: what follows the longest match, in the text
around, of what stands before the cursor. *line*: the cursor stands after the indentation; *column*: anywhere inside.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import random
from pathlib import Path

import torch

from fim import Layout, Shaper, Suggestion
from lsp_server.completer import Prompter
from lsp_server.documents import Snapshot
from lsp_server.settings import parse
from model import LoadedModel, load_model

MAX_TOKENS = 48
BASELINE_BEFORE, BASELINE_AFTER = 8000, 4000  # characters that the copy baseline looks at


@dataclasses.dataclass(frozen=True)
class Sample:
    task: str
    package: str
    text: str  # without the middle
    offset: int
    middle: str


def read(path: Path) -> dict[str, list[str]]:
    """Package -> its files."""
    packages: dict[str, list[str]] = {}
    with path.open() as lines:
        for line in lines:
            record = json.loads(line)
            packages.setdefault(record["package"], []).append(record["text"])
    return packages


def make_samples(packages: dict[str, list[str]], task: str, count: int, seed: int) -> list[Sample]:
    """Every package counts alike: its name is drawn first, then a file, then a line of code."""
    rng, samples = random.Random(f"{seed} {task}"), []
    names = sorted(packages)
    while len(samples) < count:
        package = rng.choice(names)
        text = rng.choice(packages[package])
        lines = text.split("\n")
        number = rng.randrange(len(lines))
        line = lines[number]
        indent = len(line) - len(line.lstrip())
        if len(line.strip()) < 4 or line.strip().startswith("#"):
            continue
        column = indent if task == "line" else rng.randrange(indent + 1, len(line))
        offset = sum(len(x) + 1 for x in lines[:number]) + column
        middle = line[column:]
        samples.append(Sample(task, package, text[:offset] + text[offset + len(middle):], offset, middle))
    return samples


def copy_baseline(sample: Sample) -> str:
    """The rest of the line after the longest match (2 characters or more) of what stands before the cursor."""
    before = sample.text[max(0, sample.offset - BASELINE_BEFORE) : sample.offset]
    after = sample.text[sample.offset : sample.offset + BASELINE_AFTER]
    haystack = before[:-1] + "\0" + after
    for length in range(min(64, len(before)), 1, -1):
        at = haystack.rfind(before[-length:])
        if at >= 0:
            return haystack[at + length :].split("\n", 1)[0].split("\0", 1)[0]
    return ""


def complete(model: LoadedModel, prompter: Prompter, sample: Sample) -> Suggestion:
    snapshot = Snapshot("file:///sample.py", 1, "python", sample.text, sample.offset)
    context = prompter.context(snapshot, MAX_TOKENS, None)
    asked, _ = prompter.request(context)
    assert not isinstance(asked.prompt, str)
    shaper = Shaper.at(context, prompter.format, multiline="never")
    text, logprobs = "", []
    for token in model.generate(
        asked.prompt, max_new_tokens=MAX_TOKENS, stop_ids=asked.stop_ids, begin_with=asked.begin_with
    ):
        text += token.text
        logprobs.append(token.logprob)
        if shaper.done(text):
            break
    return shaper.shape(text, sum(logprobs) / max(len(logprobs), 1))


def bits_per_byte(model: LoadedModel, packages: dict[str, list[str]], windows: int, seed: int) -> float:
    rng, nats, size = random.Random(seed), 0.0, 0
    names, length = sorted(packages), model.decoder.config.max_positions
    with torch.inference_mode():
        for _ in range(windows):
            ids = model.tokenizer.encode(rng.choice(packages[rng.choice(names)]))
            start = rng.randrange(max(1, len(ids) - length))
            ids = [0, *ids[start : start + length - 1]]
            log_probabilities = model.decoder(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
            nats -= float(log_probabilities.gather(1, torch.tensor(ids[1:])[:, None]).sum())
            size += len(model.tokenizer.decode(ids[1:]).encode())
    return nats / size / math.log(2)


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95% interval, in percent."""
    z, share = 1.96, hits / count
    centre, spread = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return tuple(100 * (centre + s * spread) / (1 + z * z / count) for s in (-1, 1))  # type: ignore[return-value]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = load_model(options.model)
    packages = read(options.data / f"{options.split}.jsonl")
    parameters = sum(p.numel() for p in model.decoder.parameters())
    size = sum(f.stat().st_size for f in model.folder.path.iterdir() if f.is_file())
    print(f"{parameters / 1e6:.2f}M parameters, {size / 1e6:.1f} MB, {model.decoder.dtype}, {len(packages)} packages")
    print(f"bits a byte: {bits_per_byte(model, packages, 120, options.seed):.3f}")
    for task in ("line", "column"):
        samples = make_samples(packages, task, options.samples, options.seed)
        report(task, "copy baseline", samples, [copy_baseline(s) for s in samples])
        layouts: tuple[Layout, ...] = ("spm", "psm")
        for layout in layouts:
            settings, _ = parse({"model": options.model, "layout": layout})
            prompter = Prompter.for_settings(settings)
            found = [complete(model, prompter, s) for s in samples]
            report(task, layout, samples, [f.text for f in found])
            if layout == "spm":
                report_gate(task, samples, found)


def same(guess: str, sample: Sample) -> bool:
    return guess.rstrip() == sample.middle.rstrip()


def report(task: str, name: str, samples: list[Sample], guesses: list[str]) -> None:
    hits = sum(map(same, guesses, samples))
    low, high = interval(hits, len(samples))
    share = 100 * hits / len(samples)
    print(f"{task:7} {name:14} exact match {share:5.1f}%  [{low:.1f}, {high:.1f}] of {len(samples)}", flush=True)


def report_gate(task: str, samples: list[Sample], found: list[Suggestion]) -> None:
    """What the setting minConfidence would show, and how much of that is right."""
    for threshold in (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        shown = [(f, s) for f, s in zip(found, samples, strict=True) if not f.hidden and f.confidence >= threshold]
        right = sum(same(f.text, s) for f, s in shown)
        print(f"{task:7}   confidence >= {threshold:.1f}: {100 * len(shown) / len(samples):5.1f}% shown, "
              f"{100 * right / max(len(shown), 1):5.1f}% of them right")


if __name__ == "__main__":
    main()
