"""The answer to "Why this suggestion?": one request's whole way, as a document to read."""

from __future__ import annotations

import re

from lsp_server.completion.completer import Completion

REASONS = {
    "end of line": "cut at the end of the line",
    "end of block": "cut where the block ends",
    "end of span": "cut where the text that was to be written ends",
    "blank lines": "cut at a run of blank lines",
    "too long": "cut after so many lines",
    "loops": "cut where the text began to go round in circles",
    "repeats below": "cut where it repeated the line below",
    "repeats right": "its end stands right of the cursor already and was dropped",
    "replaces right": "it takes the place of the closing characters right of the cursor",
    "strange character": "cut at a character that cannot be seen",
    "half character": "cut at half a character",
    "sentinel": "cut at one of the model's own marks",
    "blank": "hidden: nothing but blanks was left",
    "unsure": "hidden: the model was less sure than minConfidence asks",
    "attributed": "hidden: it repeats a known package, and the setting attribution hides that",
}
KINDS = {"line": "rest of a line", "block": "block of lines", "span": "text between two others"}


def explain(completion: Completion, *, where: str, is_rest: bool) -> str:
    """Markdown. where: the model's place, "on this machine"; is_rest: the rest of an earlier answer
    was shown."""
    trace, suggestion, context = completion.trace, completion.suggestion, completion.context
    verdict = "Nothing was shown." if suggestion.hidden else "This was suggested:"
    parts = ["# Why this suggestion?", verdict]
    if not suggestion.hidden:
        parts.append(fenced(suggestion.text))
    if is_rest:
        parts.append("The last answer was the rest of this one, without asking the model again.")
    elif trace.from_memory:
        parts.append("The model had been asked the same before, and was not asked again.")
    if trace.cut:
        parts.append("It was cut at the setting timeBudget; the rest goes on in the background.")
    elif trace.outcome == "late":
        parts.append("No whole line had come within the time that the setting patience gives.")
    filters = [f"- {REASONS[reason]}" for reason in suggestion.reasons] or [
        "- no filter changed anything"
    ]
    if suggestion.match is not None:
        filters.append(f"- {suggestion.match}")
    parts += ["## Filters", "\n".join(filters)]
    if completion.answer != suggestion.text:
        parts += ["What the model wrote before the filters:", fenced(completion.answer)]

    cached = (
        "unknown"
        if trace.reused_tokens is None
        else f"{trace.reused_tokens:,} of {trace.prompt_tokens:,}"
    )
    first = "–" if trace.first_token_ms is None else f"{trace.first_token_ms:.0f} ms"
    passes = "unknown" if trace.forward_passes is None else str(trace.forward_passes)
    rows = {
        "confidence": f"{suggestion.confidence:.0%} (the least geometric mean of its first "
        "tokens' probabilities)",
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
    table = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())]
    parts += ["## Figures", "\n".join(table)]

    origins = [
        f"- {quoted(piece.path)}: {piece.origin}, {len(piece.text):,} characters"
        for piece in context.snippets
    ]
    parts += ["## From other files", "\n".join(origins) or "Nothing: only this file was read."]
    prompt = completion.request.prompt
    text = prompt if isinstance(prompt, str) else completion.prompter.encoder.decode(prompt)
    parts += ["## The prompt", f"As the model {where} read it, its own marks included."]
    if completion.request.begin_with:
        parts.append(
            f"The answer had to begin with {quoted(completion.request.begin_with)}, which stands "
            "before the cursor."
        )
    return "\n\n".join([*parts, fenced(text)]) + "\n"


def quoted(text: str) -> str:
    """The text as code within a line, and within a table: nothing in it is Markdown."""
    text = " ".join(text.split("\n")).replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {text} {ticks}"


def fenced(text: str) -> str:
    """The text as a block of code, whatever fences stand in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
