"""The language server and the command line. The only room that imports pygls or lsprotocol, and the only one that
joins fim and model.

One request, from key press to ghost text (read the files in this order):
server.py -> documents.py (Snapshot) -> suggestions.py, offers.py (is it the rest of an earlier one?) -> scheduler.py
(latest wins) -> completer.py -> fim (CursorContext, Prompt)
-> engines.py (HTTP) -> model.serve, in the engine process -> fim (Suggestion) -> server.py (InlineCompletionItem).

Beside it: edits.py (a selection, a body or a docstring written anew), own_messages.py (status, why, snooze and what
became of suggestions: editors/PROTOCOL.md), session.py (settings, model and status), usage.py (counts, kept here).

Invariants:
- Of `model` only hub, tokenizer and errors are imported here: this process never loads torch or transformers.
- stdout carries LSP frames and nothing else: descriptor 1 leads to stderr before any heavy import.
- Every request gets exactly one answer; a newer request for the same document supersedes the older, whose answer is
  empty; a suggestion is never returned for another version of the text than the one it was made for.
- The log never holds the user's text.
"""

__version__ = "0.1.0"
