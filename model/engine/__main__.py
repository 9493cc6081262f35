"""`python -m model.engine JSON`: the engine process. The JSON is a `Launch` of options.py."""

from __future__ import annotations

import os
import sys

from model.engine.process import main

status = main(sys.argv[1:])
sys.stdout.flush()
# Not sys.exit: the interpreter's own end aborts when a thread is in the middle of importing torch,
# or in a kernel.
os._exit(status)
