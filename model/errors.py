"""The errors of this room. Their messages are for the user."""


class ModelError(ValueError):
    """A model folder that cannot be used. The message names the file and the remedy."""


class BadRequest(ValueError):
    """A request to the engine that cannot be run. The message says why."""
