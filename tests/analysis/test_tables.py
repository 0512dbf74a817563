"""Results as text and files."""

import csv
import io
import json
import math
import re

import numpy as np
import pyarrow.parquet
import pytest
from oracle import planted, stand_in

from safetyspace_fast.analysis import columns, compare, explain, rows, separation, tables
from safetyspace_fast.analysis.glossary import CONFOUNDS, DOMINANCE
from safetyspace_fast.analysis.markup import to_latex, to_markdown
from safetyspace_fast.errors import ConfigError


@pytest.fixture(scope="module")
def run():
    x, label = planted(n=220, width=12, shift=1.5, layers=5, poolings=2)
    few, few_label = planted(n=60, width=12, shift=0.0, layers=5, poolings=2, seed=1)
    return stand_in({"m": {"en": x, "de": few}}, {"en": label, "de": few_label})


@pytest.fixture(scope="module")
def results(run):
    return separation(run, bootstraps=20, permutations=39)


def test_the_table_fits_and_says_what_is_refused_and_what_is_chance(results):
    text = tables.to_table(results)
    assert max(map(len, text.splitlines())) <= tables.WIDTH
    assert "(a) refused: a covariance in 10 components needs 100 texts per class" in text
    assert "m | pooling last | layer block.3" in text
    assert "layer embed" not in text
    assert "110+110" in text
    row = next(line for line in text.splitlines() if line.startswith("de "))
    assert "~" in row
    assert "nan" not in text
    for name in results["metric"].to_numpy():
        assert text.count(f" {name}") >= 2


def test_the_reason_for_a_refused_number_ends_before_the_next_note(results):
    for form in (to_markdown, to_latex):
        text = form(tables.tables_of(results))
        assert "the smaller class has 30. AUC without the model" in text


def test_a_name_cannot_steer_the_terminal():
    langs = ["en", "\x1b[2J\u202ename", "two\nlines"]
    x, label = planted(n=60, width=12, shift=1.5)
    run = stand_in({"m\x1b[1m": dict.fromkeys(langs, x)}, dict.fromkeys(langs, label))
    found = separation(run, metrics=["rho", "auc_direction"], bootstraps=20, permutations=39)
    lines = tables.to_table(found).splitlines()
    assert all(line.isprintable() for line in lines)
    assert any(line.startswith("two lines ") for line in lines)


def test_one_language_shows_every_layer(results):
    text = tables.to_table(results.sel(lang=["en"], pooling=["mean"]))
    for layer in results["layer"].to_numpy():
        assert f"\n{layer}" in text
    assert "m | about the texts\n" in text
    value = results["value"].sel(metric="auc_direction", layer="embed", lang="en", pooling="mean")
    assert f"{value.item():.3f} [" in text


def test_comparisons_have_tables_and_rows_too(tmp_path):
    x, label = planted(n=220, width=12, shift=1.0)
    y, _ = planted(n=220, width=12, shift=3.0)
    run = stand_in(
        {"base": {"en": x, "de": x}, "tuned": {"en": y, "de": x}}, {"en": label, "de": label}
    )
    found = compare(run, base="base", aligned="tuned", bootstraps=39, permutations=39)
    text = tables.to_table(found)
    assert max(map(len, text.splitlines())) <= tables.WIDTH
    assert "base -> tuned | pooling mean | layer embed" in text
    assert "displacement_rank" in text
    assert "base, tuned | other differences between the languages" in text
    assert "displacement_rank" in tables.to_table(found.sel(lang=["en"]))
    assert "nan" not in text
    one = found.sel(metric="auc_direction", lang="en").squeeze()
    assert f"{one['base'].item():.3f} > {one['aligned'].item():.3f}, " in text
    assert "~0" in text  # German has not moved
    assert "own pc10" in text
    assert " own pcK: each model in the first K" in " ".join(text.split())
    parsed = json.loads(rows.to_json(found), parse_constant=pytest.fail)["rows"]
    assert parsed[0]["excess"] == 0
    known = {(row["metric"], row["lang"]): row for row in parsed}
    assert known["cka", "de"]["value"] == pytest.approx(1)
    assert known["tokens1", "en"]["model"] == "tuned"
    groups = {"high": ["en"], "low": ["de"]}
    grouped = compare(
        run, base="base", aligned="tuned", groups=groups, bootstraps=39, permutations=39
    )
    known = {(row["metric"], row["lang"]): row for row in rows.rows(grouped)}
    gap = known["auc_direction", "high - low"]
    assert gap["difference"] == known["auc_direction", "en"]["difference"]
    assert gap["low"] < gap["difference"] < gap["high"]
    assert "| difference minus that of en\n" in text
    assert next(line for line in text.splitlines() if line.startswith("en ")).endswith("]*")
    for form in ("csv", "json"):
        tables.write(grouped, form, tmp_path / form)
    assert "displacement_rank" in (tmp_path / "csv").read_text()
    assert json.loads((tmp_path / "json").read_text())["definitions"]["cka"]["definition"]


def test_metrics_without_permutations_have_no_star_and_the_legend_says_so(run):
    few = {"metrics": ["auc_direction", "auc_equal_length"], "bootstraps": 2}
    for permutations in (0, 199):
        found = separation(run, permutations=permutations, layers="-1", **few)
        text = " ".join(tables.to_table(found).split())
        assert "auc_equal_length: p comes from no permutation, so there is no *." in text
        assert found["p"].sel(metric="auc_equal_length").notnull().all()
        assert found["p_family"].sel(metric="auc_equal_length").isnull().all()
        found["p"][:] = 0.051  # near enough for a `?`, if permutations decide
        table = tables.to_table(found.sel(metric=["auc_equal_length"])).partition("\n\n")[0]
        assert "~" in table
        assert "?" not in table
        found["low"] = found["floor"] + 0.01
        both = found.sel(metric="auc_direction")["p"].size
        for name, said in (("auc_direction", permutations > 0), ("auc_equal_length", False)):
            table = tables.to_table(found.sel(metric=[name]))
            said_so = f"Of {both} numbers with mark and interval, in {both} these disagree" in table
            assert said_so is said
    assert "no *" not in tables.to_table(separation(run, metrics=["auc_direction"], layers="-1"))


def test_columns_line_up():
    assert columns.aligned([["a", "bb"], ["1", "222"], ["x", "y"]]) == ["a     1  x", "bb  222  y"]


def shown(dataset):
    """Numbers of each metric of the first table of a dataset as they are printed."""
    for name in dataset["metric"].to_numpy():
        text = tables.to_table(dataset.sel(metric=[name]))
        table = text.split("\n\n")[0].partition("AUC without the model")[0]
        yield name, re.findall(r"-?\d+\.\d+(?:e\S+)?", table.partition("\n")[2])


def test_numbers_of_one_column_share_their_decimals(run, results):
    groups = {"high": ["en"], "low": ["de"]}
    grouped = separation(run, groups=groups, layers="-1", bootstraps=20, permutations=39)
    assert "high - low" in tables.to_table(grouped)
    seen = set()
    for name, numbers in (*shown(grouped), *shown(results.sel(lang=["en"]))):
        decimals = {len(number.partition(".")[2]) for number in numbers}
        assert len(decimals) <= 1, (name, numbers)
        seen |= decimals
    assert len(seen) > 1


def test_a_column_of_very_different_scales_shows_three_digits_of_each():
    style = columns.Style.of([(2.5e-6, 1.1e-6, 3.9e-6), (24.04, 22.01, 26.07), (31.7, 27.7, 35.7)])
    assert style.entry(2.5e-6, 1.1e-6, 3.9e-6) == "2.5e-06 [1.1e-06, 3.9e-06]"
    assert style.entry(24.04, 22.01, 26.07, before="~") == "~24 [22, 26.1]"
    alike = columns.Style.of([(0.614, 0.528, 0.694), (0.999, 0.9985, 0.9995)])
    assert alike.entry(0.5, 0.45, 0.55, behind="*") == "0.5000 [0.4500, 0.5500]*"
    assert alike.entry(-0.00001, math.nan, math.nan) == "0.0000"


@pytest.mark.parametrize(
    ("row", "printed"),
    [
        ((0.1, 0.004, 0.196), "0.100 [0.004, 0.196]"),
        ((-0.1, -0.1998, -0.0002), "-0.1000 [-0.1998, -0.0002]"),
        ((0.1, -0.004, 0.204), "0.10 [0.00, 0.20]"),
        ((0.1, 2e-9, 0.2), "0.1 [2e-09, 0.2]"),
    ],
)
def test_an_interval_that_excludes_0_is_never_printed_as_one_that_reaches_it(row, printed):
    assert columns.Style.of([row]).entry(*row) == printed
    other = (0.1, 0.0, 0.2)
    assert columns.Style.of([other], [row]).entry(*row) == printed
    assert columns.Style.of([other, row]).entry(*row) == printed


@pytest.mark.parametrize("langs", [["en", "de"], ["en"]])
def test_the_legend_stands_once_under_the_first_table(results, langs):
    parts = tables.to_table(results.sel(lang=langs)).split("\n\n")
    legend = "~: consistent with chance (p > 0.05). *: significant after correction"
    assert [i for i, part in enumerate(parts) if legend in part] == [1]
    assert "pooling mean" in parts[0]
    assert all("pooling" in part or "tokens0" in part for part in parts[2:-2])
    assert parts[-2].startswith("Run with template")


def test_rows_hold_every_number(results):
    found = list(rows.rows(results))
    size = results["value"].size
    for row in (found[0], found[17], found[size - 1]):
        place = {dim: row[dim] for dim in results["value"].dims}
        value = results["value"].sel(place).item()
        assert row["value"] == (None if np.isnan(value) else value)
        assert row["n1"] == results["n1"].sel({k: v for k, v in place.items() if k != "metric"})
        assert row["refused"] == results["refused"].sel(place).item()
        assert row["space"] == results["space"].sel(metric=row["metric"]).item()
    after = found[size:]
    beside = [name for name in CONFOUNDS for _ in ("en", "de")]
    beside += [name for name in DOMINANCE for _ in range(results["n0"].size)]
    assert [row["metric"] for row in after] == beside
    assert after[0] == dict.fromkeys(found[0]) | {
        "metric": "tokens0", "model": "m", "lang": "en", "value": 7.0,
    }  # fmt: skip


def test_json_is_strict_and_carries_definitions(results):
    whole = json.loads(rows.to_json(results), parse_constant=pytest.fail)
    assert whole["rows"] == list(rows.rows(results))
    assert whole["settings"]["permutations"] == 39
    assert "B/(B+W)" in whole["definitions"]["rho"]["definition"]


def test_csv_and_parquet_hold_the_same_rows(results, tmp_path):
    expected = list(rows.rows(results))
    parsed = list(csv.DictReader(io.StringIO(rows.to_csv(results))))
    assert [row["metric"] for row in parsed] == [row["metric"] for row in expected]
    for name in ("value", "low", "high", "floor", "p", "p_family"):
        numbers = [float(row[name]) if row[name] else None for row in parsed]
        assert numbers == [row[name] for row in expected]
    tables.write(results, "parquet", tmp_path / "r.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "r.parquet")
    assert table.to_pylist() == expected
    facts = json.loads(table.schema.metadata[b"safetyspace_fast"])
    assert facts["definitions"] == rows.definitions(results)


def test_write_prints_or_writes_and_names_bad_forms(results, tmp_path, capsys):
    tables.write(results, "csv")
    printed = capsys.readouterr().out
    tables.write(results, "csv", tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_text(encoding="utf-8") == printed
    with pytest.raises(ConfigError, match="xml"):
        tables.write(results, "xml")
    with pytest.raises(ConfigError, match="binary"):
        tables.write(results, "parquet")


def test_one_name_of_many_offers_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'tokens0'\?"):
        explain("token0")
    assert "one unit of evidence" in explain("copies")


def test_intervals_that_say_otherwise_than_the_mark_are_explained():
    import xarray

    rows = {
        "low": [0.1, -0.1, -0.4, -0.1, np.nan],
        "high": [0.5, 0.5, -0.1, 0.4, np.nan],
        "p": [0.2, 0.4, 0.01, 0.04, 0.3],
    }
    numbers = xarray.Dataset({name: ("lang", values) for name, values in rows.items()})
    numbers["resamples"] = 1000
    excludes = "in 1 the interval excludes 0 but the mark is ~"
    holds = "in 1 the interval holds 0 but there is no ~"
    for langs, words in (
        (slice(None), f"4 differences with mark and interval, {excludes} and {holds}"),
        ([0, 1], f"2 differences with mark and interval, {excludes}"),
        ([3], f"1 differences with mark and interval, {holds}"),
    ):
        (line,) = tables._disputed(numbers.isel(lang=langs))
        assert line.startswith(f"Of {words}: p comes from"), langs
    assert tables._disputed(numbers.isel(lang=[1, 2])) == []
    assert tables._disputed(numbers.assign(resamples=18)) == []  # nothing is marked


def test_no_mark_disagrees_with_an_interval_where_nothing_is_marked(results):
    whole = results.copy(deep=True)
    whole["low"], whole["high"] = whole["floor"] + 0.1, whole["floor"] + 0.2
    whole["p"][:] = 0.9
    assert "these disagree" in tables.to_table(whole)
    whole["resamples"] = ("metric", np.where(np.isinf(whole["resamples"]), np.inf, 18))
    assert "these disagree" not in tables.to_table(whole)
