"""`fimls lsp` on a machine that its doctor finds fast, at once: it offers a larger model."""

from __future__ import annotations

import json
import sys

from lsp_server.__main__ import lsp
from lsp_server.protocol.models import note

NAME = "qwen2.5-coder-0.5b"


async def run_doctor(*options: str) -> bytes:
    estimate = {"name": NAME, "memory_bytes": 170_000_000, "line_ms": 120.0, "verdict": "fine"}
    return json.dumps({"estimates": [estimate], "recommendation": {"model": NAME}}).encode()


if __name__ == "__main__":
    note.run_doctor = run_doctor
    note.PAUSE_S = 0.5
    sys.exit(lsp(sys.argv[1:]))
