"""How an object looks in a notebook: static, escaped HTML, and its text where CSS is lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

MOST_ROWS = 40
"""Of a table; the rest is counted."""
MOST_LETTERS = 60
"""Of an entry; names may be far longer."""

_CSS = (
    ".ssf-text{display:none}.ssf{display:block!important}"
    ".ssf summary{cursor:pointer;padding:2px 0}"
    ".ssf table{border-collapse:collapse;margin:2px 0 6px 16px}"
    ".ssf th,.ssf td{text-align:left;padding:1px 12px 1px 0;font-weight:normal;"
    "border-bottom:1px solid rgba(128,128,128,.3)}"
    ".ssf th{opacity:.7}"
)


@dataclass(frozen=True)
class Section:
    """A table that a reader may open."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    open: bool = True


def html(text: str, title: str, sections: Sequence[Section]) -> str:
    """HTML without script, as xarray's: CSS, `<details>`, and a text that CSS hides.

    Args:
        text: what `repr` gives.
        title: one line.
        sections: below it.
    """
    parts = [_details(section) for section in sections]
    return (
        f'<div><style>{_CSS}</style><pre class="ssf-text">{escape(text[:2000])}</pre>'
        f'<div class="ssf" style="display:none"><b>{escape(title[:300])}</b>'
        f"{''.join(parts)}</div></div>"
    )


def _details(section: Section) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in section.head)
    cells = [map(_cell, row) for row in section.rows[:MOST_ROWS]]
    rows = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    hidden = len(section.rows) - MOST_ROWS
    more = (
        f'<tr><td colspan="{len(section.head)}">and {hidden} more</td></tr>' if hidden > 0 else ""
    )
    return (
        f"<details{' open' if section.open else ''}><summary>{escape(section.title)}</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}{more}</tbody></table></details>"
    )


def _cell(entry: object) -> str:
    text = f"{entry:,}" if isinstance(entry, int) else str(entry)
    short = text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"
    return f'<td dir="auto">{escape(short)}</td>'
