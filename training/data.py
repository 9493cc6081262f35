"""Token batches from the corpus: documents cut into windows, windows made samples, samples packed
into rows.

Pool k of documents gives the same rows in every run: they depend on the seed and k only. So a run
resumes where it stopped, and pools can be made in processes ahead of the trainer.
"""

from __future__ import annotations

import bisect
import multiprocessing
import random
import signal
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fim.context import CursorContext, Snippet
from fim.evaluation.samples import Span, random_middle
from fim.formats import Layout, resolve
from fim.prompt import build_prompt
from model.tokenizer import Tokenizer
from training.corpus.folder import CorpusError, Row, rows
from training.syntax import SyntaxSpans

CHARACTERS_PER_TOKEN = (
    4.0  # a window of context × this seldom fits its row and is then shortened to what does
)
POOL = 64  # documents whose samples are packed together
IGNORED = -100  # the label that cross-entropy leaves out


@dataclass(frozen=True)
class Recipe:
    """Shares of the samples, each in [0, 1]."""

    fim_rate: float  # the rest is plain text
    spm_rate: float  # of the FIM samples; the rest is psm
    syntax_rate: (
        float  # of the FIM samples: the middle is a node of the syntax tree (arXiv 2506.00204)
    )
    repository_rate: float  # of the FIM samples: behind pieces of the package's other files
    # of the FIM samples: the prefix ends as token healing leaves it; the rest ends anywhere
    heal_rate: float

    def __post_init__(self) -> None:
        for name, rate in vars(self).items():
            if not 0 <= rate <= 1:
                raise SystemExit(
                    f"{name} is {rate} in the training config: it is a share between 0 and 1."
                )


def read_documents(path: Path) -> list[Row]:
    """All rows of a corpus file. Exits with what is wrong with it."""
    try:
        documents = list(rows(path))
    except CorpusError as error:
        raise SystemExit(str(error)) from None
    if not documents:
        raise SystemExit(f"{path} is empty. Build the corpus: make corpus")
    return documents


def line_edge(text: str, start: int, stop: int) -> int:
    """The last line start in (start, stop], or stop where a line is longer than that; the text's
    end is an edge too."""
    if stop >= len(text):
        return len(text)
    line = text.rfind("\n", start, stop) + 1
    return line if line > start else stop


def pack(samples: list[list[int]], size: int, padding: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole samples into rows of `size`, the longest first, each where it fits best.

    Returns ids and document numbers, each (rows, size); document 0 is padding.
    """
    rows: list[list[list[int]]] = []
    room: list[tuple[int, int]] = []  # (free places, row), ascending
    for sample in sorted(samples, key=len, reverse=True):
        at = bisect.bisect_left(room, (len(sample), -1))
        if at == len(room):
            rows.append([])
            free, row = size, len(rows) - 1
        else:
            free, row = room.pop(at)
        rows[row].append(sample)
        bisect.insort(room, (free - len(sample), row))
    ids = np.full((len(rows), size), padding, dtype=np.uint16)
    documents = np.zeros((len(rows), size), dtype=np.int16)
    for row, held in enumerate(rows):
        start = 0
        for number, sample in enumerate(held, 1):
            ids[row, start : start + len(sample)] = sample
            documents[row, start : start + len(sample)] = number
            start += len(sample)
    return ids, documents


class SampleStream:
    """An endless, deterministic stream of batches; its state is (pool, row)."""

    def __init__(
        self,
        documents: list[Row],
        tokenizer: Path,
        *,
        context: int,
        recipe: Recipe,
        seed: int,
        workers: int = 0,
    ) -> None:
        """context in tokens; workers are processes that make pools ahead, 0 for none."""
        self.documents, self.recipe, self.seed = documents, recipe, seed
        self.size = context + 1
        self.tokenizer = Tokenizer.from_file(tokenizer)
        self.sentinels = resolve(self.tokenizer, "starcoder2")
        self.end = self._id("<|endoftext|>")
        self.padding = self._id("<fim_pad>")
        self.pools = -(-len(documents) // POOL)  # of an epoch
        self.pool = self.row = 0
        self._rows: tuple[np.ndarray, np.ndarray] | None = None
        self._workers, self._ahead = workers, deque[Future[tuple[np.ndarray, np.ndarray]]]()
        self._executor: ProcessPoolExecutor | None = None

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_id(token)
        assert found is not None
        return found

    def state(self) -> dict[str, int]:
        return {"pool": self.pool, "row": self.row}

    def restore(self, state: dict[str, int]) -> None:
        self.pool, self.row = state["pool"], state["row"]
        self._rows = None
        self._ahead.clear()

    def batch(self, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs, labels (IGNORED where no token of the same document follows) and documents, each
        (rows, context)."""
        ids, documents = (
            torch.from_numpy(np.concatenate(parts).astype(np.int64)) for parts in self._take(rows)
        )
        labels = torch.where(
            (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] > 0), ids[:, 1:], IGNORED
        )
        return ids[:, :-1].contiguous(), labels, documents[:, :-1].contiguous()

    def _take(self, rows: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        ids: list[np.ndarray] = []
        documents: list[np.ndarray] = []
        while rows:
            if self._rows is None:
                self._rows = self._next_pool()
            left = len(self._rows[0]) - self.row
            if left <= 0:
                self._rows, self.pool, self.row = None, self.pool + 1, 0
                continue
            count = min(rows, left)
            ids.append(self._rows[0][self.row : self.row + count])
            documents.append(self._rows[1][self.row : self.row + count])
            self.row, rows = self.row + count, rows - count
        return ids, documents

    def _next_pool(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._workers:
            return self.make_pool(self.pool)
        global _stream
        if self._executor is None:
            _stream = self  # forked workers share the documents' memory
            fork = multiprocessing.get_context("fork")
            self._executor = ProcessPoolExecutor(self._workers, fork, initializer=_plain_signals)
        while len(self._ahead) < 2 * self._workers:
            self._ahead.append(self._executor.submit(_make_pool, self.pool + len(self._ahead)))
        return self._ahead.popleft().result()

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)

    def make_pool(self, pool: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and document numbers, each (rows, context + 1)."""
        epoch, index = divmod(pool, self.pools)
        order = list(range(len(self.documents)))
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        rng = random.Random(f"{self.seed} {pool}")
        samples: list[list[int]] = []
        longest = int(self.size * CHARACTERS_PER_TOKEN)
        for number in order[index * POOL : (index + 1) * POOL]:
            text = self.documents[number].text
            syntax = SyntaxSpans(text)
            start = 0
            while start < len(text):
                size = longest if rng.random() < 0.5 else rng.randint(longest // 8, longest)
                fim = rng.random() < self.recipe.fim_rate
                named = fim and rng.random() < self.recipe.repository_rate
                snippets = self._snippets(number, size, rng) if named else ()
                stop = line_edge(
                    text, start, start + max(1, size - sum(len(s.text) for s in snippets))
                )
                sample = self._sample(number, (start, stop), fim, snippets, syntax, rng)
                while (
                    len(sample) > self.size
                ):  # the more text a token holds, the better an attempt fits
                    shorter = start + max(1, int((stop - start) * 0.98 * self.size / len(sample)))
                    snippets = (
                        snippets if shorter - start > size // 4 else ()
                    )  # they alone may be too much
                    stop = line_edge(text, start, shorter)
                    sample = self._sample(number, (start, stop), fim, snippets, syntax, rng)
                samples.append(sample)
                start = stop
        ids, documents = pack(samples, self.size, self.padding)
        shuffled = list(range(len(ids)))
        rng.shuffle(shuffled)
        return ids[shuffled], documents[shuffled]

    def _sample(
        self,
        number: int,
        span: Span,
        fim: bool,
        snippets: tuple[Snippet, ...],
        syntax: SyntaxSpans,
        rng: random.Random,
    ) -> list[int]:
        document, recipe = self.documents[number], self.recipe
        text = document.text[slice(*span)]
        if not fim:
            return [*self.tokenizer.encode(text), self.end]
        node = syntax.middle(*span, rng) if rng.random() < recipe.syntax_rate else None
        start, stop = (
            random_middle(text, rng) if node is None else (node[0] - span[0], node[1] - span[0])
        )
        context = CursorContext(
            text[:start],
            text[stop:],
            document.path,
            "python",
            snippets,
            document.package if snippets else None,
        )
        layout: Layout = "spm" if rng.random() < recipe.spm_rate else "psm"
        prompt = build_prompt(
            context, self.sentinels, self.tokenizer, layout, heal=rng.random() < recipe.heal_rate
        )
        return [*prompt.ids, *self.tokenizer.encode(prompt.begin_with + text[start:stop]), self.end]

    def _snippets(self, number: int, budget: int, rng: random.Random) -> tuple[Snippet, ...]:
        """Pieces of up to three neighbours in the same package, together at most two fifths of
        budget characters."""
        own = self.documents[number]
        near = range(max(0, number - 12), min(len(self.documents), number + 13))
        others = [n for n in near if n != number and self.documents[n].package == own.package]
        found = []
        left = budget * 2 // 5
        for other in rng.sample(others, min(len(others), rng.randint(1, 3))):
            text = self.documents[other].text
            start = text.rfind("\n", 0, rng.randrange(len(text))) + 1
            piece = text[start : start + min(left, rng.randint(200, 1600))]
            piece = piece[: piece.rfind("\n") + 1]
            if piece:
                found.append(Snippet(self.documents[other].path, piece, "training"))
                left -= len(piece)
        return tuple(found)


def _plain_signals() -> None:
    """A worker leaves Ctrl-C to the trainer and ends on SIGTERM, whatever handlers it was forked
    with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


_stream: SampleStream | None = None  # what forked workers make pools of


def _make_pool(pool: int) -> tuple[np.ndarray, np.ndarray]:
    assert _stream is not None
    return _stream.make_pool(pool)
