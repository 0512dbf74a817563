"""How many choices agree: counted by hand, and on planted differences."""

import math

import numpy as np
import pytest
from oracle import planted, stand_in

from safetyspace_fast.analysis import compare, sensitivity, separation
from safetyspace_fast.analysis.tables import to_table
from safetyspace_fast.errors import ConfigError

QUICK = {"bootstraps": 20, "permutations": 19}
NAMES = ["rho", "xie_beni", "davies_bouldin", "auc_direction", "silhouette"]


def two_models(step, *, noise=0.3, seed=0, n=200):
    """Two layers and poolings; the aligned model moves harmful texts of the second layer.

    Both models see the texts with noise of their own.
    """
    rng = np.random.default_rng([seed, 1])
    texts, label = planted(n=n, width=12, shift=1.5, layers=2, poolings=2, seed=seed)
    x, y = (texts + noise * rng.standard_normal(texts.shape) for _ in range(2))
    y[1] += step / math.sqrt(12) * label[:, None]
    return stand_in({"base": {"en": x}, "aligned": {"en": y}}, {"en": label})


def counted(found, choice):
    one = found.sel(choice=choice).squeeze()
    names = ("direction", "agree", "choices", "shown", "against")
    return tuple(float(one[name]) for name in names)


def by_hand(results, where=None):
    """The counts of `compare`, entry by entry."""
    falls = {"davies_bouldin"}
    up = down = above = below = known = 0
    for name in results["metric"].to_numpy():
        if name == "xie_beni":
            continue
        sign = -1 if name in falls else 1
        one = results.sel(metric=name).sel(where or {})
        for value, low, high, p in zip(
            *(one[part].to_numpy().ravel() for part in ("difference", "low", "high", "p")),
            strict=True,
        ):
            if math.isnan(value):
                continue
            known += 1
            ends = sorted((sign * low, sign * high))
            up += sign * value > 0 and p != 1
            down += sign * value < 0 and p != 1
            above += ends[0] > 0 and p != 1
            below += ends[1] < 0 and p != 1
    if up >= down:
        return (1.0 if up else 0.0, up, known, above, below)
    return (-1.0, down, known, below, above)


@pytest.mark.parametrize("step", [1.0, -0.7])
def test_counts_are_those_of_the_results(step):
    results = compare(
        two_models(step), base="base", aligned="aligned", metrics=NAMES, layers="all", **QUICK
    )
    found = sensitivity(results)
    assert counted(found, "all") == by_hand(results)
    assert counted(found, "layer block.0") == by_hand(results, {"layer": ["block.0"]})
    assert counted(found, "pooling last") == by_hand(results, {"pooling": ["last"]})
    direction, agree, choices, shown, against = counted(found, "layer block.0")
    assert (direction, agree, choices, against) == (math.copysign(1, step), 8, 8, 0)
    assert shown >= 6
    assert "metric xie_beni" not in found["choice"].to_numpy()


def test_equal_models_agree_in_nothing():
    results = compare(two_models(0, noise=0), base="base", aligned="aligned", **QUICK)
    found = sensitivity(results)
    _, _, choices, _, _ = counted(found, "all")
    assert choices > 20
    assert counted(found, "all") == (0, 0, choices, 0, 0)
    assert f" 0/{choices:.0f} (0)" in to_table(found)


def test_without_any_change_few_choices_show_one():
    shown = choices = 0.0
    for seed in range(10):
        run = two_models(0, seed=seed, n=120)
        names = ["rho_adjusted", "auc_direction", "rho_standardized"]
        results = compare(run, base="base", aligned="aligned", metrics=names, **QUICK)
        one = sensitivity(results).sel(choice="all").squeeze()
        shown += float(one["shown"] + one["against"])
        choices += float(one["choices"])
    # 5 % on average; the choices of one store agree with each other, so that few seeds vary.
    assert shown / choices < 0.15


def test_separation_counts_values_above_the_floor():
    results = separation(two_models(1.0), metrics=NAMES, **QUICK)
    found = sensitivity(results)
    assert found["agree"].dims == ("choice", "model", "lang")
    one = found.sel(model="aligned").squeeze("lang")
    auc = one.sel(choice="metric auc_direction")
    assert [float(auc[name]) for name in ("direction", "agree", "choices")] == [1, 4, 4]
    assert float(auc["shown"]) == 4
    table = to_table(found)
    assert "aligned | choices" in table
    assert "+4/4 (4)" in table
    assert max(map(len, table.splitlines())) <= 100


def test_other_results_are_refused():
    with pytest.raises(ConfigError, match="expected what compare or separation returned"):
        sensitivity(separation(two_models(1.0), metrics="rho", **QUICK).drop_vars("floor"))
