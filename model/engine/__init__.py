"""The engine process, `python -m model.engine JSON`: one model for all windows of a user.

To understand how it starts, read in this order:
- options.py: what the process is told, and each option of a user once. rules.py: the rules of
  options and of the front's settings.
- process.py: the spare process, the lock, the socket, and the main loop until the engine is idle.
- rendezvous.py: how windows find an engine, by a socket or a port.
- log.py: log files that stay private and small.
- loading.py: whether the model is loading, ready or failed; the model, warm, with its caches.

To understand how a request is answered:
- http/: where it listens, the routes, and the dialect.
- request.py: a Request and the events of its answer.
- queue.py: clients take turns, and idle work comes last.
- speed.py: the measured speed of prefill and decode.
- worker.py: the one thread that runs the model, and what it does while nobody asks.

Invariants:
- The socket answers before torch is loaded: only request, queue, worker and openai_api import it
  when they are loaded.
- One thread runs the model. Everything else talks to it through the queue and through events.
- A Unix socket and its folder are the user's alone; a network port wants a key.
- Neither the log nor the status holds a prompt or an answer.
"""
