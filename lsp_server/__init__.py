"""The language server and the command line. The only room that imports pygls or lsprotocol, and the
only one that joins fim and model.

One request, from key press to ghost text (read the files in this order):
- server.py: the message comes in (conversions.py: LSP's values to ours). documents.py: the text at
  the cursor (Snapshot).
- suggestions.py: whether it is answered at all; scheduler.py: latest wins.
- unfinished.py and offers.py: is the cursor in an earlier suggestion? Then its rest is the answer.
- asking.py: one answer of the engine (Place). memory.py: is it known? ahead.py: was it begun in
  idle time?
- completer.question_at, by prompter.py and fim: CursorContext, CompletionRequest. completer.begin:
  the engine is asked.
- generation.py: the answer as it comes, by engines.py (HTTP; local_engine.py starts our own), from
  model.serve, which is another process.
- completer.finish: fim cuts or hides it (Suggestion), and the Trace is made.
- offers.add: it lives on while it is typed. Then server.py sends it (InlineCompletionItem).
- Behind it unfinished.py lets an answer that was cut go on, and ahead.py asks what may be asked
  next.

Beside it: edits.py (a selection, a body or a docstring written anew), own_messages.py (status, why,
snooze and what became of suggestions: editors/PROTOCOL.md), session.py (settings, model and
status), usage.py (counts, kept here).

Invariants:
- Of `model` only hub, tokenizer and errors are imported here: this process never loads torch or
  transformers.
- stdout carries LSP frames and nothing else: descriptor 1 leads to stderr before any heavy import.
- Every request gets exactly one answer; a newer request for the same document supersedes the older,
  whose answer is empty; a suggestion is never returned for another version of the text than the one
  it was made for.
- The log never holds the user's text.
"""

__version__ = "0.1.0"
