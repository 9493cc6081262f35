"""Models in an editor: which there are, the choice of one, and fetching one.

- commands.py: the commands of editors/PROTOCOL.md, with the doctor's page.
- listing.py: the rows of the list.
- measuring.py: runs the doctor, and keeps what it has found.
- pulling.py: fetches a model, with a question about its licence and progress.
- note.py: one offer of a larger model, once for each user.

Invariants: files are read on daemon threads, never on the event loop. Nothing is fetched that the
user did not ask for.
"""
