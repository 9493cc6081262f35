"""What an engine process is told when it is started."""

from __future__ import annotations

import argparse
from dataclasses import MISSING, dataclass, fields

CACHE_BYTES = 512 * 2**20


@dataclass(frozen=True, slots=True)
class Options:
    """What one engine serves, and where."""

    model: str
    listen: str  # unix:PATH or tcp:HOST:PORT
    version: str = ""
    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "auto"
    threads: int = 0  # 0: as many as this process may use
    idle_timeout: float = 900.0  # seconds; 0 never ends
    cache_bytes: int = CACHE_BYTES  # of computed prefixes in memory; 0 keeps none
    cache_dir: str = (
        ""  # for what engines keep on disk: prefixes, the speed of kernels; "" keeps nothing
    )
    disk_bytes: int = 0  # there; 0 keeps none


def parse_options(argv: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="fimls engine")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--listen", required=True, help="unix:PATH or tcp:HOST:PORT")
    for option in fields(Options):
        if option.default is not MISSING:
            flag = "--" + option.name.replace("_", "-")
            parser.add_argument(flag, type=type(option.default), default=option.default)
    options = Options(**vars(parser.parse_args(argv)))
    kind, _, where = options.listen.partition(":")
    if kind not in ("unix", "tcp") or (kind == "tcp" and not where.rpartition(":")[2].isdigit()):
        parser.error("--listen is unix:PATH or tcp:HOST:PORT")
    return options
