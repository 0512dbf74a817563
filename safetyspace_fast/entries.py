"""Entries of a list for the terminal: a title, then what is said of it, wrapped under its key."""

import textwrap
from collections.abc import Iterable


def entry(title: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    """The lines of one entry: its title, and its (key, text) rows that have a text."""
    lines = [title]
    for key, text in rows:
        lines += textwrap.wrap(
            text,
            100,
            initial_indent=f"  {key:<10}",
            subsequent_indent=" " * 12,
            break_on_hyphens=False,
            break_long_words=False,
        )
    return lines
