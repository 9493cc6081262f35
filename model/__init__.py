"""Token ids in, token ids out. This room knows no editor and no position in a text.

    from model import load_model
    m = load_model("bundled")
    for token in m.generate(m.tokenizer.encode("def add(a, b):\\n    return"), max_new_tokens=8):
        print(token.text, end="")

Invariants:
- `import model`, `model.weights.folder` and `model.tokenizer` load no torch: the language server,
  which has none, uses them.
- Imports run one way: who may import whom is the table in tests/test_architecture.py. A request is
  read in the order serve (engine_loading), dialect, engine, prefix_cache (prefix_store), loading,
  generate (matches, speculative, copying, healing, sampling), decoder, layers; on a CPU with int8
  weights then step, quantize, kernels, and once there is machine code for it compiled
  (machine_code, compiled_step); on a GPU graphs, bits.
- Families differ by explicit fields of DecoderConfig, never by looking at a model's name.
- A warm cache gives what a cold one gives: in floats as far as sums in another order do, in int8 as
  far as benchmarks/RESULTS.md tells. Drafts change nothing where a row does not depend on those
  beside it; on CUDA, where it does in the last bits, they may decide a tie
  (model/gpu/cuda_graphs.py); elsewhere nobody drafts.
- Weights come from safetensors only; code in a model folder is never run.
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
