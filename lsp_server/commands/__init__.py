"""The commands of `fimls`, one module for each command.

- cli: declares the commands, their arguments and their help, and prints errors as one line.
- complete, demo, bench, models, status, engine: the commands of these names.
- evaluate: `fimls eval`; evaluation/ has its parts.
- source_files: reads one source file, a folder of them, or the held-out packages.
- ready_engine: starts an engine and waits until it answers.
- errors: CommandError, the message that a command ends with.

Invariants:
- Only cli imports typer, and it imports the module of a command when that command runs. `fimls lsp`
  loads nothing of this folder.
- No command loads torch in this process. What needs torch runs in a process of its own.
"""
