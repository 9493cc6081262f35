"""Token ids in, token ids out. This room knows no editor and no position in a text.

    from model import load_model
    m = load_model("bundled")
    for token in m.generate(m.tokenizer.encode("def add(a, b):\\n    return"), max_new_tokens=8):
        print(token.text, end="")

Invariants:
- `import model`, `model.hub` and `model.tokenizer` load no torch: the language server, which has none, uses them.
- Imports run one way: config <- layers <- decoder; kv_cache <- layers, prefix_cache; decoder, sampling, healing,
  copying <- generate <- loading <- engine <- serve. A family file imports only config; weights imports the families
  and decoder.
- Families differ by explicit fields of DecoderConfig, never by looking at a model's name.
- A warm cache gives what a cold one gives. Weights come from safetensors only; code in a model folder is never run.
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
