"""What a real engine has left on disk of a text with secrets, and the logs of it all."""

from __future__ import annotations

import os
import signal

import pytest
from safetensors.numpy import load_file

from fim.secrets.masking import MASK
from model.weights.folder import find_model
from tests.lsp_server.helpers import URI, Home, Window, until
from tests.salt import FORMS, Salt, leaks

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]


async def test_no_file_holds_a_secret(home: Home) -> None:
    salt = Salt(8)
    lines = [
        f"def area_{number}(width, height):\n    return width * height\n" for number in range(40)
    ]
    lines += [form(salt) for form in FORMS.values()]
    text = "\n".join(lines) + "\ndef total(values):\n    return "
    async with Window.spawn(home) as window:
        await window.start()
        window.open(text)
        at = {"line": text.count("\n"), "character": 11}
        await window.ask(**at, invoked=True)[1]  # waits for the model; with the longest prompt
        secret = "file:///work/place/.env"
        window.open(f"API_KEY={salt.word()}\nNAME=", secret, "plaintext")
        assert await window.ask(1, 5, secret, invoked=True)[1] == []
        window.notify("textDocument/didFocus", {"textDocument": {"uri": URI}, "position": at})
        await until(lambda: _is_quiet(home))
    for pid in home.engines():
        os.kill(pid, signal.SIGTERM)
    await until(lambda: not home.engines())
    stored = list(home.path.rglob("prefixes/*"))
    assert stored
    tokenizer = find_model("bundled").load_tokenizer()
    for file in stored:
        written = tokenizer.decode(load_file(file)["ids"].tolist())
        assert MASK * 20 in written
        assert leaks(salt.keys, written) == []
    for file in home.path.rglob("*"):
        if file.is_file():
            assert leaks(salt.keys, file.read_bytes().decode("latin-1")) == []


async def _is_quiet(home: Home) -> bool:
    status = await home.status()
    return status is not None and not status["busy"] and status["cache_sequences"] > 0
