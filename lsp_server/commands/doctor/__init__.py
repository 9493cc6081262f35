"""`fimls doctor`.

- examine: the command and the Report, as JSON and as a page.
- machine: what this machine can do, measured in a process of its own.
- installation: packages, folders, disk, the model and the engines, each fault with its mend.
- place: why no suggestion comes in a file.
- findings: what all of them return.
"""
