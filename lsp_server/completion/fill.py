"""Fill-in edits: a selection, a function's body or a docstring is written anew from both sides."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace

from fim import Kind, Target, target_at
from lsp_server.completion.explain import REASONS
from lsp_server.completion.query import Completion, ask_engine, query_at
from lsp_server.completion.suggestions import Suggestions
from lsp_server.documents import Snapshot
from lsp_server.session.session import Session

logger = logging.getLogger(__name__)
MIN_TOKENS = 128  # that an edit may have at least
NOTHING = {
    "selection": "Select the text that is to be written anew.",
    "body": "There is no function here whose body could be completed.",
    "docstring": "There is no function or class here to document.",
}


class FillError(Exception):
    """There is no edit; the message is for the user."""


async def fill(
    session: Session,
    suggestions: Suggestions,
    snapshot: Snapshot,
    end: int,
    kind: Kind,
    path: str | None,
) -> tuple[Target, str]:
    """The target in the snapshot's text, from the cursor to `end` or around it, and its new text.

    Waits for a model that is loading. Raises FillError.
    """
    if not session.settings.enabled:
        raise FillError(session.status().message)
    target = await asyncio.to_thread(
        target_at, snapshot.text, snapshot.language, snapshot.offset, end, kind
    )
    if target is None:
        raise FillError(NOTHING[kind])
    ready = await session.ready(wait=True)
    if ready is None:
        raise FillError(session.status().message)
    prompter, engine = ready
    snapshot = await suggestions.secret_files.checked(snapshot)
    old = snapshot.text[target.start : target.end]
    if kind == "selection" and prompter.count(old) > prompter.context_tokens // 2:
        raise FillError("The selection is longer than the model can write at once; select less.")

    # A token has at least one character.
    room = max(session.settings.max_tokens, MIN_TOKENS, len(old))
    settings = replace(session.settings, max_tokens=room)
    suggestions.close_rests()  # they would delay this request
    completion: Completion | None = None
    with session.reported():
        query = query_at(
            without(snapshot, target), path, prompter, settings, session.client, target=target
        )
        completion = await ask_engine(engine, query)
        session.engine_answers()
    if completion is None:
        raise FillError(session.problem or "The engine gave no answer; try again.")
    logger.info("%s", json.dumps(completion.trace.to_json()))
    suggestions.keep_reason(completion)
    if (reason := query.withheld) is not None:
        raise FillError(f"Nothing was written here: {REASONS[reason]}.")
    return target, target.fit(words_of(completion))


def without(snapshot: Snapshot, target: Target) -> Snapshot:
    """The snapshot without the target's text, with the cursor in its place."""
    before = snapshot.text[: target.start] + target.lead
    after = target.tail + snapshot.text[target.end :]
    return replace(snapshot, text=before + after, offset=len(before))


def words_of(completion: Completion) -> str:
    """The text to fill in. Raises FillError."""
    words = completion.suggestion.text
    query = completion.query
    broken_off = completion.trace.generated_tokens >= query.request.max_tokens
    if broken_off and not query.shaper.done(completion.answer):
        words = words.rpartition("\n")[0]  # half a line is no use
    if not words.strip():
        raise FillError("The model had nothing to write here.")
    return words
