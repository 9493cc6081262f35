"""`python -m training.corpus`."""

from __future__ import annotations

import argparse
import errno
import sys
from pathlib import Path
from typing import Any

from training.corpus.build import build
from training.corpus.folder import SPLITS, CorpusError, read_manifest
from training.corpus.pieces import PIECE_BYTES, pack, unpack


def report(manifest: dict[str, Any]) -> None:
    for split in SPLITS:
        files = sum(p["files"] for p in manifest["packages"].values() if p["split"] == split)
        print(f"{split}: {manifest['bytes'][split] / 1e6:.1f} MB in {files} files; dropped:")
        for reason, count in sorted(
            manifest["dropped"][split].items(), key=lambda x: -x[1]["bytes"]
        ):
            print(f"  {reason:24} {count['files']:6} files {count['bytes'] / 1e6:8.2f} MB")
    print(
        f"functions like HumanEval's cut out of kept files: {manifest['humaneval_functions_cut']}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.corpus", description="Builds, packs, unpacks the corpus."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("build", help="download the packages, filter, split")
    command.add_argument("data", type=Path, help="the corpus folder; about 1.2 GB")
    command = commands.add_parser("pack", help="cut the corpus into xz pieces")
    command.add_argument("data", type=Path)
    command.add_argument("pieces", type=Path, help="folder for the pieces")
    command.add_argument(
        "--piece-bytes", type=int, default=PIECE_BYTES, help="default: %(default)s"
    )
    command = commands.add_parser("unpack", help="the corpus from its pieces")
    command.add_argument("pieces", type=Path)
    command.add_argument("data", type=Path)
    a = parser.parse_args(arguments)
    try:
        if a.command == "build":
            report(build(a.data))
        elif a.command == "pack":
            sizes = pack(a.data, a.pieces, a.piece_bytes)
            print(
                f"{len(sizes)} pieces, {sum(sizes) / 1e6:.1f} MB, the largest "
                f"{max(sizes) / 1e6:.1f} MB"
            )
        else:
            unpack(a.pieces, a.data)
            report(read_manifest(a.data))
    except CorpusError as error:
        print(f"corpus: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        full = error.errno == errno.ENOSPC
        remedy = (
            "free 2 GB or name a folder on another disk"
            if full
            else "choose a folder that can be written"
        )
        target = a.pieces if a.command == "pack" else a.data
        print(f"corpus: {error.filename or target}: {error.strerror}: {remedy}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
