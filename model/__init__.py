"""Token ids in, token ids out. This room knows no editor and no position in a text.

    from model import load_model
    m = load_model("bundled")
    for token in m.generate(m.tokenizer.encode("def add(a, b):\\n    return"), max_new_tokens=8):
        print(token.text, end="")

In reading order:
- catalogue/: models by name: which there are, which are on this disk, how to fetch one.
- families/: one file for each model family; hf_config reads config.json.
- ggml: matrices in blocks, as GGUF files hold them.
- decoder/: the configuration, the forward pass in PyTorch and the KV cache.
- weights/: finds a model folder and fills a decoder with its tensors.
- precision/: devices, the types of weights, and which of them fit; matrices by bitsandbytes.
- cpu/, gpu/: int8 matrices for CPUs, and a faster step for a few rows.
- prepared/: a large model's weights on disk as they are in memory, for the next start.
- placement/: one decoder on several devices, partly on the disk, or shared by processes.
- generation/: from logits to tokens: sampling, drafts, copying, token healing.
- transformers_decoder: other architectures than the native ones, by transformers.
- loading: load_model, which joins all of them. tokenizer: text <-> ids.
- footprint: the memory that a model takes at each precision, from its configuration alone.
- heads/: the model alone: its states, loss and classifiers, with gradients.
- prefix_cache/: keeps the KV caches of earlier prompts, in memory and on disk.
- engine/: the process that serves all windows: `python -m model.engine`.
- export/: writes a model for other programs: `python -m model.export`.
- probe: how fast this machine is. machine, private_files,
  regular_files, errors: what all share.

Invariants:
- `import model`, `model.weights.folder` and `model.tokenizer` load no torch: the language server,
  which has none, uses them.
- Imports run one way: the table in tests/test_architecture.py has the rules.
- Families differ by explicit fields of DecoderConfig, never by looking at a model's name.
- A warm cache gives what a cold one gives: in floats up to the order of sums, in int8 within the
  bound in benchmarks/RESULTS.md. Drafts change nothing where the result of a row does not depend on
  the rows beside it. On CUDA it does in the last bits, so that a draft may decide a tie
  (model/gpu/cuda_graphs.py). Elsewhere there are no drafts.
- Weights come from safetensors and GGUF only; code in a model folder is never run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.loading import LoadedModel, load_model
    from model.tokenizer import Tokenizer

__all__ = ["LoadedModel", "Tokenizer", "load_model"]


def __getattr__(name: str) -> Any:
    if name in ("load_model", "LoadedModel"):
        from model import loading

        return getattr(loading, name)
    if name == "Tokenizer":
        from model.tokenizer import Tokenizer

        return Tokenizer
    raise AttributeError(f"module 'model' has no attribute {name!r}")
