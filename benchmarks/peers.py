"""Finds the peers' interpreter, and converts our weights to the formats that the peers read. A
GGUF file is read by both as it is ("file"), and quantized anew by llama.cpp."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.engine.process import NICE
from model.weights.folder import find_model, read_json

ROOT = Path(__file__).parent.parent
BY_EXPORT = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "q8_0": "q8_0",
}  # the rest llama.cpp quantizes
QUANTIZE = """
import ctypes, sys, llama_cpp
source, target, kind = sys.argv[1:]
options = llama_cpp.llama_model_quantize_default_params()
options.allow_requantize = True
options.ftype = getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + kind.upper())
sys.exit(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(options)))
"""


def peers_python() -> Path:
    """The interpreter that has llama-cpp-python. Raises SystemExit with the remedy."""
    python = Path(os.environ.get("FIMLS_PEERS_PYTHON") or ROOT / ".peers" / "bin" / "python")
    probe = [python, "-c", "import llama_cpp"]
    if not python.exists() or subprocess.run(probe, capture_output=True, check=False).returncode:
        raise SystemExit(f"{python} has no llama-cpp-python: `make peers` builds it")
    return python


def python_of(kind: str) -> Path:
    return peers_python() if kind == "llama" else Path(sys.executable)


def gguf_file(model: str) -> Path | None:
    """The file of a model that is one GGUF file. Raises ModelError where there is no model."""
    files = find_model(model).weight_files
    return files[0] if len(files) == 1 and files[0].suffix == ".gguf" else None


class Exports:
    """A model in the formats of the sides, each made when it is first asked for, in one folder."""

    def __init__(self, model: str, folder: Path) -> None:
        self._model, self._folder = model, folder

    def path(self, kind: str, precision: str) -> str:
        """What a side of this kind loads."""
        if kind == "ours":
            return self._model
        if kind == "transformers":
            return str(self._export("hf", "float32"))
        return str(self._gguf(precision))

    def _gguf(self, precision: str) -> Path:
        own = gguf_file(self._model)
        if precision == "file":
            if own is None:
                raise SystemExit(f"{self._model} is no GGUF file")
            return own
        if own is None and precision in BY_EXPORT:
            (file,) = self._export("gguf", BY_EXPORT[precision]).glob("*.gguf")
            return file
        target = self._folder / f"{precision}.gguf"
        if not target.exists():
            source = own or self._gguf("f32")
            command = [peers_python(), "-c", QUANTIZE, source, target, precision]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                raise SystemExit(
                    f"llama.cpp could not quantize to {precision}: {run.stderr[-300:]}"
                )
        return target

    def _export(self, layout: str, dtype: str) -> Path:
        target = self._folder / f"{layout}-{dtype}"
        if not target.exists():
            command = [
                sys.executable,
                "-m",
                "model.export",
                self._model,
                str(target),
                "--format",
                layout,
            ]
            run = subprocess.run(
                [*command, "--dtype", dtype], cwd=ROOT, capture_output=True, text=True, check=False
            )
            if run.returncode:
                raise SystemExit(f"the export failed: {run.stderr[-300:]}")
        return target


@contextlib.contextmanager
def process(
    module: str, kind: str, *arguments: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process of benchmarks.`module` and the first line that it says, which ends with the
    block."""
    environment: dict[str, str] = {}
    command = [python_of(kind), "-m", f"benchmarks.{module}", kind, *arguments]
    if kind == "ours":  # what model/engine/process.py sets; theirs is theirs
        environment["GOMP_SPINCOUNT"] = "1000"
        command = ["nice", "-n", str(NICE), *command]
    environment |= os.environ | {"PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        if not line:
            raise SystemExit(f"{kind} did not start: its error stands above")
        yield started, json.loads(line)
    finally:
        started.kill()
        started.wait()


# ---- models of random weights ----

STARCODER2_3B = {
    "vocab_size": 49152,
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "rope_parameters": {"rope_type": "default", "rope_theta": 999999.4420358813},
}
SHARD_BYTES = 2**30


def write_random(folder: Path, shape: dict[str, Any], dtype: str = "bfloat16") -> Path:
    """A StarCoder2 of random weights in shards; what `shape` leaves open is as in the bundled
    model, the tokenizer too. Raises OSError."""
    import shutil

    import torch
    from safetensors.torch import save_file

    from model.families.native.starcoder2 import decoder_config, weight_table

    bundled = find_model("bundled").path
    config = read_json(bundled / "config.json") | shape
    config.pop("quantization_config", None)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(bundled / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps(config | {"dtype": dtype}))
    (folder / "fimls.json").write_text(
        json.dumps({"layout": "spm"})
    )  # prompts that only grow, as the bundled model's
    kind = getattr(torch, dtype)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, slot in weight_table(decoder_config(config)).items():
        size += torch.Size(slot.shape).numel() * kind.itemsize
        if size > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = torch.Size(slot.shape).numel() * kind.itemsize
        shards[-1].append((name, slot.shape))
    chance = torch.Generator().manual_seed(0)
    weight_map, total = {}, 0
    for number, shard in enumerate(shards, 1):
        name = (
            f"model-{number:05}-of-{len(shards):05}.safetensors"
            if len(shards) > 1
            else "model.safetensors"
        )
        tensors = {n: random_tensor(n, s, kind, chance) for n, s in shard}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
        total += sum(t.nbytes for t in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def random_tensor(name: str, shape: tuple[int, ...], dtype: Any, chance: Any) -> Any:
    import torch

    value = torch.empty(shape, dtype=torch.float32).normal_(0, 0.02, generator=chance)
    if "norm" in name and name.endswith("weight"):
        value += 1.0  # as in any trained model; else activations die away with depth
    return value.to(dtype)
