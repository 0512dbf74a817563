"""Figures and pages made of a store. The module may be called: `ssf.report(run, "page.html")`."""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A module whose name is also that of its one function, in whatever order both are imported."""

    def __call__(self, *args: Any, **options: Any) -> None:
        """Write a page: see `write.report`."""
        from .write import report

        report(*args, **options)


sys.modules[__name__].__class__ = _Callable
