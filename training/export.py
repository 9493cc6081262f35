"""Exports a training checkpoint as a model folder in the Hugging Face layout, its matrices as int8
with one scale per row.

    python -m training.export training/runs/NAME model/bundled

`--float32` keeps the weights as they are: transformers reads such a folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from model.weights.files import INT8_ROWS
from training import checkpoint
from training.network import ROPE_THETA


def checkpoint_names(
    state: dict[str, torch.Tensor], heads: int, kv_heads: int
) -> dict[str, torch.Tensor]:
    """The trainer's parameters under StarCoder2's names; the fused projection is split into its
    three."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if ".qkv_proj." in name:
            unit = tensor.shape[0] // (heads + 2 * kv_heads)
            parts = tensor.split([heads * unit, kv_heads * unit, kv_heads * unit])
            for letter, part in zip("qkv", parts, strict=True):
                tensors["model." + name.replace(".qkv_proj.", f".self_attn.{letter}_proj.")] = (
                    part.contiguous()
                )
            continue
        name = name.replace(".o_proj.", ".self_attn.o_proj.")
        for part in ("c_fc", "c_proj"):
            name = name.replace(f".{part}.", f".mlp.{part}.")
        tensors["model." + name] = tensor.contiguous()
    return tensors


def int8_rows(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every matrix as int8 with a float32 scale a row, its largest magnitude being 127; vectors as
    they are."""
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2:
            stored[name] = tensor
            continue
        scale = tensor.abs().amax(dim=1).clamp(min=1e-12) / 127
        stored[name] = torch.round(tensor / scale[:, None]).clamp(-127, 127).to(torch.int8)
        stored[f"{name}_scale"] = scale
    return stored


def hugging_face_config(shape: dict[str, int], *, quantized: bool) -> dict[str, object]:
    config: dict[str, object] = {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        **{k: v for k, v in shape.items() if k != "context"},
        "max_position_embeddings": shape["context"],
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "sliding_window": None,
        "use_bias": True,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if quantized:
        config["quantization_config"] = {"quant_method": INT8_ROWS}
    return config


def main(run: Path, out: Path, *, quantized: bool) -> None:
    if not (tokenizer := run / "tokenizer.json").is_file():
        raise SystemExit(f"{run} holds no tokenizer.json: make train RUN={run}")
    state = checkpoint.load(run)
    if state is None:
        raise SystemExit(f"{run} holds no checkpoint: make train RUN={run}")
    shape = state["shape"]
    tensors = checkpoint_names(
        state["model"], shape["num_attention_heads"], shape["num_key_value_heads"]
    )
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        int8_rows(tensors) if quantized else tensors,
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    (out / "config.json").write_text(
        json.dumps(hugging_face_config(shape, quantized=quantized), indent=2) + "\n"
    )
    (out / "model.safetensors").chmod(0o644)  # the library leaves it to its owner alone
    shutil.copyfile(tokenizer, out / "tokenizer.json")
    size = sum(f.stat().st_size for f in out.iterdir() if f.is_file())
    print(
        f"step {state['step']}, {state['tokens'] / 1e6:.1f}M tokens, "
        f"{state['bits']:.4f} bits a byte on the validation packages, {size / 1e6:.1f} MB in {out}"
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line as main's parameters."""
    parser = argparse.ArgumentParser(
        prog="python -m training.export", description="A checkpoint -> a model folder."
    )
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("out", type=Path, help="the model folder; its files are replaced")
    parser.add_argument(
        "--float32", dest="quantized", action="store_false", help="keep the weights as they are"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(**vars(parse()))
