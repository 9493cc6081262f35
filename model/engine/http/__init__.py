"""HTTP of an engine.

- addresses.py: where it listens, as a socket.
- port.py: a TCP port, where strangers cannot keep those out who have the key.
- routes.py: the calls.
- openai_api.py: the dialect's JSON to a Request, and events to JSON.
"""
