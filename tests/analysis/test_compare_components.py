"""Base against aligned in the components of either model, or of both."""

import numpy as np
import pytest
from oracle import planted, stand_in
from sklearn.metrics import silhouette_score
from toys import pair_of_models

from safetyspace_fast.analysis import compare, separation
from safetyspace_fast.analysis.families import METRICS, metric
from safetyspace_fast.analysis.tables import to_table
from safetyspace_fast.errors import ConfigError

QUICK = {"bootstraps": 30, "permutations": 9}


def test_each_model_stands_in_its_own_components_as_in_separation():
    run = pair_of_models(more=0.7, noise=0.3)
    names = [name for name in METRICS if METRICS[name].components and not METRICS[name].paired]
    found = compare(run, base="base", aligned="aligned", metrics=names, **QUICK)
    alone = separation(run, metrics=names, **QUICK)
    kept = [name for name in names if not METRICS[name].alias_of]
    for model in ("base", "aligned"):
        expected = alone["value"].sel(model=model, metric=kept)
        np.testing.assert_allclose(found[model].sel(metric=kept), expected, rtol=1e-12)
    assert set(found["space"].to_numpy()) == {"own pc2", "own pc10"}
    assert "own pcK" in to_table(found)


def test_both_models_in_the_components_of_the_base():
    """Against NumPy at full width; a model that is only turned loses what the base sees."""
    rng = np.random.default_rng(3)
    spread = np.exp(-0.1 * np.arange(40))
    x, label = planted(n=240, width=40, shift=3.0, spread=spread)
    y = x[..., ::-1] + 0.1 * rng.standard_normal(x.shape)
    run = stand_in({"base": {"en": x}, "aligned": {"en": y}}, {"en": label})
    options = {"base": "base", "aligned": "aligned", "metrics": ["rho_pc2", "silhouette_pc2"]}
    found = compare(run, components="base", **options, **QUICK).squeeze()
    assert set(found["space"].to_numpy()) == {"base pc2"}
    axes = np.linalg.svd(x[0, 0] - x[0, 0].mean(0), full_matrices=False)[2][:2].T
    for name, states in (("base", x), ("aligned", y)):
        expected = silhouette_score(states[0, 0] @ axes, label)
        assert float(found[name].sel(metric="silhouette_pc2")) == pytest.approx(expected, rel=1e-5)
    assert abs(float(found["difference"].sel(metric="rho_pc2"))) > 0.1
    own = compare(run, **options, **QUICK).squeeze()
    assert (abs(own["difference"]) < 0.05).all()
    with pytest.raises(ConfigError, match="components: got 'both', expected one of own, base"):
        compare(run, components="both", **options, **QUICK)
    back = {"base": "aligned", "aligned": "base", "metrics": ["rho_pc2", "rho"]}
    other = compare(run, components="base", **back, **QUICK).squeeze()
    assert "base was not expressed in the components of aligned" in str(other["refused"].values[0])
    assert float(other["difference"].sel(metric="rho")) == float(
        -compare(run, **options | {"metrics": "rho"}, **QUICK)["difference"].squeeze()
    )


def in_union(n=240, width=12, langs=("en",)):
    """Two models of one width whose largest dimensions differ, and their labels."""
    rng = np.random.default_rng(4)
    states, labels = {"base": {}, "aligned": {}}, {}
    for lang in langs:
        content = rng.standard_normal((n, width))
        labels[lang] = np.repeat([0, 1], n // 2)
        spread = np.exp(-0.2 * np.arange(width))
        for name, scale in (("base", spread), ("aligned", 1.3 * np.roll(spread, 1))):
            x = (content + 0.8 * labels[lang][:, None] * (np.arange(width) < 4)) * scale
            states[name][lang] = (x + 0.2 * rng.standard_normal(x.shape))[None, None]
    return states, labels


def test_both_models_in_the_components_of_both():
    """Against NumPy, which stacks the texts as each model keeps them in its components."""
    for width in (12, 40):
        states, labels = in_union(width=width)
        label = labels["en"]
        run = stand_in(states, labels)
        names = ["rho_pc2", "rho_pc10", "silhouette_pc2", "rho"]
        found = compare(run, base="base", aligned="aligned", metrics=names, components="union",
                        **QUICK).squeeze()  # fmt: skip
        assert set(found["space"].to_numpy()) == {"union pc2", "union pc10", "full"}
        kept, share = [], []
        for model in states.values():
            x = model["en"][0, 0] - model["en"][0, 0].mean(0)
            axes = np.linalg.svd(x, full_matrices=False)[2][:16]
            kept.append(x @ axes.T @ axes)
            share.append(np.square(kept[-1]).sum() / np.square(x).sum())
        union = np.linalg.svd(np.concatenate(kept), full_matrices=False)[2]
        for name, x in zip(states, kept, strict=True):
            for k in (2, 10):
                z = x @ union[:k].T
                of = [z[label == c] for c in (0, 1)]
                within = sum(np.square(part - part.mean(0)).sum() for part in of)
                expected = 1 - within / np.square(z - z.mean(0)).sum()
                assert float(found[name].sel(metric=f"rho_pc{k}")) == pytest.approx(expected, 1e-4)
            expected = silhouette_score(x @ union[:2].T, label)
            assert float(found[name].sel(metric="silhouette_pc2")) == pytest.approx(expected, 1e-4)
        assert float(found["kept_share"]) == pytest.approx(min(share), 1e-4)


def test_differences_in_other_components_stand_beside_and_are_marked():
    """The aligned model holds more harm, but in a dimension that is the third of both models."""
    rng = np.random.default_rng(1)
    label = np.repeat([0, 1], 150)
    content = rng.standard_normal((300, 2))
    states = []
    for first, spread, shift in ((0, (3.0, 2.0), (1.5, 0.0)), (2, (3.3, 2.2), (0.0, 2.0))):
        x = 0.1 * rng.standard_normal((300, 20))
        x[:, first : first + 2] += content * spread + label[:, None] * shift
        states.append({"en": x[None, None]})
    run = stand_in({"base": states[0], "aligned": states[1]}, {"en": label})
    names = ["rho", "rho_pc2", "rho_pc4"]
    found = {
        space: compare(
            run, base="base", aligned="aligned", metrics=names, components=space, **QUICK
        )
        for space in ("own", "base", "union")
    }
    differences = {space: one["difference"].squeeze() for space, one in found.items()}
    signs = {space: bool(one.sel(metric="rho_pc2") > 0) for space, one in differences.items()}
    assert signs == {"own": True, "base": False, "union": False}
    for space, one in found.items():
        assert f"difference_{space}" not in one
        text = to_table(one)
        assert text.count("^") == 2  # one difference, and the legend
        assert "^" in next(line for line in text.splitlines() if line.startswith("embed"))
        for other in found.keys() - {space}:
            beside = one[f"difference_{other}"].squeeze()
            assert bool(beside.sel(metric="rho").isnull())
            inside = {"metric": names[1:]}
            np.testing.assert_allclose(beside.sel(inside), differences[other].sel(inside))
            assert (f"difference_{other}" in text) == (signs[other] != signs[space])


def test_signs_of_differences_within_rounding_are_not_marked():
    states, labels = in_union()
    rng = np.random.default_rng(2)
    x = states["base"]["en"]
    run = stand_in({"base": {"en": x}, "aligned": {"en": x + 1e-9 * rng.standard_normal(x.shape)}},
                   labels)  # fmt: skip
    found = compare(run, base="base", aligned="aligned", metrics=["rho_pc2"], **QUICK)
    found["difference_union"] = -found["difference"]
    assert (found["rounding_share"] >= 1).all()
    assert "^" not in to_table(found)
    found["rounding_share"][:] = 0
    assert to_table(found).count("^") == 2  # the difference, and the legend


def test_the_union_needs_one_width_and_components_that_are_not_coarse():
    states, labels = in_union()
    states["aligned"]["en"] = states["aligned"]["en"][..., :8]
    run = stand_in(states, labels)
    options = {"base": "base", "aligned": "aligned", "metrics": "rho_pc2", "components": "union"}
    assert "hidden sizes" in compare(run, **options, **QUICK)["refused"].item()
    states, labels = in_union()
    run = stand_in(states, labels)
    run.model("base").remove("fold_mean")
    assert "an earlier version" in compare(run, **options, **QUICK)["refused"].item()


@pytest.mark.parametrize("components", ["own", "union"])
def test_equal_models_differ_by_nothing_in_any_components(components):
    states, labels = in_union()
    run = stand_in({"base": states["base"], "aligned": states["base"]}, labels)
    found = compare(run, base="base", aligned="aligned", components=components, **QUICK)
    assert (found["difference"].where(found["refused"] == "", 0) == 0).all()
    beside = found["difference_union" if components == "own" else "difference_own"]
    assert beside.notnull().any()
    assert (beside.fillna(0) == 0).all()


def test_exchanging_the_models_negates_every_difference_in_the_union():
    run = stand_in(*in_union())
    names = [name for name in METRICS if METRICS[name].components and not METRICS[name].paired]
    options = {"metrics": names, "components": "union"} | QUICK
    there = compare(run, base="base", aligned="aligned", **options)
    back = compare(run, base="aligned", aligned="base", **options)
    assert (there["refused"] == "").any()
    for one, other in (("difference", "difference"), ("low", "high"), ("high", "low")):
        np.testing.assert_allclose(there[one], -back[other], rtol=1e-6, atol=1e-9)


def test_a_model_that_is_only_turned_loses_nothing():
    """Everything but what is labelled as in the projection, for any projection."""
    rng = np.random.default_rng(3)
    x, label = planted(n=240, width=24, shift=1.5, spread=np.exp(-0.2 * np.arange(24)))
    turn = np.linalg.qr(rng.standard_normal((24, 24)))[0]
    names = [
        name
        for name in METRICS
        if metric(name).space != "projection" and name not in ("rho_standardized", "nn_accuracy")
    ]
    run = stand_in({"base": {"en": x}, "aligned": {"en": x @ turn}}, {"en": label})
    found = compare(run, base="base", aligned="aligned", metrics=names, **QUICK)
    known = found["difference"].notnull()
    assert int(known.sum()) > 15
    np.testing.assert_allclose(found["aligned"].where(known), found["base"].where(known), rtol=2e-5)
