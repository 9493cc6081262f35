"""Why no suggestion comes in a file, or at a place in it."""

from __future__ import annotations

from pathlib import Path

from fim import FormatError
from lsp_server.commands.complete import document_at, parse_place
from lsp_server.commands.doctor.findings import Finding, fine, note, wrong
from lsp_server.commands.engine import ready_engine
from lsp_server.commands.errors import CommandError
from lsp_server.commands.source_files import language_of, read_source
from lsp_server.completion.explain import REASONS, explain
from lsp_server.completion.query import ask_engine, query_at
from lsp_server.engines.interface import EngineUnavailable
from lsp_server.protocol.transport import MAX_BODY
from lsp_server.session.prompter import Prompter
from lsp_server.settings import Settings
from model.errors import ModelError


async def examine_place(place: str, settings: Settings) -> tuple[list[Finding], str]:
    """place: FILE or FILE:LINE:COL. The findings, and how the completion there came about, as
    Markdown."""
    path = Path(place)
    at = None
    try:
        if not path.exists():
            path, *at = parse_place(place) if place.count(":") > 1 else (path,)
        text = read_source(path)
    except (CommandError, OSError) as error:
        return [wrong(f"{str(error)[:1].upper()}{str(error)[1:]}.")], ""
    found = _about_file(path, len(text.encode()), settings)
    if not at:
        return found, ""
    try:
        verdict, page = await _ask(path, *at, settings=settings)
    except (CommandError, ModelError, FormatError, EngineUnavailable, OSError) as error:
        return [*found, wrong(f"No suggestion could be asked for: {error}.")], ""
    return [*found, *verdict], page


def _about_file(path: Path, size: int, settings: Settings) -> list[Finding]:
    language = language_of(path)
    found = []
    if not settings.enabled:
        found.append(wrong("Suggestions are switched off.", "Set fimls.enabled to true."))
    if language in settings.disabled_languages:
        found.append(
            wrong(f"Suggestions are off for {language}.", "Take it out of fimls.disabledLanguages.")
        )
    if size > MAX_BODY:
        found.append(
            wrong(
                f"{path} is larger than the {MAX_BODY >> 20} MiB that the server reads.",
                "Work in a smaller file.",
            )
        )
    try:
        prompter = Prompter.for_settings(settings)
    except (ModelError, FormatError, OSError):  # the model's own findings tell
        return found
    if prompter.languages and language not in prompter.languages:
        better = prompter.other_languages or "a model that knows more languages"
        found.append(
            note(
                f"The model {settings.model} was trained on {', '.join(prompter.languages)} only, "
                f"and this file is {language or 'of an unknown language'}.",
                f"For such files set fimls.model to {better}.",
            )
        )
    return found or [fine(f"Nothing speaks against suggestions in {path}.")]


async def _ask(
    path: Path, line: int, column: int, *, settings: Settings
) -> tuple[list[Finding], str]:
    """Asks the engine, as `fimls complete` does. Raises what that does."""
    document = document_at(path, line, column)
    prompter = Prompter.for_settings(settings)
    query = query_at(document.snapshot(line, column), path.name, prompter, settings, "cli")
    async with ready_engine(settings) as engine:
        done = await ask_engine(engine, query)
    page = explain(done, where="on this machine", is_rest=False)
    if not done.suggestion.hidden:
        return [fine(f"There is a suggestion at line {line + 1}, column {column + 1}.")], page
    reasons = ", ".join(REASONS[reason] for reason in done.suggestion.reasons)
    text = f"No suggestion is shown at line {line + 1}, column {column + 1}: {reasons or 'no text'}"
    mend = ""
    if "unsure" in done.suggestion.reasons:
        mend = (
            f"Its confidence was {done.trace.confidence:.2f}; lower fimls.minConfidence (now "
            f"{prompter.min_confidence:g}) to see such suggestions, or choose a larger model."
        )
    return [note(f"{text}.", mend)], page
