"""The columns of published data sets by name, as data: `sets.json` beside this file."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..entries import entry
from ..errors import DataError
from ..names import nearest
from .columns import Columns


class KnownSet(NamedTuple):
    """A published data set.

    title: what it is, in a line.
    source: where it is published.
    columns: what its columns mean.
    note: what to know before using it; empty if nothing.
    """

    title: str
    source: str
    columns: Columns
    note: str = ""


@cache
def known_sets() -> dict[str, KnownSet]:
    """All known data sets by name."""
    raw = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    sets = {}
    for name, fields in raw.items():
        about = {key: fields.pop(key) for key in ("title", "source", "note") if key in fields}
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        sets[name] = KnownSet(columns=Columns(**values), **about)
    return sets


def columns_of(name: str) -> Columns:
    """The columns of a known data set.

    Raises:
        DataError: there is none of that name.
    """
    known = known_sets()
    if name not in known:
        short = (
            other
            for other, entry in known.items()
            if f"({name.casefold()})" in entry.title.casefold()
        )
        near = nearest(next(short, name), known)
        raise DataError(f"no known data set {name!r}: expected one of {', '.join(known)}{near}")
    return known[name].columns


def describe_sets() -> str:
    """Every known data set in a few lines for the terminal."""
    lines: list[str] = []
    for name, known in known_sets().items():
        columns = known.columns
        rows = [("source", known.source), ("text", ", ".join(columns.text or columns.wide))]
        rows += [
            ("label", ", ".join(columns.label) or (columns.every and f"all {columns.every}")),
            ("harmful", ", ".join(columns.harmful)),
            ("harmless", ", ".join(columns.harmless)),
            ("note", known.note),
        ]
        lines += entry(f"{name}: {known.title}", rows)
    return "\n".join(lines)
