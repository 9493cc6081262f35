"""The settings of one window, from the layers that set them."""

from __future__ import annotations

import json
import os
from dataclasses import replace

from lsp_server.settings import Settings, parse
from lsp_server.user_settings import settings_here


class SettingsLayers:
    """The weakest layer first: the defaults, the user's settings file, the environment, the user's
    settings in the editor, those of the workspace.

    settings: what they come to. problems: with the file and the environment.
    """

    def __init__(self) -> None:
        self._editor: object = None  # as the client sent it
        self._workspace: object = None
        self.problems = self.read_again()

    def read_again(self) -> tuple[str, ...]:
        """Reads the file and the environment; returns the problems with them."""
        self._here, problems = settings_here(os.environ)
        self._trusted, _ = parse(self._editor, base=self._here)
        self.settings, _ = parse(self._workspace, base=self._trusted, trusted=False)
        return problems

    def take(self, raw: object, *, trusted: bool) -> tuple[str, ...]:
        """The client's settings; returns the problems with them. trusted: they are the user's own,
        not a workspace's."""
        if trusted:
            self._editor = raw
            self._trusted, problems = parse(raw, base=self._here)
            self.settings = self._trusted
        else:
            self._workspace = raw
            self.settings, problems = parse(raw, base=self._trusted, trusted=False)
        return problems

    def to_json(self) -> str:
        """What the editor has sent, for another process with the same file and environment."""
        return json.dumps({"editor": self._editor, "workspace": self._workspace})

    @classmethod
    def from_json(cls, sent: str) -> tuple[SettingsLayers, tuple[str, ...]]:
        """The layers of `to_json`, and the problems with them. Raises ValueError, KeyError,
        TypeError for what is none."""
        layers = cls()
        content = json.loads(sent)
        trusted = layers.take(content["editor"], trusted=True)
        workspace = layers.take(content["workspace"], trusted=False)
        return layers, (*layers.problems, *trusted, *workspace)

    def who_sets_model(self) -> str | None:
        """Who names the model, above the user's settings file; None if nobody does."""
        if name := os.environ.get("FIMLS_MODEL"):
            return f"The variable FIMLS_MODEL chooses {name!r}. Unset it first."
        nobody = replace(Settings(), model="?")
        if parse(self._editor, base=nobody)[0].model != "?":
            return "The editor's setting fimls.model names a model. Remove it there, or change it."
        return None
