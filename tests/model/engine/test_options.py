"""What an engine is started with: one JSON value, read back as it was written, or refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from model.engine.options import BadOptions, EngineOptions, Launch, parse_launch
from tests.conftest import ROOT

LAUNCH = Launch(
    listen="unix:/tmp/a path\n/sock",
    model="/models/\udcff",  # a file name that is not UTF-8
    version="1.2",
    cache_folder="/cache",
    ends_when_idle=False,
    options=EngineOptions("cuda:1", "bfloat16", "int8", 60.5, 4, 30.0, 64, 0),
)


@pytest.mark.parametrize("launch", [Launch(), LAUNCH], ids=["defaults", "all set"])
def test_a_launch_is_read_back_as_it_was_written(launch: Launch) -> None:
    line = launch.to_json()
    assert "\n" not in line and line.isascii()
    assert parse_launch(line) == launch


def test_what_is_left_out_has_its_default() -> None:
    text = '{"listen": "unix:/s", "model": null, "options": {"threads": null, "dtype": "float32"}}'
    assert parse_launch(text) == Launch("unix:/s", options=EngineOptions(dtype="float32"))


def test_the_options_that_tell_engines_apart() -> None:
    others = {each.name for each in fields(EngineOptions)} - EngineOptions().identity.keys()
    assert others == {"idle_timeout", "start_timeout", "cache_weights"}


BAD = [
    ("", "the argument is '', expected a JSON object"),
    ("--listen unix:/s", "the argument is '--listen unix:/s', expected a JSON object"),
    ("[" * 100_000, "expected a JSON object"),
    ("[1]", "the argument is '[1]', expected a JSON object"),
    ('{"listen": "/s"}', "listen is '/s', expected unix:PATH or tcp:HOST:PORT"),
    ('{"listen": "tcp:here"}', "listen is 'tcp:here', expected unix:PATH or tcp:HOST:PORT"),
    ('{"listen": 5}', "listen is '5', expected unix:PATH or tcp:HOST:PORT"),
    ('{"ends_when_idle": 0}', "ends_when_idle is '0', expected true or false"),
    ('{"speed": 1}', "speed is not an option of an engine"),
    ('{"options": [1]}', "options is '[1]', expected a JSON object"),
    ('{"options": {"speed": 1}}', "options.speed is not an option of an engine"),
    (
        '{"options": {"dtype": "int8"}}',
        "options.dtype is 'int8', expected one of auto, float32, float16, bfloat16",
    ),
    (
        '{"options": {"threads": 0}}',
        "options.threads is '0', expected a whole number from 1 to 1024",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[text[:40] for text, _ in BAD])
def test_what_cannot_be_is_named(text: str, message: str) -> None:
    with pytest.raises(BadOptions) as caught:
        parse_launch(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("through_stdin", [False, True], ids=["argument", "spare"])
def test_a_process_says_what_is_wrong_and_ends(tmp_path: Path, through_stdin: bool) -> None:
    bad = json.dumps({"options": {"device": "tpu"}})
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "model.engine", "--spare" if through_stdin else bad]
    ended = subprocess.run(
        command, input=f"{bad}\n", cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr == (
        "fimls engine: options.device is 'tpu', expected auto, cpu, mps, cuda, or cuda: and a "
        "number\n"
    )
