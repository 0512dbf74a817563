"""Cosines of harm directions whose truth is planted, and of noise."""

import numpy as np
import pytest
import torch
from oracle import folds_of
from scipy import stats

from safetyspace_fast.analysis.crossfit import (
    LEAST_RELIABILITY,
    FoldMeans,
    direction_cosine,
    weights_of_halves,
)
from safetyspace_fast.analysis.intervals import t_reach
from safetyspace_fast.analysis.significance import false_discovery, student_p


def means_of(x, label, fold):
    mean, count = np.zeros((2, 10, x.shape[1])), np.zeros((2, 10))
    for c, f in np.ndindex(2, 10):
        inside = (label == c) & (fold == f)
        count[c, f] = inside.sum()
        if inside.any():
            mean[c, f] = x[inside].mean(0) - x.mean(0)
    mean, count = torch.tensor(mean)[None], torch.tensor(count)[None]
    return FoldMeans(mean.flatten(1, 2), weights_of_halves(count))


def two_models(rng, *, n0=100, n1=100, width=40, shift=2.5, cosine=0.8, own=0.4, huge=1.0,
               heavy=False, parallel=True):  # fmt: skip
    """Two models that see the same texts, or two languages that do not."""

    def noise(*shape):
        return rng.standard_t(3, shape) / np.sqrt(3) if heavy else rng.standard_normal(shape)

    label = np.repeat([0, 1], [n0, n1])
    fold = folds_of(label, np.full(len(label), -1), seed=int(rng.integers(1 << 30)))
    content = noise(len(label), width)
    other = content + own * noise(len(label), width) if parallel else noise(len(label), width)
    scale = np.ones(width)
    scale[-1] = huge
    axes = np.zeros((2, width))
    axes[0, 0], axes[1, 0], axes[1, 1] = 1, cosine, np.sqrt(1 - cosine**2)
    both = (content + shift * np.outer(label, axes[0]), other + shift * np.outer(label, axes[1]))
    return direction_cosine(*(means_of(x * scale, label, fold) for x in both))


NOISE = [
    {},
    {"n0": 12, "n1": 12, "width": 2, "huge": 1e4},
    {"n0": 380, "n1": 20, "huge": 1000.0},
    {"huge": 30.0, "heavy": True},
    {"parallel": False, "huge": 1000.0},
]


def refused(options, draws, seed=0):
    rng = np.random.default_rng(seed)
    found = [two_models(rng, shift=0.0, cosine=1.0, **options) for _ in range(draws)]
    return np.mean([bool(one.value.isnan()) for one in found])


@pytest.mark.parametrize("options", NOISE)
def test_noise_has_no_cosine(options):
    # At most one in twenty is shown; below 50 of 60 happens once in a thousand times.
    assert refused(options, 60) >= 50 / 60


@pytest.mark.slow
@pytest.mark.parametrize("options", NOISE)
def test_noise_has_no_cosine_in_95_percent(options):
    assert refused(options, 1000) >= 0.94


PLANTED = [
    {"cosine": 0.8},
    {"cosine": 0.0},
    {"cosine": 0.6, "heavy": True, "shift": 3.0},
    {"cosine": 0.6, "n0": 190, "n1": 12, "shift": 6.0},
    {"cosine": 0.8, "parallel": False, "n0": 300, "n1": 300},
    {"cosine": 0.8, "n0": 12, "n1": 12, "shift": 6.0},
]


def covered(options, draws, seed=0):
    rng = np.random.default_rng(seed)
    found = [two_models(rng, **options) for _ in range(draws)]
    assert np.mean([bool(one.value.isnan()) for one in found]) < 0.3
    inside = [
        float(one.low) <= options["cosine"] <= float(one.high)
        for one in found
        if not one.value.isnan()
    ]
    return np.mean(inside), np.nanmedian([float(one.value) for one in found])


@pytest.mark.parametrize("options", PLANTED)
def test_a_planted_cosine_is_in_its_interval(options):
    share, median = covered(options, 60)
    # 57 of 60 are expected; below 50 once in a thousand times.
    assert share >= 0.83
    assert median == pytest.approx(options["cosine"], abs=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("options", PLANTED)
def test_cosines_cover_at_the_nominal_rate(options):
    share, _ = covered(options, 1000, seed=1)
    assert 0.92 <= share <= 0.98


def test_equal_directions_have_a_cosine_of_one_and_opposite_ones_of_minus_one():
    x = np.random.default_rng(0).standard_normal((200, 20))
    label = np.repeat([0, 1], 100)
    x[:, 0] += 3 * label
    one = means_of(x, label, folds_of(label, np.full(200, -1)))
    same = direction_cosine(one, one)
    assert float(same.value) == pytest.approx(1)
    assert float(same.low) == pytest.approx(1)
    against = direction_cosine(one, FoldMeans(-one.mean, one.weight))
    assert float(against.value) == pytest.approx(-1)
    assert float(same.reliability) > LEAST_RELIABILITY


@pytest.mark.parametrize("freedom", [2, 5, 9, 30, 1000])
def test_p_of_students_t(freedom):
    t = torch.tensor([0.0, 0.5, 2.0, 4.0, 8.0], dtype=torch.float64)
    found = student_p(t, torch.full_like(t, freedom))
    np.testing.assert_allclose(found, 2 * stats.t.sf(t.numpy(), freedom), rtol=0.02)
    assert t_reach(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=5e-3)


def test_false_discovery_rate_is_that_of_scipy_without_what_is_unknown():
    p = np.random.default_rng(0).uniform(size=50) ** 3
    found = false_discovery(torch.tensor(np.r_[p, np.nan]))
    np.testing.assert_allclose(found[:-1], stats.false_discovery_control(p))
    table = false_discovery(torch.tensor(p.reshape(2, -1)))
    np.testing.assert_array_equal(table.flatten(), found[:-1])
    assert false_discovery(torch.full((3,), torch.nan)).isnan().all()
    assert bool(found[-1].isnan())
