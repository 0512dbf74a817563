"""Results as tables for the terminal; `write` also writes JSON, CSV and Parquet."""

import itertools
import math
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError
from .cells import MIN_TEXTS
from .glossary import ENDS, LEAST_LANGUAGES, SPACES
from .rows import to_csv, to_json, to_parquet

if TYPE_CHECKING:
    import xarray
    from numpy.typing import NDArray

FORMATS = ("table", "json", "csv", "parquet")
WIDTH = 100
MOST_LAYERS = 3
"""With several languages, tables show all layers up to this number, else the last one only."""
CHANCE = 0.05
"""Numbers with a larger p are marked as consistent with chance."""
DOMINANT = 0.5
"""Rows are marked where the largest dimension has a larger share, or the first component a larger
correlation with the length of texts."""
MARK_RESAMPLES = math.ceil(1 / CHANCE) - 1
"""With fewer resamples, of which the smallest p is 1/(1 + R), no number is marked."""


def write(dataset: "xarray.Dataset", form: str = "table", output: Path | None = None) -> None:
    """Write results to a file, or to stdout.

    Args:
        dataset: what a function of this folder returned.
        form: one of `FORMATS`.
        output: a file; None prints to stdout.

    Raises:
        ConfigError: the form is unknown, Parquet has no file, or the file cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(f"format: got {form!r}, expected one of {', '.join(FORMATS)}")
    if form == "parquet" and output is None:
        raise ConfigError("format: parquet is binary; name a file to write it to")
    as_text = {"table": to_table, "json": to_json, "csv": to_csv}
    if output is None:
        sys.stdout.write(as_text[form](dataset))
        return
    try:
        if form == "parquet":
            to_parquet(dataset, output)
        else:
            output.write_text(as_text[form](dataset), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error.strerror or error}") from error


def to_table(dataset: "xarray.Dataset") -> str:
    """Tables of at most `WIDTH` columns; the legend is under the first one.

    With several languages there is a table for each layer, and a row for each language. With one
    language there is one table with a row for each layer. Metrics that do not fit go into another
    table below.
    """
    if "needed0" in dataset:
        return _text([*_power(dataset), *_settings(dataset)])
    if "size" in dataset.dims:
        return _text([*_curves(dataset), *_settings(dataset)])
    if "against" in dataset:
        return _text([*_sensitivity(dataset), *_settings(dataset)])
    if "target_auc" in dataset:
        return _text([*_transfer(dataset), *_settings(dataset)])
    if "metric" not in dataset.dims:
        return _text([*_matrices(dataset), *_confounds(dataset), *_settings(dataset)])
    langs, layers = _names(dataset, "lang"), _names(dataset, "layer")
    visible = layers if len(langs) == 1 or len(layers) <= MOST_LAYERS else layers[-1:]
    compared = "difference" in dataset
    if compared:
        views = {f"{dataset.attrs['base']} -> {dataset.attrs['aligned']}": dataset}
    else:
        views = {model: dataset.sel(model=model) for model in _names(dataset, "model")}
    tables: list[list[str]] = []
    for name, of_model in views.items():
        for pooling in _names(dataset, "pooling"):
            view = of_model.sel(pooling=pooling)
            title = f"{name} | pooling {pooling}"
            if len(langs) == 1:
                tables += _metrics(view.isel(lang=0), "layer", f"{title} | language {langs[0]}")
            else:
                for layer in visible:
                    tables += _layer(view.sel(layer=layer), f"{title} | layer {layer}")
            if compared:
                tables += _geometry(view, visible)
    tables.insert(1, _legend(dataset) + _what_rules(dataset.sel(layer=visible)))
    hints = []
    if len(visible) < len(layers):
        hints.append(
            f"Only the last of {len(layers)} layers is shown; choose others with --layers, or one "
            "language with --languages."
        )
    return _text([*tables, *_confounds(dataset), *_settings(dataset)], hints)


def _text(tables: Iterable[list[str]], hints: Sequence[str] = ()) -> str:
    """Tables with a blank line after each, then hints."""
    hints = [*hints, "`safetyspace-fast explain NAME` defines a metric or a column."]
    lines = [line for table in tables for line in (*table, "")]
    return "\n".join([*lines, *hints]) + "\n"


def _names(dataset: "xarray.Dataset", dim: str) -> list[str]:
    return [str(name) for name in dataset[dim].to_numpy()]


def _legend(dataset: "xarray.Dataset") -> list[str]:
    """What the marks in tables of metrics mean, and what the rows of groups hold."""
    marks = (
        f"~: consistent with chance (p > {CHANCE}). *: significant after correction over all "
        f"numbers of this result (p_family <= {CHANCE})."
    )
    coarse = [
        name
        for name, number in zip(
            _names(dataset, "metric"), dataset["resamples"].to_numpy(), strict=True
        )
        if number < MARK_RESAMPLES and bool(dataset["p"].sel(metric=name).notnull().any())
    ]
    if coarse:
        whose = "" if len(coarse) == dataset.sizes["metric"] else f" on {', '.join(coarse)}"
        marks += (
            f" No marks{whose}: fewer than {MARK_RESAMPLES} resamples cannot give p <= {CHANCE}; "
            "see --permutations and --bootstraps."
        )
    if "difference" in dataset:
        parts = [
            "before > after, difference [95 % interval].",
            marks,
        ]
        if "verdict" in dataset:
            largest = f"{dataset['verdict'].attrs['equivalence']:g}"
            parts.append(
                f"within {largest}: no change larger than that (the 90 % interval lies inside). "
                "changed: not so, and the 95 % interval excludes 0."
            )
        if any(" pc" in space for space in _names(dataset, "space")):
            parts.append(f"{dataset.attrs['components']}.")
        if others := [name for name in ELSEWHERE if _disagrees(dataset, name).any()]:
            parts.append(
                f"{DISAGREE}: in other components the difference has the other sign (explain "
                f"{', '.join(others)}): the choice of components decides."
            )
        share = dataset["rounding_share"].to_numpy()
        if alike := int((share >= 1).sum()):
            parts.append(
                f"In {alike} of {share.size} layers, poolings and languages the models differ only "
                "by rounding (rounding_share is 1 or more): nothing is marked there."
            )
        if not dataset.attrs["reference"] and dataset.sizes["lang"] > 1:
            parts.append("No language is the reference: there are no differences of differences.")
    else:
        parts = ["value [95 % interval].", marks]
        if "any difference" in dataset["p_asks"].to_numpy():
            parts.append(
                f"{ANY}: the same, but a difference of spread alone is enough (`explain p_asks`)."
            )
        parts += _close_calls(dataset)
        parts.append("floor: value expected without any difference, median of the rows.")
        known = dataset["p"].notnull().any(dataset["p"].dims[1:])
        exact = dataset.sel(metric=np.isinf(dataset["resamples"]) & known)
        if names := ", ".join(_names(exact, "metric")):
            parts.append(f"{names}: p comes from no permutation, so there is no *.")
        if any(dataset["alias_of"].to_numpy()):
            parts.append("= NAME: a transformation of that metric.")
    if dataset.sizes["lang"] > 1:
        parts += _groups(dataset)
    return textwrap.wrap(" ".join(parts), WIDTH, break_on_hyphens=False)


def _close_calls(dataset: "xarray.Dataset") -> list[str]:
    """What to think of marks that other permutations could change, or that intervals contradict."""
    parts = []
    p, resamples = dataset["p"].to_numpy(), dataset["resamples"].to_numpy()
    if any(_is_close(x, n) for row, n in zip(p, resamples, strict=True) for x in row.flat):
        parts.append(f"?: p is so near {CHANCE} that other permutations could change the mark.")
    permuted = dataset.sel(metric=np.isfinite(dataset["resamples"]))
    chance, star = permuted["p"] > CHANCE, permuted["p_family"] <= CHANCE
    inside = (permuted["low"] <= permuted["floor"]) & (permuted["floor"] <= permuted["high"])
    outside = (permuted["low"] > permuted["floor"]) | (permuted["floor"] > permuted["high"])
    if number := int(((star & inside) | (chance & outside)).sum()):
        parts.append(
            f"In {number} of all numbers mark and interval disagree about the floor: marks come "
            "from permutations, which hold for any number of texts, so believe the marks."
        )
    return parts


def _is_close(p: float, resamples: float) -> bool:
    """Whether the Monte-Carlo error of p (two standard deviations) reaches `CHANCE`.

    Args:
        p: of a number.
        resamples: behind it; infinite if p comes from none.
    """
    return abs(p - CHANCE) <= 2 * math.sqrt(CHANCE * (1 - CHANCE) / max(resamples, 1))


ANY = "+"
"""Mark in place of `*` where p asks for any difference of the classes, not for one of means."""
DISAGREE = "^"
"""Mark of a difference that has another sign in other components."""
ELSEWHERE = tuple(f"difference_{space}" for space in SPACES)


def _disagrees(view: "xarray.Dataset", name: str) -> "NDArray[np.bool_]":
    """Whether a difference and that in other components, where it is known, differ in sign.

    Differences of the level of rounding have no sign.
    """
    if name not in view:
        return np.zeros(view["difference"].shape, bool)
    opposite = (view["difference"] * view[name] < 0) & ~(view["rounding_share"] >= 1)
    signs: NDArray[np.bool_] = opposite.transpose(*view["difference"].dims).to_numpy()
    return signs


def _groups(dataset: "xarray.Dataset") -> list[str]:
    """Which languages the rows `high` and `low` hold, or why there are none."""
    members = {
        name: dataset.attrs.get(f"group_{name}", "").replace(",", ", ")
        for name in ("high", "low", "none")
    }
    neither = f" In neither: {members['none']}." if members["none"] else ""
    if "group" in dataset.dims:
        parts = [
            f"high: mean of {members['high']}. low: mean of {members['low']}.{neither}",
            "These rows and high - low are about exactly these languages and show nothing about "
            "others.",
        ]
        if _about_others(dataset):
            parts.append(
                f"{LIKE}: high - low for all languages like these, with a 95 % interval that "
                "allows for other languages (`explain group_like_value`)."
            )
        else:
            parts.append(
                f"There is no row for languages like these: it needs {LEAST_LANGUAGES} in each "
                "group."
            )
        if _can_leave_out(dataset):
            parts.append(
                f"{WITHOUT}: high - low when any one language is left out, and which moves it most."
            )
        return parts
    empty = " or ".join(name for name in ("high", "low") if not members[name])
    return [f"No means over groups: no language is in {empty}; see --high and --low.{neither}"]


LIKE, WITHOUT = "like these", "without one"
"""Rows under `high - low`."""


def _members(dataset: "xarray.Dataset") -> list[int]:
    """How many languages each group has."""
    return [dataset.attrs[f"group_{name}"].count(",") + 1 for name in ("high", "low")]


def _about_others(dataset: "xarray.Dataset") -> bool:
    return min(_members(dataset)) >= LEAST_LANGUAGES


def _can_leave_out(dataset: "xarray.Dataset") -> bool:
    return max(_members(dataset)) > 1


ROW_MARKS = {
    "!": "one dimension holds more than half of the variance; see rho_standardized, or pooling "
    "last (`explain largest_share`)",
    "#": "the first principal component follows the number of tokens; see auc_equal_length, or "
    "another pooling (`explain pc1_tokens`)",
}
"""Marks behind the name of a row, and what they say."""


def _row_marks(view: "xarray.Dataset") -> list[str]:
    """The marks of each row, in any of the models of a view (.., row)."""

    def largest(*names: str) -> list[float]:
        columns = [view[name].to_numpy() for name in names]
        size = np.nan_to_num(np.abs(columns)).reshape(-1, columns[0].shape[-1]).max(0)
        return [float(x) for x in size]

    marks = {"!": largest("largest_share"), "#": largest("pc1_tokens", "pc1_inverse_tokens")}
    rows = zip(*marks.values(), strict=True)
    return [
        "".join(mark for mark, size in zip(marks, row, strict=True) if size > DOMINANT)
        for row in rows
    ]


def _what_rules(dataset: "xarray.Dataset") -> list[str]:
    """What the marks of rows say, of those that are there."""
    there = set("".join(_row_marks(dataset)))
    return [
        line
        for mark, text in ROW_MARKS.items()
        if mark in there
        for line in textwrap.wrap(f"{mark}: {text}.", WIDTH, break_on_hyphens=False)
    ]


# Metrics -------------------------------------------------------------------------------------


def _layer(view: "xarray.Dataset", title: str) -> list[list[str]]:
    """All metrics of one layer, and how differences differ from those of the reference."""
    tables = _metrics(view, "lang", title)
    if reference := view.attrs.get("reference"):
        tables += _excess(view, f"{title} | difference minus that of {reference}")
    return tables


def _metrics(view: "xarray.Dataset", row_dim: str, title: str) -> list[list[str]]:
    """A row for each name along `row_dim`, a column for each metric."""
    compared = "difference" in view
    names = _names(view, row_dim)
    below = [] if compared else ["floor"]
    if "group" in view.dims and row_dim == "lang":
        below += _names(view, "group")
        below += [LIKE] * _about_others(view) + [WITHOUT] * _can_leave_out(view)
    marked = [f"{name} {mark}".rstrip() for name, mark in zip(names, _row_marks(view), strict=True)]
    leading = [[row_dim, "", *marked, *below]]
    if not compared:
        counts = zip(view["n0"].to_numpy().tolist(), view["n1"].to_numpy().tolist(), strict=True)
        leading.append(["", "n0+n1", *(f"{n0}+{n1}" for n0, n1 in counts), *("" for _ in below)])
    notes: dict[str, str] = {}
    columns = []
    for metric in _names(view, "metric"):
        column = view.sel(metric=metric)
        head = str(column["space"].item())
        if not compared and (alias := str(column["alias_of"].item())):
            head = f"= {alias}"
        columns.append([metric, head, *_entries(column, grouped=len(below) > 1, notes=notes)])
    tables = [
        [title, *_aligned([*leading, *part])]
        for part in _fitting(columns, sum(_width(column) + 2 for column in leading))
    ]
    tables[-1] += _reasons(notes)
    if not compared:
        tables[-1] += _without_the_model(view)
    return tables


def _reason_marks(refused: Sequence[str], notes: dict[str, str]) -> list[str]:
    """The mark of each reason, or ""; new reasons are added to the notes."""
    return [
        notes.setdefault(reason, f"({chr(ord('a') + len(notes) % 26)})") if reason else ""
        for reason in refused
    ]


def _reasons(notes: Mapping[str, str]) -> list[str]:
    """Lines under a table: what the marks of refused numbers mean."""
    return [f"{mark} refused: {reason}" for reason, mark in notes.items()]


def _without_the_model(view: "xarray.Dataset") -> list[str]:
    """AUC of length and of characters, under a table that has an AUC of states."""
    if not any(name.startswith("auc_") for name in _names(view, "metric")):
        return []
    langs, length, lexical = (
        np.atleast_1d(view[name].to_numpy()) for name in ("lang", "auc_length", "auc_lexical")
    )
    each = (
        f"{lang} {_fixed(of_length, '.3f')}, {_fixed(of_characters, '.3f')}"
        for lang, of_length, of_characters in zip(langs, length, lexical, strict=True)
    )
    text = f"AUC without the model, of length and of characters: {'; '.join(each)}."
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False)


def _entries(column: "xarray.Dataset", *, grouped: bool, notes: dict[str, str]) -> list[str]:
    """Entries of one metric: of the names along the rows, its floor, and means over groups.

    Args:
        column: one metric of one layer or one language.
        grouped: whether to show means over groups.
        notes: mark of each reason for which a number is refused; new ones are added.
    """
    compared = "difference" in column
    refused = column["refused"].to_numpy().tolist()
    marks = _reason_marks(refused, notes)
    middle = "difference" if compared else "value"
    numbers = _numbers(column, (middle, "low", "high", "p", "p_family"))
    resamples = float(column["resamples"].item())
    marked = resamples >= MARK_RESAMPLES
    style = _Style.of(numbers)
    star = ANY if "p_asks" in column.coords and column["p_asks"].item() != "means" else "*"
    entries = [style.entry(*(row if marked else row[:3]), star=star) for row in numbers]
    if marked and not compared:
        close = [_is_close(row[3], resamples) for row in numbers]
        entries = ["?" * here + entry for here, entry in zip(close, entries, strict=True)]
    if compared:
        apart = np.any([_disagrees(column, name) for name in ELSEWHERE], 0)
        entries = [DISAGREE * int(x) + entry for x, entry in zip(apart, entries, strict=True)]
        both = _numbers(column, ("base", "aligned"))
        entries = [
            f"{style.number(base)} > {style.number(aligned)}, {entry}"
            for (base, aligned), entry in zip(both, entries, strict=True)
        ]
    entries = [mark or entry for mark, entry in zip(marks, entries, strict=True)]
    if not compared:
        entries.append(style.number(_median(column["floor"].to_numpy().tolist())))
    entries = _padded([*entries, *(_group_entries(column, style) if grouped else [])])
    if "verdict" in column:
        verdicts = [
            word.replace("no change larger than", "within")
            for word in column["verdict"].to_numpy().tolist()
        ]
        verdicts += [""] * (len(entries) - len(verdicts))
        words = max(map(len, verdicts))
        entries = [f"{x} {word:>{words}}" for x, word in zip(entries, verdicts, strict=True)]
    return entries


def _group_entries(column: "xarray.Dataset", style: "_Style") -> list[str]:
    """Entries of one metric for the rows of groups."""
    means = _numbers(column, ("group_value", "group_low", "group_high"))
    entries = [style.entry(*mean) for mean in means]
    gap = column.sel(group="high - low")
    if _about_others(column):
        parts = ("group_like_value", "group_like_low", "group_like_high", "group_like_p")
        entries.append(style.entry(*(float(gap[part]) for part in parts)))
    if _can_leave_out(column):
        ends = (float(gap[f"group_without_{end}"]) for end in ("low", "high"))
        most = str(gap["group_without"].item())
        entries.append(" to ".join(map(style.number, ends)) + f" ({most})" if most else "-")
    return entries


def _excess(view: "xarray.Dataset", title: str) -> list[list[str]]:
    """Differences of differences of one layer: a row for each language."""
    langs = [lang for lang in _names(view, "lang") if lang != view.attrs["reference"]]
    columns = []
    for metric in _names(view, "metric"):
        column = view.sel(metric=metric, lang=langs)
        names = ("excess", "excess_low", "excess_high", "excess_p", "excess_p_family")
        numbers = _numbers(column, names)
        style = _Style.of(numbers)
        marked = int(column["resamples"].item()) >= MARK_RESAMPLES
        entries = [
            "-" if reason else style.entry(*(row if marked else row[:3]))
            for row, reason in zip(numbers, column["refused"].to_numpy().tolist(), strict=True)
        ]
        if any(entry != "-" for entry in entries):
            columns.append([metric, *_padded(entries)])
    leading = ["lang", *langs]
    return [[title, *_aligned([leading, *part])] for part in _fitting(columns, _width(leading) + 2)]


def _numbers(view: "xarray.Dataset", names: Sequence[str]) -> list[tuple[float, ...]]:
    """Variables side by side: one tuple for each name along the rows."""
    return list(zip(*(view[name].to_numpy().tolist() for name in names), strict=True))


@dataclass(frozen=True)
class _Style:
    """How all numbers of one column are written."""

    form: str
    """Format of a float; `z` makes -0.0 to 0.0."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> "_Style":
        """Choose the format of a column: two digits of a typical uncertainty are visible.

        Args:
            rows: value, low, high and possibly more, of every row.
        """
        open_ = [_uncertainty(*row[:3]) for row in rows]
        typical = _median(open_)
        smallest = min((x for x in open_ if math.isfinite(x)), default=math.nan)
        if math.isnan(typical):
            return cls("z.2f")
        # And one digit of the smallest; numbers too different for that have three digits each.
        decimals = max(0, 1 - _exponent(typical), -_exponent(smallest))
        fits = decimals <= min(6, 3 - _exponent(typical)) and typical <= 1e5
        return cls(f"z.{decimals}f" if fits else "z.3g")

    def number(self, value: float) -> str:
        return f"{value:{self.form}}" if math.isfinite(value) else "-"

    def entry(
        self,
        value: float,
        low: float,
        high: float,
        p: float = math.nan,
        p_family: float = math.nan,
        *,
        star: str = "*",
    ) -> str:
        """A value with its interval, `~` before and `star` behind it as the legend says."""
        if math.isnan(value):
            return "-"
        mark, end = "~" if p > CHANCE else "", star if p_family <= CHANCE else ""
        interval = "" if math.isnan(low) else f" [{low:{self.form}}, {high:{self.form}}]"
        return f"{mark}{value:{self.form}}{interval}{end}"


def _uncertainty(value: float, low: float, high: float) -> float:
    """Half of the interval, or a tenth of a number without one; NaN where that is 0."""
    half = (high - low) / 2 if math.isfinite(high - low) else abs(value) / 10
    return half if half > 0 and math.isfinite(half) else math.nan


def _exponent(number: float) -> int:
    """Power of ten of the first digit."""
    return math.floor(math.log10(number))


def _median(numbers: Iterable[float]) -> float:
    known = sorted(x for x in numbers if math.isfinite(x))
    return known[len(known) // 2] if known else math.nan


def _padded(entries: list[str]) -> list[str]:
    """Add a blank where another entry of the column ends with a star."""
    if not any(entry.endswith(("*", ANY)) for entry in entries):
        return entries
    return [entry if entry.endswith(("*", ANY)) else f"{entry} " for entry in entries]


# Power ---------------------------------------------------------------------------------------


def _power(dataset: "xarray.Dataset") -> list[list[str]]:
    """Tables of `power`: a row for each language, or for each layer of one language."""
    langs, layers = _names(dataset, "lang"), _names(dataset, "layer")
    asked, versus = dataset.attrs["asked_difference"], dataset.attrs["versus"]
    by, across = ("layer", "lang") if len(langs) == 1 else ("lang", "layer")
    visible = layers if by == "layer" or len(layers) <= MOST_LAYERS else layers[-1:]
    others = langs if by == "layer" else visible
    tables = []
    for model in _names(dataset, "model"):
        for pooling in _names(dataset, "pooling"):
            for other in others:
                for metric in _names(dataset, "metric"):
                    place = {"model": model, "pooling": pooling, "metric": metric, across: other}
                    view = dataset.sel(place)
                    minus = f"{model} - {versus}" if versus else model
                    title = f"{minus} | pooling {pooling} | {across} {other} | {metric}"
                    tables.append([title, *_power_lines(view, by)])
    share, level = dataset.attrs["power"], dataset.attrs["level"]
    legend = (
        f"needed: texts, harmless + harmful, that show a difference of {asked:g} in {share:.0%} of "
        f"studies (two-sided, level {level:g}), if they are like those of the pilot; at least "
        f"{MIN_TEXTS} of each. detectable: what the texts of the pilot show. "
    )
    legend += (
        "The same texts run in both models."
        if versus
        else "Shown: the interval of the value excludes a number that is this far away, such as "
        "the floor. >: the value is nearer than that to its floor, and the number is rough."
    )
    tables.insert(1, textwrap.wrap(legend, WIDTH, break_on_hyphens=False))
    if by == "lang" and len(visible) < len(layers):
        tables.append([f"Only the last of {len(layers)} layers is shown; see --layers."])
    return tables


def _power_lines(view: "xarray.Dataset", by: str) -> list[str]:
    """The table of one metric: a row for each name along `by`."""
    notes: dict[str, str] = {}
    marks = _reason_marks(view["refused"].to_numpy().tolist(), notes)
    near = (view["value"] - view["floor"] < view.attrs["asked_difference"]).to_numpy()
    rough = ["> " * bool(x and not view.attrs["versus"]) for x in near]
    counts = ("n0", "n1"), ("needed0", "needed1")
    pilot, needed = ([f"{n0:.0f}+{n1:.0f}" for n0, n1 in _numbers(view, names)] for names in counts)
    columns = [[by, *_names(view, by)], ["pilot", *pilot]]
    columns += [
        [name, *(_fixed(x, ".3g") for x in view[name].to_numpy())]
        for name in ("value", "deviation", "detectable")
    ]
    entries = zip(marks, rough, needed, strict=True)
    columns.append(["needed", *(mark or f"{sign}{texts}" for mark, sign, texts in entries)])
    columns += [
        [name, *(_fixed(x, form) for x in view[name].to_numpy())]
        for name, form in (("needed_units", ".0f"), ("unit_effect", ".2f"))
    ]
    return [*_aligned(columns), *_reasons(notes)]


# Curves --------------------------------------------------------------------------------------


def _curves(dataset: "xarray.Dataset") -> list[list[str]]:
    """Tables of `curve`: a row for each size, a column for each language."""
    sizes, langs = _names(dataset, "size"), _names(dataset, "lang")
    leading = ["texts", *sizes]
    tables = []
    for axis in itertools.product(*(_names(dataset, d) for d in ("model", "pooling", "layer"))):
        for metric in _names(dataset, "metric"):
            view = dataset.sel(model=axis[0], pooling=axis[1], layer=axis[2], metric=metric)
            notes: dict[str, str] = {}
            columns = []
            for lang in langs:
                column = view.sel(lang=lang)
                numbers = _numbers(column, ("value", "low", "high"))
                style = _Style.of(numbers)
                marks = _reason_marks(column["refused"].to_numpy().tolist(), notes)
                entries = zip(marks, numbers, strict=True)
                columns.append([lang, *(mark or style.entry(*row) for mark, row in entries)])
            title = f"{axis[0]} | pooling {axis[1]} | layer {axis[2]} | {metric}"
            parts = _fitting(columns, _width(leading) + 2)
            tables += [[title, *_aligned([leading, *part])] for part in parts]
            tables[-1] += _reasons(notes)
    legend = (
        "texts: of the rarer label. Value and 95 % interval of sub-samples of so many, the mean of "
        f"{dataset.attrs['draws']}, in the random projection; full width: all texts, as in "
        "`separation`."
    )
    tables.insert(1, textwrap.wrap(legend, WIDTH, break_on_hyphens=False))
    return tables


# Sensitivity ---------------------------------------------------------------------------------


def _sensitivity(dataset: "xarray.Dataset") -> list[list[str]]:
    """Tables of `sensitivity`: a row for each set of choices, a column for each language."""
    compared = "base" in dataset.attrs
    if compared:
        views = {f"{dataset.attrs['base']} -> {dataset.attrs['aligned']}": dataset}
    else:
        views = {model: dataset.sel(model=model) for model in _names(dataset, "model")}
    tables = []
    leading = ["choices", *_names(dataset, "choice")]
    for name, view in views.items():
        columns = []
        for lang in _names(dataset, "lang"):
            column = view.sel(lang=lang)
            parts = _numbers(column, ("direction", "agree", "choices", "shown", "against"))
            columns.append([lang, *(_agreement(*part) for part in parts)])
        for part in _fitting(columns, _width(leading) + 2):
            title = f"{name} | choices of metric, layer and pooling that agree"
            tables.append([title, *_aligned([leading, *part])])
    what = "the classes are further apart in the aligned model" if compared else "above the floor"
    legend = (
        f"+14/16 (9): in 14 of 16 choices {what}, in 9 the 95 % interval says so. -: in most it is "
        "the other way round. !2: in 2 choices the interval says the opposite of most. The choices "
        "are of the same texts: they are not so many pieces of evidence."
    )
    tables.insert(1, textwrap.wrap(legend, WIDTH, break_on_hyphens=False))
    return tables


def _agreement(direction: float, agree: float, choices: float, shown: float, against: float) -> str:
    """How many choices agree, as the legend says."""
    if not choices:
        return "-"
    sign = {1.0: "+", -1.0: "-"}.get(direction, "")
    return f"{sign}{agree:.0f}/{choices:.0f} ({shown:.0f})" + f" !{against:.0f}" * bool(against)


# Transfer ------------------------------------------------------------------------------------


def _transfer(dataset: "xarray.Dataset") -> list[list[str]]:
    """Tables of `transfer`: a row for each language."""
    tables = []
    for model in _names(dataset, "model"):
        for pooling in _names(dataset, "pooling"):
            lines = _transfer_lines(dataset.sel(model=model, pooling=pooling))
            title = f"{model} | pooling {pooling} | AUC along the direction of the first store"
            tables.append([title, *lines])
    legend = (
        f"First: {dataset.attrs['source']}. Second: {dataset.attrs['target']}. layer: the one with "
        "the largest AUC on the first. chosen: this AUC, too high because it is the largest of "
        "several. tested: AUC of the texts of the second. own: their held-out AUC along the second "
        "store's own direction. removed: texts of the second store that are in the first too, and "
        f"the rest of their units. ~: consistent with chance (p > {CHANCE})."
    )
    if bool((dataset["space"] == "projection").any()):
        legend += (
            " space projection: approximate; run the second store with --basis of the first for "
            "the full width."
        )
    tables.insert(1, textwrap.wrap(legend, WIDTH, break_on_hyphens=False))
    return tables


def _transfer_lines(view: "xarray.Dataset") -> list[str]:
    """The table of one model and pooling."""
    notes: dict[str, str] = {}
    style = _Style("z.3f")
    marks = _reason_marks(view["refused"].to_numpy().tolist(), notes)
    source = _numbers(view, ("source_auc", "source_low", "source_high"))
    target = _numbers(view, ("target_auc", "target_low", "target_high", "target_p"))
    entries = [mark or style.entry(*row) for mark, row in zip(marks, target, strict=True)]
    counts = _numbers(view, ("target_n0", "target_n1"))
    columns = [
        ["lang", *_names(view, "lang")],
        ["layer", *(layer or "-" for layer in _names(view, "best_layer"))],
        ["chosen", *(style.entry(*row) for row in source)],
        ["tested", *entries],
        ["p", *(_fixed(row[3], ".3f") for row in target)],
        ["own", *(_fixed(x, ".3f") for x in view["target_own_auc"].to_numpy())],
        ["texts", *(f"{n0:.0f}+{n1:.0f}" if math.isfinite(n0) else "-" for n0, n1 in counts)],
        ["removed", *(_fixed(x, ".0f") for x in view["removed"].to_numpy())],
        ["space", *(space or "-" for space in _names(view, "space"))],
    ]
    return [*_aligned(columns), *_reasons(notes)]


# Beside the metrics --------------------------------------------------------------------------


def _geometry(view: "xarray.Dataset", layers: list[str]) -> list[list[str]]:
    """Variables of `GEOMETRY`: a row for each layer and language."""
    names = [
        str(name)
        for name, variable in view.data_vars.items()
        if variable.dims == ("layer", "lang") and "definition" in variable.attrs
    ]
    langs = _names(view, "lang")
    part = view[names].sel(layer=layers)
    leading = [
        ["layer", *(layer for layer in layers for _ in langs)],
        ["lang", *(lang for _ in layers for lang in langs)],
    ]
    columns = [[name, *(_fixed(x, ".3f") for x in part[name].to_numpy().flat)] for name in names]
    return [
        _aligned([*leading, *some])
        for some in _fitting(columns, sum(_width(column) + 2 for column in leading))
    ]


def _matrices(dataset: "xarray.Dataset") -> list[list[str]]:
    """Tables of `directions` and `parallel`: matrices of languages, silhouettes of all layers."""
    layers, langs = _names(dataset, "layer"), _names(dataset, "lang")
    tables = []
    for model in _names(dataset, "model"):
        for pooling in _names(dataset, "pooling"):
            view = dataset.sel(model=model, pooling=pooling)
            for layer in layers if len(layers) <= MOST_LAYERS else layers[-1:]:
                for name in ("transfer_auc", "direction_cosine", "direction_reliability"):
                    numbers = view[name].sel(layer=layer).transpose("lang", "other_lang").to_numpy()
                    columns = [["lang", *langs]]
                    for i, other in enumerate(langs):
                        columns.append([other, *(_fixed(x, ".2f") for x in numbers[:, i])])
                    title = f"{model} | pooling {pooling} | layer {layer} | {name}"
                    tables.append([title, *_aligned(columns)])
            if bool(view["semantic"].notnull().any()):
                columns = [["layer", *layers]]
                for name in ("semantic", "language"):
                    parts = _numbers(view, [f"{name}{end}" for end in ("", "_low", "_high")])
                    columns.append([name, *(_Style("z.3f").entry(*part) for part in parts)])
                title = f"{model} | pooling {pooling} | silhouette by content and by language"
                tables.append([title, *_aligned(columns)])
    legend = "Rows: language of the texts. Columns: language that the direction was fitted to."
    tables.insert(1, [legend])
    return tables


_CONFOUND_FORMS = {
    "tokens0": ".1f",
    "tokens1": ".1f",
    "chars_per_token": ".2f",
    "truncated": ".1%",
    "duplicates": ".1%",
    "clustered": ".1%",
    "units": ".0f",
    "design_effect": ".2f",
    "elsewhere": ".1%",
    "harmful": ".1%",
    "auc_length": ".3f",
    "auc_lexical": ".3f",
}
"""Columns of the table, and how their numbers are written; those with an interval show it."""


def _confounds(dataset: "xarray.Dataset") -> list[list[str]]:
    """Variables of `CONFOUNDS`; models with the same numbers share a table."""
    langs = _names(dataset, "lang")
    tables: dict[str, list[str]] = {}
    for i, model in enumerate(_names(dataset, "model")):
        view = dataset.isel(model=i)  # a model may be compared with itself
        columns = [
            [name, *_confound_entries(view, name, form)] for name, form in _CONFOUND_FORMS.items()
        ]
        leading = ["lang", *langs]
        lines = [
            line
            for part in _fitting(columns, _width(leading) + 2)
            for line in _aligned([leading, *part])
        ]
        tables.setdefault("\n".join(lines), []).append(model)
    what = "other differences between the languages" if len(langs) > 1 else "about the texts"
    together = bool(((dataset["duplicates"] > 0) | (dataset["clustered"] > 0)).any())
    note = ["Texts that belong together are one unit of evidence: see `explain units`."] * together
    return [[f"{', '.join(models)} | {what}", table, *note] for table, models in tables.items()]


def _confound_entries(view: "xarray.Dataset", name: str, form: str) -> list[str]:
    """Entries of one variable of `CONFOUNDS`, with its interval if it has one."""
    if f"{name}_low" not in view:
        return [_fixed(x, form) for x in view[name].to_numpy()]
    return [_Style(form).entry(*row) for row in _numbers(view, [name + end for end in ENDS])]


def _settings(dataset: "xarray.Dataset") -> list[list[str]]:
    """How the models were run, and in what their runs differ."""
    shared, differ = (dataset.attrs[name] for name in ("run_as", "settings_differ"))
    lines = [f"Run with {shared}."] if shared else []
    if differ:
        lines.append(f"The models were not run alike: {differ}.")
    if older := dataset.attrs.get("p_in_projection", "").replace(",", ", "):
        lines.append(
            f"p of {older} come from the projection and change with its seed: the store holds no "
            "permutations of these texts (an earlier version, or --unpaired); run again for exact "
            "ones."
        )
    return [textwrap.wrap(" ".join(lines), WIDTH, break_on_hyphens=False)]


def beside_published(
    dataset: "xarray.Dataset", published: Sequence[Mapping[str, str | float]], source: str
) -> str:
    """A table of published numbers beside those of `compare`.

    Args:
        dataset: what `compare` returned, for one layer and pooling.
        published: each with lang, metric and some of base, aligned, difference.
        source: where they were published.
    """
    columns = [["lang"], ["metric"], ["published"], ["here"], ["space"]]
    results = dataset.squeeze(["layer", "pooling"])
    for entry in published:
        lang, metric = str(entry["lang"]), str(entry["metric"])
        if lang not in results["lang"].to_numpy() or metric not in results["metric"].to_numpy():
            continue
        result = results.sel(lang=lang, metric=metric)
        for name in ("base", "aligned", "difference"):
            if name in entry:
                numbers = (f"{x:.4f}" for x in (float(entry[name]), result[name].item()))
                cells = (lang, f"{metric} {name}", *numbers, result["space"].item())
                for column, cell in zip(columns, cells, strict=True):
                    column.append(cell)
    if len(columns[0]) == 1:
        return f"{source}: no published number of this pair is known here"
    return "\n".join([f"published: {source}", *_aligned(columns)])


# Columns of text -----------------------------------------------------------------------------


def _fixed(number: float, form: str) -> str:
    return f"{number:{form}}" if math.isfinite(number) else "-"


def _fitting(columns: list[list[str]], taken: int) -> Iterator[list[list[str]]]:
    """Split columns into groups that fit `WIDTH` beside the columns that take `taken`."""
    part: list[list[str]] = []
    width = taken
    for column in columns:
        if part and width + _width(column) + 2 > WIDTH:
            yield part
            part, width = [], taken
        part.append(column)
        width += _width(column) + 2
    if part:
        yield part


def _aligned(columns: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [_width(column) for column in columns]
    lines = []
    for cells in zip(*columns, strict=True):
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        lines.append("  ".join(padded).rstrip())
    return lines


def _width(column: Sequence[str]) -> int:
    return max(len(cell) for cell in column)
