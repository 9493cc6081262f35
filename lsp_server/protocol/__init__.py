"""LSP: messages in and out, no policy. The only folder that imports pygls and lsprotocol.

- app.py: makes the server, registers the handlers, and runs it until the client has gone.
- lifecycle.py: `initialized` and changed settings.
- completion.py: inline completions, and the same as entries of a menu.
- edits.py: fill-in edits, as our own request and as code actions with a command.
- models/: which models there are, the choice of one, fetching one, the doctor's page.
- progress.py: progress that the user can cancel.
- status.py: our own messages: status, why, snooze, what was shown and accepted
  (editors/PROTOCOL.md).
- server.py: FimlsServer, the state of one window, and pygls' protocol with our mirror of the texts:
  `initialize`, `shutdown`, and didOpen, didChange and didClose.
- transport.py: frames over two descriptors; stdout carries nothing else.
- conversions.py: LSP's types to plain values and back. Positions become offsets in documents.py.
- client.py: a small editor that drives a real server, for the demo and the benchmarks.

The table FEATURES or COMMANDS of a handler module says which function answers which method. pygls
passes the server to a handler as its first parameter, `ls`.

Invariants: every request gets exactly one answer. No answer is for another version of the text than
the one it was made for. Messages are taken in their order. Absent: pygls' own mirror of the texts
and its reader, and any text of the user's in the log.
"""
