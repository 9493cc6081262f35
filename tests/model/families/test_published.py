"""Published models at toy size: each is taken by its family, computes what transformers computes,
and is asked in the order of its model card, from a folder and from a GGUF file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from fim import CursorContext, FormatError, build_prompt, resolve
from model.catalogue.entries import entries
from model.decoder.config import DecoderConfig
from model.families.registry import FAMILIES
from model.weights.files import ModelFiles
from model.weights.folder import find_model
from tests.conftest import write_model
from tests.model.export.exports import exported, write_pieces
from tests.model.families.published import PUBLISHED, Published
from tests.model.families.test_parity import logits_of, random_ids
from tests.model.toys import load
from tests.model.weights.gguf_files import write_copy

LETTERS = ["▁", *map(chr, range(65, 91))]
# GGUF's keys that nearly all files have -> the toy's values, of a folder's decoder.
SIZES = {
    "context_length": "max_positions",
    "embedding_length": "hidden_size",
    "block_count": "num_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_heads",
    "attention.head_count_kv": "num_kv_heads",
}


def test_every_model_of_the_catalogue_is_here() -> None:
    """By its family and format; those of one architecture stand for one another."""
    for entry in entries().values():
        assert any(entry.fim_format == model.format for model in PUBLISHED.values()), entry.name


def write_published(folder: Path, model: Published) -> Path:
    write_model(folder, model.shrunk())
    write_its_tokenizer(folder, model)
    return folder


def write_its_tokenizer(folder: Path, model: Published) -> None:
    """A tokenizer.json of single characters, with the model's special tokens before them."""
    if model.sentencepiece:
        pieces = [*model.specials, *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        backend = Tokenizer(
            models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        )
        spaces = normalizers.Replace(" ", "▁")
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if model.space:
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
            steps.append(decoders.Strip(" ", 1, 0))
        else:
            backend.normalizer = spaces
        backend.decoder = decoders.Sequence(steps)
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {piece: number for number, piece in enumerate([*model.specials, *alphabet])}
        backend = Tokenizer(models.BPE(vocabulary, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in model.specials])
    backend.save(str(folder / "tokenizer.json"))


def check_prompt(files: ModelFiles, model: Published) -> None:
    """The format that fimls finds by itself, and a prompt in the published order."""
    tokenizer = files.load_tokenizer()
    if not model.format:
        with pytest.raises(FormatError, match="sentinels of no FIM format"):
            resolve(tokenizer, config=files.config)
        return
    sentinels = resolve(tokenizer, config=files.config)
    assert sentinels.format.name == model.format
    layout: Any = model.layout
    prompt = build_prompt(CursorContext(prefix="P", suffix="S"), sentinels, tokenizer, layout)
    written = "".join(
        next((t for t in model.specials if tokenizer.token_id(t) == number), None)
        or tokenizer.decode([number]).strip()
        for number in prompt.ids
    )
    assert written == model.prompt
    assert tokenizer.token_id(model.eos) in decoder_config(files).stop_ids


def decoder_config(files: ModelFiles) -> DecoderConfig:
    return FAMILIES[files.model_type].decoder_config(files.config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_folder(name: str, tmp_path: Path) -> None:
    import transformers

    model = PUBLISHED[name]
    folder = write_published(tmp_path / "toy", model)
    m = load(folder)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = random_ids(48)
    with torch.inference_mode():
        expected = reference(torch.tensor([ids])).logits[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits_of(m, ids), expected, atol=1e-4, rtol=1e-4)
    check_prompt(find_model(folder), model)


def published_keys(model: Published, config: DecoderConfig, architecture: str) -> dict[str, Any]:
    """The metadata of its GGUF file, without the vocabulary."""
    keys = {key: getattr(config, name) for key, name in SIZES.items()}
    norm = {"layer_norm": "layer_norm", "rms_norm": "layer_norm_rms"}[config.norm]
    keys[f"attention.{norm}_epsilon"] = config.norm_eps
    if config.rope:
        keys["rope.freq_base"] = config.rope.theta
        keys["rope.dimension_count"] = config.rope.dim
    for key in model.missing:
        keys.pop(key, None)
    keys |= model.keys
    return {f"{architecture}.{key}": value for key, value in keys.items()}


def published_vocabulary(folder: Path, model: Published) -> dict[str, Any]:
    """The tokens of the folder's tokenizer.json, as the metadata of a GGUF file has them."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    texts = sorted(vocabulary, key=vocabulary.__getitem__)
    texts += [f"[PAD{number}]" for number in range(len(texts), 320)]
    kinds = [3 if text in model.specials else 1 for text in texts]
    for number, text in enumerate(texts):
        if text == "<unk>":
            kinds[number] = 2
        if text.startswith("<0x"):
            kinds[number] = 6
        if text.startswith("[PAD"):
            kinds[number] = 5
    found: dict[str, Any] = {"tokens": texts, "token_type": kinds, "pre": model.cutting}
    if model.sentencepiece:
        found |= {"model": "llama", "scores": [-float(n) for n in range(320)]}
        found |= {"add_space_prefix": model.space}
    else:
        texts[-1] = "ab"  # llama.cpp reads no file without a merge
        kinds[-1] = 1
        found |= {"model": "gpt2", "merges": ["a b"]}
    ids = {"bos": model.bos, "eos": model.eos, **model.ids}
    found |= {f"{key}_token_id": texts.index(text) for key, text in ids.items()}
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


def write_gguf(folder: Path, model: Published, tmp_path: Path) -> Path:
    """The folder's weights in a GGUF file, with the metadata of the published one."""
    config = json.loads((folder / "config.json").read_text())
    plain = {k: v for k, v in config.items() if k not in ("rope_scaling", "rope_parameters")}
    plain_folder = tmp_path / "plain"  # the weights do not depend on how positions are scaled
    plain_folder.mkdir()
    shutil.copyfile(folder / "model.safetensors", plain_folder / "model.safetensors")
    (plain_folder / "config.json").write_text(json.dumps(plain))
    write_pieces(plain_folder)
    files = find_model(plain_folder)
    (whole,) = exported(files, tmp_path, "gguf").glob("*.gguf")
    reader = gguf.GGUFReader(whole)
    architecture = FAMILIES[files.model_type].architecture
    gone = [n for n in reader.fields if n.startswith((f"{architecture}.", "tokenizer."))]
    keys = published_keys(model, decoder_config(find_model(folder)), architecture)
    vocabulary = published_vocabulary(folder, model)
    return write_copy(whole, tmp_path / "published.gguf", dict.fromkeys(gone) | keys | vocabulary)


def as_stored(config: Any) -> Any:
    """With float32 in the place of floats, as GGUF files hold them."""
    values = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if isinstance(value, float):
            values[item.name] = float(np.float32(value))
        elif dataclasses.is_dataclass(value):
            values[item.name] = as_stored(value)
    return dataclasses.replace(config, **values)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_gguf_file(name: str, tmp_path: Path) -> None:
    model = PUBLISHED[name]
    folder = write_published(tmp_path / "toy", model)
    file = write_gguf(folder, model, tmp_path)
    found, theirs = load(file), load(folder)
    expected = as_stored(dataclasses.replace(theirs.decoder.config, **model.lost))
    ours = as_stored(found.decoder.config)
    assert dataclasses.replace(ours, stop_ids=expected.stop_ids) == expected
    assert set(expected.stop_ids) <= set(ours.stop_ids)
    if "rope" not in model.lost:
        ids = random_ids(16)  # within a window
        expected_logits = logits_of(theirs, ids)
        torch.testing.assert_close(logits_of(found, ids), expected_logits, atol=1e-5, rtol=1e-4)
    check_prompt(find_model(file), model)
