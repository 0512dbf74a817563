"""Differences at the level of rounding are never marked; real ones are."""

import math

import numpy as np
import pytest
import torch
from oracle import planted, stand_in

from safetyspace_fast.analysis import compare, rounding, separation
from safetyspace_fast.analysis.tables import to_table

OPTIONS = {"base": "a", "aligned": "b", "bootstraps": 60, "permutations": 99}


def models(change, dtype="float32", *, langs=("en",), seed=0):
    """A model, and the same with its states changed by a function of states and labels."""
    rng = np.random.default_rng(seed)
    first, second, labels = {}, {}, {}
    for i, lang in enumerate(langs):
        x, label = planted(n=240, width=16, layers=2, seed=seed + i)
        x = x + 3 * rng.standard_normal(16)
        first[lang], second[lang], labels[lang] = x, change(x, label, rng), label
    run = stand_in({"a": first, "b": second}, labels)
    for name in run.models:
        run.model(name).manifest["dtype"] = dtype
    return run


def turned(size):
    """A change that is the same for all texts, as that of rounded weights: x (1 + size E)."""
    return lambda x, _label, rng: x + size * x @ rng.standard_normal((16, 16)) / 4


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_that_differ_by_rounding_give_no_mark(dtype):
    u = rounding.ROUNDOFF[dtype]
    found = compare(models(turned(u), dtype), metrics="all", **OPTIONS)
    assert (found["rounding_share"] >= 1).all()
    assert (found["p"].fillna(1) == 1).all()
    assert (found["p_family"].fillna(1) == 1).all()
    assert (abs(found["difference"]) > 0).any()
    text = to_table(found)
    assert "In 2 of 2 layers, poolings and languages the models differ" in " ".join(text.split())
    rows = [line for line in text.splitlines() if line.startswith(("embed", "block.0"))]
    assert rows
    assert not any("*" in row for row in rows)


def test_the_same_change_is_real_in_a_dtype_that_can_show_it():
    def shifted(x, label, _rng):
        return x + 0.01 * label[:, None]

    exact, coarse = (
        compare(models(shifted, dtype), metrics=["rho", "auc_direction"], **OPTIONS)
        for dtype in ("float32", "bfloat16")
    )
    assert (exact["p_family"].sel(metric="rho") == 0.01).all()
    assert (exact["rounding_share"] < 1e-3).all()
    assert (coarse["rounding_share"] >= 1).all()
    assert (coarse["p_family"].sel(metric="rho") == 1).all()


def test_a_metric_that_cannot_change_is_not_marked_where_the_states_do():
    """Twice and a bit the states: ratios stay as they are, but for the rounding of the store."""
    run = models(lambda x, _label, _rng: 2.3 * x)
    found = compare(run, metrics=["rho", "mean_shift", "bhattacharyya_pc10"], **OPTIONS)
    assert (found["rounding_share"] < 1).all()
    assert (found["p_family"].sel(metric=["rho", "bhattacharyya_pc10"]) == 1).all()
    assert (found["p_family"].sel(metric="mean_shift") <= 0.02).all()


def test_an_excess_of_two_roundings_is_not_marked():
    run = models(turned(2.0**-24), langs=("de", "en"))
    found = compare(run, metrics=["rho"], **OPTIONS)
    assert (found["excess_p"] == 1).all()
    assert (found["excess_p_family"].sel(lang="de") == 1).all()


def test_the_level_grows_with_depth_and_dtype():
    run = models(turned(0.1), "bfloat16")
    model = run.model("a")
    model.hookpoints = ("embed", "block.3", "final_norm")
    levels = rounding.level(model, list(model.hookpoints)) / 2.0**-8
    np.testing.assert_allclose(levels, [3, 3 * (1 + 2), 3 * (1 + 2)])
    model.hookpoints, model.manifest = ("final_norm",), {}
    assert float(rounding.level(model, ["final_norm"])) == pytest.approx(
        3 * (1 + math.sqrt(32)) * 2.0**-24
    )


def test_small_dimensions_are_rounded_as_large_ones_are():
    mean, var = torch.tensor([[1.0, 1e-9, 2.0], [1.0, 1e-9, 2.0]]).double(), torch.zeros(2, 3)
    assert rounding.sizes(mean, var.double()).tolist() == [1, 1, 2]


def test_states_within_one_rounding_have_no_metric():
    rng = np.random.default_rng(0)
    x, label = planted(n=100, width=8)
    x = 5 + 2.0**-26 * x + 0 * rng.standard_normal(x.shape)
    run = stand_in({"m": {"en": x}}, {"en": label})
    found = separation(run, bootstraps=5, permutations=19)
    assert (found["refused"] == "all states are identical but for rounding").all()
    x = 5 + 2.0**-20 * (x - 5) / 2.0**-26
    found = separation(stand_in({"m": {"en": x}}, {"en": label}), metrics=["rho"], permutations=19)
    assert found["refused"].item() == ""
