"""Small models that the tests make themselves: config.json, safetensors and tokenizer.json as on
the hub."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"

ROOT = Path(__file__).parent.parent
SENTINELS = [
    "<|endoftext|>",
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<repo_name>",
    "<file_sep>",
]

STARCODER2: dict[str, Any] = {
    "model_type": "starcoder2",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "sliding_window": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
STABLELM: dict[str, Any] = {
    "model_type": "stablelm",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
    },
    "bos_token_id": 0,
    "eos_token_id": 0,
}

QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
QWEN3: dict[str, Any] = QWEN2 | {"model_type": "qwen3", "head_dim": 16}
MISTRAL: dict[str, Any] = LLAMA | {"model_type": "mistral", "sliding_window": None}
GRANITE: dict[str, Any] = LLAMA | {
    "model_type": "granite",
    "attention_multiplier": 0.2,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "logits_scaling": 2.0,
    "tie_word_embeddings": True,
}
GEMMA: dict[str, Any] = LLAMA | {"model_type": "gemma", "head_dim": 16}
GPT_BIGCODE: dict[str, Any] = {
    "model_type": "gpt_bigcode",
    "vocab_size": 320,
    "n_embd": 32,
    "n_inner": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def write_tokenizer(folder: Path, specials: list[str] = SENTINELS) -> None:
    """A byte-level tokenizer: one id a byte, behind the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_model(folder: Path, config: dict[str, Any], *, seed: int = 0, scale: float = 0.2) -> Path:
    """A model of random weights in the checkpoint's own names and shapes, through transformers."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    reference = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**config)
    )
    with torch.no_grad():  # larger than at initialization: near-uniform logits would hide mistakes
        for name, parameter in reference.named_parameters():
            is_gain = ("norm" in name or ".ln_" in name) and name.endswith("weight")
            mean = 1.0 if is_gain and config["model_type"] != "gemma" else 0.0  # Gemma's add one
            parameter.normal_(mean, scale)
    reference.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def make_talkative(folder: Path, allowed: str = "abcdefghijklmnopqrstuvwxyz") -> Path:
    """Changes an untied model so that it only ever writes the allowed characters, and so never
    stops by itself."""
    import torch
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights = load_file(folder / "model.safetensors")
    # One dimension of the final state is constant, and the head reads the verdict from it.
    weights["model.norm.weight"][0], weights["model.norm.bias"][0] = 0.0, 1.0
    verdict = torch.full((weights["lm_head.weight"].shape[0],), -100.0)
    verdict[[tokenizer.token_to_id(c) for c in allowed]] = 0.0
    weights["lm_head.weight"][:, 0] = verdict
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def talkative_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StarCoder2 of random weights that answers every prompt with lower-case letters, without an
    end, and spells no word anew."""
    config = STARCODER2 | {"tie_word_embeddings": False, "max_position_embeddings": 4096}
    folder = make_talkative(write_model(tmp_path_factory.mktemp("talkative"), config))
    (folder / "fimls.json").write_text('{"heal_tokens": false}')
    return folder


@pytest.fixture(scope="session")
def starcoder2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("starcoder2"), STARCODER2)


@pytest.fixture(scope="session")
def peers() -> Path:
    """The interpreter of the environment that holds llama-cpp-python: `make peers`, or any in
    FIMLS_PEERS_PYTHON."""
    python = Path(os.environ.get("FIMLS_PEERS_PYTHON") or ROOT / ".peers" / "bin" / "python")
    probe = [python, "-c", "import llama_cpp"]
    if not python.exists() or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip(f"{python} has no llama-cpp-python: `make peers` builds it")
    return python


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody but itself vouches for, with its key."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "
        "/CN=fimls-test "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {path} -out {path}.crt"
    )
    try:
        subprocess.run(command.split(), check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no openssl to make a certificate with")
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path
