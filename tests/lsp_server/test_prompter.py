"""The prompts of the product, beyond what fim makes of a context."""

from __future__ import annotations

import pytest

from fim import CursorContext
from lsp_server.prompter import Prompter
from lsp_server.settings import Settings


def ids(before: str, behind: str, layout: str = "spm") -> tuple[int, ...]:
    settings = Settings(layout=layout)  # type: ignore[arg-type]
    context = CursorContext("def f(a):\n    return " + before, behind + "\n\nx = 1\n")
    asked, _ = Prompter.for_settings(settings).request(context, settings, "")
    assert not isinstance(asked.prompt, str)
    return asked.prompt


@pytest.mark.parametrize(("before", "behind"), [("g(", ")"), ("g([", "])"), ('g(["', '"])'), ("g(a", "):")])
def test_brackets_that_an_editor_closes_leave_the_prompt_alone(before: str, behind: str) -> None:
    assert ids(before, behind) == ids(before, "")


def test_anything_else_behind_the_cursor_is_in_the_prompt() -> None:
    assert ids("g", "") != ids("g", ".x")
    assert ids("g(", ", b)") != ids("g(", "")
