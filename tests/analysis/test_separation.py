"""`separation` from a store's arrays to its results."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import planted, stand_in, toy_pairs
from scipy.stats import norm

import safetyspace_fast
from safetyspace_fast.analysis import (
    compare,
    curve,
    directions,
    explain,
    parallel,
    power,
    reading,
    separation,
)
from safetyspace_fast.analysis.families import METRICS, metric, scores
from safetyspace_fast.analysis.metric import NONE, SHUFFLE, MetricName
from safetyspace_fast.analysis.texts import MIN_TEXTS
from safetyspace_fast.errors import ConfigError

QUICK = {"bootstraps": 20, "permutations": 19}


def one(run, name, **options):
    return separation(run, metrics=[name], **{**QUICK, **options}).squeeze()


def values(dataset):
    return {
        str(name): dataset["value"].sel(metric=name).to_numpy()
        for name in dataset["metric"].to_numpy()
    }


@pytest.mark.parametrize(
    "ask",
    [
        separation,
        directions,
        parallel,
        curve,
        partial(compare, base="a", aligned="b"),
        partial(power, metrics="rho", difference=0.1),
    ],
)
def test_a_store_without_a_complete_model_is_one_clear_line(ask):
    with pytest.raises(ConfigError, match=r"a\.zarr: no model is complete.*--resume"):
        ask(SimpleNamespace(models=(), languages=("en",), place="a.zarr"))


def test_every_metric_finds_planted_classes():
    x, label = planted(n=400, width=24, shift=3.0)
    run = stand_in({"m": {"en": x}}, {"en": label})
    found = separation(run, metrics="all", bootstraps=30, permutations=60)
    for name in METRICS:
        result = found.sel(metric=name).squeeze()
        entry = METRICS[name]
        if entry.paired:
            assert result["refused"].item() == "the texts are not paired"
            continue
        if name == "tpr_at_1_fpr":
            assert result["refused"].item().startswith("needs 399 harmless texts, has 200")
            continue
        value, low, high, floor, p = (
            float(result[part]) for part in ("value", "low", "high", "floor", "p")
        )
        assert result["refused"].item() == ""
        assert math.isfinite(value)
        if entry.interval != NONE:
            assert low <= value <= high
        if entry.null != NONE and "_cov" not in name:  # the classes have one covariance
            above = value > floor if entry.grows else value < floor
            assert above, name
            assert p == pytest.approx(1 / 61) if entry.null.startswith(SHUFFLE) else p < 1e-3, name


def test_of_what_is_found_at_a_rate_no_more_is_false():
    rng = np.random.default_rng(0)
    label, apart = np.repeat([0, 1], 20), np.arange(40) < 12
    false = []
    for _ in range(20):
        x = rng.standard_normal((40, 1, 40, 6))
        x[apart, ..., :2] += 1.8 * label[:, None]
        run = stand_in({"m": {"en": x}}, {"en": label}, proj=6)
        found = one(run, "auc_direction", bootstraps=2, permutations=199)
        here = found["q"].to_numpy() <= 0.2
        false.append((here & ~apart).sum() / max(here.sum(), 1))
        assert (here & apart).sum() > 6
    # 28 of 40 have no difference: 0.2 * 28/40 are expected, with a deviation of about 0.03.
    assert 0.05 < np.mean(false) < 0.23
    unknown = one(run, "auc_direction", bootstraps=2, permutations=0)
    assert unknown["q"].isnull().all()


def test_known_numbers_of_isotropic_classes():
    x, label = planted(n=4000, width=10, shift=2.0, seed=4)
    run = stand_in({"m": {"en": x}}, {"en": label})
    names = ["rho_adjusted", "mean_shift", "bhattacharyya_excess_pc10", "auc_direction"]
    found = separation(run, metrics=[*names, "mahalanobis_pc10"], **QUICK)
    result = {name: float(value.squeeze()) for name, value in values(found).items()}
    assert result["mean_shift"] == pytest.approx(4, rel=0.1)
    assert result["rho_adjusted"] == pytest.approx(1 / 11, rel=0.1)
    assert result["bhattacharyya_excess_pc10"] == pytest.approx(0.5, rel=0.1)
    assert result["mahalanobis_pc10"] == pytest.approx(4, rel=0.1)
    assert result["auc_direction"] == pytest.approx(norm.cdf(math.sqrt(2)), abs=0.015)


def test_noise_at_many_dimensions_stays_noise():
    x, label = planted(n=400, width=4096, shift=0.0)
    run = stand_in({"m": {"en": x}}, {"en": label})
    found = separation(run, metrics=["rho", "auc_direction", "auc_probe"], **QUICK)
    result = {name: float(value.squeeze()) for name, value in values(found).items()}
    assert abs(result["auc_direction"] - 0.5) < 0.06
    assert abs(result["auc_probe"] - 0.5) < 0.09
    assert result["rho"] == pytest.approx(1 / 399, rel=0.1)
    # In-sample, the same direction separates the same noise.
    direction = x[0, 0, label == 1].mean(0) - x[0, 0, label == 0].mean(0)
    scores = x[0, 0] @ direction
    above = (scores[label == 1][:, None] > scores[label == 0]).mean()
    assert above > 0.99


def test_toy_pairs_are_seen_by_the_paired_family_only():
    accuracy = []
    for seed in range(3):
        x, label, pair = toy_pairs(seed=seed)
        run = stand_in({"m": {"en": x}}, {"en": label}, pair={"en": pair}, seed=seed)
        found = separation(run, bootstraps=2, permutations=19)
        shown = values(found)
        assert {"paired_accuracy", "paired_shift", "paired_effect"} <= set(shown)
        accuracy.append(float(shown["paired_accuracy"].squeeze()))
        assert float(shown["auc_direction"].squeeze()) < 0.6
        shift = found.sel(metric="paired_shift").squeeze()
        assert float(shift["low"]) < 5 * 0.25**2 < float(shift["high"])
        assert float(found["p"].sel(metric="paired_accuracy").squeeze()) == pytest.approx(1 / 20)
    assert np.mean(accuracy) > 0.85


def test_swapping_the_labels_changes_no_number():
    x, label = planted(n=240, width=12, shift=1.0)
    names = [name for name, entry in METRICS.items() if not entry.paired and name != "tpr_at_1_fpr"]
    first = stand_in({"m": {"en": x}}, {"en": label})
    before = separation(first, metrics=names, **{**QUICK, "permutations": 0})
    swapped = stand_in({"m": {"en": x}}, {"en": 1 - label}, fold={"en": first.samples.fold})
    lexical = -swapped.samples.lexical_score
    swapped.samples = replace(swapped.samples, lexical_score=lexical)
    after = separation(swapped, metrics=names, **{**QUICK, "permutations": 0})
    for name, value in values(before).items():
        np.testing.assert_allclose(values(after)[name], value, rtol=2e-5, err_msg=name)


def test_the_order_of_the_texts_changes_no_number():
    x, label = planted(n=240, width=12, shift=1.0)
    first = stand_in({"m": {"en": x}}, {"en": label})
    order = np.random.default_rng(0).permutation(240)
    again = stand_in(
        {"m": {"en": x[:, :, order]}}, {"en": label[order]}, fold={"en": first.samples.fold[order]}
    )
    again.samples = replace(again.samples, lexical_score=first.samples.lexical_score[order])
    options = {**QUICK, "permutations": 0}
    before = separation(first, metrics="all", **options)
    after = separation(again, metrics="all", **options)
    for name, value in values(before).items():
        np.testing.assert_allclose(values(after)[name], value, rtol=2e-5, err_msg=name)


def test_how_layers_are_cut_changes_nothing(monkeypatch):
    x, label = planted(n=120, width=12, shift=1.0, layers=5, poolings=2)
    run = stand_in({"m": {"en": x}}, {"en": label})
    whole = separation(run, metrics="all", force=True, **QUICK)
    monkeypatch.setattr(reading, "WORKING_BYTES", 1)
    monkeypatch.setattr(scores, "FIT_BYTES", 1)
    cut = separation(run, metrics="all", force=True, **QUICK)
    for name in ("value", "low", "high", "floor", "p"):
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-10, atol=1e-13, err_msg=name)


def test_models_see_the_same_draws_and_threads_change_nothing():
    x, label = planted(n=120, width=12, shift=1.0)
    y, _ = planted(n=90, width=12, shift=0.5, seed=1)
    states = {"en": x, "de": y}
    labels = {"en": label, "de": np.repeat([0, 1], 45)}
    run = stand_in({"a": states, "b": states}, labels)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = separation(run, **QUICK)
        torch.set_num_threads(2)
        beside = separation(run, **QUICK)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert alone.equals(beside)
    for name in ("value", "low", "high", "p"):
        both = alone[name]
        np.testing.assert_array_equal(both.sel(model="a"), both.sel(model="b"))


def test_results_carry_their_definitions():
    x, label = planted(n=100, width=12, shift=1.0, layers=2, poolings=2)
    run = stand_in({"m": {"en": x}}, {"en": label})
    found = separation(run, **QUICK)
    assert found["value"].dims == ("metric", "model", "layer", "pooling", "lang")
    assert found["space"].sel(metric="silhouette_pc2").item() == "pc2"
    assert found["definition"].sel(metric="rho").item() == METRICS["rho"].definition
    assert found["n1"].to_numpy().tolist() == [[[[50], [50]], [[50], [50]]]]
    assert found["tokens0"].item() == 7
    assert found["duplicates"].item() == 0
    assert not any(METRICS[name].paired for name in found["metric"].to_numpy())


def test_the_package_offers_the_function():
    assert safetyspace_fast.separation is separation


def test_layers_poolings_and_languages_are_chosen_by_name_or_from_the_end():
    x, label = planted(n=60, width=12, shift=1.0, layers=4, poolings=2)
    run = stand_in({"m": {"en": x, "de": x}}, {"en": label, "de": label})
    whole = separation(run, metrics="rho", **QUICK)
    part = separation(
        run, metrics="rho", layers=["-1", "embed"], poolings=["last"], languages="de", **QUICK
    )
    assert part["layer"].to_numpy().tolist() == ["embed", "block.2"]
    expected = whole.sel(layer=["embed", "block.2"], pooling=["last"], lang=["de"])
    np.testing.assert_array_equal(part["value"], expected["value"])
    np.testing.assert_array_equal(part["p"], expected["p"])


@pytest.mark.parametrize(
    "options",
    [
        {"models": ["x"]},
        {"layers": ["block.9"]},
        {"poolings": ["x"]},
        {"languages": ["xx"]},
        {"metrics": ["x"]},
        {"metrics": ["silhouette_pc99"]},
        {"metrics": ["rho", "rho"]},
    ],
)
def test_unknown_names_are_named(options):
    x, label = planted(n=40, width=12, shift=1.0)
    run = stand_in({"m": {"en": x}}, {"en": label})
    with pytest.raises(ConfigError):
        separation(run, **options)


def test_any_number_of_components_can_be_asked_for():
    x, label = planted(n=240, width=24, shift=2.0)
    run = stand_in({"m": {"en": x}}, {"en": label})
    names = [f"bhattacharyya_pc{k}" for k in (1, 2, 4, 8)]
    curve = separation(run, metrics=names, **QUICK)["value"].to_numpy().ravel()
    assert (np.diff(curve) > 0).all()
    assert metric("rho_pc7").space == "pc7"


def test_progress_counts_languages_of_models():
    x, label = planted(n=40, width=12, shift=1.0)
    run = stand_in({"a": {"en": x, "de": x}, "b": {"en": x, "de": x}}, {"en": label, "de": label})
    seen = []
    separation(run, metrics="rho", progress=lambda *step: seen.append(step), **QUICK)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_models_of_different_depth_stand_side_by_side():
    x, label = planted(n=60, width=12, shift=1.0, layers=3)
    deep = stand_in({"a": {"en": x}}, {"en": label})
    shallow = stand_in({"b": {"en": x[:2]}}, {"en": label})
    deep._models["b"] = shallow.model("b")
    deep.models = ("a", "b")
    found = separation(deep, metrics="rho", **QUICK)
    assert found["refused"].sel(model="b", layer="block.1").item().startswith("the model has no")
    assert found["refused"].sel(model="b", layer="embed").item() == ""


def refusals(x, label, **options):
    run = stand_in({"m": {"en": np.asarray(x)[None, None]}}, {"en": label})
    found = separation(run, metrics="all", **{**QUICK, **options})
    return {str(name): found["refused"].sel(metric=name).item() for name in found["metric"].values}


def test_small_groups_are_refused_with_the_reason():
    x, label = planted(n=40, width=24, shift=1.0)
    found = refusals(x[0, 0], label)
    assert found["rho"] == ""
    assert found["bhattacharyya_pc2"] == ""
    reason = "a covariance in 10 components needs 100 texts per class; the smaller class has 20"
    assert found["bhattacharyya_pc10"] == reason
    assert refusals(x[0, 0], label, force=True)["bhattacharyya_pc10"] == ""


@pytest.mark.parametrize("few", [0, 1, 9])
def test_a_class_of_few_is_refused(few):
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [50, few])
    found = refusals(rng.standard_normal((50 + few, 12)), label)
    assert set(found.values()) == {
        f"metrics need {MIN_TEXTS} texts per class; the smaller class has {few}"
    }


def test_texts_with_states_that_are_not_finite_are_left_out_and_counted():
    x, label = planted(n=200, width=12, shift=1.5, layers=2)
    broken = x.copy()
    broken[1, 0, [3, 150, 151]] = np.nan
    run = stand_in({"m": {"en": broken}}, {"en": label})
    names = ["rho", "bhattacharyya_pc2", "silhouette", "auc_direction", "auc_probe", "mmd"]
    found = separation(run, metrics=names, **QUICK)
    assert found["n0"].to_numpy().ravel().tolist() == [100, 99]
    assert found["n1"].to_numpy().ravel().tolist() == [100, 98]
    kept = np.delete(np.arange(200), [3, 150, 151])
    clean = stand_in(
        {"m": {"en": x[1:, :, kept]}}, {"en": label[kept]}, fold={"en": run.samples.fold[kept]}
    )
    expected = separation(clean, metrics=names, **QUICK)
    np.testing.assert_allclose(
        found["value"].isel(layer=1).to_numpy().ravel(),
        expected["value"].to_numpy().ravel(),
        rtol=1e-5,
    )
    assert (found["refused"] == "").all()


def never_silent(dataset):
    """Every number is finite or refused with a reason."""
    for name in dataset["metric"].to_numpy():
        entry = metric(str(name))
        result = dataset.sel(metric=name).squeeze()
        if result["refused"].item():
            assert all(math.isnan(float(result[part])) for part in ("value", "low", "p"))
            continue
        assert math.isfinite(float(result["value"])), name
        if entry.interval != NONE:
            assert not math.isnan(float(result["low"])), name
            assert not math.isnan(float(result["high"])), name
        if entry.null != NONE:
            assert 0 < float(result["p"]) <= 1, name
        if entry.floor != NONE:
            assert math.isfinite(float(result["floor"])), name


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    n=st.sampled_from([(1, 12), (10, 10), (12, 30), (40, 41)]),
    width=st.sampled_from([1, 2, 3, 17]),
    scale=st.sampled_from([1e-30, 1e-8, 1.0, 1e8, 1e30]),
    constant=st.integers(0, 3),
    copies=st.sampled_from([1, 3, 100]),
    apart=st.sampled_from([0.0, 1.0, 1e6]),
    offset=st.sampled_from([0.0, 1e4]),
    spread=st.sampled_from([0.0, 1.0]),
    force=st.booleans(),
    paired=st.booleans(),
)
def test_degenerate_input_is_finite_or_refused(
    n, width, scale, constant, copies, apart, offset, spread, force, paired
):
    n0, n1 = (max(n), max(n)) if paired else n
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [n0, n1])
    x = spread * rng.standard_normal((n0 + n1, width))
    x = x[np.arange(n0 + n1) // copies] + apart * label[:, None] + offset
    x[:, :constant] = 2.5
    pair = {"en": np.concatenate([np.arange(n0), np.arange(n1)])} if paired else None
    run = stand_in({"m": {"en": scale * x[None, None]}}, {"en": label}, pair=pair)
    never_silent(separation(run, metrics="all", force=force, **QUICK))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_scales_change_no_scale_free_number(scale):
    x, label = planted(n=240, width=12, shift=1.0)
    plain = stand_in({"m": {"en": x}}, {"en": label})
    scaled = stand_in({"m": {"en": scale * x}}, {"en": label})
    names = [
        "rho_adjusted", "rho_standardized", "bhattacharyya_excess_pc10", "bhattacharyya_shrunk_pc2",
        "silhouette", "silhouette_pc2", "auc_direction", "auc_probe", "mmd", "dunn",
    ]  # fmt: skip
    before, after = (separation(run, metrics=names, **QUICK) for run in (plain, scaled))
    for part in ("value", "low", "high", "floor", "p"):
        np.testing.assert_allclose(after[part], before[part], rtol=1e-4, atol=1e-6, err_msg=part)


def test_ancestors_protocols_on_any_saved_matrix():
    """rho in 2, 10 components (Lin et al.), D_B, exp(-D_B), silhouette in 2 (Haldar et al.)."""
    from sklearn.decomposition import PCA
    from sklearn.metrics import silhouette_score

    x, label = planted(n=300, width=30, shift=2.0)
    run = stand_in({"m": {"en": x}}, {"en": label})
    names = ["rho_pc2", "rho_pc10", "bhattacharyya_pc2", "bhattacharyya_coefficient_pc2"]
    found = values(separation(run, metrics=[*names, "silhouette_pc2"], **QUICK))
    coords = PCA(10).fit_transform(x[0, 0])
    for k in (2, 10):
        z = coords[:, :k]
        total = ((z - z.mean(0)) ** 2).sum()
        within = sum(((z[label == c] - z[label == c].mean(0)) ** 2).sum() for c in (0, 1))
        assert found[f"rho_pc{k}"].item() == pytest.approx(1 - within / total, rel=1e-5)
    a, b = coords[label == 0, :2], coords[label == 1, :2]
    s0, s1 = np.cov(a.T), np.cov(b.T)
    s, d = (s0 + s1) / 2, b.mean(0) - a.mean(0)
    determinants = np.linalg.det(s) / np.sqrt(np.linalg.det(s0) * np.linalg.det(s1))
    distance = d @ np.linalg.inv(s) @ d / 8 + 0.5 * np.log(determinants)
    assert found["bhattacharyya_pc2"].item() == pytest.approx(distance, rel=1e-5)
    assert found["bhattacharyya_coefficient_pc2"].item() == pytest.approx(
        math.exp(-distance), rel=1e-6
    )
    assert found["silhouette_pc2"].item() == pytest.approx(
        silhouette_score(coords[:, :2], label), abs=1e-6
    )


def test_a_type_checker_knows_the_names_of_all_metrics():
    assert get_args(MetricName) == tuple(METRICS)


@pytest.mark.parametrize("name", list(METRICS))
def test_every_metric_explains_itself(name):
    text = explain(name)
    assert max(map(len, text.splitlines())) <= 100
    text = " ".join(text.split())
    entry = METRICS[name]
    for part in (entry.definition, entry.source, entry.pitfalls, entry.floor, entry.null):
        assert part in text
    assert ("alias" in text) == bool(entry.alias_of)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(({field: []}, f"{field}: none named") for field in ("models", "layers", "poolings")),
        ({"languages": []}, "languages: none named"),
        ({"layers": [None]}, "expected a tuple of names"),
        ({"groups": "high"}, "groups: got 'high', expected"),
        ({"groups": -1}, "groups: got -1, expected"),
    ],
)
def test_a_selection_that_cannot_be_meant_is_one_line(wrong, message):
    x, label = planted(n=40, width=8, shift=1.0)
    run = stand_in({"m": {"en": x}}, {"en": label})
    with pytest.raises(ConfigError, match=message):
        separation(run, bootstraps=20, permutations=20, **wrong)
    with pytest.raises(ConfigError, match="expected an open store"):
        separation("run.zarr")


def toy_and(lone, pairs=100):
    """Pairs, and texts without a partner behind them; numbers of pairs, with -1 for the others."""
    x, label, pair = toy_pairs(pairs=pairs, width=8)
    more = 3 * np.random.default_rng(1).standard_normal((1, 1, lone, 8))
    return (
        np.concatenate([x, more], -2),
        np.concatenate([label, np.arange(lone) % 2]),
        np.concatenate([pair, np.full(lone, -1)]),
    )


@pytest.mark.filterwarnings("ignore:language en")
@pytest.mark.parametrize("lone", [1, 9])
def test_a_text_without_partner_is_left_out_of_a_language_of_pairs(lone):
    """Its content, ten times as large as what pairs differ by, is in the means of the store."""
    names = ["paired_accuracy", "rho_adjusted", "paired_shift", "silhouette", "energy_distance"]
    options = {"metrics": names, "bootstraps": 9, "permutations": 9}
    x, label, pair = toy_and(lone)
    fold = np.arange(len(label)) // 2 % 10
    found = []
    for n in (200, 200 + lone):
        run = stand_in(
            {"m": {"en": x[..., :n, :]}},
            {"en": label[:n]},
            pair={"en": pair[:n]},
            fold={"en": fold[:n]},
            proj=8,
        )
        found.append(separation(run, **options).squeeze())
    pure, mixed = found
    assert bool(mixed["paired"])
    assert (int(mixed["n0"]), int(mixed["n1"])) == (100, 100)
    reach = np.maximum(pure["high"] - pure["value"], pure["value"] - pure["low"])
    for part in ("value", "low", "high", "floor"):
        assert (abs(mixed[part] - pure[part]) < 0.35 * reach).all(), part


def test_texts_without_partner_are_counted_in_a_warning():
    x, label, pair = toy_and(1)
    run = stand_in({"m": {"en": x}}, {"en": label}, pair={"en": pair}, proj=8)
    with pytest.warns(UserWarning, match="language en: 1 of 201 texts have no partner"):
        separation(run, metrics=["rho"], bootstraps=2, permutations=0)


def test_a_language_with_many_texts_without_partner_is_none_of_pairs():
    x, label, pair = toy_and(40)
    run = stand_in({"m": {"en": x}}, {"en": label}, pair={"en": pair}, proj=8)
    with pytest.warns(UserWarning, match="200 of 240 texts are in pairs, fewer than 90%"):
        found = separation(run, metrics=["paired_accuracy", "rho"], bootstraps=2).squeeze()
    assert int(found["n0"]) == 120
    assert found["refused"].to_numpy().tolist() == ["the texts are not paired", ""]


def test_without_its_partner_a_text_with_finite_states_is_left_out():
    x, label, pair = toy_pairs(pairs=60, width=8)
    x[0, 0, 7] = np.nan
    run = stand_in({"m": {"en": x}}, {"en": label}, pair={"en": pair}, proj=8)
    found = separation(run, metrics=["paired_accuracy"], bootstraps=2).squeeze()
    assert found["refused"] == ""
    assert (int(found["n0"]), int(found["n1"])) == (59, 59)
