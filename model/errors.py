"""What can be wrong with a model, in words that name the remedy."""


class ModelError(ValueError):
    """A model folder that cannot be used. The message is for the user: it names the file and the
    remedy."""


class BadRequest(ValueError):
    """A request to the engine that cannot be run; the message says why."""
