"""Where models lie: our own folder, the cache of Hugging Face's library, and ollama's store.

The rules for the last two are those of huggingface_hub and ollama; they are repeated here because
importing huggingface_hub takes longer than looking into its cache.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from model.private_files import temporary_folder

RECORD = "pulled.json"


def data_folder() -> Path:
    """What fimls keeps for good; FIMLS_DATA_DIR. Raises OSError where there is no home, and no
    folder for temporary files."""
    if chosen := os.environ.get("FIMLS_DATA_DIR"):
        return Path(chosen)
    import platformdirs

    try:
        return platformdirs.user_data_path("fimls", appauthor=False)
    except RuntimeError:  # no home
        return temporary_folder() / "data"


def models_folder() -> Path:
    """One folder for each model that was pulled: its record and, if no other cache holds it, its
    file."""
    return data_folder() / "models"


def hub_cache() -> Path:
    """The cache of Hugging Face's library: HF_HUB_CACHE, or `hub` in HF_HOME."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := os.environ.get(variable):
            return _expanded(chosen)
    if chosen := os.environ.get("HF_HOME"):
        return _expanded(chosen) / "hub"
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return _expanded(chosen) / "huggingface" / "hub"
    if (home := _home()) is None:
        return data_folder() / "huggingface" / "hub"
    return home / ".cache" / "huggingface" / "hub"


def ollama_stores() -> list[Path]:
    """Where ollama may keep models: OLLAMA_MODELS, else the user's and the Linux service's."""
    if chosen := os.environ.get("OLLAMA_MODELS"):
        return [_expanded(chosen)]
    home = _home()
    stores = [] if home is None else [home / ".ollama" / "models"]
    if sys.platform == "linux":
        stores.append(Path("/usr/share/ollama/.ollama/models"))
    return stores


def repository_of(path: Path) -> str:
    """ORG/REPO of a path in the hub's cache; '' elsewhere."""
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    return ""


def names_in_cache(path: Path) -> list[str]:
    """The names of a file: its own or, of a blob in the hub's cache, those of its links. Raises
    OSError."""
    if path.parent.name != "blobs" or not repository_of(path):
        return [path.name]
    links = (path.parent.parent / "snapshots").glob("*/*")
    return [link.name for link in links if link.resolve() == path]


def folder_name(name: str) -> str:
    """A model's name as the name of one folder."""
    return re.sub(r"[/\\:]", "--", name)


def _home() -> Path | None:
    """The user's home; None without one: ~ then stays as it is, and would be a folder of the
    working folder, which may be anyone's repository."""
    home = _expanded("~")
    return home if home.is_absolute() else None


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(os.path.expandvars(path)))  # noqa: PTH111
