"""Why no suggestion comes in a file, or at a place in it."""

from __future__ import annotations

import re
from pathlib import Path

from fim import FormatError
from lsp_server.commands.complete import document_at, parse_place, snapshot_at
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

MENDS = {
    "unsure": "Lower fimls.minConfidence to see such suggestions, or choose a larger model.",
    "attributed": "Set fimls.attribution to show to see such suggestions.",
    "blank": "Type a few characters more, or choose a larger model.",
}


async def examine_place(place: str, settings: Settings) -> tuple[list[Finding], str]:
    """place: FILE or FILE:LINE:COL. The findings, and how the completion there came about, as
    Markdown."""
    path = Path(place)
    at = None
    try:
        if not path.exists() and re.search(r":\d*$", place):
            path, *at = parse_place(place)
        text = read_source(path)
    except (CommandError, OSError) as error:
        return [wrong(f"{str(error)[:1].upper()}{str(error)[1:]}.")], ""
    found = _about_file(path, len(text.encode()), settings)
    if not at or any(finding.kind == "wrong" for finding in found):
        return found, ""
    try:
        verdict, page = await _ask(path, *at, settings=settings)
    except (CommandError, ModelError, FormatError, EngineUnavailable, OSError) as error:
        reason = str(error).rstrip(".")
        return [*found, wrong(f"No suggestion could be asked for: {reason}.")], ""
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
    snapshot = snapshot_at(document, path, line, column)
    query = query_at(snapshot, path.name, prompter, settings, "cli")
    async with ready_engine(settings) as engine:
        done = await ask_engine(engine, query)
    where = f"at {settings.remote.url}" if settings.remote.url else "on this machine"
    page = explain(done, where=where, is_rest=False)
    at = f"line {line + 1}, column {column + 1}"
    suggestion = done.suggestion
    if not suggestion.hidden:
        return [fine(f"There is a suggestion at {at}.")], page
    told = "; ".join(REASONS[reason] for reason in suggestion.reasons)
    if "unsure" in suggestion.reasons:
        told += f" ({suggestion.confidence:.2f} of {prompter.min_confidence:g})"
    mends = [MENDS[reason] for reason in suggestion.reasons if reason in MENDS]
    return [note(f"No suggestion is shown at {at}: {told}.", " ".join(mends))], page
