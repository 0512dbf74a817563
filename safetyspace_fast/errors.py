"""Errors: one line that names the input, what was expected, what came, and what to do."""


def first_line(error: BaseException) -> str:
    """What another package's error says, in one line; the name of its kind if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


class SafetySpaceError(Exception):
    """Base of every error that this package raises on purpose."""

    def __str__(self) -> str:
        """The message on one line, with what no terminal should get (paths hold it) escaped."""
        message = super().__str__()
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)


class ConfigError(SafetySpaceError, ValueError):
    """An argument or an option is wrong."""


class DataError(SafetySpaceError, ValueError):
    """A data set cannot be read, or is not what it should be."""


class ModelError(SafetySpaceError, RuntimeError):
    """A model or its tokenizer cannot be loaded or used."""


class StoreError(SafetySpaceError, OSError):
    """A store cannot be read, or does not match what is asked of it."""


class ImplementationError(SafetySpaceError, RuntimeError):
    """A forced kernel implementation cannot be used; the message lists every reason."""
