"""Tables as Markdown and as LaTeX, for papers: what a caption must say is in it."""

import re
from collections.abc import Sequence

from .columns import Table, Tables

_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>#|~$!^]")
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': "''",
}
_MINUS = re.compile(r"(?<![\w.])-(?=[\d.])")


def to_markdown(tables: Tables) -> str:
    """One table below the other, each with its title above and a paragraph of notes below.

    A table has one head, as Markdown allows; `name (space)` where the text has two lines.
    """
    lines: list[str] = []
    for i, table in enumerate(tables.tables):
        columns = [*table.leading, *table.columns]
        heads = [_one_head(column[: table.heads]) for column in columns]
        if table.title:
            lines += [f"**{markdown(table.title)}**", ""]
        lines.append(_row(heads))
        lines.append(_row(["---", *["---:"] * (len(columns) - 1)], escape=False))
        lines += [_row(cells) for cells in _entries(columns, table.heads)]
        notes = [*table.notes, *(tables.legend if i == 0 else ())]
        lines += ["", *([markdown(" ".join(notes)), ""] if notes else [])]
    if tables.settings:
        lines += [markdown(" ".join(tables.settings)), ""]
    return "\n".join(lines[:-1]) + "\n"


def to_latex(tables: Tables) -> str:
    """`table` environments with the rules of booktabs; captions explain intervals and marks.

    A table that is wider than the text of the terminal becomes several.
    """
    blocks = ["% needs \\usepackage{booktabs}, and a font with the scripts of the languages"]
    for i, table in enumerate(tables.tables):
        parts = table.parts()
        for j, part in enumerate(parts):
            notes = [*(table.notes if j == len(parts) - 1 else ())]
            if i == j == 0:
                notes += [*tables.legend, *tables.settings]
            blocks.append(_environment(table, part, " ".join(notes)))
    return "\n\n".join(blocks) + "\n"


def _environment(table: Table, columns: Sequence[Sequence[str]], notes: str) -> str:
    """One part of a table."""
    sentences = [text for text in (table.title, notes) if text]
    caption = latex(". ".join(sentences)).replace(r"\textbar{}", "--")
    heads = zip(*(column[: table.heads] for column in columns), strict=True)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{caption}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            *(_latex_row(cells) for cells in heads),
            r"\midrule",
            *(_latex_row(cells) for cells in _entries(columns, table.heads)),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _entries(columns: Sequence[Sequence[str]], heads: int) -> list[tuple[str, ...]]:
    """Rows below the head."""
    return list(zip(*(column[heads:] for column in columns), strict=True))


def _one_head(head: Sequence[str]) -> str:
    first, *others = (text.strip() for text in head)
    second = " ".join(text for text in others if text)
    return f"{first} ({second})" if first and second else first or second


def _row(cells: Sequence[str], *, escape: bool = True) -> str:
    return f"| {' | '.join(markdown(cell) if escape else cell for cell in cells)} |"


def _latex_row(cells: Sequence[str]) -> str:
    """A row; behind `\\\\` of the row before, a star or a bracket would be its argument."""
    first, *others = map(latex, cells)
    protected = f"{{{first}}}" if first.startswith(("[", "*")) else first
    return f"{' & '.join([protected, *others])} \\\\"


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return _MARKDOWN.sub(r"\\\g<0>", _one_line(text).replace("&", "&amp;"))


def latex(text: str) -> str:
    """Text that LaTeX prints as it is, in one line; numbers have a minus sign."""
    safe = "".join(_LATEX.get(letter, letter) for letter in _one_line(text))
    return _MINUS.sub("$-$", safe)


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
