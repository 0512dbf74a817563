"""How far apart a language model holds harmful and harmless text, for every layer and language.

Importing this package is cheap: each name below is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import ops
    from .api import (
        API_VERSION,
        Bench,
        DataSummary,
        Event,
        LanguageDone,
        ModelDone,
        Note,
        Planned,
        Progressed,
        Run,
        RunConfig,
        SafetySpaceError,
        Verification,
        Verified,
        bench,
        check,
        compare,
        curve,
        describe_data,
        directions,
        iter_run,
        open_run,
        parallel,
        power,
        run,
        sensitivity,
        separation,
        transfer,
        verify,
    )
    from .report.write import report

    __version__: str

__all__ = [
    "API_VERSION",
    "Bench",
    "DataSummary",
    "Event",
    "LanguageDone",
    "ModelDone",
    "Note",
    "Planned",
    "Progressed",
    "Run",
    "RunConfig",
    "SafetySpaceError",
    "Verification",
    "Verified",
    "__version__",
    "bench",
    "check",
    "compare",
    "curve",
    "describe_data",
    "directions",
    "iter_run",
    "open_run",
    "ops",
    "parallel",
    "power",
    "report",
    "run",
    "sensitivity",
    "separation",
    "transfer",
    "verify",
]

if not TYPE_CHECKING:  # a type checker sees the imports above, and reports any other name

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            value = version("safetyspace-fast")
        elif name in ("ops", "report"):  # `report` is a room that may be called
            value = import_module(f"{__name__}.{name}")
        elif name in __all__:
            value = getattr(import_module(f"{__name__}.api"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
