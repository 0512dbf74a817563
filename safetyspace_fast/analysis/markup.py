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
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\`{}",
    '"': "''",
}
"""No symbol of the encoding TS1: many systems have it as a bitmap only, which publishers refuse."""
_MINUS = re.compile(r"(?<![\w.])-(?=[\d.])")
_DASHES = re.compile(r"-(?=-)")
"""Two hyphens would be printed as a dash."""
_CODE = re.compile(r"`([^`]+)`")
_OF_CAPTIONS = {r"\textbar{}": "--", r"-\textgreater{}": r"$\to$", r"\textless{}=": r"$\leq$"}
_MOST_FLOATS = 18
"""Tables that LaTeX keeps waiting for a page, at least."""
_LATEX_HEAD = r"""% \usepackage{booktabs,adjustbox}
% Tables larger than the page are scaled down: choose fewer columns by --metric.
% Names in other scripts than Latin need XeLaTeX or LuaLaTeX, and a font that has them."""


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

    A table that is wider than the text of the terminal becomes several. One that is still larger
    than the page is scaled down by adjustbox.
    """
    blocks: list[str] = []
    for i, table in enumerate(tables.tables):
        parts = table.parts()
        for j, part in enumerate(parts):
            notes = [*(table.notes if j == len(parts) - 1 else ())]
            if i == j == 0:
                notes += [*tables.legend, *tables.settings]
            blocks.append(_environment(table, part, " ".join(notes)))
    pages = ["\n\n".join(blocks[i : i + _MOST_FLOATS]) for i in range(0, len(blocks), _MOST_FLOATS)]
    return "\n\n".join([_LATEX_HEAD, "\n\n\\clearpage\n\n".join(pages)]) + "\n"


def _environment(table: Table, columns: Sequence[Sequence[str]], notes: str) -> str:
    """One part of a table."""
    caption = ". ".join(filter(None, (latex(table.title), _prose(notes))))
    for plain, typeset in _OF_CAPTIONS.items():
        caption = caption.replace(plain, typeset)
    heads = zip(*(column[: table.heads] for column in columns), strict=True)
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering",
            f"\\caption{{{caption}}}",
            r"\begin{adjustbox}{max width=\linewidth, max totalheight=0.8\textheight}",
            f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            *(_latex_row(cells) for cells in heads),
            r"\midrule",
            *(_latex_row(cells) for cells in _entries(columns, table.heads)),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
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
    return _typeset(_one_line(text))


def _prose(text: str) -> str:
    """Notes as LaTeX: what stands between backticks is code."""
    parts = map(_typeset, _CODE.split(_one_line(text)))
    return "".join(rf"\texttt{{{part}}}" if i % 2 else part for i, part in enumerate(parts))


def _typeset(line: str) -> str:
    safe = "".join(_LATEX.get(letter, letter) for letter in line)
    return _MINUS.sub("$-$", _DASHES.sub("-{}", safe))


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
