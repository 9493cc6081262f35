"""The commands of `fimls`, one module for each command.

- cli: declares the commands, their arguments and their help, and prints errors as one line.
- complete, demo, bench, models, status: the commands of these names.
- engine: `fimls engine`, and `ready_engine`, which gives the other commands an engine that answers.
- evaluate: `fimls eval`; its parts are in evaluation/.
- source_files: reads one source file, a folder of them, or the held-out packages.
- errors: CommandError, the message that a command ends with.

Invariants:
- Only cli imports typer, and it imports the module of a command when that command runs. `fimls lsp`
  loads nothing of this folder.
- No command loads torch in this process. What needs torch runs in a process of its own.
"""
