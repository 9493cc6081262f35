"""The decoder on a CUDA device says what it says on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model import load_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_logits_and_greedy_text_are_those_of_the_cpu(starcoder2_folder: Path) -> None:
    cpu = load_model(starcoder2_folder, device="cpu", dtype="float32")
    gpu = load_model(starcoder2_folder, device="cuda", dtype="float32")
    ids = torch.randint(8, 260, (48,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = cpu.decoder(ids[None]).logits
        torch.testing.assert_close(gpu.decoder(ids[None].cuda()).logits.cpu(), expected, atol=1e-3, rtol=1e-3)
    prompt = ids.tolist()
    texts = [[t.id for t in m.generate(prompt, max_new_tokens=30)] for m in (cpu, gpu)]
    assert texts[0] == texts[1]
