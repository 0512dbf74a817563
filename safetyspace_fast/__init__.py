"""How far apart a language model holds harmful and harmless text, for every layer and language.

Importing this package is cheap: the names below load what they need when first used.
"""

from importlib import import_module
from typing import Any

_SUBMODULES = ("ops",)
_API = (
    "API_VERSION",
    "Event",
    "Run",
    "RunConfig",
    "compare",
    "iter_run",
    "open_run",
    "run",
    "separation",
)

__all__ = ["__version__", *_SUBMODULES, *_API]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("safetyspace-fast")
    elif name in _SUBMODULES:
        value = import_module(f"{__name__}.{name}")
    elif name in _API:
        value = getattr(import_module(f"{__name__}.api"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
