"""Linear CKA of two models: the textbook, planted alignment, other projections, intervals."""

import math

import numpy as np
import pytest
import torch
from oracle import planted, stand_in

from safetyspace_fast.analysis import compare
from safetyspace_fast.analysis.cka import hsic_shares

QUICK = {"metrics": "rho", "bootstraps": 0, "permutations": 0}
SPREAD = np.exp(-0.03 * np.arange(96))
"""Sixteen components leave much out."""


def textbook(x, y):
    """Debiased CKA from n x n matrices, float64."""

    def hsic(a, b):
        a, b = a - a.mean(0), b - b.mean(0)
        k, h, n = a @ a.T, b @ b.T, len(a)
        np.fill_diagonal(k, 0)
        np.fill_diagonal(h, 0)
        one = np.ones(n)
        middle = (one @ k @ one) * (one @ h @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ h) + middle - 2 / (n - 2) * one @ k @ h @ one) / (n * (n - 3))

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


def cka(x, y, label, **options):
    run = stand_in({"base": {"en": x}, "aligned": {"en": y}}, {"en": label}, **options)
    return compare(run, base="base", aligned="aligned", **QUICK).squeeze()


def two(n, seed, noise=0.6):
    x, label = planted(n=n, width=96, spread=SPREAD, seed=seed)
    move = np.random.default_rng([seed, 1]).standard_normal(x.shape) * SPREAD
    return x, x + noise * move, label


def test_hsic_is_the_textbook_s():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 5)), rng.standard_normal((20, 4))
    y[:, 0] += x[:, 0]
    one, other = (torch.tensor(a - a.mean(0)) for a in (x, y))
    parts = [hsic_shares(a, b).sum() for a, b in ((one, other), (one, one), (other, other))]
    assert float(parts[0] / (parts[1] * parts[2]).sqrt()) == pytest.approx(textbook(x, y))


def test_other_projections_give_the_cka_of_the_full_width():
    x, y, label = two(300, seed=0)
    exact = textbook(x[0, 0], y[0, 0])
    assert 0.6 < exact < 0.8
    found = [float(cka(x, y, label, seed=seed)["cka"]) for seed in range(8)]
    assert max(found) - min(found) < 0.01
    assert np.mean(found) == pytest.approx(exact, abs=0.002)


def test_equal_models_are_alike_and_the_order_does_not_matter():
    x, y, label = two(80, seed=0)
    assert float(cka(x, x, label)["cka"]) == pytest.approx(1, abs=1e-9)
    there, back = cka(x, y, label), cka(y, x, label)
    for name in ("cka", "cka_low", "cka_high"):
        assert float(there[name]) == pytest.approx(float(back[name]), rel=1e-9)


def test_a_few_texts_of_noise_have_none_rather_than_an_infinite_one():
    """Unbiased, the HSIC of such a model with itself may be below 0."""
    label = np.repeat([0, 1], 12)
    x, y = np.random.default_rng(0).standard_normal((2, 20, 1, 24, 2000))
    found = cka(x, y, label)
    known = np.isfinite(found["cka"].to_numpy())
    assert 2 < known.sum() < 20
    for name in ("cka", "cka_low", "cka_high"):
        assert not np.isinf(found[name]).any()
        np.testing.assert_array_equal(np.isfinite(found[name]), known)


def test_models_without_anything_in_common_have_none():
    label = np.repeat([0, 1], 100)
    x, y = np.random.default_rng(0).standard_normal((2, 1, 1, 200, 96)) * SPREAD
    assert abs(float(cka(x, y, label)["cka"])) < 0.05


def test_the_interval_covers_the_cka_of_the_population():
    shift = np.full(96, 1 / np.sqrt(96))
    base = np.diag(SPREAD**2) + np.outer(shift, shift) / 4
    aligned = base + 0.36 * np.diag(SPREAD**2)
    truth = np.linalg.norm(base) / np.linalg.norm(aligned)  # cov(x, y) is that of x
    held = 0
    for seed in range(40):
        found = cka(*two(100, seed=seed))
        held += float(found["cka_low"]) <= truth <= float(found["cka_high"])
    assert held >= 35
