"""The commands of `fimls`: one module for each command or, if it is a large one, one folder.

- cli: declares the commands, their arguments and their help, and prints errors as one line.
- complete, demo, bench, models: the commands of these names. footprint: `fimls models NAME`.
- engine: `fimls engine` and `fimls status`; `ready_engine` gives the other commands an engine.
- evaluation/: `fimls eval`. doctor/: `fimls doctor`.
- source_files: reads one source file, a folder of them, or the held-out packages.
- errors: CommandError, the message that a command ends with.

Invariants:
- Only cli imports typer, and it imports the module of a command when that command runs. `fimls lsp`
  loads nothing of this folder.
- No command loads torch in this process. Work that needs it runs in a process of its own.
"""
