"""Copies of a text are one unit of evidence: no interval shrinks, and no p falls, by repeating."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import folds_of, planted, stand_in, toy_pairs

from safetyspace_fast.analysis import compare, directions, parallel, resamples, separation
from safetyspace_fast.analysis.families import METRICS, metric
from safetyspace_fast.analysis.metric import NONE
from safetyspace_fast.analysis.reading import read_cells
from safetyspace_fast.data import find_units

BY_NUMBER = {"calinski_harabasz", "auc_probe", "accuracy_probe", "dprime"}
"""Metrics of which the number of rows is a part: in a factor, or against a penalty."""


def repeated(x, label, times, *, y=None, pair=None):
    """Texts as they are, and with each text (each pair) as often as `times` says."""
    n = len(label)
    pair = np.full(n, -1) if pair is None else pair
    fold = folds_of(label, pair)
    rows = np.repeat(np.arange(n), times)
    number = np.concatenate([np.arange(t) for t in times])  # of the copy
    pairs = np.where(pair[rows] < 0, -1, number * (pair.max() + 1) + pair[rows])
    runs = []
    for i, pair_of, text in ((np.arange(n), pair, np.arange(n)), (rows, pairs, rows)):
        states = {"a": {"en": x[:, :, i]}} | ({} if y is None else {"b": {"en": y[:, :, i]}})
        one = {"pair": {"en": pair_of}, "fold": {"en": fold[i]}, "text": {"en": text}}
        runs.append(stand_in(states, {"en": label[i]}, **one))
    return runs


def alike(once, thrice, name, parts):
    """Whether numbers agree within two hundredths of the width of the interval, or of the value."""
    one, three = once.sel(metric=name), thrice.sel(metric=name)
    size = float(one["high"] - one["low"])
    size = size if math.isfinite(size) and size > 0 else abs(float(one[parts[0]]))
    return all(
        abs(float(three[part]) - float(one[part])) <= 0.03 * size
        for part in parts
        if math.isfinite(float(one[part]))
    )


@pytest.mark.parametrize("paired", [False, True])
def test_three_copies_of_everything_change_nothing(paired):
    rng = np.random.default_rng(0)
    if paired:
        x, label, pair = toy_pairs(pairs=120, width=16, noise=0.6)
    else:
        x, label = planted(n=240, width=24)
        pair = None
    y = x + 0.3 * rng.standard_normal(x.shape) + 0.2 * label[:, None]
    once, thrice = repeated(x, label, np.full(len(label), 3), y=y, pair=pair)
    options = {"metrics": "all", "bootstraps": 60, "permutations": 99, "force": True}
    one, three = (separation(run, models="a", **options).squeeze() for run in (once, thrice))
    assert float(three["n0"]) == 3 * float(one["n0"])
    left_out = BY_NUMBER
    for name in set(METRICS) - left_out:
        if one["refused"].sel(metric=name) == "":
            assert alike(one, three, name, ("value", "low", "high", "floor")), name
            p = (float(found["p"].sel(metric=name)) for found in (one, three))
            assert next(p) == pytest.approx(next(p), abs=0.03, nan_ok=True), name
    for name in left_out - ({"nn_accuracy"} if paired else set()):  # refused on pairs
        width = [float((found["high"] - found["low"]).sel(metric=name)) for found in (one, three)]
        assert width[1] >= 0.9 * width[0], name
    one, three = (
        compare(run, base="a", aligned="b", **options).squeeze() for run in (once, thrice)
    )
    for name in set(METRICS) - left_out:
        if one["refused"].sel(metric=name) == "":
            assert alike(one, three, name, ("difference", "low", "high")), name
            for p in ("p", "p_family"):
                found = (float(result[p].sel(metric=name)) for result in (one, three))
                assert next(found) == pytest.approx(next(found), abs=0.04, nan_ok=True), name


def test_the_nearest_text_of_a_text_is_not_its_copy():
    rng = np.random.default_rng(0)
    x, label = rng.standard_normal((1, 1, 200, 8)), np.tile([0, 1], 100)
    _, twice = repeated(x, label, np.full(200, 2))
    found = separation(twice, metrics=["nn_accuracy"], bootstraps=2, permutations=49).squeeze()
    assert 0.3 < float(found["value"]) < 0.7
    assert float(found["p"]) > 0.05


def uneven(rng, n=120, width=12, shift=0.0):
    """One text in ten is there ten times; the labels say nothing unless there is a shift."""
    spread = 2 * np.exp(-0.25 * np.arange(width))
    label = rng.permutation(np.repeat([0, 1], n // 2))
    x = (rng.standard_normal((n, width)) + shift * label[:, None]) * spread
    return x[None, None], label, np.where(rng.random(n) < 0.1, 10, 1)


def test_a_permutation_shrinks_as_the_labels_it_stands_for():
    """Which class has the copies decides how many texts a covariance is worth."""
    x, label, times = uneven(np.random.default_rng(0))
    rows = np.repeat(np.arange(len(label)), times)
    name = "bhattacharyya_shrunk_pc10"
    options = {"layers": ["embed"], "poolings": ["mean"], "force": True}

    def estimated(label, permutations):
        run = stand_in({"a": {"en": x[:, :, rows]}}, {"en": label}, text={"en": rows})
        ((cells,),) = read_cells(run, ["a"], "en", permutations=permutations, **options)
        return cells, metric(name).estimate(cells)[0]

    cells, found = estimated(label[rows], 20)
    there = [
        float(estimated(permuted, 0)[1].value)
        for permuted in cells.resamples.permuted.numpy().astype(np.int64)
    ]
    # The fourth powers behind the weight are about the means of the true classes.
    assert float(found.null[0, 1:].mean()) == pytest.approx(np.mean(there), rel=0.05)


NAMES = [
    name
    for name, entry in METRICS.items()
    if not entry.paired and not entry.alias_of and name != "tpr_at_1_fpr"  # needs more texts
]


def simulated(draws, names, shift=0.0):
    """[draw, metric] value, low, high, floor and p of fresh texts with uneven copies."""
    rng = np.random.default_rng(3)
    found = []
    for r in range(draws):
        _, run = repeated(*uneven(rng, shift=shift))
        options = {"bootstraps": 60, "permutations": 59, "seed": r, "force": True}
        one = separation(run, metrics=names, **options).squeeze()
        found.append([one[part].to_numpy() for part in ("value", "low", "high", "floor", "p")])
    return np.moveaxis(np.array(found), 1, 0)


def test_repeated_texts_with_random_labels_reject_as_often_as_they_say():
    names = ["rho_adjusted", "mean_shift", "energy_distance", "auc_direction"]
    value, low, high, floor, p = simulated(60, names)
    for i, name in enumerate(names):
        # Sixty tests at one in five: 12 expected, at most 22 in all but one of a thousand cases.
        assert (p[:, i] <= 0.2).sum() <= 22, name
        assert ((low <= value.mean(0)) & (value.mean(0) <= high))[:, i].mean() >= 0.84, name
        off = value[:, i].mean() - floor[:, i].mean()
        assert abs(off) < 3.5 * value[:, i].std() / math.sqrt(60), name


@pytest.mark.slow
def test_every_metric_keeps_its_word_on_repeated_texts():
    value, low, high, floor, p = simulated(300, NAMES)
    for i, name in enumerate(NAMES):
        entry = METRICS[name]
        if entry.null != NONE:
            # 60 expected of 300; 25 is five standard deviations below, 85 three and a half above.
            assert 25 <= (p[:, i] <= 0.2).sum() <= 85, name
            # The floor of an accuracy is not the mean of the null; and characters that hold nothing
            # can only win by being combined (explain auc_increment).
            if "accuracy" not in name and name != "auc_increment":
                off = value[:, i].mean() - floor[:, i].mean()
                assert abs(off) < 4 * value[:, i].std() / math.sqrt(300), name
    value, low, high, _, _ = simulated(300, NAMES, shift=0.5)
    covered = ((low <= value.mean(0)) & (value.mean(0) <= high)).mean(0)
    for name, share in zip(NAMES, covered, strict=True):
        assert METRICS[name].interval == NONE or share >= 0.87, name


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.booleans())
def test_draws_treat_a_unit_as_one(seed, n, paired):
    rng = np.random.default_rng(seed)
    label, text = rng.integers(0, 2, n), rng.integers(0, max(1, n // 2), n)
    pair = np.full(n, -1)
    if paired:
        label[: n // 2 * 2] = np.tile([0, 1], n // 2)
        pair[: n // 2 * 2] = np.where(rng.random(n // 2) < 0.6, np.arange(n // 2), -1).repeat(2)
    drawn = resamples.draw(
        find_units(label, pair, text),
        bootstraps=5,
        permutations=7,
        seed=seed % 1000,
        key="en",
    )
    for i, j in np.argwhere(text[:, None] == text):
        if label[i] == label[j]:
            assert drawn.unit[i] == drawn.unit[j]
            assert (drawn.counts[:, i] == drawn.counts[:, j]).all()
            assert (drawn.permuted[:, i] == drawn.permuted[:, j]).all()
    for number in np.unique(pair[pair >= 0]):
        first, second = np.flatnonzero(pair == number)
        assert drawn.unit[first] == drawn.unit[second]
        assert (drawn.permuted[:, first] != drawn.permuted[:, second]).all()
    first = np.unique(drawn.unit, return_index=True)[1]
    of_unit = np.bincount(drawn.unit, weights=label), np.bincount(drawn.unit)
    pure = first[(of_unit[0] == 0) | (of_unit[0] == of_unit[1])]
    assert (drawn.permuted[:, pure].sum(1) == label[pure].sum()).all()
    assert int(drawn.counts.max()) <= 255


def test_pairs_with_a_text_in_common_are_swapped_together():
    """Two rewrites of one harmful text, and a third pair that shares one of the rewrites."""
    label, pair = np.tile([0, 1], 4), np.repeat(np.arange(4), 2)
    text = np.array([0, 9, 1, 9, 1, 8, 2, 7])  # pairs 0-1 share text 9, pairs 1-2 text 1
    drawn = resamples.draw(
        find_units(label, pair, text),
        bootstraps=20,
        permutations=40,
        seed=0,
        key="en",
    )
    assert drawn.unit.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert len(np.unique(drawn.permuted[:, :6].numpy(), axis=0)) == 2
    assert len(np.unique(drawn.permuted.numpy(), axis=0)) == 4


def test_a_text_with_both_labels_is_two_units():
    x, label = planted(n=160, width=6, shift=0.0)
    text = np.concatenate([np.arange(80), np.arange(20, 100)])
    x[:, :, 80:140] = x[:, :, 20:80]
    run = stand_in({"m": {"en": x}}, {"en": label}, text={"en": text}, fold={"en": text % 10})
    found = separation(run, metrics="all", bootstraps=10, permutations=19, force=True).squeeze()
    assert float(found["value"].sel(metric="dunn")) == 0
    assert float(found["p"].sel(metric="rho_adjusted")) > 0.5
    assert float(found["value"].sel(metric="auc_direction")) < 0.6


def test_a_class_of_few_different_texts_is_refused():
    x, label = planted(n=60, width=6)
    run = stand_in(
        {"m": {"en": np.repeat(x[:, :, ::5], 10, axis=2)}},
        {"en": np.repeat(label[::5], 10)},
        text={"en": np.repeat(np.arange(12), 10)},
    )
    found = separation(run, metrics=["rho"], bootstraps=5, permutations=5).squeeze()
    assert found["refused"].item() == (
        "metrics need 10 different texts per class; the smaller class has 6"
    )
    everything = stand_in(
        {"m": {"en": x}}, {"en": label}, text={"en": np.zeros(60, int)}, fold={"en": label * 0}
    )
    found = separation(everything, bootstraps=5, permutations=5)
    assert found["refused"].str.contains("the smaller class has 1").all()


def test_copies_are_one_unit_where_pairs_are_ignored():
    x, label, pair = toy_pairs(pairs=60, width=8)
    once, thrice = repeated(x, label, np.full(120, 3), pair=pair)
    width = []
    for run in (once, thrice):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = separation(run, metrics=["rho_adjusted"], paired=False).squeeze()
        width.append(float(one["high"] - one["low"]))
    assert width[1] == pytest.approx(width[0], rel=1e-6)


def test_copies_do_not_shrink_the_transfer_of_directions():
    x, label = planted(n=120, width=8)
    width = []
    for run in repeated(x, label, np.full(120, 3)):
        found = directions(run).squeeze()
        width.append(float(found["transfer_high"] - found["transfer_low"]))
    assert width[1] == pytest.approx(width[0], rel=0.01)


def test_copies_of_parallel_texts_change_nothing():
    rng = np.random.default_rng(0)
    topic = rng.standard_normal((40, 6))
    label, item = np.tile([0, 1], 20), np.arange(40)
    found = []
    for times in (1, 3):
        rows = np.tile(np.arange(40), times)
        states = {lang: (topic + 0.1 * i)[rows][None, None] for i, lang in enumerate(("en", "de"))}
        text = {lang: rows + 100 * i for i, lang in enumerate(states)}
        items = {lang: np.arange(len(rows)) if times == 3 else item for lang in states}
        labels = dict.fromkeys(states, label[rows])
        found.append(parallel(stand_in({"m": states}, labels, item=items, text=text)))
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], err_msg=name)
    assert float(found[0]["semantic"].squeeze()) > 0.1
