"""What transformers reports and warns of: kept from the terminal, told as notes of one line."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Warnings about what this package reads or does itself, or never does.
_NO_NEWS = re.compile(
    r"LOAD REPORT|missing adapter keys|save_embedding_layers|generation (config|flags)"
    r"|tie_word_embeddings=True|no longer tied|tied weights mapping|is_decoder=True"
    r"|default to dequantizing|copying from a non-meta parameter"
)


@contextmanager
def quiet_transformers(tell: Callable[[str], None] | None = None) -> Iterator[None]:
    """Keep transformers from writing to the terminal; `tell` is called with its warnings.

    Each warning of transformers, and each `UserWarning` of Python, comes once, as one line.
    """
    from transformers.utils import logging as transformers_logging

    told: set[str] = set()

    def once(text: str) -> None:
        line = " ".join(text.split())
        if tell is not None and line not in told and not _NO_NEWS.search(line):
            told.add(line)
            tell(line)

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        if issubclass(category, (UserWarning, RuntimeWarning)):  # others are for programmers
            once(str(message))

    logger = logging.getLogger("transformers")
    kept = logger.handlers, logger.propagate, logger.level
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.warning_once.cache_clear()  # or a second model would load in silence
    logger.handlers, logger.propagate = [_Listener(once)], False
    logger.setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            yield
    finally:
        logger.handlers, logger.propagate = kept[:2]
        logger.setLevel(kept[2])
        if bars:
            transformers_logging.enable_progress_bar()


class _Listener(logging.Handler):
    """Calls a function with the text of each record."""

    def __init__(self, listen: Callable[[str], None]) -> None:
        super().__init__()
        self._listen = listen

    def emit(self, record: logging.LogRecord) -> None:
        self._listen(record.getMessage())
