"""The entry of `fimls`. `fimls lsp` loads no command-line library, so that it starts quickly."""

from __future__ import annotations

import io
import os
import sys

from model.errors import NO_MEMORY, lacks_memory  # first: later there may be no memory for it


def main() -> None:
    try:
        if sys.argv[1:2] == ["lsp"] and "--help" not in sys.argv:
            sys.exit(lsp(sys.argv[2:]))
        from lsp_server.commands.cli import app

        for stream in (sys.stdout, sys.stderr):
            # A console of Windows, or a strict locale, has no bytes for every character.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        app()
    except (MemoryError, ImportError, OSError, RuntimeError, SystemError) as error:
        if not lacks_memory(error):
            raise
        print(f"fimls: {NO_MEMORY}", file=sys.stderr)
        sys.exit(2)


def lsp(arguments: list[str]) -> int:
    """`fimls lsp`: the server on stdin and stdout, for one window."""
    parent: int | None = None
    for argument in arguments:
        if argument.startswith("--clientProcessId="):  # what VS Code's client adds
            _, _, number = argument.partition("=")
            if number.isdigit():
                parent = int(number)
        elif argument != "--stdio":
            message = f"fimls lsp: unknown argument {argument!r}; it takes --stdio only"
            print(message, file=sys.stderr)
            return 2

    from lsp_server.protocol.transport import take_stdio

    incoming, outgoing = take_stdio()  # before anything else could print

    from lsp_server.engines.process import start_spare

    start_spare()  # it has more to import than this process

    import asyncio
    import logging

    from lsp_server.logs import log_to_file
    from lsp_server.protocol.app import run

    log_to_file("lsp.log")

    async def serve() -> None:
        status = await run(incoming, outgoing, parent)
        # Neither a thread that waits for a disk nor one that imports is waited for.
        logging.shutdown()
        os._exit(status)

    asyncio.run(serve())
    return 1


if __name__ == "__main__":
    main()
