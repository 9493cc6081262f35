"""Engines: the programs that run a model and answer completion requests.

- interface.py: the Engine protocol, CompletionRequest, the pieces of an answer, an engine's state.
- trouble.py: what a person reads when there is no answer.
- http.py: the one client of OpenAI's completions dialect, and the request as JSON.
- remote.py: an endpoint elsewhere.
- local.py: the engine on this machine. It is found by the name of its socket, started if it is not
  there, attached to, replaced if it is of another version, and started again when it dies.
- process.py: starts engine processes, also the spare one that imports torch while a window starts.

Invariants: nothing here imports torch or runs a model. Closing an answer's generator cancels the
request in the engine. An engine process is never ended with its window, since others may share it.
"""
