"""The trainer end to end on a corpus of a few lines: it learns, is killed, resumes, and what it
exports runs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model import load_model
from model.tokenizer import Tokenizer
from tests.training.conftest import CONFIG
from training.data import read_documents
from training.train import Schedule, Stopper, held_out_batches, section


def start(data: Path, run: Path, config: str = CONFIG) -> subprocess.Popen[str]:
    path = run.parent / f"{run.name}.toml"
    path.write_text(config)
    # In bfloat16, which some CPUs have, the losses after a resume differ in the fourth digit.
    command = [sys.executable, "-m", "training.train", str(path), str(data), str(run), "--float32"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def log(run: Path, key: str) -> dict[int, float]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return {line["step"]: line[key] for line in map(json.loads, lines) if key in line}


@pytest.mark.slow
def test_it_learns_and_after_a_kill_goes_on_with_the_same_losses(
    data: Path, tmp_path: Path
) -> None:
    config = CONFIG.replace(
        "save_every_s = 3600", "save_every_s = 0"
    )  # a checkpoint with every line of the log
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert "Traceback" not in finish(start(data, whole, config))
    process = start(data, killed, config)
    deadline = time.monotonic() + 300
    while (
        not ((killed / "log.jsonl").exists() and len(log(killed, "loss")) >= 5)
        and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    reached = len(log(killed, "loss"))
    assert 5 <= reached < len(log(whole, "loss"))
    output = finish(start(data, killed, config))
    assert "resumed at step" in output
    assert log(killed, "loss") == log(whole, "loss")
    assert log(killed, "held_out_bits_per_byte") == log(whole, "held_out_bits_per_byte")
    curve = list(log(whole, "loss").values())
    assert curve[-1] < 0.6 * curve[0]

    command = [sys.executable, "-m", "training.export", str(whole), str(tmp_path / "model")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    m = load_model(tmp_path / "model", device="cpu", dtype="float32")
    prompt = m.tokenizer.encode("def double(value):\n    return")
    assert "".join(t.text for t in m.generate(prompt, max_new_tokens=4)).startswith(" value")


@pytest.mark.slow
def test_an_interrupt_leaves_a_checkpoint(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(data, run, CONFIG.replace("40_000", "40_000_000"))
    deadline = time.monotonic() + 300
    while not ((run / "log.jsonl").exists() and log(run, "loss")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in finish(process)
    assert (run / "checkpoint.pt").exists()
    assert max(log(run, "held_out_bits_per_byte")) == max(log(run, "loss"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed = 1\n", ""), r"\[train\] of the training config: seed missing"),
        (("seed = 1", "seed = 1\nsede = 2"), "sede missing or unknown"),
        (("rows_at_once = 2", "rows_at_once = 3"), "must be a multiple"),
        (("warmup_steps = 2", "warmup_steps = 0"), "warmup_steps must be positive"),
        (("rows = 4", "rows = 4.5"), "rows must be a whole number"),
        (("num_attention_heads = 4", "num_attention_heads = 0"), "must be positive"),
        (("vocab_size = 320", "vocab_size = 300"), "the tokenizer has 3"),
        (("fim_rate = 0.8", "fim_rate = 80"), "share between 0 and 1"),
        (("context = 64", "context = 4_000_000"), "validation packages are smaller"),
        (("hidden_size = 32", "hidden_size = 32_000_000"), "GB"),
        (("[model]", "[model"), "cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1][:30],
)
def test_a_config_that_cannot_work_is_refused_in_one_line(
    data: Path, tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    assert change[0] in CONFIG
    process = start(data, tmp_path / "run", CONFIG.replace(*change))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in output
    assert re.search(message, output), output
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_the_schedule_warms_up_holds_and_decays() -> None:
    plan = Schedule(1, 4, 4, 1000, 10, 0.5, 1.0, 0.0, 60)
    rates = [plan.learning_rate_at(tokens, tokens) for tokens in (0, 4, 10, 400, 750, 1000)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.02])


def test_the_clock_ends_a_run() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        assert Stopper(0.0)() and not Stopper(60.0)()
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_a_section_becomes_its_dataclass() -> None:
    with pytest.raises(SystemExit, match="missing or unknown"):
        section(Schedule, "train", {})


def test_held_out_text_fills_at_least_one_batch(data: Path) -> None:
    tokenizer = Tokenizer.from_file(data / "tokenizer.json")
    documents = read_documents(data / "validation.jsonl") * 60
    batches, size = held_out_batches(
        tokenizer, documents, rows=20, context=2048
    )  # more than HELD_OUT_TOKENS
    assert [x.shape for x, _ in batches] == [(20, 2048)]
    assert size > 40_960
