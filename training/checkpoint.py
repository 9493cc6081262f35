"""A run's checkpoints. A new one is written beside the last one and then replaces it, so that one
is always whole."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

NEWEST, BEFORE, PARTIAL = "checkpoint.pt", "checkpoint.before.pt", "checkpoint.partial"


def save(folder: Path, state: dict[str, Any]) -> bool:
    """Writes a checkpoint and keeps the one before. False, and a line that says why, where the disk
    is full."""
    partial, newest = folder / PARTIAL, folder / NEWEST
    try:
        with partial.open("wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        if newest.exists():
            newest.replace(folder / BEFORE)
        partial.replace(newest)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError for a full disk
        partial.unlink(missing_ok=True)
        print(
            f"No checkpoint at step {state['step']} ({error}); the last one is kept. Free some "
            f"space for {folder}.",
            flush=True,
        )
        return False
    return True


def load(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint that can be read; None where the run is new. Exits where there is none
    but broken ones."""
    found = [path for name in (NEWEST, BEFORE) if (path := folder / name).exists()]
    for path in found:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        except (
            RuntimeError,
            OSError,
            EOFError,
            KeyError,
            pickle.UnpicklingError,
            zipfile.BadZipFile,
        ) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            print(f"{path} cannot be read ({reason}); trying the one before.", flush=True)
    if found:
        raise SystemExit(
            f"No checkpoint in {folder} can be read. Remove them to begin anew, or name a new run "
            "folder."
        )
    return None
