"""Protocols of published studies: sweep files, with what was published in their [study]."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..entries import entry
from ..errors import ConfigError
from ..names import nearest


@dataclass(frozen=True)
class Preset:
    """The protocol of a published study: what it measured, and how."""

    title: str
    source: str
    layers: str
    poolings: tuple[str, ...]
    template: str
    metrics: tuple[str, ...]
    data: tuple[str, ...] = ()
    """Data sets; a run takes the first unless told otherwise."""
    pairs: dict[str, tuple[str, str]] | None = None
    """Name -> reference and aligned model, as hub ids with a revision."""
    published: tuple[Mapping[str, str | float], ...] = ()
    """Published numbers, each with pair, lang, metric, and base, aligned or difference."""
    notes: tuple[str, ...] = ()

    def models(self, pair: str | None) -> tuple[str, ...]:
        """Models as `run` takes them, of one pair or of all, each named `PAIR.base` or `.aligned`.

        Raises:
            ConfigError: the preset has no such pair, or names no models.
        """
        if not self.pairs:
            raise ConfigError("preset: names no models; add --model")
        if pair is not None and pair not in self.pairs:
            raise ConfigError(
                f"preset: no pair {pair!r}; choose from {', '.join(self.pairs)}"
                f"{nearest(pair, self.pairs)}"
            )
        return tuple(
            f"{name}.{role}={model}"
            for name, models in self.pairs.items()
            if pair in (None, name)
            for role, model in zip(("base", "aligned"), models, strict=True)
        )


def presets() -> dict[str, Preset]:
    """All presets by name."""
    files = sorted(Path(__file__).parent.glob("*.toml"))
    return {file.stem: _read(file) for file in files}


def _read(file: Path) -> Preset:
    content = tomllib.loads(file.read_text("utf-8"))
    study = content.pop("study")
    del content["out"]
    listed = ("poolings", "metrics", "data", "published", "notes")
    values: dict[str, Any] = {
        key: tuple(value) if key in listed else value for key, value in (content | study).items()
    }
    return Preset(**values)


def preset(text: str) -> tuple[Preset, str | None]:
    """A preset by `NAME` or `NAME:PAIR`, and the pair.

    Raises:
        ConfigError: there is no such preset.
    """
    name, _, pair = text.partition(":")
    known = presets()
    if name not in known:
        raise ConfigError(
            f"preset: no {name!r}; choose from {', '.join(known)}{nearest(name, known)}"
        )
    return known[name], pair or None


def describe() -> str:
    """Every preset in a few lines for the terminal."""
    lines: list[str] = []
    for name, known in presets().items():
        rows = [
            ("source", known.source),
            ("protocol", f"layers {known.layers}, poolings {','.join(known.poolings)}, template "
             f"{known.template}; {', '.join(known.metrics)}"),
            ("data", ", ".join(known.data)),
            *(("pair", f"{key}: {' -> '.join(pair)}") for key, pair in (known.pairs or {}).items()),
            *(("note", note) for note in known.notes),
        ]  # fmt: skip
        lines += entry(f"{name}: {known.title}", rows)
    return "\n".join(lines)
