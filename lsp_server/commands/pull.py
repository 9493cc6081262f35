"""`fimls pull` and `fimls models remove`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

from lsp_server.commands.errors import CommandError
from lsp_server.folders import cache_folder
from model.catalogue.download import LicenceNotAccepted, Progress, Stopped, pull, remove, size
from model.catalogue.installed import locate
from model.catalogue.records import find_record
from model.prepared.files import remove_prepared

STAGES = {
    "asking": "asking the hub",
    "waiting": "waiting for another pull of it",
    "fetching": "fetching",
    "checking": "checking",
}
LINE_EVERY_S = 10.0  # where standard error is no terminal


def pull_model(name: str, *, accepted: str, offline: bool) -> None:
    """Prints the path, the only line on standard output. Raises ModelError."""
    path = fetch(name, accepted=accepted, offline=offline)
    print(path)
    print(f"Use it: `fimls models use {name}`, or Choose Model in the editor", file=sys.stderr)


def fetch(name: str, *, accepted: str = "", offline: bool = False) -> Path:
    """pull with a progress bar, and the question about a licence. Raises ModelError."""
    try:
        try:
            return _with_progress(name, accepted, offline)
        except LicenceNotAccepted as question:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise
            licence = question.licence
            where = f" ({licence.url})" if licence.url else ""
            typer.echo(f"{name} comes under the licence {licence.name}{where}.", err=True)
            if not typer.confirm("Have you read it, and do you accept it?", err=True):
                raise CommandError("Nothing was fetched.") from None
            return _with_progress(name, licence.name, offline)
    except KeyboardInterrupt:
        raise Stopped from None


def _with_progress(name: str, accepted: str, offline: bool) -> Path:
    console = Console(stderr=True)
    if not console.is_terminal:
        return pull(name, progress=Lines().show, accepted=accepted, offline=offline)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("", total=None)

        def show(progress: Progress) -> None:
            description = f"{STAGES[progress.stage]} {progress.file}"
            bars.update(
                task, description=description, completed=progress.done, total=progress.total
            )

        return pull(name, progress=show, accepted=accepted, offline=offline)


class Lines:
    """Progress as a line now and then, for a log."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def show(self, progress: Progress) -> None:
        if time.monotonic() - self._last < LINE_EVERY_S:
            return
        self._last = time.monotonic()
        line = f"{STAGES[progress.stage]} {progress.file}".strip()
        if progress.total:
            line += f": {size(progress.done)} of {size(progress.total)}"
        print(line, file=sys.stderr)


def remove_model(name: str, *, yes: bool) -> None:
    """Raises CommandError, ModelError."""
    record = find_record(name)
    if record is None:
        path = locate(name)
        if path is None:
            raise CommandError(f"There is no model {name!r} here. `fimls models` lists them.")
        raise CommandError(
            f"{path} was not put there by fimls. Remove it with the program that did: `hf cache "
            "rm` for the hub's cache, `ollama rm` for ollama's models."
        )
    if not yes:
        if not sys.stdin.isatty():
            raise CommandError(f"Nothing was removed: say --yes to remove {record.name} unasked.")
        total = size(sum(file.bytes for file in record.files))
        if not typer.confirm(f"Remove {record.name} ({total}, {record.path})?"):
            raise CommandError("Nothing was removed.")
    freed = remove(record) + remove_prepared(cache_folder(), record.model)
    if freed:
        print(f"removed {record.name}: {size(freed)} are free")
    else:
        print(f"removed {record.name}; its files stay, another model or program uses them")
