"""The sides of a comparison: ours, llama.cpp and transformers, each in a process of its own that
takes the same jobs.

    PYTHON -m benchmarks.sides KIND MODEL --threads 2 [--precision int8] [--positions 4096]

Jobs come as JSON lines on stdin, {"job": "prefill", "tokens": 512}, and answers go to stdout,
{"seconds": 0.1}. This file runs under the peers' interpreter too, which has neither torch nor this
project installed: imports stay inside, but for what needs the standard library alone.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from lsp_server.folders import cache_folder
from model.generation.text_matches import common_prefix

PIECE = 512  # positions between two looks at whether anybody still waits


class Side(Protocol):
    """A model with the keys and values of one sequence."""

    vocabulary: int
    positions: int
    length: int

    def trim(self, length: int) -> None:
        """Forgets what lies beyond so many positions."""

    def feed(self, ids: Sequence[int]) -> int:
        """Runs the ids behind what is there; returns the likeliest next one."""

    def rows(self, ids: Sequence[int]) -> list[int]:
        """The same with the likeliest next id behind each of them."""

    def text(self) -> Callable[[int], str]:
        """What turns ids into text, one after another."""


def dtype_and_quantization(precision: str) -> tuple[str, str | None]:
    """What load_model takes for one word of ours: a dtype, int8, int4, or blocks for those of a
    GGUF file."""
    if precision == "blocks":
        return "auto", "auto"
    return ("auto", precision) if precision in ("int8", "int4") else (precision, None)


class Ours:
    """This project's decoder, through load_model."""

    def __init__(
        self, model: str, threads: int, precision: str, positions: int | None = None
    ) -> None:
        import torch

        from model import load_model
        from model.cpu.upgrade import upgrade_now

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch, self._model = (
            torch,
            load_model(model, "cpu", *dtype_and_quantization(precision), measured=cache_folder()),
        )
        upgrade_now(self._model.decoder, cache_folder())
        config = self._model.decoder.config
        self._cache = self._model.decoder.new_cache()
        self.vocabulary = config.vocab_size
        self.positions = min(positions or config.max_positions, config.max_positions)

    @property
    def length(self) -> int:
        return self._cache.length

    def trim(self, length: int) -> None:
        self._cache.trim(length)

    def feed(self, ids: Sequence[int]) -> int:
        chunk = self._model.decoder.prefill_chunk
        for start in range(0, len(ids), chunk):
            best = self._run(ids[start : start + chunk], 1)
        return best[-1]

    def rows(self, ids: Sequence[int]) -> list[int]:
        return self._run(ids, len(ids))

    def text(self) -> Callable[[int], str]:
        return self._model.tokenizer.stream().push

    def _run(self, ids: Sequence[int], keep: int) -> list[int]:
        with self._torch.inference_mode():
            batch = self._torch.tensor([list(ids)])
            logits = self._model.decoder(batch, cache=self._cache, logits_to_keep=keep).logits[0]
            return [int(i) for i in logits.argmax(-1)]


class Transformers:
    """transformers on the Hugging Face export: its forward pass and its DynamicCache, cropped to
    what stays."""

    def __init__(
        self, model: str, threads: int, precision: str, positions: int | None = None
    ) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        import transformers

        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._torch, self._transformers = torch, transformers
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=getattr(torch, precision)
        ).eval()
        self._tokenizer_folder = model
        self._cache = transformers.DynamicCache()
        self.vocabulary = self.model.config.vocab_size
        most = self.model.config.max_position_embeddings
        self.positions = min(positions or most, most)

    @property
    def length(self) -> int:
        return int(self._cache.get_seq_length())

    def trim(self, length: int) -> None:
        if length == 0:
            self._cache = self._transformers.DynamicCache()
        elif length < self.length:
            self._cache.crop(length - self.length)  # a negative number: so many go

    def feed(self, ids: Sequence[int]) -> int:
        return self._run(ids, 1)[-1]

    def rows(self, ids: Sequence[int]) -> list[int]:
        return self._run(ids, len(ids))

    def text(self) -> Callable[[int], str]:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(self._tokenizer_folder + "/tokenizer.json")
        return growing(lambda ids: tokenizer.decode(ids, skip_special_tokens=False))

    def _run(self, ids: Sequence[int], keep: int) -> list[int]:
        with self._torch.inference_mode():
            done = self.model(
                self._torch.tensor([list(ids)]),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=keep,
            )
            return [int(i) for i in done.logits[0].argmax(-1)]


class LlamaCpp:
    """llama.cpp through its C interface; its cache in half precision, as its server has it."""

    def __init__(
        self, model: str, threads: int, precision: str, positions: int | None = None
    ) -> None:
        import llama_cpp
        import numpy

        self._lib, self._numpy = llama_cpp, numpy
        self._silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        loaded = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params()
        )
        if not loaded:
            raise SystemExit(f"llama.cpp cannot load {model}")
        most = llama_cpp.llama_model_n_ctx_train(loaded)
        self.positions = min(positions or most, most)
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = self.positions, 2048, 512
        options.n_threads = options.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(loaded, options)
        self._threads = attach_threads(llama_cpp, self._context, threads)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_model_get_vocab(loaded)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(self._vocabulary)
        self._batch = llama_cpp.llama_batch_init(64, 0, 1)
        self.length = 0

    def trim(self, length: int) -> None:
        if length < self.length:
            assert self._lib.llama_memory_seq_rm(self._memory, 0, length, -1)
            self.length = length

    def feed(self, ids: Sequence[int]) -> int:
        array = (self._lib.llama_token * len(ids))(*ids)
        self._decode(self._lib.llama_batch_get_one(array, len(ids)), len(ids))
        return self._best(-1)

    def rows(self, ids: Sequence[int]) -> list[int]:
        batch = self._batch
        batch.n_tokens = len(ids)
        for n, each in enumerate(ids):
            batch.token[n], batch.pos[n], batch.logits[n] = each, self.length + n, 1
            batch.n_seq_id[n], batch.seq_id[n][0] = 1, 0
        self._decode(batch, len(ids))
        return [self._best(n) for n in range(len(ids))]

    def text(self) -> Callable[[int], str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        buffer = ctypes.create_string_buffer(512)

        def push(token: int) -> str:
            size = self._lib.llama_token_to_piece(
                self._vocabulary, token, buffer, len(buffer), 0, True
            )
            return decoder.decode(buffer.raw[: max(0, size)])

        return push

    def _decode(self, batch: Any, count: int) -> None:
        if self._lib.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        self.length += count

    def _best(self, row: int) -> int:
        logits = self._lib.llama_get_logits_ith(self._context, row)
        return int(self._numpy.ctypeslib.as_array(logits, shape=(self.vocabulary,)).argmax())


class ThreadpoolParams(ctypes.Structure):
    """ggml_threadpool_params of ggml.h."""

    _fields_ = [
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    ]


CPU_DEVICE = 0  # GGML_BACKEND_DEVICE_TYPE_CPU


def attach_threads(llama_cpp: Any, context: Any, threads: int) -> Any:
    """Threads that stay, as llama.cpp's own server has them; a library without OpenMP would start
    some at every pass. The bindings do not have these functions."""

    lib = llama_cpp.llama_cpp._lib
    pointer = ctypes.c_void_p
    default = lib.ggml_threadpool_params_default
    default.restype, default.argtypes = ThreadpoolParams, [ctypes.c_int]
    lib.ggml_backend_dev_by_type.restype = pointer
    lib.ggml_backend_dev_backend_reg.restype = pointer
    lib.ggml_backend_dev_backend_reg.argtypes = [pointer]
    lib.ggml_backend_reg_get_proc_address.restype = pointer
    lib.ggml_backend_reg_get_proc_address.argtypes = [pointer, ctypes.c_char_p]
    backend = lib.ggml_backend_dev_backend_reg(lib.ggml_backend_dev_by_type(CPU_DEVICE))
    address = lib.ggml_backend_reg_get_proc_address(backend, b"ggml_threadpool_new")
    make = ctypes.CFUNCTYPE(pointer, ctypes.POINTER(ThreadpoolParams))(address)
    wanted = default(threads)
    assert wanted.n_threads == threads, "ggml's structure is another one"
    pool = make(ctypes.byref(wanted))
    lib.llama_attach_threadpool.argtypes = [pointer, pointer, pointer]
    lib.llama_attach_threadpool.restype = None
    lib.llama_attach_threadpool(context, pool, None)
    return pool


KINDS: dict[str, Any] = {"ours": Ours, "transformers": Transformers, "llama": LlamaCpp}


def growing(decode: Callable[[list[int]], str]) -> Callable[[int], str]:
    """Text piece by piece from a decoder of whole lists; half a character waits for its rest."""
    ids: list[int] = []
    given = ""

    def push(token: int) -> str:
        nonlocal given
        ids.append(token)
        text = decode(ids).rstrip("\ufffd")
        fresh, given = text[len(given) :], text
        return fresh

    return push


Drafter = Callable[[list[int]], Sequence[int]]


def write(
    side: Side,
    cached: list[int],
    ids: list[int],
    most: int,
    drafter: Drafter | None = None,
    gone: Callable[[], bool] = lambda: False,
) -> Iterator[int]:
    """Greedy continuation of ids. `cached`, the ids whose keys and values the side has, is kept up
    to date."""
    length = min(common_prefix(cached, ids), len(ids) - 1)
    side.trim(length)
    del cached[length:]
    best = -1
    while len(cached) < len(ids):
        if gone():
            return
        piece = ids[len(cached) : len(cached) + PIECE]
        best = side.feed(piece)
        cached += piece
    count = 0
    while count < most and len(cached) < side.positions:
        yield best
        count += 1
        if count == most or gone():
            return
        draft = (
            list(drafter([*cached, best]))[: side.positions - len(cached) - 1] if drafter else []
        )
        if not draft:
            cached.append(best)
            best = side.feed([best])
            continue
        fed = [best, *draft]
        found = side.rows(fed)
        right = 0
        while right < len(draft) and draft[right] == found[right]:
            right += 1
        cached += fed[: right + 1]
        side.trim(len(cached))
        for token in draft[:right]:
            if count == most:
                return
            yield token
            count += 1
        best = found[right]


# ---- jobs ----

Clock = Callable[[], float]


def some_ids(count: int, vocabulary: int) -> list[int]:
    """Ids that no two neighbours share; those below 16 may be special."""
    return [16 + 7919 * n % (vocabulary - 16) for n in range(count)]


def fill(side: Side, length: int) -> None:
    if side.length < length:
        ids = some_ids(length, side.vocabulary)[side.length :]
        for start in range(0, len(ids), PIECE):
            side.feed(ids[start : start + PIECE])
    side.trim(length)


def prefill(side: Side, tokens: int, clock: Clock = time.perf_counter) -> float:
    """Seconds for a prompt of so many tokens, in one call or in llama.cpp's pieces of 512."""
    side.trim(0)
    ids = some_ids(tokens, side.vocabulary)
    started = clock()
    for start in range(0, tokens, 2048):
        side.feed(ids[start : start + 2048])
    return clock() - started


def decode(side: Side, tokens: int, length: int, clock: Clock = time.perf_counter) -> float:
    """Seconds for so many tokens, each made of the one before, behind `length` positions."""
    fill(side, length)
    token = side.feed([17])
    started = clock()
    for _ in range(tokens):
        token = side.feed([token])
    return clock() - started


def step(side: Side, rows: int, length: int, times: int, clock: Clock = time.perf_counter) -> float:
    """Seconds for a step of so many rows: the mean of `times`."""
    fill(side, length)
    ids = some_ids(rows, side.vocabulary)
    seconds = 0.0
    for _ in range(times):
        started = clock()
        side.rows(ids)
        seconds += clock() - started
        side.trim(length)
    return seconds / times


JOBS: dict[str, Callable[..., float]] = {"prefill": prefill, "decode": decode, "step": step}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--precision", default="float32", help="of ours and transformers; a GGUF file has its own"
    )
    parser.add_argument(
        "--clock",
        default="perf_counter",
        help="of the module time; process_time and --threads 1 where others use the machine",
    )
    parser.add_argument("--positions", type=int, help="at most; without: as many as the model has")
    return parser


def quiet_stdout() -> Any:
    """Our end of stdout; what a library prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def main() -> None:
    options = arguments().parse_args()
    out = quiet_stdout()
    started = time.perf_counter()
    side = KINDS[options.kind](options.model, options.threads, options.precision, options.positions)
    print(
        json.dumps({"seconds": time.perf_counter() - started, "positions": side.positions}),
        file=out,
        flush=True,
    )
    for line in sys.stdin:
        job = json.loads(line)
        with contextlib.suppress(BrokenPipeError):
            seconds = JOBS[job.pop("job")](side, clock=getattr(time, options.clock), **job)
            print(json.dumps({"seconds": seconds}), file=out, flush=True)


if __name__ == "__main__":
    main()
