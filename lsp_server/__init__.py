"""The language server and the commands: the only room that joins fim and model.

The folders and modules in the order of a request:
- __main__.py: `fimls lsp` starts the server; everything else is a command.
- protocol/: the messages of the editor. The only folder that imports pygls and lsprotocol.
- documents.py: the mirror of the open documents, and the only place that turns LSP's positions
  (UTF-16 units) into offsets; a Snapshot is the text at the cursor.
- scheduler.py: latest wins, and background tasks. daemon.py: threads that read files.
- session/: the settings, prompter, engine and status of one window.
- completion/: one suggestion, from the cursor to the text that is shown.
- engines/: where completions come from: the engine process here, or an endpoint elsewhere.
- settings.py: everything that a user can set. user_settings.py: the file that keeps some
  of it. folders.py: where files are kept. logs.py: the log.
- commands/: the command line, one module for each command.

Invariants:
- This process never loads torch or transformers: of model it imports only modules that do without.
- stdout carries LSP frames and nothing else: descriptor 1 leads to stderr before heavy imports.
- Every request gets exactly one answer. A newer request for the same document supersedes the older
  one, whose answer is then empty.
- A suggestion is never returned for another version of the text than the one it was made for.
- The log never holds the user's text.
"""

__version__ = "0.1.0"
