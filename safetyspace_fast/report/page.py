"""The page as data: the answer, every figure with its table, definitions, how it was made."""

import base64
import gzip
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..analysis import explain
from ..analysis.glossary import NOTES
from ..errors import ConfigError
from . import figures, theme, words
from .figures import scatter
from .figures._drawn import LABELS
from .made import Made, made

if TYPE_CHECKING:
    from ..store import Run
    from .results import Results

Row = dict[str, Any]
Stores = dict[str, "Results"]
WIDTHS = (900, 320)
"""Of a figure on a wide page and on a phone, in pixels; `static/page.js` chooses."""
PANELS = (420, 260)
"""Of one model's panel in a figure with a slider: wide page, phone."""
_INK, _LINE = "currentColor", "#80808040"
"""Text takes the page's colour: light, dark and in print."""
COLORS: dict[str, str | None] = {"ink": _INK, "quiet": _INK, "line": _LINE, "paper": None}


@dataclass
class Part:
    """One figure of the page, and the data that its script and its table share."""

    name: str
    title: str
    about: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    missing: str = ""
    """Why there is nothing to show; then there are no data."""

    @property
    def packed(self) -> str:
        """The data as they stand in the page."""
        return packed(self.data)


@dataclass
class Group:
    """One block of the answer: a pair of models, a model, or what the data cannot tell."""

    title: str
    lead: str
    findings: list[words.Finding]


@dataclass
class Page:
    """All that the template shows."""

    title: str
    subtitle: str
    notices: list[str]
    answer: list[Group]
    figures: list[Part]
    words: list[tuple[str, str]]
    made: list[Made]
    command: str


def page(
    stores: Stores, command: str, texts: dict[bytes, str], step: Callable[[str], None]
) -> Page:
    """Compute everything that the page shows.

    Args:
        stores: results by the name of their store.
        command: that made the page.
        texts: by SHA-256, to be shown in the scatter; empty shows none.
        step: called with the name of each part before it is computed.
    """
    runs = {name: results.run for name, results in stores.items()}
    step("answer")
    answer = [group for name, results in stores.items() for group in _answer(name, results, stores)]
    parts = []
    for name in figures.names():
        step(f"figure {name}")
        parts.append(_part(name, stores, texts))
        if texts and name == scatter.NAME:
            parts.append(_texts(stores, texts))
    texts_of = sum(len(run.samples.label) for run in runs.values())
    langs = {lang for results in stores.values() for lang in results.selection.languages}
    models = [model for results in stores.values() for model in results.names]
    return Page(
        title="Safety space: how far apart models hold harmful and harmless text",
        subtitle=f"{', '.join(map(words.isolated, stores))}: {texts_of:,} texts, "
        f"{_count(len(langs), 'language')}, {_count(len(models), 'model')} "
        f"({words.listed(models)})",
        notices=list(_notices(runs)),
        answer=answer,
        figures=parts,
        words=_definitions(parts, stores),
        made=[made(name, run) for name, run in runs.items()],
        command=command,
    )


def _notices(runs: "dict[str, Run]") -> Iterator[str]:
    for name, run in runs.items():
        if run.unfinished:
            yield (
                f"{words.isolated(name)} is not finished: {words.listed(run.unfinished)} "
                f"{'is' if len(run.unfinished) == 1 else 'are'} not complete and not on this page. "
                "Finish the run with --resume, then make the page again."
            )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _answer(name: str, results: "Results", stores: Stores) -> Iterator[Group]:
    """Pairs, models without a partner, then what the data cannot tell."""
    before = f"{words.isolated(name)}: " if len(stores) > 1 else ""
    lead = (
        f"Measured by {results.metric.name} ({results.metric.title}), pooling {results.pooling}; "
        "significant after correction over all {}layers, languages, metrics and poolings."
    )
    asked = results.metric.name, results.pooling
    compared = []
    for pair in results.pairs:
        title = before + " → ".join(map(words.isolated, pair))
        try:
            dataset = results.comparison(pair)
        except ConfigError as error:
            if results.pairs_asked is not None:
                raise
            yield Group(title, "", [words.Finding("unknown", "Not compared:", str(error))])
            continue
        findings = words.changes(dataset, *asked) + words.turned(dataset, results.pooling)
        findings += words.elsewhere(dataset, *asked)
        findings.append(words.choice_of(pair, named=results.pairs_asked is not None))
        yield Group(title, "What tuning changed. " + lead.format(""), findings)
        compared.append(dataset)
    paired = {model for pair in results.pairs for model in pair}
    for model in results.names:
        if model not in paired:
            view = results.separation.sel(model=model)
            findings = words.levels(view, *asked)
            title = before + words.isolated(model)
            yield Group(title, "Where the classes are apart. " + lead.format("models, "), findings)
    cautions = {
        finding.head: finding
        for dataset in (*reversed(compared), results.separation)
        for finding in words.cautions(dataset, results.pooling)
    }
    if not results.controls:
        finding = words.NO_CONTROL
        cautions[finding.head] = finding
    yield Group(before + "What these data cannot tell", "", list(cautions.values()))


def _part(name: str, stores: Stores, texts: dict[bytes, str]) -> Part:
    from altair.utils.schemapi import debug_mode

    module = figures.figure(name)
    part = Part(name, module.TITLE, getattr(module, "ABOUT", ""))
    try:
        with debug_mode(False):  # would check each part of a chart, rows included, when it is made
            if hasattr(module, "moving"):
                part.data = _moving(module, stores, texts)
            else:
                part.data = _still(module, stores)
    except ConfigError as error:
        part.missing = str(error)
    return part


def _still(module: Any, stores: Stores) -> dict[str, Any]:
    """A figure with a chart for every store, metric and pooling that its rows depend on."""
    rows: list[Row] = []
    specs: list[dict[str, Any]] = []
    charts: dict[str, Row] = {}
    first = next(iter(stores.values()))
    names = {
        "store": list(stores),
        "metric": [entry.name for entry in first.family],
        "pooling": list(dict.fromkeys(itertools.chain.from_iterable(
            results.selection.poolings for results in stores.values()))),
    }  # fmt: skip
    depends = None
    for at in itertools.product(*map(range, map(len, names.values()))):
        store, metric, pooling = (own[i] for own, i in zip(names.values(), at, strict=True))
        key = " ".join(map(str, at))
        if depends is not None and any(
            i and name not in depends for name, i in zip(names, at, strict=True)
        ):
            continue  # the same rows again
        try:
            own = module.rows(stores[store].showing(metric=metric, pooling=pooling))
        except ConfigError as error:
            charts[key] = {"missing": str(error)}
            continue
        depends = {"store", *own[0]} if depends is None else depends
        rows += _of_store(own, store, stores)
        chart: Row = {"specs": []}
        for width in WIDTHS:
            spec, chart["caption"] = spec_of(module.chart(own, width=width))
            if spec not in specs:
                specs.append(spec)
            chart["specs"].append(specs.index(spec))
        chart["caption"] = chart["caption"].replace(getattr(module, "ABOUT", ""), "").strip()
        charts[key] = chart
    if not rows:
        reasons = dict.fromkeys(chart["missing"] for chart in charts.values())
        raise ConfigError("; ".join(reasons) or "there is nothing to show")
    choices = [_choice(key, own) for key, own in names.items()]
    for i, (name, choice) in enumerate(zip(names, choices, strict=True)):
        if name not in (depends or {}):
            choice["values"] = choice["values"][:1]
        choice["start"] = min(int(key.split()[i]) for key, x in charts.items() if "specs" in x)
    return {"choices": choices, **_table(rows), "specs": specs, "charts": charts}


def _of_store(rows: Sequence[Row], store: str, stores: Stores) -> list[Row]:
    """Rows that say of which store they are, where there are several."""
    return [{"store": store, **row} for row in rows] if len(stores) > 1 else list(rows)


def _choice(name: str, values: Iterable[str]) -> Row:
    """What a reader chooses; `start` is the place of the first choice."""
    return {"name": name, "title": name.capitalize(), "values": list(values), "start": 0}


def _moving(module: Any, stores: Stores, texts: dict[bytes, str]) -> dict[str, Any]:
    """A figure with a slider over layers; each store has its own layers and languages."""
    with_texts = bool(texts) and module.NAME == scatter.NAME
    rows: list[Row] = []
    moving = []
    for store, results in stores.items():
        own, table = module.moving(results)
        if with_texts:
            own["texts"] = [row["text"] for row in _drawn_texts(results, texts)]
        moving.append(own)
        rows += _of_store(table, store, stores)
    specs = [spec_of(module.panel(width=width))[0] for width in PANELS]
    for spec in specs if with_texts else ():
        spec["encoding"]["tooltip"] = {"field": "words", "type": "nominal"}
    return {
        "choices": [_choice("store", stores)],
        **_table(rows),
        "specs": specs,
        "moving": moving,
    }


def _texts(stores: Stores, texts: dict[bytes, str]) -> Part:
    """A table of the texts in the scatter, for those who do not point at marks."""
    rows = [
        row
        for store, results in stores.items()
        for row in _of_store(_drawn_texts(results, texts), store, stores)
    ]
    return Part(
        "texts",
        "The texts",
        "The texts of the scatter, from the file that was given. They may be offensive.",
        {
            "choices": [_choice("store", stores)],
            **_table(rows),
            "specs": [],
            "charts": {str(i): {"caption": ""} for i in range(len(stores))},
        },
    )


def _drawn_texts(results: "Results", texts: dict[bytes, str]) -> list[Row]:
    samples = results.run.samples
    return [
        {
            "lang": results.run.languages[samples.lang_index[i]],
            "label": LABELS[samples.label[i]],
            "text": texts.get(bytes(samples.text_sha256[i]), "(not in the file)"),
        }
        for i in scatter.positions(results)
    ]


def _table(rows: Sequence[Row]) -> dict[str, Any]:
    names = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    columns = []
    for name in names:
        kind = "number" if any(isinstance(row.get(name), int | float) for row in rows) else "text"
        columns.append({"name": name, "title": name, "kind": kind, "word": _word(name)})
    return {"columns": columns, "rows": columns_of(rows)}


def _word(name: str) -> str | None:
    """Under which word the definitions have a column, if they do."""
    try:
        explain(name)
    except ConfigError:
        return None
    return name


def _definitions(parts: Sequence[Part], stores: Stores) -> list[tuple[str, str]]:
    """The metrics that are shown and the columns of all tables, as `explain` has them."""
    shown = [entry.name for results in stores.values() for entry in results.family]
    for part in parts:
        shown += [one["word"] for one in part.data.get("columns", ()) if one["word"]]
    return [(name, _definition(name)) for name in dict.fromkeys(shown)]


def _definition(name: str) -> str:
    if name in NOTES:
        return str(NOTES[name])
    text = explain(name).partition(": ")[2]
    text = re.sub(r"\n {14,}", " ", text)  # continued lines
    return re.sub(r"\n  (\S+) +", r"\n\1: ", text)


def columns_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Rows as columns: plain lists, or `names` and `codes` where strings repeat."""
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    return {name: _column([plain(row.get(name)) for row in rows]) for name in names}


def _column(values: list[Any]) -> Any:
    distinct = list(dict.fromkeys(values))
    if len(distinct) * 2 > len(values) or not any(isinstance(x, str) for x in distinct):
        return values
    code = {value: i for i, value in enumerate(distinct)}
    return {"names": distinct, "codes": [code[value] for value in values]}


def plain(value: Any) -> Any:
    """A value as JSON has it: None for what is not finite, and 3 for 3.0."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    return value


def packed(value: Any) -> str:
    """JSON, compressed, in base64: a fifth of its size, and no letter of it means anything in HTML.

    The same value gives the same letters.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def spec_of(chart: Any) -> tuple[dict[str, Any], str]:
    """The Vega-Lite specification of a chart, and the words under its title.

    Its data are named `rows`, which the script fills; the page has title and words as text.
    """
    import altair as alt

    spec: dict[str, Any] = chart.properties(data=alt.NamedData("rows")).to_dict(validate=False)
    spec.pop("$schema", None)
    title = spec.pop("title", {})
    below = title.get("subtitle", []) if isinstance(title, dict) else []
    spec["config"] = theme.config(COLORS)
    return spec, " ".join(below if isinstance(below, list) else [below])
