"""Base against aligned on planted moves."""

import csv
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import planted, stand_in
from sklearn.metrics import silhouette_score

from safetyspace_fast.analysis import compare, rows, separation
from safetyspace_fast.analysis.families import METRICS, metric
from safetyspace_fast.analysis.metric import NONE
from safetyspace_fast.analysis.tables import to_table
from safetyspace_fast.errors import ConfigError

QUICK = {"bootstraps": 30, "permutations": 9}
SCALED = ("rho_adjusted", "bhattacharyya_excess_pc10", "silhouette_pc10", "auc_direction")


def pair_of_models(shift=1.0, more=1.0, *, n=240, width=12, seed=0, noise=0.0, langs=("en", "de")):
    """An aligned model that moves harmful texts `more` further along the same direction."""
    rng = np.random.default_rng(seed)
    base, aligned, labels = {}, {}, {}
    for i, lang in enumerate(langs):
        x, label = planted(n=n, width=width, shift=shift, seed=seed + i)
        step = more if lang == "en" else 0.0
        base[lang] = x
        aligned[lang] = x + step / math.sqrt(width) * label[:, None]
        aligned[lang] = aligned[lang] + noise * rng.standard_normal(x.shape)
        labels[lang] = label
    return stand_in({"base": base, "aligned": aligned}, labels)


def test_a_model_against_itself():
    run = pair_of_models(shift=2.0, more=0.0)
    found = compare(run, base="base", aligned="aligned", metrics="all", **QUICK)
    for name in found["metric"].to_numpy():
        one = found.sel(metric=name)
        if (one["refused"] == "").all():
            assert (one["difference"] == 0).all(), name
            known = one["low"].notnull()
            assert (abs(one["low"]).where(known, 0) < 1e-12).all(), name
    for name in ("direction_cosine", "cka"):
        np.testing.assert_allclose(found[name], 1, atol=1e-9)
    assert (found["displacement"] == 0).all()


def test_a_planted_move_is_found_where_it_is():
    run = pair_of_models(more=2.0, n=600)
    found = compare(run, base="base", aligned="aligned", **QUICK)
    alone = separation(run, metrics=list(found["metric"].to_numpy()), **QUICK)
    for name in SCALED:
        one = found.sel(metric=name).squeeze()
        english, german = one.sel(lang="en"), one.sel(lang="de")
        assert float(english["low"]) > 0, name
        assert float(english["p"]) < 1e-3
        assert float(german["difference"]) == 0
        assert float(german["excess_high"]) < 0, name
        assert float(english["excess"]) == 0
        for model in ("base", "aligned"):
            expected = alone["value"].sel(metric=name, model=model).squeeze().to_numpy()
            np.testing.assert_array_equal(one[model], expected)
    geometry = found.sel(lang="en").squeeze()
    assert float(geometry["displacement_share"]) > 0.8
    assert float(geometry["displacement_rank"]) == pytest.approx(1, abs=0.2)
    # Half of the texts move by 2; the classes' total deviation is sqrt(12).
    assert float(geometry["displacement"]) == pytest.approx(1 / math.sqrt(12), rel=0.05)
    assert float(geometry["direction_cosine"]) == pytest.approx(1, abs=0.05)
    assert 0.65 < float(geometry["direction_reliability"]) < 1
    assert float(geometry["transfer_auc"]) == pytest.approx(float(geometry["own_auc"]), abs=0.02)
    assert float(geometry["transfer_auc"]) > 0.9


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


def test_exchanging_the_models_negates_every_difference():
    run = pair_of_models(more=0.7, noise=0.3, n=120)
    there = compare(run, base="base", aligned="aligned", metrics="all", **QUICK)
    back = compare(run, base="aligned", aligned="base", metrics="all", **QUICK)
    for part in ("difference", "excess"):
        np.testing.assert_array_equal(there[part], -back[part])
    np.testing.assert_allclose(there["low"], -back["high"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(there["p"], back["p"], rtol=1e-6)


IN_THE_PROJECTION = {"auc_probe", "displacement_rank"}


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


@pytest.mark.parametrize("models", [("base", "aligned"), ("base", "base")])
def test_nothing_printed_depends_on_the_projection_but_what_is_in_it(models):
    x, label = planted(n=240, width=40, shift=1.5, spread=np.exp(-0.1 * np.arange(40)))
    y = x + 0.3 * np.random.default_rng(0).standard_normal(x.shape)
    names = ["rho_pc2", "bhattacharyya_pc10", "silhouette_pc2", "mean_shift", "auc_direction"]
    base, aligned = models
    both = []
    for seed in (0, 1):
        run = stand_in({"base": {"en": x}, "aligned": {"en": y}}, {"en": label}, proj=16, seed=seed)
        both.append(compare(run, base=base, aligned=aligned, metrics=names, **QUICK))
    for part in ("base", "aligned", "difference"):
        if part not in IN_THE_PROJECTION:
            np.testing.assert_array_equal(both[0][part], both[1][part], err_msg=part)


def test_a_direction_that_turns_does_not_transfer():
    x, label = planted(n=400, width=12, shift=0.0)
    base, turned = x.copy(), x.copy()
    base[..., 0] += 2 * label
    turned[..., 1] += 2 * label
    run = stand_in({"base": {"en": base}, "aligned": {"en": turned}}, {"en": label})
    found = compare(run, base="base", aligned="aligned", metrics="rho", **QUICK).squeeze()
    assert float(found["own_auc"]) > 0.85
    assert float(found["transfer_auc"]) < 0.7
    assert abs(float(found["direction_cosine"])) < 0.15


def test_what_both_models_share_does_not_widen_the_difference():
    run = pair_of_models(shift=1.5, more=0.3, n=400, noise=0.05, langs=("en",))
    found = compare(run, base="base", aligned="aligned", metrics=list(SCALED), **QUICK)
    alone = separation(run, metrics=list(SCALED), **QUICK)
    for name in SCALED:
        one = found.sel(metric=name).squeeze()
        own = alone.sel(metric=name, model="base").squeeze()
        assert float(one["high"] - one["low"]) < 0.6 * float(own["high"] - own["low"]), name
        assert float(one["low"]) > 0, name


FAMILY = ["rho_adjusted", "auc_direction", "bhattacharyya_pc2"]


def test_verdicts_say_changed_no_change_or_undecided():
    run = pair_of_models(shift=1.5, more=0.6, n=200, noise=0.05)
    options = {"base": "base", "aligned": "aligned", "bootstraps": 30, "permutations": 19}
    options["metrics"] = ["auc_direction", "rho_adjusted", "dunn", "mean_shift"]

    def verdicts(largest, **other):
        found = compare(run, **options | other, equivalence=largest)
        return found, found["verdict"].squeeze().to_numpy().tolist()

    found, words = verdicts(0.02)
    assert words == [
        ["changed", "no change larger than 0.02"],
        ["changed", "no change larger than 0.02"],
        ["no interval", "no interval"],
        ["has a unit", "has a unit"],
    ]
    assert "within 0.02" in to_table(found)
    row = next(csv.DictReader(io.StringIO(rows.to_csv(found))))
    assert (row["verdict"], row["lang"]) == ("changed", "en")
    _, words = verdicts(0.001)
    assert words[0] == ["changed", "undecided"]
    _, words = verdicts(1e-12, aligned="base")
    assert words[:2] == [["no change larger than 1e-12"] * 2] * 2
    assert "verdict" not in compare(run, **options)
    for wrong in (0, -1, math.nan, math.inf):
        with pytest.raises(ConfigError, match=r"equivalence: got .*, expected a number above 0"):
            verdicts(wrong)


def test_marks_of_differences_do_not_depend_on_bootstraps():
    run = pair_of_models(more=0.5, noise=0.3, n=120)
    options = {"base": "base", "aligned": "aligned", "metrics": FAMILY, "permutations": 49}
    few, many = (compare(run, **options, bootstraps=n) for n in (20, 60))
    for part in ("p", "p_family", "excess_p", "excess_p_family"):
        np.testing.assert_allclose(few[part], many[part], rtol=1e-9)
    assert not np.array_equal(few["low"], many["low"])


def test_a_model_whose_states_are_scaled_has_the_same_mmd():
    x, label = planted(n=120, width=12, shift=1.5)
    run = stand_in({"base": {"en": x}, "aligned": {"en": 3 * x}}, {"en": label})
    found = compare(run, base="base", aligned="aligned", metrics="mmd", **QUICK).squeeze()
    assert float(found["base"]) > 0.05
    assert float(found["difference"]) == pytest.approx(0, abs=1e-9)


def test_texts_left_out_of_one_model_are_left_out_of_both():
    x, label = planted(n=200, width=12, shift=1.5)
    broken = x.copy()
    broken[0, 0, 7] = np.nan
    run = stand_in({"base": {"en": x}, "aligned": {"en": broken}}, {"en": label})
    names = ["auc_direction", "bhattacharyya_pc2"]
    found = compare(run, base="base", aligned="aligned", metrics=names, **QUICK)
    assert (found["refused"] == "").all()
    assert abs(float(found["difference"].sel(metric="auc_direction").squeeze())) < 0.01


def test_ignored_pairs_leave_the_metrics_of_pairs_out():
    label, pair = np.tile([0, 1], 30), np.repeat(np.arange(30), 2)
    x = np.random.default_rng(0).standard_normal((1, 1, 60, 12))
    run = stand_in(
        {"base": {"en": x}, "aligned": {"en": x[..., ::-1]}}, {"en": label}, pair={"en": pair}
    )
    models = {"base": "base", "aligned": "aligned"}
    assert "paired_shift" in compare(run, **models, **QUICK)["metric"]
    with pytest.warns(UserWarning, match="en are paired"):
        found = compare(run, **models, paired=False, **QUICK)
    assert not any(METRICS[name].paired for name in found["metric"].to_numpy())
    assert not found["paired"].any()


def test_aliases_and_refusals_give_reasons():
    run = pair_of_models(n=60)
    found = compare(
        run, base="base", aligned="aligned", metrics=["xie_beni", "bhattacharyya_pc10"], **QUICK
    )
    assert (
        found["refused"].sel(metric="xie_beni", lang="en").item()
        == "a transformation of rho: compare that"
    )
    assert "needs 100 texts" in found["refused"].sel(metric="bhattacharyya_pc10", lang="de").item()


def never_silent(dataset):
    """Every difference is finite or refused with a reason, and so is its interval."""
    for name in dataset["metric"].to_numpy():
        entry = metric(str(name))
        one = dataset.sel(metric=name)
        refused = one["refused"].to_numpy() != ""
        parts = ["difference", "excess"]
        if entry.interval != NONE:
            parts += ["low", "high", "p", "p_family", "excess_low", "excess_high", "excess_p"]
        for part in parts:
            known = one[part].to_numpy()
            missing = refused | refused[..., :1] if part.startswith("excess") else refused
            assert np.isnan(known[missing]).all(), (name, part)
            assert not np.isnan(known[~missing]).any(), (name, part)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([(1, 12), (10, 10), (12, 30), (40, 41)]),
    width=st.sampled_from([1, 2, 17]),
    scales=st.sampled_from([(1e-30, 1e-30), (1.0, 1e-30), (1.0, 1.0), (1.0, 1e30), (1e30, 1e30)]),
    constant=st.integers(0, 3),
    copies=st.sampled_from([1, 3, 100]),
    apart=st.sampled_from([0.0, 1.0, 1e6]),
    spread=st.sampled_from([0.0, 1.0]),
    moved=st.sampled_from([0.0, 0.3]),
    paired=st.booleans(),
)
def test_degenerate_input_is_finite_or_refused(
    n, width, scales, constant, copies, apart, spread, moved, paired
):
    n0, n1 = (max(n), max(n)) if paired else n
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [n0, n1])
    x = spread * rng.standard_normal((n0 + n1, width))
    x = x[np.arange(n0 + n1) // copies] + apart * label[:, None]
    y = x + moved * rng.standard_normal(x.shape)
    x[:, :constant] = y[:, :constant] = 2.5
    pair = np.concatenate([np.arange(n0), np.arange(n1)])
    states = {
        name: {"en": scale * z[None, None], "de": scale * z[None, None]}
        for name, scale, z in zip(("base", "aligned"), scales, (x, y), strict=True)
    }
    run = stand_in(
        states, {"en": label, "de": label}, pair={"en": pair, "de": pair} if paired else None
    )
    found = compare(run, base="base", aligned="aligned", metrics="all", **QUICK)
    never_silent(found)
    assert "nan" not in to_table(found)


def test_models_of_other_depth_or_name_are_errors():
    run = pair_of_models()
    with pytest.raises(ConfigError, match="nobody"):
        compare(run, base="base", aligned="nobody")
    run.model("aligned").hookpoints = ("block.0",)
    with pytest.raises(ConfigError, match=r"different layers \('base' alone has embed; 'aligned'"):
        compare(run, base="base", aligned="aligned")
    run.model("aligned").hookpoints, run.model("aligned").poolings = ("embed",), ("mean", "last")
    with pytest.raises(ConfigError, match=r"different poolings \('aligned' alone has last\)"):
        compare(run, base="base", aligned="aligned")


def test_models_without_a_common_projection_are_compared_by_their_metrics_only():
    x, label = planted(n=240, width=12, shift=1.0)
    y, _ = planted(n=240, width=16, shift=2.0)
    run = stand_in({"base": {"en": x}, "aligned": {"en": y}}, {"en": label})
    names = ["auc_direction", "rho_pc2", "bhattacharyya_pc10", "silhouette_pc10"]

    def in_spaces_of_their_own(run, same_width):
        whole = compare(run, base="base", aligned="aligned", metrics=names, **QUICK)
        found, alone = whole.squeeze(), separation(run, metrics=names, **QUICK).squeeze()
        assert (found["refused"] == "").all()
        for model in ("base", "aligned"):
            np.testing.assert_array_equal(found[model], alone["value"].sel(model=model))
        spaces = ["full", "own pc2", "own pc10", "own pc10"]
        assert found["space"].to_numpy().tolist() == spaces
        assert "own pcK" in to_table(whole)
        projected = {"displacement_rank"}
        wide = set() if same_width else {"displacement", "displacement_share"}
        for name in projected | wide:
            assert np.isnan(found[name]).all(), name
        return float(found["rounding_share"])

    assert math.isnan(in_spaces_of_their_own(run, same_width=False))
    run = stand_in({"base": {"en": x}, "aligned": {"en": x}}, {"en": label})
    run.model("aligned").seed = 1
    assert in_spaces_of_their_own(run, same_width=True) == math.inf
    found = compare(
        run, base="base", aligned="aligned", metrics=["auc_probe", "accuracy_probe"], **QUICK
    )
    assert found["refused"].str.contains("the projections differ; run both with the same").all()


def templates(run, base, aligned):
    for name, template in (("base", base), ("aligned", aligned)):
        run.model(name).manifest["template_sha256"] = template
    return run


BARE = "50d6082419a2d88fdbda83ccf1855b5334f45254ae1804dcd7c71e98fc97ebb6"


@pytest.mark.parametrize(
    ("base", "aligned", "words"),
    [
        (BARE, "3b" * 32, "'base' was run with template none, 'aligned' with chat 3b3b3b3b"),
        ("c0" * 32, "3b" * 32, "with template chat c0c0c0c0, 'aligned' with chat 3b3b3b3b"),
        (None, BARE, "with template not recorded, 'aligned' with none"),
    ],
)
def test_models_with_different_templates_are_compared_only_if_asked(base, aligned, words):
    run = templates(pair_of_models(), base, aligned)
    with pytest.raises(ConfigError, match=words) as error:
        compare(run, base="base", aligned="aligned")
    assert "--template none" in str(error.value)
    assert "--different-templates" in str(error.value)
    assert "\n" not in str(error.value)
    found = compare(
        run, base="base", aligned="aligned", metrics=["rho"], different_templates=True, **QUICK
    )
    differ = found.attrs["settings_differ"]
    assert differ.startswith("template: ")
    assert "not run alike: template" in to_table(found)
    assert json.loads(rows.to_json(found))["settings"]["settings_differ"] == differ
    lines = csv.DictReader(rows.to_csv(found).splitlines())
    assert {line["settings_differ"] for line in lines} == {differ}
    both = separation(run, metrics=["rho"], **QUICK)
    assert both.attrs["settings_differ"] == differ
    assert "not run alike: template" in to_table(both)
    assert "settings_differ" not in next(rows.rows(separation(run, models=["base"], **QUICK)))


def test_other_settings_that_differ_are_said():
    run = pair_of_models()
    run.model("aligned").manifest |= {"dtype": "bfloat16", "max_tokens": 64}
    found = compare(run, base="base", aligned="aligned", metrics=["rho"], **QUICK)
    assert found.attrs["settings_differ"] == (
        "dtype: float32 (base), bfloat16 (aligned); max_tokens: none (base), 64 (aligned)"
    )
    assert found.attrs["run_as"] == "template chat 00000000, device cpu"
    run.model("aligned").manifest["data_sha256"] = "other"
    with pytest.raises(ConfigError, match="'base' and 'aligned' were run on different data"):
        compare(run, base="base", aligned="aligned")


def test_the_reference_is_a_language_of_the_data():
    run = pair_of_models(langs=("eng_Latn", "zh-CN", "zh-TW"))
    options = {"base": "base", "aligned": "aligned", "metrics": ["rho"], **QUICK}
    assert compare(run, **options).attrs["reference"] == "eng_Latn"
    assert compare(run, reference="zh_cn", **options).attrs["reference"] == "zh-CN"
    assert compare(run, reference=None, **options).attrs["reference"] == ""
    with pytest.raises(ConfigError, match="'zh' means zh-CN and zh-TW; name one"):
        compare(run, reference="zh", **options)
    with pytest.raises(ConfigError, match=r"reference: no language 'zh-TV'.*did you mean 'zh-TW'"):
        compare(run, reference="zh-TV", **options)
    without = compare(run, languages=["zh-CN", "zh-TW"], **options)
    assert "excess" not in without
    assert "No language is the reference" in " ".join(to_table(without).split())


@pytest.mark.parametrize("resamples", [0, 10, 18, 19])
def test_too_few_resamples_mark_nothing_and_say_so(resamples):
    run = pair_of_models(more=4.0, langs=("en",))
    options = {"metrics": ["rho", "rho_pc2"], "bootstraps": resamples}
    found = compare(run, base="base", aligned="aligned", permutations=resamples, **options)
    text = to_table(found)
    row = next(line for line in text.splitlines() if line.startswith("embed"))
    assert ("*" in row) == (resamples >= 19)
    assert ("fewer than 19 resamples" in " ".join(text.split())) == (resamples < 19)
    alone = to_table(separation(run, models=["base"], permutations=resamples, **options))
    row = next(line for line in alone.splitlines() if line.startswith("embed"))
    assert ("*" in row) == (resamples >= 19)
    assert "~" not in row


def test_a_difference_that_cannot_vary_has_no_smaller_p_than_the_resamples_allow():
    """Every pair is misjudged by one model and judged rightly by the other, without any spread."""
    x, label = planted(n=120, width=6, shift=0.0)
    pair = np.concatenate([np.arange(60), np.arange(60)])
    x[:, :, 60:] = x[:, :, :60]
    y = x + 100.0 * label[:, None]
    run = stand_in(
        {"base": {"en": x - 1e-3 * label[:, None]}, "aligned": {"en": y}},
        {"en": label},
        pair={"en": pair},
    )
    found = compare(
        run, base="base", aligned="aligned", metrics="all", bootstraps=20, permutations=20
    )
    p = found["p_family"].to_numpy()
    assert np.isfinite(p).any()
    assert np.nanmin(p) >= 1 / 21 - 1e-12
