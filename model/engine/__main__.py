"""`python -m model.engine JSON`: the engine process. The JSON is a `Launch` of options.py."""

from __future__ import annotations

import os
import sys

from model.errors import NO_MEMORY, NO_MEMORY_STATUS, lacks_memory

try:
    from model.engine.process import main

    status = main(sys.argv[1:])
except (MemoryError, ImportError, OSError, RuntimeError, SystemError) as error:
    if not lacks_memory(error):
        raise
    print(NO_MEMORY, file=sys.stderr)
    status = NO_MEMORY_STATUS
sys.stdout.flush()
# Not sys.exit: the interpreter's own end aborts when a thread is in the middle of importing torch,
# or in a kernel.
os._exit(status)
