"""The answer to "Why this suggestion?": how a completion came about, as a document."""

from __future__ import annotations

import re

from fim.characters import escaped
from fim.secrets import holds_secret
from lsp_server.completion.query import Completion

REASONS = {
    "end of line": "cut at the end of the line",
    "end of block": "cut where the block ends",
    "end of span": "cut where the text that was to be written ends",
    "blank lines": "cut at a run of blank lines",
    "too long": "cut after so many lines",
    "loops": "cut where the text began to go round in circles",
    "repeats below": "cut where it repeated what stands below",
    "repeats above": "hidden: it repeated what stands above",
    "defined above": "cut where it defined again what is defined above",
    "dismissed": "hidden: it was dismissed here before",
    "closed below": "cut at a bracket or quote that is closed below",
    "unreachable": "hidden: it would stand behind a return and never run",
    "chat": "what a chat writes around code was left out",
    "indentation": "it was given the indentation of the file",
    "does not fit": "hidden: it did not go with what stands right of the cursor",
    "breaks syntax": "cut to what leaves the syntax around it whole",
    "repeats right": "its end stands right of the cursor already and was dropped",
    "replaces right": "it takes the place of the closing characters right of the cursor",
    "strange character": "cut at a character that cannot be seen",
    "half character": "cut at half a character",
    "sentinel": "cut at one of the model's own marks",
    "blank": "hidden: nothing but blanks was left",
    "unsure": "cut where the model became less sure than minConfidence asks, or hidden",
    "attributed": "hidden: it repeats a known package, and the setting attribution hides that",
    "secret": "hidden: it has something that looks like a key or a password",
    "secret here": "the model was not asked: what stands at the cursor looks like a key or a "
    "password",
    "secret file": "the model was not asked: the name of this file is one of those that hold "
    "secrets, or a .fimlsignore names it or cannot be read",
}
KINDS = {"line": "rest of a line", "block": "block of lines", "span": "text between two others"}


def explain(completion: Completion, *, where: str, is_rest: bool) -> str:
    """Markdown. where: such as "on this machine". is_rest: the rest of an offer was shown."""
    parts = [
        "# Why this suggestion?",
        *_verdict(completion, is_rest),
        "## Filters",
        *_filters(completion),
        "## Figures",
        _figures(completion),
        "## From other files",
        _snippets(completion),
        "## The prompt",
        *_prompt(completion, where),
    ]
    return "\n\n".join(parts) + "\n"


def _verdict(completion: Completion, is_rest: bool) -> list[str]:
    trace = completion.trace
    if completion.suggestion.hidden:
        parts = ["Nothing was shown."]
    else:
        parts = ["This was suggested:", fenced(completion.suggestion.text)]
    if is_rest:
        parts.append("The last answer was the rest of this one, without asking the model again.")
    elif trace.from_memory:
        parts.append("The model had been asked the same before, and was not asked again.")
    if trace.cut:
        parts.append("It was cut at the setting timeBudget; the rest goes on in the background.")
    elif trace.outcome == "late":
        parts.append("No whole line had come within the time that the setting patience gives.")
    return parts


def _filters(completion: Completion) -> list[str]:
    suggestion = completion.suggestion
    filters = [f"- {REASONS[reason]}" for reason in suggestion.reasons]
    if not filters:
        filters.append("- no filter changed anything")
    if suggestion.match is not None:
        filters.append(f"- {suggestion.match}")
    parts = ["\n".join(filters)]
    query = completion.query
    if holds_secret(query.shaper.before, completion.answer, query.context.secrets):
        parts.append("What the model wrote before the filters is not shown: it has a secret.")
    elif completion.answer != suggestion.text:
        parts += ["What the model wrote before the filters:", fenced(completion.answer)]
    return parts


def _figures(completion: Completion) -> str:
    trace = completion.trace
    context = completion.query.context
    cached = "unknown"
    if trace.reused_tokens is not None:
        cached = f"{trace.reused_tokens:,} of {trace.prompt_tokens:,}"
    first = "–"
    if trace.first_token_ms is not None:
        first = f"{trace.first_token_ms:.0f} ms"
    passes = "unknown"
    if trace.forward_passes is not None:
        passes = str(trace.forward_passes)
    rows = {
        "confidence": f"{trace.confidence:.0%} (the product of its tokens' probabilities)",
        "kind": KINDS.get(trace.extent, trace.extent),
        "tokens of the prompt that were cached": cached,
        "tokens written": str(trace.generated_tokens),
        "runs of the model": passes,
        "context gathered": f"{trace.context_ms:.1f} ms",
        "prompt made": f"{trace.prompt_ms:.1f} ms",
        "first token after": first,
        "in all": f"{trace.total_ms:.0f} ms",
        "looked up in known packages": f"{trace.attribution_ms:.1f} ms",
        "layout": trace.layout,
        "file": quoted(context.path) if context.path else "without a name",
        "language": quoted(context.language) if context.language else "unknown",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _snippets(completion: Completion) -> str:
    lines = [
        f"- {quoted(piece.path)}: {piece.origin}, score {piece.score:.1f}, "
        f"{len(piece.text):,} characters"
        for piece in reversed(completion.query.context.snippets)
    ]
    if not lines:
        return "Nothing: only this file was read."
    length = completion.trace.prompt_tokens
    if length and length < len(completion.query.request.prompt):
        lines.append("\nThe model had not read them yet, and answered without them.")
    return "\n".join(lines)


def _prompt(completion: Completion, where: str) -> list[str]:
    query = completion.query
    prompt = query.request.prompt
    text = prompt if isinstance(prompt, str) else query.prompter.encoder.decode(prompt)
    parts = [f"As the model {where} read it, its own marks included."]
    if query.request.begin_with:
        parts.append(
            f"The answer had to begin with {quoted(query.request.begin_with)}, which stands "
            "before the cursor."
        )
    return [*parts, fenced(text)]


def quoted(text: str) -> str:
    """The text as code within a line or a table; nothing in it is read as Markdown."""
    text = escaped(text).replace("\n", "\\n").replace("\t", "\\t").replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}"


def fenced(text: str) -> str:
    """The text as a block of code, even if there are fences in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
