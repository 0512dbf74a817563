"""How many texts show a difference: as many as simulated studies need."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import stand_in
from scipy import stats

from safetyspace_fast.analysis import compare, power, separation
from safetyspace_fast.analysis.power import t_quantile
from safetyspace_fast.analysis.tables import to_table
from safetyspace_fast.errors import ConfigError

WIDTH = 16
SPREAD = np.exp(-0.15 * np.arange(WIDTH))
NONE = {"permutations": 0, "bootstraps": 0}


def texts(rng, n, shift):
    """Two classes of n texts, apart in four dimensions."""
    label = np.repeat([0, 1], n)
    x = SPREAD * (rng.standard_normal((2 * n, WIDTH)) + shift * label[:, None] / 2)
    return x, label, None


def unbalanced(rng, n, shift):
    """Four harmless texts for each harmful one, which vary more."""
    label = np.repeat([0, 1], [8 * n // 5, 2 * n // 5])
    x = rng.standard_normal((len(label), WIDTH)) * (1 + label[:, None])
    return SPREAD * (x + shift * label[:, None] / 2), label, None


def pairs(rng, n, shift):
    """Pairs that share their content."""
    label, pair = np.tile([0, 1], n), np.repeat(np.arange(n), 2)
    content = np.repeat(rng.standard_normal((n, WIDTH)), 2, axis=0)
    x = content + 0.5 * rng.standard_normal((2 * n, WIDTH)) + shift * label[:, None] / 4
    return SPREAD * x, label, pair


def clusters(rng, n, shift):
    """Topics of five texts of one label, which hold a fifth of the variance."""
    n = 5 * (n // 5)
    x, label, _ = texts(rng, n, shift)
    common = np.repeat(rng.standard_normal((2 * n // 5, WIDTH)), 5, axis=0)
    return x + 0.5 * SPREAD * common, label, None


def store(x, label, pair, again=None, cluster=None):
    models = {"base": {"en": x[None, None]}}
    if again is not None:
        models["aligned"] = {"en": again[None, None]}
    fold = None if cluster is None else {"en": (cluster // 2 % 10).astype(np.int8)}
    run = stand_in(models, {"en": label}, pair=None if pair is None else {"en": pair}, fold=fold)
    run.samples = replace(run.samples, cluster=cluster)
    return run


def made(make, rng, n):
    """A store of one model, with the clusters of `clusters`."""
    x, label, pair = make(rng, n, 0.8)
    return store(x, label, pair, cluster=np.arange(len(x)) // 5 if make is clusters else None)


def shown_by_one(make, size, apart, *, draws, pilots=1, seed=0):
    """The share of studies of as many texts as pilots of `size` ask for that exclude what is
    `apart` below the mean: {metric: difference} -> {metric: share}.

    Pilots ask for different numbers; that of the studies is their median.
    """
    rng = np.random.default_rng(seed)
    plans = [made(make, rng, size) for _ in range(pilots)]
    shares = {}
    for name, difference in apart.items():
        needed = [
            power(plan, metrics=name, difference=difference, permutations=0)["needed0"].item()
            for plan in plans
        ]
        n = round(np.median(needed) * size / len(np.flatnonzero(plans[0].samples.label == 0)))
        studies = [
            separation(made(make, rng, n), metrics=name, **NONE).squeeze() for _ in range(draws)
        ]
        value, low = (np.array([float(x[part]) for x in studies]) for part in ("value", "low"))
        shares[name] = float((low > value.mean() - difference).mean())
    return shares


def shown_by_two(name, size, *, draws, pilots):
    """The share of comparisons of as many texts as `power` asks for with p <= 0.05.

    As many as the median of the pilots asks for.
    """
    rng = np.random.default_rng(0)

    def study(n):
        x, label, _ = texts(rng, n, 0.8)
        moved = 0.2 * SPREAD * label[:, None] + 0.5 * SPREAD * rng.standard_normal(x.shape)
        return store(x, label, None, x + moved)

    def of(run):
        return compare(run, base="base", aligned="aligned", metrics=name, **NONE).squeeze()

    def planned(n, number):
        """How many texts show the mean difference of studies of n."""
        apart = np.mean([of(study(n))["difference"] for _ in range(number)])
        asked = {"metrics": name, "difference": apart, "models": "aligned", "versus": "base"}
        return round(np.median([power(study(size), **asked)["needed0"] for _ in range(pilots)]))

    # A held-out number depends on how many texts there are: ask for what is there with that many.
    n = planned(planned(size, 8), 40)
    return float(np.mean([float(of(study(n))["p"]) <= 0.05 for _ in range(draws)]))


QUICK = {"rho_adjusted": 0.015, "auc_direction": 0.06}
"""Differences that about 300 texts of each label show in `texts` and `pairs`."""


@pytest.mark.parametrize("make", [texts, pairs])
def test_as_many_texts_as_are_asked_for_show_the_difference(make):
    apart = QUICK if make is texts else {"rho_adjusted": 0.003, "auc_direction": 0.04}
    # Of 30 draws of an 80 % event fewer than 16 happen less than once in 1,000 times.
    for name, share in shown_by_one(make, 700, apart, draws=30).items():
        assert share >= 0.53, name


@pytest.mark.slow
@pytest.mark.parametrize("make", [texts, unbalanced, pairs, clusters])
def test_observed_power_is_the_one_that_was_asked_for(make):
    apart = {
        texts: {"rho_adjusted": 0.02, "rho_standardized": 0.02, "auc_direction": 0.06},
        unbalanced: {"rho_adjusted": 0.009, "auc_direction": 0.06},
        pairs: {"rho_adjusted": 0.003, "auc_direction": 0.04},
        clusters: {"rho_adjusted": 0.015, "auc_direction": 0.06},
    }[make]
    for name, share in shown_by_one(make, 1000, apart, draws=300, pilots=25).items():
        assert 0.74 <= share <= 0.86, name


@pytest.mark.slow
@pytest.mark.parametrize(("make", "apart"), [(texts, 0.037), (unbalanced, 0.0144)])
def test_the_floor_is_excluded_a_little_more_often_than_was_asked_for(make, apart):
    apart = {"rho_adjusted": apart}  # as far as the value is above its floor
    (share,) = shown_by_one(make, 1000, apart, draws=300, pilots=25).values()
    assert 0.78 <= share <= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rho_adjusted", "auc_direction"])
def test_observed_power_of_a_comparison_is_the_one_that_was_asked_for(name):
    share = shown_by_two(name, 1000, draws=600, pilots=25)
    assert share >= 0.74
    if share > 0.88:
        pytest.xfail(f"{share:.2f}: it asks for a few texts too many")


def test_a_comparison_needs_fewer_texts_than_two_studies():
    rng = np.random.default_rng(0)
    x, label, _ = texts(rng, 200, 0.8)
    run = store(x, label, None, x + 0.2 * rng.standard_normal(x.shape))
    options = {"metrics": "rho_adjusted", "difference": 0.01, "models": "aligned"}
    alone = power(run, **options).squeeze()
    both = power(run, versus="base", **options).squeeze()
    assert float(both["needed0"]) < 0.5 * float(alone["needed0"])
    found = compare(run, base="base", aligned="aligned", metrics="rho_adjusted", **NONE).squeeze()
    assert float(both["value"]) == float(found["difference"])
    again = power(run, versus="base", level=0.01, power=0.9, **options).squeeze()
    assert float(again["needed0"]) > 1.5 * float(both["needed0"])
    # Half of the interval of a shift is t deviations, 1.96 or somewhat more.
    both = power(run, versus="base", **options | {"metrics": "mean_shift"}).squeeze()
    found = compare(run, base="base", aligned="aligned", metrics="mean_shift", **NONE).squeeze()
    half = (float(found["high"]) - float(found["low"])) / 2
    assert 1.96 <= half / float(both["deviation"]) <= 2.05


def test_what_is_detectable_needs_the_texts_of_the_pilot():
    x, label, _ = texts(np.random.default_rng(1), 150, 0.8)
    for name in ("rho_adjusted", "mean_shift", "auc_direction", "rho_pc2", "bhattacharyya_pc10"):
        for versus in (None, "base"):
            run = store(x, label, None, x + 0.5 * np.random.default_rng(2).standard_normal(x.shape))
            options = {"metrics": name, "models": "aligned", "versus": versus, "permutations": 0}
            first = power(run, difference=1.0, **options).squeeze()
            detectable = float(first["detectable"])
            again = power(run, difference=detectable, **options).squeeze()
            assert float(again["needed0"]) == pytest.approx(150, abs=1), name


def test_copies_of_a_text_are_one_unit():
    x, label, _ = texts(np.random.default_rng(3), 100, 0.8)
    order = np.repeat(np.arange(200), 4)
    run = stand_in({"m": {"en": x[order][None, None]}}, {"en": label[order]}, text={"en": order})
    once = power(store(x, label, None), metrics="rho_adjusted", difference=0.02).squeeze()
    copied = power(run, metrics="rho_adjusted", difference=0.02).squeeze()
    assert float(once["unit_effect"]) == 1
    assert float(copied["unit_effect"]) == pytest.approx(4, rel=0.05)
    units = float(copied["needed_units"])
    assert units == pytest.approx(float(once["needed_units"]), rel=0.05)
    assert float(copied["needed0"]) == pytest.approx(2 * units, rel=0.01)


def test_clusters_need_more_texts():
    names = ["rho", "auc_direction"]
    alone, together = (
        power(made(make, np.random.default_rng(5), 400), metrics=names, difference=0.015).squeeze()
        for make in (texts, clusters)
    )
    assert float(alone["unit_effect"].sel(metric="rho")) == pytest.approx(1, abs=1e-9)
    # Five texts with a fifth of their variance in common: 1 + 4/5 for the linear part.
    assert 1.5 < float(together["unit_effect"].sel(metric="rho")) < 2.2
    needed = [found["needed0"].sel(metric="auc_direction") for found in (alone, together)]
    assert float(needed[1]) > 1.3 * float(needed[0])
    np.testing.assert_allclose(together["needed_units"], together["needed0"] * 2 / 5, atol=1)


@pytest.mark.parametrize(
    ("name", "apart"), [("rho_adjusted", 0.02), ("auc_direction", 0.06), ("silhouette", 0.02)]
)
def test_the_interval_of_the_texts_that_are_needed_is_as_wide_as_pilots_differ(name, apart):
    rng = np.random.default_rng(2)
    parts = ("needed0", "needed1", "needed_low", "needed_high")
    options = {"metrics": name, "difference": apart, "permutations": 0}
    found = []
    for _ in range(12):
        plan = power(made(texts, rng, 150), **options).squeeze()
        found.append([float(plan[part]) for part in parts])
    harmless, harmful, low, high = np.array(found).T
    needed = harmless + harmful
    assert ((low < needed) & (needed < high)).all()
    # Twelve pilots know their own spread to 20 %.
    widths = np.log(high / low) / (2 * 1.96)
    assert np.median(widths) == pytest.approx(np.log(needed).std(ddof=1), rel=0.5)


def test_the_quantile_is_that_of_student():
    for level in (0.1, 0.05, 0.01):
        freedom = np.array([8.0, 20.0, 300.0])
        expected = stats.t.isf(level / 2, freedom)
        found = t_quantile(torch.tensor(freedom), level)
        np.testing.assert_allclose(found, expected, rtol=2e-3)
    few = np.array([1.0, 2.0, 3.0])
    ratio = t_quantile(torch.tensor(few), 0.05).numpy() / stats.t.isf(0.025, few)
    np.testing.assert_allclose(ratio, [0.76, 0.97, 0.993], atol=5e-3)


def test_the_table_says_what_is_needed_and_why_not():
    x, label, _ = texts(np.random.default_rng(4), 60, 0.8)
    run = store(x, label, None)
    table = to_table(
        power(run, metrics=["rho_adjusted", "dunn", "calinski_harabasz"], difference=0.5)
    )
    assert "> 10+10" in table
    assert "95 %: the interval of all of them" in " ".join(table.split())
    assert "refused: it has no interval" in table
    assert "refused: a transformation of rho: ask for that" in table
    assert max(map(len, table.splitlines())) <= 100
    twin = store(x, label, None, x)
    table = to_table(power(twin, metrics="rho", difference=0.01, models="aligned", versus="base"))
    assert "aligned - base" in table
    assert "refused: it does not vary over these texts" in table


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"difference": 0}, "difference: got 0, expected a number above 0"),
        ({"difference": 1, "power": 1.0}, "power: got 1.0, expected a number above 0 and below 1"),
        ({"difference": 1, "level": -1}, "level: got -1, expected a number above 0 and below 1"),
        ({"difference": 1, "versus": "other"}, "no 'other' in the store"),
        ({"difference": 1, "versus": "base"}, "versus: 'base' is the only model"),
        ({"difference": 1, "metrics": None}, "metrics: none named"),
    ],
)
def test_what_cannot_be_asked_is_refused(asked, message):
    x, label, _ = texts(np.random.default_rng(4), 20, 0.8)
    with pytest.raises(ConfigError, match=message):
        power(store(x, label, None), **{"metrics": "rho"} | asked)
