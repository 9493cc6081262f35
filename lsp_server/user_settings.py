"""The user's settings file on this machine: JSON, written when a model is chosen in an editor.

It lies between the defaults and the environment. A file that cannot be read is a problem to tell;
before the next write it is set aside as settings.bad.json.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsp_server.folders import config_folder
from lsp_server.settings import Settings, from_environment, parse
from model.private_files import write_private_file
from model.regular_files import read_text, reason

MAX_BYTES = 2**20


def settings_file() -> Path:
    return config_folder() / "settings.json"


def read_user_settings() -> tuple[dict[str, Any], tuple[str, ...]]:
    """The file's content, {} if there is none, and the problems with it."""
    try:
        path = settings_file()
    except OSError as error:  # there is no home
        return {}, (f"The user's settings are ignored: {error}.",)
    try:
        content = json.loads(read_text(path, MAX_BYTES))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
    except (FileNotFoundError, NotADirectoryError):
        return {}, ()
    except (OSError, ValueError, RecursionError) as error:
        return {}, (f"{path} is ignored: {reason(error)}. Correct or delete it.",)
    return content, ()


def settings_here(environment: Mapping[str, str]) -> tuple[Settings, tuple[str, ...]]:
    """The settings of the file and, above it, of the environment; and the problems."""
    content, problems = read_user_settings()
    settings, more = parse(content)
    settings, others = parse(from_environment(environment), base=settings)
    return settings, (*problems, *more, *others)


def store_model(name: str) -> str:
    """Keeps the choice of a model that is here, by a name that is found from every folder, and
    returns that; the file's other settings stay. Raises ModelError, OSError."""
    from model.weights.folder import find_model

    model = find_model(name)
    if model.path == Path(name):
        name = str(model.path.absolute())
    path = settings_file().resolve()  # it may be a link to where the user keeps such files
    content, problems = read_user_settings()
    if problems:
        with contextlib.suppress(FileNotFoundError):
            path.replace(path.with_name("settings.bad.json"))
    write_private_file(path, json.dumps(content | {"model": name}, indent=2).encode() + b"\n")
    return name
