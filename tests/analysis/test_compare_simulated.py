"""Intervals, families and verdicts of differences keep their rates in simulated models."""

import numpy as np
import pytest
from oracle import planted, stand_in

from safetyspace_fast.analysis import compare
from safetyspace_fast.analysis.families import METRICS, metric
from safetyspace_fast.analysis.metric import NONE
from safetyspace_fast.analysis.reading import read_cells

QUICK = {"bootstraps": 30, "permutations": 9}
FAMILY = ["rho_adjusted", "auc_direction", "bhattacharyya_pc2"]
PAIRED = [name for name, entry in METRICS.items() if entry.interval != NONE and entry.paired]
UNPAIRED = [
    name
    for name, entry in METRICS.items()
    if entry.interval != NONE and not entry.paired and not entry.alias_of
    if name != "tpr_at_1_fpr"  # needs more texts
]
WIDTH = 12
LAYERS = 10
"""Draws that are computed together."""
SPREAD = 2 * np.exp(-0.25 * np.arange(WIDTH))


def two_models(rng, base, aligned):
    """Classes of 150 whose texts both models see, each with noise of its own, moved by a shift."""
    label = np.repeat([0, 1], 150)
    content = rng.standard_normal((300, WIDTH)) * np.where(label[:, None] == 1, 0.8, 1.2)
    where = 0.5 * (np.arange(WIDTH) < 4)
    states = [
        SPREAD
        * (content + 0.5 * rng.standard_normal(content.shape) + step * where * label[:, None])
        for step in (base, aligned)
    ]
    return states, label, None


def two_models_of_pairs(rng, base, aligned):
    """Pairs that share their content, seen by two models that share it too."""
    label, pair = np.tile([0, 1], 150), np.repeat(np.arange(150), 2)
    content = 3 * SPREAD * np.repeat(rng.standard_normal((150, WIDTH)), 2, axis=0)
    text = rng.standard_normal(content.shape)
    states = [
        content + 0.5 * (text + 0.7 * rng.standard_normal(text.shape) + step * label[:, None])
        for step in (base, aligned)
    ]
    return states, label, pair


def coverage_of_differences(make, steps, names, draws, seed=21, components="own"):
    """How often intervals of the difference, and of its excess over English, hold its mean.

    `steps` are the shifts of both models by language. As in `test_uncertainty.coverage`.
    """
    rng = np.random.default_rng(seed)
    parts = ("difference", "low", "high", "excess", "excess_low", "excess_high")
    found = []
    for first in range(0, draws, LAYERS):  # a layer is a draw: twice as fast as a store
        states, labels, pairs = {"base": {}, "aligned": {}}, {}, {}
        drawn = [[make(rng, *step) for step in steps.values()] for _ in range(LAYERS)]
        for lang, of_lang in zip(steps, zip(*drawn, strict=True), strict=True):
            _, labels[lang], pairs[lang] = of_lang[0]
            for i, name in enumerate(states):
                states[name][lang] = np.stack([both[i] for both, _, _ in of_lang])[:, None]
        run = stand_in(states, labels, pair=None if pairs["en"] is None else pairs)
        one = compare(
            run,
            base="base",
            aligned="aligned",
            metrics=names,
            permutations=0,
            seed=first,
            components=components,
        ).squeeze("pooling")
        assert (one["refused"] == "").all()
        one = one.transpose("metric", "lang", "layer", ...)
        found.append([one[part].to_numpy() for part in parts])
    value, low, high, excess, excess_low, excess_high = np.concatenate(found, -1)
    covered = {}
    for what, middle, lower, upper, lang in (
        ("difference", value, low, high, 0),
        ("excess", excess, excess_low, excess_high, 1),
    ):
        mean = middle.mean(-1, keepdims=True)
        share = ((lower <= mean) & (mean <= upper)).mean(-1)[:, lang]
        covered |= {f"{what} {name}": float(x) for name, x in zip(names, share, strict=True)}
    return covered


FURTHER = {"en": (0.6, 1.0), "de": (0.6, 0.7)}
TOO_WIDE = ["auc_increment", "bhattacharyya_mean_pc2", "mahalanobis_pc2"]
"""See `test_intervals_of_differences_that_are_known_to_be_too_wide`."""
MOVES = [
    pytest.param(
        two_models, FURTHER, [name for name in UNPAIRED if name not in TOO_WIDE], id="further"
    ),
    # Davies-Bouldin divides by what is not there: its interval has no upper end, and always covers.
    pytest.param(
        two_models,
        {"en": (0.0, 1.0), "de": (0.0, 0.5)},
        [name for name in UNPAIRED if name not in ("davies_bouldin", "auc_increment")],
        id="from nothing",
    ),
    pytest.param(
        two_models_of_pairs, {"en": (0.3, 0.6), "de": (0.3, 0.4)}, PAIRED, id="pairs further"
    ),
    pytest.param(
        two_models_of_pairs, {"en": (0.0, 0.5), "de": (0.0, 0.2)}, PAIRED, id="pairs from nothing"
    ),
    pytest.param(
        two_models,
        {"en": (0.0, 0.0), "de": (0.0, 0.0)},
        [
            name
            for name in UNPAIRED
            if ("auc" in name or "accuracy" in name) and name != "auc_increment"
        ],
        id="noise",
    ),
]


@pytest.mark.parametrize(("make", "steps", "names"), MOVES[:1] + MOVES[2:3])
def test_intervals_of_differences_cover(make, steps, names):
    # Thirty draws of a 95 % event: below 24 happens less than once in a thousand times.
    for name, share in coverage_of_differences(make, steps, names, 30).items():
        assert share >= 0.8, name


def outside(make, steps, names, components="own"):
    """The numbers whose true coverage is not in 92 to 98 %, and their coverage.

    What covers 95 % is outside of that over 300 draws once in eighty times, and there are 152
    numbers: what is outside is counted again, over a thousand other draws. Twice outside are 84 %
    of the numbers that cover 90 %, 77 % of those that cover 98.7 %, and one in 3000 of those that
    cover 94 or 96.5 %.
    """

    def once(names, draws, seed):
        found = coverage_of_differences(make, steps, names, draws, seed, components)
        print(*(f"{share:.3f}  {name}" for name, share in found.items()), sep="\n")
        return {name: share for name, share in found.items() if not 0.92 <= share <= 0.98}

    if not (first := once(names, 300, 21)):
        return {}
    again = [name for name in names if {f"difference {name}", f"excess {name}"} & first.keys()]
    second = once(again, 1000, 22)
    return {name: second[name] for name in first.keys() & second.keys()}


@pytest.mark.slow
@pytest.mark.parametrize("components", ["own", "union"])
@pytest.mark.parametrize(("make", "steps", "names"), MOVES)
def test_intervals_of_differences_cover_at_the_nominal_rate(make, steps, names, components):
    if components != "own":
        names = [name for name in names if METRICS[name].components]
        if not names:
            pytest.skip("no metric of these is in components")
    assert not outside(make, steps, names, components)


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="covers 98.3 to 100 %, as the README of analysis says")
@pytest.mark.parametrize("name", TOO_WIDE)
def test_intervals_of_differences_that_are_known_to_be_too_wide(name):
    assert not outside(two_models, FURTHER, [name])


def layers_of_two_models(rng, steps, *, layers=4, n=80, width=8, first=1):
    """Layers that are alike, as a model's are; `steps` by language: how far the last one moves.

    The first two dimensions are `first` times as wide as the others.
    """
    label = np.repeat([0, 1], n // 2)
    states, labels = {"base": {}, "aligned": {}}, {}
    for lang, step in steps.items():
        content = rng.standard_normal((n, width))
        whole = [
            content + 0.4 * rng.standard_normal((layers, 1, n, width)) + 0.3 * label[:, None]
            for _ in states
        ]
        whole[1][-1] += step * label[:, None]
        for name, x in zip(states, whole, strict=True):
            states[name][lang] = x * np.where(np.arange(width) < 2, first, 1)
        labels[lang] = label
    return stand_in(states, labels, proj=width)


def test_one_layer_that_moves_stands_out_of_the_family():
    rng = np.random.default_rng(0)
    run = layers_of_two_models(rng, {"en": 0.0, "de": 1.0, "fr": 0.0}, n=160, first=3)
    options = {"base": "base", "aligned": "aligned", "metrics": [*FAMILY, "dunn"]}
    found = compare(run, **options, bootstraps=99, permutations=99).squeeze()
    for name in FAMILY:
        one = found.sel(metric=name)
        for part in ("p_family", "excess_p_family"):
            moved = one[part].sel(lang="de").isel(layer=-1)
            assert float(moved) <= 0.02, (name, part)
            rest = np.delete(one[part].to_numpy().ravel(), 10)
            assert np.nanmin(rest) > float(moved), (name, part)
        assert one["excess_p_family"].sel(lang="en").isnull().all()
        assert (one["p_family"] >= 0.2 * one["p"]).all()
    assert found["p_family"].sel(metric="dunn").isnull().all()
    alone = compare(run, **options, reference=None, **QUICK)
    assert "excess_p_family" not in alone
    assert not {"excess", "excess_p"} & set(alone)


def false_stars(draws, seed=1, **options):
    """How many results have a star on a difference, and on an excess, though nothing moves."""
    rng = np.random.default_rng(seed)
    count = np.zeros(2)
    for r in range(draws):
        run = layers_of_two_models(rng, {"en": 0.0, "de": 0.0, "fr": 0.0}, **options)
        found = compare(
            run, base="base", aligned="aligned", metrics=FAMILY, seed=r,
            bootstraps=10, permutations=99,
        )  # fmt: skip
        count += [float(found[part].min()) <= 0.05 for part in ("p_family", "excess_p_family")]
    return count


@pytest.mark.parametrize("first", [1, 30])
def test_a_result_without_any_difference_has_a_star_once_in_twenty_times(first):
    # Two of forty are expected, and more than seven once in two hundred and fifty times.
    assert (false_stars(40, n=60, layers=2, first=first) <= 7).all()


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 30])
@pytest.mark.parametrize("n", [60, 200])
def test_the_family_of_differences_keeps_its_word(n, first):
    assert (false_stars(400, n=n, first=first) <= 0.06 * 400).all()


def test_other_ends_belong_to_the_same_interval():
    x, label = planted(n=240, width=12, shift=1.5)
    run = stand_in({"m": {"en": x}}, {"en": label})
    ((cells,),) = read_cells(run, ["m"], "en", layers=["embed"], poolings=["mean"], bootstraps=30)
    for name in UNPAIRED:
        one, _ = metric(name).estimate(cells)
        assert one.ends is not None, name
        for own, same in zip((one.low, one.high), one.ends(), strict=True):
            np.testing.assert_allclose(own, same, rtol=1e-12, err_msg=name)
        low, high = one.ends(confidence=0.9)
        assert float(one.low) < float(low) < float(high) < float(one.high), name


def declared_at_the_border(draws, n, names, seed=3):
    """How often a difference is called no change though it is the largest that is none.

    Every layer is one draw. The mean of all differences stands for the true one.
    """
    rng = np.random.default_rng(seed)
    label = np.repeat([0, 1], n // 2)
    content = rng.standard_normal((draws, 1, n, 6))
    noise = 0.6 * rng.standard_normal((2, *content.shape))
    move = np.array([1.0, 0.7])[:, None, None, None, None]
    moved = content + noise
    moved[..., 0] += (move * label[:, None])[..., 0]
    run = stand_in({"base": {"en": moved[0]}, "aligned": {"en": moved[1]}}, {"en": label}, proj=6)
    options = {"base": "base", "aligned": "aligned", "bootstraps": 50, "permutations": 0}
    true = compare(run, **options, metrics=names)["difference"].mean("layer").squeeze()
    return {
        name: float(
            compare(run, **options, metrics=name, equivalence=abs(float(true.sel(metric=name))))[
                "verdict"
            ]
            .str.startswith("no change")
            .mean()
        )
        for name in names
    }


BORDER = ["auc_direction", "accuracy_direction", "auc_probe", "rho_adjusted", "silhouette_pc2"]


def test_a_difference_at_the_border_is_rarely_called_no_change():
    # Five of a hundred are expected, and more than thirteen once in two thousand times.
    for name, share in declared_at_the_border(100, 100, BORDER[:2]).items():
        assert share <= 0.13, name


@pytest.mark.slow
@pytest.mark.parametrize("n", [24, 100, 1000])
def test_a_difference_at_the_border_is_called_no_change_in_five_of_a_hundred(n):
    found = declared_at_the_border(400, n, BORDER)
    # 400 draws know a rate of 5 % to 1.1 %.
    assert not {name: share for name, share in found.items() if share > 0.073}
