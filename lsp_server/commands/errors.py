"""The error that a command ends with."""


class CommandError(Exception):
    """A message for the user of a command; it names the remedy and is printed as one line."""
