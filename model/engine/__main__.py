"""`python -m model.engine`: the engine process."""

from __future__ import annotations

import os
import sys

from model.engine.http_server import main

ended_with = main(sys.argv[1:])
sys.stdout.flush()
# Not sys.exit: the interpreter's own end aborts when a thread is in the middle of importing torch,
# or in a kernel.
os._exit(ended_with)
