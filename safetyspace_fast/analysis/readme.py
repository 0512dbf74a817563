"""The README of this folder, written from the definitions.

Run `python -m safetyspace_fast.analysis.readme > safetyspace_fast/analysis/README.md`.
"""

import ast
import math
import textwrap
from pathlib import Path

from .families import FAMILIES
from .glossary import (
    COLUMNS,
    CONFOUNDS,
    COPIES,
    CURVE,
    DIRECTIONS,
    DOMINANCE,
    GEOMETRY,
    GROUP_DEFINITION,
    GROUP_VARIABLES,
    GROUPS,
    NOTATION,
    PARALLEL,
    POWER,
    SENSITIVITY,
    TRANSFER,
    UNITS,
)
from .marks import MARK_RESAMPLES
from .metric import NONE, InComponents, Metric
from .rounding import ROUNDOFF

FOLDER = Path(__file__).parent
WIDTH = 100

INTRODUCTION = """\
How far apart a model holds harmful and harmless texts, for every layer, pooling and language:
metrics with intervals, p values and the value that chance would give. Everything is computed from
a store that `run` wrote; no model is loaded. `separation` looks at each model, `compare` at what
tuning changed between two models, `directions` and `parallel` at several languages together;
`power` says how many texts a study needs, `curve` what fewer would have given, `transfer` whether a
direction holds on other data, `sensitivity` whether a claim depends on what was chosen.

```python
import safetyspace_fast as ssf

run = ssf.open_run("demo.zarr")
table = ssf.separation(run, metrics=["rho_adjusted", "auc_direction"], layers="-1")
print(table["value"].sel(metric="auc_direction", pooling="last").to_series())
```

This file is generated from the definitions in the code. To write it again:
`python -m safetyspace_fast.analysis.readme > safetyspace_fast/analysis/README.md`."""

STATES = """\
A state is the vector of one text in one layer, after pooling over its tokens. Layers are `embed`,
`block.0`, `block.1`, ... (the output of a block, before the final norm) and `final_norm`, which is
`hidden_states[-1]` of transformers. The poolings that most studies use are `mean` (the tokens of
the text itself, without BOS and template), `last` (the last token of the prompt) and `last_text`
(the last token of the text).

`mean` leaves out the first position of a prompt, unless a text has no other token. Models that add
no BOS often use it as an attention sink: its state is then so large that a mean over all tokens
(`mean_all`) is one over their number in the largest dimension.

A metric looks at the states in one of three spaces:

- `full`: all hidden dimensions;
- `projection`: a seeded random projection, the same for all texts of a model;
- `pcK`: the first K principal components of one language. K is 10 or 2 in the list of metrics, and
  any number from 1 to 16 by name, as in `rho_pc7`."""

NUMBERS = """\
In tables, `~` marks a value that is consistent with chance (p > 0.05), and `*` one that is
significant after correction over all numbers of the result (p_family <= 0.05). `+` stands in place
of `*` where a difference of spread alone is enough (see p_asks). `?` says that p is
so near 0.05 that other permutations could change the mark.

p of metrics at full width comes from 1,000 permutations that `run` computed and stored. Stores of
earlier versions have none: there p comes from the projection, and the results say so.

In 54 of 1,388 simulated results without any difference, a `*` stood somewhere (3.9 %; 95 % interval
3.0 to 5.0 %). Of these, 167 had 33 layers, 11 languages of 12 + 12 texts, 2 poolings, 4 statistics
with 39 permutations, and one huge dimension; 1,221 were of eight languages, all metrics and the
designs below "How well the intervals cover"."""

COVERAGE = """\
`python -m benchmarks coverage` asks the whole program: it makes models that hold drawn states of 64
dimensions, runs them on as many languages as there are draws, and counts how often an interval held
the mean of its number over all draws. Twelve designs, 400 draws of each: 12 + 12, 50 + 50 and
150 + 150 texts, 5 % harmful (190 + 10), heavy tails (Student's t with 3 degrees of freedom, 60 + 60
and 190 + 10), one huge dimension, clusters of 6, 4 copies, 12 and 60 pairs, AUCs near 1. A rate
near 95 % is known to 1.1 %.

- Where the classes differ, the median metric covers 95 to 98 %, depending on the design, and the
  median difference of two models 94 to 98 %. Of 506 numbers 381 cover 92 to 98 %, 8 less and 117
  more.
- Without any difference the medians are 97 to 99 %. Of 500 numbers 259 cover 92 to 98 %, 7 less and
  234 more.
- By more than two standard errors of such a rate, one number covers less than 92 % (a difference of
  rho_standardized), and 100 cover more than 98 %: most often silhouette_pc2, distances between
  covariances, Davies-Bouldin, accuracy_probe of 190 + 10 texts, and differences of two models of
  which neither separates.
- p <= 0.05 without any difference in 4 to 6 % (median metric). In `compare`, where neither model
  separates, in 0 to 3 %: p of differences of distances is hardly ever small there. A result had a
  false star in 28 of 600 cases, one of `compare` in 14 of 600.
- Not counted: ratios and d' of pairs, and in some designs rho_pcK and davies_bouldin. Their
  intervals changed after these draws, most of them by a few hundredths of their width.
  2,500 + 2,500 texts were run (60 draws) with earlier intervals of ratios and shifts.
- Differences of mahalanobis_pc2 and bhattacharyya_mean_pc2 cover up to 99 %, those of auc_increment
  up to all. Slow tests that ask for 98 % expect to fail there.

In 400 simulated data sets of 150 + 150 texts whose components are told apart, each interval covered
92 to 98 %; AUCs and accuracies of 12 + 12 to 380 + 20 texts 91 to 98 %, those near 1 up to 100 %;
ratios of 12 + 12 to 500 + 500 texts 92 to 99 %. In `compare`, from a base model that does not
separate the classes, differences covered 93 to 97 % with 60 + 60 and 150 + 150 texts. `make
check-slow` repeats these.

Known exceptions, in which intervals cover less than 92 %:

| numbers | where | covered |
|---|---|---|
| frechet | heavy tails, 150 + 150 texts | 70 to 86 % |
| rho_standardized, difference | AUCs near 1 (its scales have noise) | 87 to 88 % |
| silhouettes, energy distance, MMD^2 | one huge dimension | 91 to 94 % |
| silhouette_pc2 | heavy tails | 89 to 94 % |
| nn_accuracy | heavy tails, 190 + 10 texts | 91 to 94 % |
| auc_increment, hotelling_pc2 | 12 + 12 texts; 60 pairs | 91 to 92 % |
| rho_equal_length, d' | heavy tails, classes far apart; 20 clusters in each class | 90 to 93 % |
| tpr_at_1_fpr | heavy tails (refused below 399 harmless texts) | 90 to 95 % |

`%` marks heavy tails (`explain tail_share`). A few texts make what covariances differ by there, and
the intervals of their distances are wide."""

STEPS = """\
1. Choose the file of its family in `families/`. The steps 2 to 4 are all in this file.
2. Write the formula as a function of tensors: float64, any leading batch axes, NaN for impossible
   input. Its docstring gives shapes, units and the source.
3. Write the estimator, a function of `Cells` that returns `make_estimate(cells, value, ...)`. Give
   `null` (the statistic of the true labels and of every permutation) to get a p value, `influence`
   to get an interval (also `draws` where these know the variance better), and `floor` if the value
   under chance is known exactly. Raise `Refusal("reason")` where the metric is not defined. Put
   `@once` on functions that several metrics use.
4. Write its record, a `Metric(...)`, or a function from K to a `Metric` for principal components,
   and add it to `METRICS` at the end of the file. Nothing else has to know of it.
5. Add its name to `MetricName` in `metric.py`, so that type checkers know it, and write this README
   again (see above). Tests fail if either is forgotten.
6. Test the formula against another implementation in `tests/analysis/test_FAMILY.py`, and an
   influence against leaving texts out. Tests of refusals, nulls and coverage find the metric by
   themselves; run them with `pytest tests/analysis`, and the slow ones with `make check-slow`."""


def readme() -> str:
    """The text of the README."""
    sections = {
        "Files": _files(),
        "States": STATES,
        "What stands beside a number": "\n\n".join([_defined(COLUMNS), NUMBERS]),
        "What counts as evidence": _evidence(),
        "Metrics": _metrics(),
        "How well the intervals cover": COVERAGE,
        "What is reported beside the metrics": _beside(),
        "Add a metric": STEPS,
    }
    parts = ["# Analysis", INTRODUCTION]
    for title, text in sections.items():
        parts += [f"## {title}", text]
    return "\n\n".join(parts) + "\n"


def _files() -> str:
    """A table of the files: the first line of each docstring is its job."""
    paths = sorted(FOLDER.glob("[a-z]*.py")) + sorted((FOLDER / "families").glob("[a-z]*.py"))
    jobs = {path.relative_to(FOLDER).as_posix(): _first_line(path) for path in paths}
    return _table(["file", "job"], [[f"`{name}`", job] for name, job in jobs.items()])


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return docstring.partition("\n")[0]


def _evidence() -> str:
    """Copies of texts, how models were run, marks."""
    least = {dtype: f"2^{round(math.log2(u))}" for dtype, u in ROUNDOFF.items()}
    return "\n".join(
        [
            _item(f"Copies: {COPIES}."),
            _item(f"Units: {UNITS}."),
            _item(
                "Settings: every result says how the models were run (`run_as`) and in what their "
                "runs differ (`settings_differ`, also in each row of CSV, JSON and Parquet). "
                "`compare` refuses models with different templates unless `different_templates` is "
                "given, and leaves out metrics in the projection if the projections differ."
            ),
            _item(
                "Rounding: where two models differ by no more than rounding does, p and p_family "
                "are 1; see `rounding_share`. Unit roundoff: "
                + ", ".join(f"{power} in {dtype}" for dtype, power in least.items())
                + ". States of one model that are all within one rounding have no metric."
            ),
            _item(
                f"Resamples: the smallest p is 1/(1 + R). With fewer than {MARK_RESAMPLES} "
                "resamples tables mark no number, and say so."
            ),
        ]
    )


def _metrics() -> str:
    """The metrics of each family: a table, and a list of definitions."""
    intervals: dict[str, str] = {NONE: NONE}
    nulls: dict[str, str] = {NONE: NONE}
    parts = [
        _filled(
            "`safetyspace-fast explain NAME` prints all that is known of a metric, with its floor "
            "and its pitfalls. The numbers under interval and p refer to the lists below the "
            "metrics. The last column marks metrics that are computed if none are named."
        ),
        _filled(f"Letters: {'; '.join(NOTATION.values())}."),
    ]
    for family, entries in FAMILIES.items():
        rows, definitions = [], []
        for entry in entries:
            metric = entry if isinstance(entry, Metric) else entry(10)
            rows.append(
                [
                    f"`{_name(metric)}`",
                    metric.title,
                    "pcK" if metric.components else metric.space,
                    metric.unit,
                    intervals.setdefault(metric.interval, str(len(intervals))),
                    nulls.setdefault(metric.null, str(len(nulls))),
                    _default(entry),
                ]
            )
            definitions.append(
                _item(f"`{_name(metric)}`: {metric.definition}. Source: {metric.source}.")
            )
        head = ["name", "metric", "space", "unit", "interval", "p", "default"]
        title = _first_line(FOLDER / "families" / f"{family}.py").removesuffix(".")
        parts += [f"### {title}", _table(head, rows), "\n".join(definitions)]
    for what, texts in (("Intervals", intervals), ("p values", nulls)):
        lines = [_item(text, f"{number}. ") for text, number in texts.items() if text != NONE]
        parts += [f"### {what}", "\n".join(lines)]
    return "\n\n".join(parts)


def _name(metric: Metric) -> str:
    return metric.name.replace(f"_pc{metric.components}", "_pcK")


def _default(entry: Metric | InComponents) -> str:
    """Whether a metric is in the default set, and for which numbers of components."""
    if isinstance(entry, Metric):
        return "yes" if entry.default else ""
    chosen = [str(k) for k in (2, 10) if entry(k).default]
    return f"K = {', '.join(chosen)}" if chosen else ""


def _beside() -> str:
    """Confounds, groups of languages, and what the other questions report."""
    groups = "; ".join(f"`{name}`: {', '.join(langs)}" for name, langs in GROUPS.items())
    return "\n\n".join(
        [
            _filled(
                "The texts of two languages differ in more than the language. `separation`, "
                "`compare` and `directions` therefore report for each language:"
            ),
            _defined(CONFOUNDS),
            "`separation` and `compare` report for each model, layer, pooling and language:",
            _defined(DOMINANCE),
            _filled(
                f"With languages of two groups, `separation` and `compare` report the "
                f"{GROUP_DEFINITION}. {groups} (languages with more and with less than 1 % of the "
                "pages of Common Crawl). For other groups use `groups` in Python, `--high` and "
                "`--low` on the command line. Languages are in a group by their primary subtag: "
                "`zh-CN`, `zho_Hans` and `cmn` are `zh`. The attributes `group_high`, `group_low` "
                "and `group_none` hold the languages of each group and of neither. The variables:"
            ),
            _defined(GROUP_VARIABLES),
            "`compare` reports for each layer, pooling and language:",
            _defined(GEOMETRY),
            "`directions` reports for each layer, pooling and two languages:",
            _defined(DIRECTIONS),
            "`parallel` reports for each layer and pooling, with an interval:",
            _defined(PARALLEL),
            "`power` reports for each metric, model, layer, pooling and language:",
            _defined(POWER),
            "`curve` reports value, low and high of metrics for each size of a sub-sample:",
            _defined(CURVE),
            "`sensitivity` reports for each language, of the results of `compare` or `separation`:",
            _defined(SENSITIVITY),
            "`transfer` reports for each model, pooling and language of two stores:",
            _defined(TRANSFER),
        ]
    )


def _defined(words: dict[str, str]) -> str:
    return "\n".join(_item(f"`{name}`: {text}.") for name, text in words.items())


def _item(text: str, mark: str = "- ") -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark), break_on_hyphens=False
    )


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    lines = [head, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


if __name__ == "__main__":
    print(readme(), end="")
