"""The implementations of attention against each other and against transformers': a window that is
shorter than the text, fewer key/value heads than heads, padding at both sides, packed texts, and
gradients."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.errors import ModelError
from model.heads import CausalLM, attention
from model.heads.heads import Head
from tests.model.heads.test_heads import (
    CONFIGS,
    LENGTH,
    PAD,
    WINDOW,
    both,
    close,
    padded,
    random_ids,
)

configs = pytest.mark.parametrize(
    "config",
    [CONFIGS["starcoder2, window, untied"], CONFIGS["stablelm, parallel, all switches"]],
    ids=["starcoder2", "stablelm"],
)
# flash-attn itself runs on no CPU: this is its function, computed by SDPA.
calls: list[dict[str, Any]] = []


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """flash-attn's README: each text's last query stands at its last key, and query i sees the keys
    from i + Sk - Sq - window_size[0] to i + Sk - Sq + window_size[1]."""
    assert causal
    calls.append({"dropout_p": dropout_p, "window_size": window_size, "texts": len(cu_seqlens_q)})
    out = []
    lengths: list[tuple[int, int]] = []
    for ends in (cu_seqlens_q, cu_seqlens_k):
        assert ends.dtype == torch.int32
    for i in range(len(cu_seqlens_q) - 1):
        rows = slice(int(cu_seqlens_q[i]), int(cu_seqlens_q[i + 1]))
        columns = slice(int(cu_seqlens_k[i]), int(cu_seqlens_k[i + 1]))
        a, b, c = (x.transpose(0, 1)[None] for x in (q[rows], k[columns], v[columns]))
        lengths.append((a.shape[2], b.shape[2]))
        at = torch.arange(a.shape[2])[:, None] + b.shape[2] - a.shape[2]
        seen = torch.arange(b.shape[2]) <= at
        if window_size[0] >= 0:
            seen &= torch.arange(b.shape[2]) >= at - window_size[0]
        attended = F.scaled_dot_product_attention(
            a, b, c, attn_mask=seen, dropout_p=dropout_p, scale=softmax_scale, enable_gqa=True
        )
        out.append(attended[0].transpose(0, 1))
    assert (max_seqlen_q, max_seqlen_k) == tuple(map(max, zip(*lengths, strict=True)))
    return torch.cat(out)


def install_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn")
    module.__spec__ = ModuleSpec("flash_attn", None)  # transformers looks whether there is one
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    install_flash_attn(monkeypatch)
    monkeypatch.setattr(attention, "FLASH_DEVICES", ("cpu",))
    monkeypatch.setattr(attention, "FLASH_DTYPES", (torch.float32,))
    calls.clear()


def run_all(m: Head, ids: Tensor, rows: Tensor, **given: Any) -> dict[str, list[Tensor]]:
    """The real positions' logits and all gradients, by implementation; "flash kernel" is SDPA with
    nothing but torch's own flash kernel."""
    found = {}
    for name in ("eager", "sdpa", "flash kernel", "flash_attention_2"):
        m.set_attn_implementation("sdpa" if name == "flash kernel" else name)
        m.zero_grad()
        kernels = [SDPBackend.FLASH_ATTENTION] if name == "flash kernel" else list(SDPA_KERNELS)
        with sdpa_kernel(kernels):
            logits = m(ids, **given).logits[rows]
            (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).mean().backward()
        found[name] = [logits.detach(), *(p.grad.clone() for p in m.parameters())]
    return found


SDPA_KERNELS = (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


@configs
@pytest.mark.parametrize("inputs", ["plain", "left", "right", "packed"])
def test_all_implementations_are_equal(
    config: dict[str, Any], inputs: str, tmp_path: Path, flash_attn: None
) -> None:
    ours, theirs = both(CausalLM, tmp_path, config)
    ours.train()  # without dropouts
    rows = torch.ones(3, LENGTH, dtype=torch.bool)
    if inputs == "plain":
        ids = random_ids()
        given: dict[str, Any] = {}
    elif inputs == "packed":
        ids = random_ids()
        positions = torch.cat((torch.arange(10), torch.arange(LENGTH - 10)))[None]
        given = {"position_ids": positions}
    else:
        ids, mask, positions = padded(inputs)
        given = {"attention_mask": mask, "position_ids": positions}
        rows = mask == 1
    found = run_all(ours, ids, rows, **given)
    for results in found.values():
        close(tuple(results), tuple(found["eager"]))
    reference = theirs(ids, use_cache=False, **given).logits[rows]
    close(found["flash_attention_2"][0], reference)
    window = config.get("sliding_window")
    expected = {"dropout_p": 0.0, "window_size": (window - 1, 0) if window else (-1, -1)}
    texts = 7 if inputs == "packed" else 4  # and the 0 before them
    assert calls == [expected | {"texts": texts}] * 2


@configs
@pytest.mark.parametrize("side", ["none", "left"])
def test_all_implementations_run_after_a_cache(
    config: dict[str, Any], side: str, tmp_path: Path, flash_attn: None
) -> None:
    ours, _ = both(CausalLM, tmp_path, config)
    ids = random_ids(1)
    mask = torch.ones_like(ids)
    if side == "left":
        ids[0, :4] = PAD
        mask[0, :4] = 0
    whole = ours(ids, attention_mask=mask).logits
    for name in attention.IMPLEMENTATIONS:
        ours.set_attn_implementation(name)
        cache = None
        parts = []
        for start, end in ((0, 15), (15, 20), (20, 21), (21, LENGTH)):
            given = {"attention_mask": mask[:, :end]} if side == "left" else {}
            output = ours(ids[:, start:end], cache=cache, use_cache=True, **given)
            cache = output.cache
            parts.append(output.logits)
        close(torch.cat(parts, dim=1)[mask == 1], whole[mask == 1])


def test_dropout_reaches_every_implementation(tmp_path: Path, flash_attn: None) -> None:
    ours, _ = both(CausalLM, tmp_path, CONFIGS["stablelm"], attention_dropout=0.5)
    ids = random_ids()
    kept = ours(ids).logits
    ours.train()
    for name in attention.IMPLEMENTATIONS:
        ours.set_attn_implementation(name)
        assert (ours(ids).logits - kept).abs().max() > 0.01
    assert calls[-1]["dropout_p"] == 0.5


def test_attention_weights_are_given_by_every_implementation(
    tmp_path: Path, flash_attn: None
) -> None:
    """Where transformers warns and gives None, the pass is eager."""
    ours, theirs = both(CausalLM, tmp_path, CONFIGS["stablelm"])
    theirs.set_attn_implementation("eager")
    ids = random_ids()
    expected = theirs(ids, output_attentions=True).attentions
    for name in attention.IMPLEMENTATIONS:
        ours.set_attn_implementation(name)
        close(ours(ids, output_attentions=True).attentions, expected)
    assert not calls


def test_implementations_that_do_not_run_name_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS["starcoder2, window, untied"]
    ours, _ = both(CausalLM, tmp_path, config)
    with pytest.raises(ModelError, match="'flash', but must be one of eager, sdpa, flash_att"):
        CausalLM.load(tmp_path, attn_implementation="flash")
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ModelError, match=r"pip install flash-attn.* 'sdpa'"):
        CausalLM.load(tmp_path, attn_implementation="flash_attention_2")
    assert CausalLM.load(tmp_path, attn_implementation="eager").attn_implementation == "eager"
    install_flash_attn(monkeypatch)
    ours.set_attn_implementation("flash_attention_2")
    with pytest.raises(ValueError, match=r"not in float32 on cpu.*dtype='bfloat16'"):
        ours(random_ids())
    mask = torch.ones(3, LENGTH)
    mask[0, WINDOW] = 0
    with pytest.raises(ValueError, match=r"attention_mask is 0 between.*'sdpa'"):
        ours(random_ids(), attention_mask=mask)
    with pytest.raises(ValueError, match=r"takes no attention_mask of four dimensions.*'sdpa'"):
        ours(random_ids(), attention_mask=torch.ones(3, 1, LENGTH, LENGTH).bool())
