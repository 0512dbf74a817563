"""The answer in words says what the numbers say."""

import numpy as np
import pytest
import xarray

from safetyspace_fast.analysis.glossary import DOMINANCE
from safetyspace_fast.analysis.metric_tables import row_marks
from safetyspace_fast.report import words

LAYERS = ("embed", "block.0", "block.1", "final_norm")


def compared(difference: dict[str, list[float]], p: dict[str, list[float]]) -> xarray.Dataset:
    """What `compare` gives, with intervals of 0.1 to both sides."""
    langs = list(difference)
    value = np.array([difference[lang] for lang in langs]).T[None, :, None]
    dims = ("metric", "layer", "pooling", "lang")
    columns = {
        "difference": value, "low": value - 0.1, "high": value + 0.1,
        "base": np.full_like(value, 0.5), "aligned": 0.5 + value,
        "p_family": np.array([p[lang] for lang in langs]).T[None, :, None],
        "refused": np.full(value.shape, "", object),
    }  # fmt: skip
    return xarray.Dataset(
        {name: (dims, column) for name, column in columns.items()},
        coords={"metric": ["rho"], "layer": list(LAYERS), "pooling": ["mean"], "lang": langs,
                "resamples": ("metric", [1000])},
    )  # fmt: skip


def separated(p: dict[str, list[float]], metric: str = "rho") -> xarray.Dataset:
    """What `separation` gives of one model: values grow with the layer, and lie in 0 .. 1."""
    langs = list(p)
    value = np.repeat([[0.2], [0.4], [0.6], [0.8]], len(langs), 1)[None, :, None]
    columns = {
        "value": value, "low": value - 0.1, "high": value + 0.1, "floor": np.full_like(value, 0.1),
        "p_family": np.array([p[lang] for lang in langs]).T[None, :, None],
        "refused": np.full(value.shape, "", object),
    }  # fmt: skip
    dims = ("metric", "layer", "pooling", "lang")
    return xarray.Dataset(
        {name: (dims, column) for name, column in columns.items()},
        coords={"metric": [metric], "layer": list(LAYERS), "pooling": ["mean"], "lang": langs,
                "resamples": ("metric", [1000]), "p_asks": ("metric", ["means"])},
    )  # fmt: skip


def test_a_model_alone_is_apart_where_its_numbers_are_significant() -> None:
    nothing = [np.nan] * 4
    data = separated({"en": [0.01, 0.01, 0.9, 0.9], "de": [0.06] * 4, "hi": nothing, "ar": nothing})
    data["refused"][..., 2:] = "fewer than 2 texts"
    apart, chance, unknown = words.levels(data, "rho", "mean")
    assert apart.text == (
        "apart at 2 of 4 layers (embed to block.0). Most at block.0: 0.40 [0.30, 0.50], where "
        "chance gives 0.10."
    )
    assert (chance.head, unknown.head) == ("\u2068de\u2069:", "\u2068hi\u2069, \u2068ar\u2069:")
    assert "not significantly apart at any layer" in chance.text
    assert unknown.text == "nothing can be said: fewer than 2 texts."


def test_a_metric_that_falls_is_most_apart_where_it_is_smallest() -> None:
    data = separated({"en": [0.01] * 4}, "xie_beni")
    (finding,) = words.levels(data, "xie_beni", "mean")
    assert "Most at embed: 0.20" in finding.text


def test_a_metric_whose_p_is_not_corrected_says_nothing_of_significance() -> None:
    (finding,) = words.levels(separated({"en": [np.nan] * 4}), "rho", "mean")
    assert finding.text == "nothing can be said: this metric has no p that is corrected."


def test_spread_alone_is_named_where_it_is_enough() -> None:
    data = separated({"en": [0.01] * 4}).assign_coords(p_asks=("metric", ["any difference"]))
    (finding,) = words.levels(data, "rho", "mean")
    assert finding.text.endswith("A difference of spread alone is enough for this metric (`+` in "
                                 "the tables).")  # fmt: skip


def test_too_few_resamples_make_nothing_significant() -> None:
    data = compared({"en": [0.3] * 4}, {"en": [0.01] * 4})
    data = data.assign_coords(resamples=("metric", [18]))
    (finding,) = words.changes(data, "rho", "mean")
    assert finding.kind == "unknown"


def test_a_change_that_other_components_contradict_is_named() -> None:
    data = compared({"en": [0.3, 0.3, 0.3, 0.0]}, {"en": [0.01, 0.01, 0.9, 0.9]})
    data["difference_union"] = data["difference"] * xarray.DataArray([-1, 1, -1, 1], dims="layer")
    data["rounding_share"] = data["difference"].isel(metric=0) * 0
    (finding,) = words.changes(data, "rho", "mean")
    assert finding.text.endswith(
        "In other components the sign is the other one at 1 of 4 layers (embed)."
    )


def test_a_refused_language_is_not_among_those_that_did_not_change() -> None:
    data = compared(
        {"en": [0.3] * 4, "de": [0.0] * 4, "hi": [np.nan] * 4},
        {"en": [0.01] * 4, "de": [0.9] * 4, "hi": [np.nan] * 4},
    )
    data["refused"][..., 2] = "fewer than 2 texts"
    _, unmoved, unknown = words.changes(data, "rho", "mean")
    assert (unmoved.head, unknown.head) == ("\u2068de\u2069:", "\u2068hi\u2069:")
    assert unknown.text == "nothing can be said: fewer than 2 texts."
    rest = data.assign_coords(metric=["mmd"])
    (other,) = words.elsewhere(rest.sel(lang=["hi"]), "rho", "mean")
    assert other.text == "mmd, pooling mean: nothing can be said."


def test_growth_is_named_with_its_layers_and_its_interval() -> None:
    data = compared({"en": [0.0, 0.2, 0.3, 0.1]}, {"en": [0.9, 0.01, 0.01, 0.4]})
    (finding,) = words.changes(data, "rho", "mean")
    assert finding.kind == "grew"
    assert "further apart at 2 of 4 layers (block.0 to block.1)" in finding.text
    assert "block.1: +0.30 [0.20, 0.40], from 0.50 to 0.80" in finding.text


def test_a_fall_is_no_growth() -> None:
    data = compared({"en": [-0.3, 0.0, 0.0, 0.0]}, {"en": [0.01, 0.9, 0.9, 0.9]})
    (finding,) = words.changes(data, "rho", "mean")
    assert finding.kind == "fell"
    assert "closer together at 1 of 4 layers (embed)" in finding.text
    assert "-0.30 [-0.40, -0.20]" in finding.text


def test_both_directions_are_both_named() -> None:
    data = compared({"en": [0.3, -0.3, 0.0, 0.0]}, {"en": [0.01, 0.01, 0.9, 0.9]})
    (finding,) = words.changes(data, "rho", "mean")
    assert finding.kind == "mixed"
    assert "further apart at 1" in finding.text
    assert "closer together at 1" in finding.text


def test_languages_without_a_change_are_not_called_unchanged() -> None:
    data = compared(
        {"en": [0.3, 0.3, 0.3, 0.3], "hi": [0.05, 0.0, 0.0, 0.0]},
        {"en": [0.01] * 4, "hi": [0.9] * 4},
    )
    reached, other = words.changes(data, "rho", "mean")
    assert reached.kind == "grew"
    assert "all 4 layers" in reached.text
    assert other.kind == "unknown"
    assert "hi" in other.head
    assert "This does not show that nothing changed" in other.text
    assert "from -0.10 to 0.15" in other.text
    assert "these texts show no significant effect of tuning there" in other.text


def test_the_direction_is_called_turned_only_beyond_its_interval() -> None:
    cosine = np.array([[1.0, 0.98, np.nan], [0.3, 0.97, np.nan]])  # [layer, lang]
    arrays = {"cosine": cosine, "low": cosine - 0.1, "high": np.minimum(cosine + 0.1, 1.0)}
    data = xarray.Dataset(
        {
            f"direction_{end}": (("layer", "pooling", "lang"), x[:, None])
            for end, x in arrays.items()
        },
        coords={"layer": ["embed", "block.0"], "pooling": ["mean"], "lang": ["en", "de", "hi"]},
    )
    (finding,) = words.turned(data, "mean")
    assert "\u2068en\u2069 0.30 [0.20, 0.40] at block.0" in finding.text
    assert "no turn beyond noise in \u2068de\u2069" in finding.text
    assert "too noisy in \u2068hi\u2069" in finding.text
    assert words.turned(data.isel(lang=[2]), "mean") == []
    noisy = data.copy(deep=True)  # a smaller cosine that 1 does not exclude hides no turn
    noisy["direction_cosine"][0, 0, 0], noisy["direction_low"][0, 0, 0] = 0.2, -0.8
    (finding,) = words.turned(noisy, "mean")
    assert "\u2068en\u2069 0.30 [0.20, 0.40] at block.0" in finding.text


def test_an_interval_that_excludes_1_is_never_printed_as_one_that_reaches_it() -> None:
    ends = {"cosine": 0.9, "low": 0.7, "high": 0.9996}
    dims = ("layer", "pooling", "lang")
    data = xarray.Dataset(
        {f"direction_{end}": (dims, [[[number]]]) for end, number in ends.items()},
        coords={"layer": ["embed"], "pooling": ["mean"], "lang": ["en"]},
    )
    (finding,) = words.turned(data, "mean")
    assert "0.9000 [0.7000, 0.9996] at embed" in finding.text


@pytest.mark.parametrize(
    ("name", "size", "head"),
    [
        ("largest_share", 0.51, "One dimension"),
        ("pc1_tokens", -0.51, "Length in the states"),
        ("pc1_inverse_tokens", 0.51, "Length in the states"),
        ("tail_share", 0.11, "Heavy tails"),
    ],
)
def test_what_tables_mark_behind_a_language_is_a_caution(name: str, size: float, head: str) -> None:
    dims = ("model", "layer", "pooling", "lang")
    columns = {one: (dims, np.zeros((2, 3, 1, 2))) for one in DOMINANCE}
    for one in ("auc_length", "auc_lexical"):
        for end in ("", "_low", "_high"):
            columns[one + end] = (dims[::3], np.full((2, 2), 0.5))
    columns["elsewhere"] = (dims[::3], np.zeros((2, 2)))
    data = xarray.Dataset(columns, coords={"pooling": ["mean"], "lang": ["en", "de"]})
    heads = [finding.head for finding in words.cautions(data, "mean")]
    assert heads == ["Sources"]
    data[name][1, 2, 0, 1] = size
    caution, _ = words.cautions(data, "mean")
    assert caution.head == head
    assert caution.text.startswith("in \u2068de\u2069, in 1 of 6 layers and languages: ")
    marks = [row_marks(data.sel(pooling="mean", layer=i)) for i in range(3)]
    assert [[bool(mark) for mark in row] for row in marks] == [[False] * 2] * 2 + [[False, True]]


def test_an_auc_of_length_is_that_of_the_model_where_it_is_largest() -> None:
    dims = ("model", "layer", "pooling", "lang")
    columns = {one: (dims, np.zeros((2, 3, 1, 1))) for one in DOMINANCE}
    for one in ("auc_length", "auc_lexical"):
        for end in ("", "_low", "_high"):
            columns[one + end] = (dims[::3], np.array([[0.5], [0.2]]))
    columns["elsewhere"] = (dims[::3], np.zeros((2, 1)))
    data = xarray.Dataset(columns, coords={"pooling": ["mean"], "lang": ["en"]})
    (caution,) = words.cautions(data, "mean")
    assert caution.text.startswith("alone tells the classes apart (AUC \u2068en\u2069 0.20; ")


def test_nothing_is_said_of_refused_cells() -> None:
    data = compared({"en": [np.nan] * 4}, {"en": [np.nan] * 4})
    data["refused"][:] = "fewer than 2 texts"
    (finding,) = words.changes(data, "rho", "mean")
    assert finding.kind == "unknown"
    assert "nothing can be said: fewer than 2 texts" in finding.text


def test_names_keep_their_direction_to_themselves() -> None:
    assert words.isolated("عربي") == "\u2068عربي\u2069"


@pytest.mark.parametrize("number", [12, 40])
def test_many_names_are_counted(number: int) -> None:
    text = words.listed([f"l{i}" for i in range(number)])
    assert text.count("\u2068") == 12
    assert ("and 28 more" in text) is (number == 40)
