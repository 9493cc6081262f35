"""The errors of this room. Their messages are for the user."""


class ModelError(ValueError):
    """A model folder that cannot be used. The message names the file and the remedy."""


class BadRequest(ValueError):
    """A request to the engine that cannot be run. The message says why."""


NO_MEMORY = (
    "There is not enough memory. Close what else uses it, raise the limit that is set (ulimit -v), "
    "or choose a smaller model."
)
NO_MEMORY_STATUS = 12  # of a process that ends for the lack of memory
# What the loader of shared objects, threads, torch on a CPU and CUDA say.
_WORDS = (
    "failed to map segment",
    "cannot allocate memory",
    "can't start new thread",
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "without setting an exception",  # of C code that has none left for the exception
    "without exception set",
)


def lacks_memory(error: BaseException) -> bool:
    """Whether memory is what an error, or what it came from, lacks: few are a MemoryError."""
    seen: BaseException | None = error
    while seen is not None:
        words = str(seen).lower()
        if isinstance(seen, MemoryError) or any(each in words for each in _WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
