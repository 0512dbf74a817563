"""How a user names a model: `[NAME=]BASE[+ADAPTER]...`, or `[NAME=]random:BASE` as a control."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

MAX_NAME_LENGTH = 100
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?")
# Names of devices on Windows, where a store may be copied to, and of Zarr's metadata.
_RESERVED = re.compile(r"((con|prn|aux|nul|com\d|lpt\d)(\..*)?|zarr\.json.*)", re.IGNORECASE)
_RANDOM = "random:"
_HUB_ID_AT_REVISION = re.compile(r"(?P<id>[\w.-]+(?:/[\w.-]+)?)@(?P<revision>[^@\s]+)")


@dataclass(frozen=True)
class ModelSpec:
    """One model of a run.

    name: what the model is called in the store: letters, digits, `.`, `_`, `-`; at most 100.
    base: a directory, a `.gguf` file, or an id on the model hub.
    adapters: PEFT adapters to merge into the base, one after the other: directories or hub ids
        (`ID@REVISION` allowed).
    revision: branch, tag or commit of the base; only for a hub id.
    random: an untrained control: configuration and tokenizer of the base, with random weights.
    """

    name: str
    base: str
    adapters: tuple[str, ...] = ()
    revision: str | None = None
    random: bool = False

    @property
    def asked(self) -> str:
        """The base as a user names it, without its revision."""
        return f"{_RANDOM}{self.base}" if self.random else self.base

    def __post_init__(self) -> None:
        """Check the fields; the name becomes a folder of the store."""
        if not _NAME.fullmatch(self.name) or _RESERVED.fullmatch(self.name):
            raise ConfigError(
                f"model name {self.name!r}: expected letters, digits, '.', '_' or '-', beginning "
                "with a letter or digit, not ending with '.', and no reserved name; write "
                "NAME=MODEL with such a name"
            )
        if len(self.name) > MAX_NAME_LENGTH:
            raise ConfigError(
                f"model name {self.name[:40]!r}...: {len(self.name)} characters, expected at most "
                f"{MAX_NAME_LENGTH}; write NAME=MODEL with a shorter name"
            )
        if isinstance(self.adapters, str):
            raise ConfigError(
                f"model {self.name!r}: expected a tuple of adapters, got {self.adapters!r}; write "
                f"({self.adapters!r},)"
            )
        if self.random and self.adapters:
            raise ConfigError(
                f"model {self.name!r}: got adapters for random weights, expected random:BASE alone"
            )
        if not self.base or "" in self.adapters:
            raise ConfigError(
                f"model {self.name!r}: expected [NAME=]BASE[+ADAPTER]..., got an empty part"
            )


def parse_model(text: str | Path) -> ModelSpec:
    """Read `[NAME=]BASE[+ADAPTER]...` or `[NAME=]random:BASE`; each part may be `ID@REVISION`.

    Without NAME the last part of the path is the name, of a control with `-random` behind it. If a
    path with `=`, `+` or `@` in it exists, the sign belongs to the path.

    Raises:
        ConfigError: an empty part, or a name that the store cannot take.
    """
    if not isinstance(text, str | Path) or not str(text):
        raise ConfigError(f"model {text!r}: expected [NAME=]BASE[+ADAPTER]...")
    text = str(text)
    name, equals, rest = text.partition("=")
    if not equals or "/" in name or _exists(text):
        name, rest = "", text
    random = rest.startswith(_RANDOM) and not _exists(rest)
    base, *adapters = _split_parts(rest.removeprefix(_RANDOM) if random else rest)
    base, revision = split_revision(base)
    if not equals or rest is text:
        name = _default_name(adapters[-1] if adapters else base) + "-random" * random
    return ModelSpec(name, base, tuple(adapters), revision, random)


def split_revision(text: str) -> tuple[str, str | None]:
    """Split `ID@REVISION`; an existing path has no revision."""
    match = _HUB_ID_AT_REVISION.fullmatch(text)
    if match is None or _exists(text):
        return text, None
    return match["id"], match["revision"]


def _split_parts(text: str) -> list[str]:
    """Cut at each `+` that is not in an existing path."""
    parts = []
    while "+" in text and not _exists(text):
        cuts = [match.start() for match in re.finditer(r"\+", text)]
        # A cut between two paths that exist is surer than one behind a path that exists.
        sure = [cut for cut in cuts if _exists(text[:cut]) and _begins_with_path(text[cut + 1 :])]
        existing = sure or [cut for cut in cuts if cut and _exists(text[:cut])]
        cut = (existing or cuts)[0]
        parts.append(text[:cut])
        text = text[cut + 1 :]
    return [*parts, text]


def _begins_with_path(text: str) -> bool:
    return any(_exists(text[: m.start()]) for m in re.finditer(r"\+|$", text))


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))  # takes any string without raising


def _default_name(path: str) -> str:
    last = Path(os.path.expanduser(split_revision(path)[0]))
    if last.name in ("", ".."):  # "." and "/x/.." name a directory only once resolved
        last = last.resolve()
    stem = last.name.removesuffix(".gguf")
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:MAX_NAME_LENGTH]
