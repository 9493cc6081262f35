"""Token batches from the corpus: documents cut into windows, most windows made FIM samples, samples packed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer

from fim.samples import random_middle

CHARACTERS_PER_TOKEN = 3.3  # somewhat under the measured 3.7, so that nearly every window fits its sequence
POOL = 64  # documents tokenized, and their windows shuffled, at a time


def windows(text: str, size: int, rng: random.Random) -> Iterator[str]:
    """Cuts a document at line starts into pieces of size/2 to size characters."""
    start = 0
    while start < len(text):
        stop = min(len(text), start + rng.randint(size // 2, size))
        if stop < len(text):
            stop = max(text.rfind("\n", start, stop) + 1, 0) or stop
            stop = stop if stop > start else min(len(text), start + size)
        yield text[start:stop]
        start = stop


class SampleStream:
    """An endless, deterministic stream of token ids.

    Pool k depends on the seed and k only, so a resumed run goes on where it stopped: its state is (pool, buffer).
    """

    def __init__(
        self, path: Path, tokenizer: Tokenizer, *, context: int, fim_rate: float, spm_rate: float, seed: int
    ) -> None:
        with path.open() as lines:
            self.texts = [json.loads(line)["text"] for line in lines]
        self.tokenizer, self.fim_rate, self.spm_rate, self.seed = tokenizer, fim_rate, spm_rate, seed
        self.window = int(context * CHARACTERS_PER_TOKEN)
        self.end, self.prefix, self.middle, self.suffix = (
            tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>")
        )
        self.pool = 0
        self.buffer: list[int] = []

    def state(self) -> dict[str, object]:
        return {"pool": self.pool, "buffer": self.buffer}

    def restore(self, state: dict[str, object]) -> None:
        self.pool, self.buffer = state["pool"], list(state["buffer"])  # type: ignore[assignment, call-overload]

    def batch(self, rows: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels, each (rows, context)."""
        need = rows * context
        while len(self.buffer) < need + 1:
            self._fill()
        ids = torch.tensor(self.buffer[: need + 1])
        del self.buffer[:need]
        return ids[:-1].view(rows, context), ids[1:].view(rows, context)

    def _fill(self) -> None:
        pools = -(-len(self.texts) // POOL)
        epoch, index = divmod(self.pool, pools)
        order = list(range(len(self.texts)))
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        rng = random.Random(f"{self.seed} {self.pool}")
        pieces: list[str] = []
        plans: list[str] = []  # per window: "plain", "psm" or "spm"
        for document in order[index * POOL : (index + 1) * POOL]:
            for text in windows(self.texts[document], self.window, rng):
                if rng.random() < self.fim_rate:
                    start, stop = random_middle(text, rng)
                    pieces += [text[:start], text[start:stop], text[stop:]]
                    plans.append("spm" if rng.random() < self.spm_rate else "psm")
                else:
                    pieces.append(text)
                    plans.append("plain")
        encoded = iter([e.ids for e in self.tokenizer.encode_batch(pieces)])
        samples: list[list[int]] = []
        for plan in plans:
            if plan == "plain":
                samples.append([*next(encoded), self.end])
                continue
            before, middle, after = next(encoded), next(encoded), next(encoded)
            if plan == "psm":
                head = [self.prefix, *before, self.suffix, *after, self.middle]
            else:
                head = [self.prefix, self.suffix, *after, self.middle, *before]
            samples.append([*head, *middle, self.end])
        rng.shuffle(samples)
        for sample in samples:
            self.buffer += sample
        self.pool += 1
