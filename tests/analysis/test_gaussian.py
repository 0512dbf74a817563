"""Gaussian distances against other libraries, brute force and known truths."""

import math

import numpy as np
import pytest
import torch
from oracle import stand_in
from scipy.linalg import sqrtm
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf
from toys import classes, moments_of, tensors

from safetyspace_fast.analysis.families import gaussian, metric
from safetyspace_fast.analysis.reading import read_cells


def gaussian_terms(x, label, k):
    xt, _, weights = tensors(x, label)
    found = moments_of(xt[:, :k], weights)
    t1, t2 = gaussian.bhattacharyya(found.shift, found.cov)
    return t1[0], t2[0]


def ancestors_bhattacharyya(a, b):
    """The ancestors' formula, with a plain determinant."""
    s0, s1 = np.cov(a.T), np.cov(b.T)
    s = (s0 + s1) / 2
    d = b.mean(0) - a.mean(0)
    det = np.linalg.det
    t1 = d @ np.linalg.solve(s, d) / 8
    return t1, 0.5 * np.log(det(s) / np.sqrt(det(s0) * det(s1)))


@pytest.mark.parametrize("k", [2, 5, 8])
def test_bhattacharyya_is_the_ancestors_for_every_leading_k(k):
    x, label = classes()
    t1, t2 = gaussian_terms(x, label, 8)
    expected = ancestors_bhattacharyya(x[label == 0][:, :k], x[label == 1][:, :k])
    assert float(t1[k - 1]) == pytest.approx(expected[0], rel=1e-10)
    assert float(t2[k - 1]) == pytest.approx(expected[1], rel=1e-9)


@pytest.mark.parametrize(
    ("k", "n"), [(2, 100), (10, 100), (32, 100), (2, 400), (10, 400), (64, 400)]
)
def test_bhattacharyya_floor_over_sixty_draws(k, n):
    rng = np.random.default_rng(k * n)
    label = np.repeat([0, 1], n)
    found = [
        sum(float(term[-1]) for term in gaussian_terms(rng.standard_normal((2 * n, k)), label, k))
        for _ in range(60)
    ]
    floor = sum(gaussian.bhattacharyya_floor(k, n, n))
    # Three per cent, or what sixty draws leave open where a draw varies more than the floor.
    error = 3 * np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - floor) < max(0.03 * floor, error)
    assert error < 0.5 * floor


def test_bhattacharyya_floor_is_the_known_table():
    known = {
        (100, 2): 0.0127, (100, 10): 0.173, (100, 32): 1.70, (100, 64): 8.36,
        (400, 2): 0.0031, (400, 10): 0.041, (400, 32): 0.366, (400, 64): 1.46,
        (2500, 2): 0.0005, (2500, 10): 0.0065, (2500, 32): 0.056, (2500, 64): 0.217,
    }  # fmt: skip
    for (n, k), floor in known.items():
        digits = len(str(floor).split(".")[1])
        assert round(sum(gaussian.bhattacharyya_floor(k, n, n)), digits) == pytest.approx(
            floor, rel=0.01
        )


def test_bhattacharyya_does_not_feel_an_affine_map():
    x, label = classes(200, 150)
    rng = np.random.default_rng(3)
    mapping = rng.standard_normal((8, 8)) + 3 * np.eye(8)
    before = gaussian_terms(x, label, 8)
    after = gaussian_terms((x - x.mean(0)) @ mapping, label, 8)
    for a, b in zip(before, after, strict=True):
        assert float(a[-1]) == pytest.approx(float(b[-1]), rel=1e-12)


@pytest.mark.parametrize(("k", "variance"), [(100, 1e-4), (200, 1e4)])
def test_bhattacharyya_where_a_plain_determinant_is_zero_or_infinite(k, variance):
    rng = np.random.default_rng(k)
    n = 800
    label = np.repeat([0, 1], n)
    x = math.sqrt(variance) * rng.standard_normal((2 * n, k))
    with np.errstate(all="ignore"):
        plain = sum(ancestors_bhattacharyya(x[:n], x[n:]))
        assert not math.isfinite(plain)
    t1, t2 = gaussian_terms(x, label, k)
    floor = sum(gaussian.bhattacharyya_floor(k, n, n))
    assert float(t1[-1] + t2[-1]) == pytest.approx(floor, rel=0.05)


def test_singular_covariances_have_no_value():
    x, label = classes()
    x[:, 4] = x[:, 2] + x[:, 3]
    t1, t2 = gaussian_terms(x, label, 8)
    assert bool(t1.isnan().all())
    assert bool(t2.isnan().all())


def test_ledoit_wolf_is_scikit_learns():
    x, _ = classes()
    cov, share = sklearn_ledoit_wolf(x)
    fourth = torch.tensor((np.square(x - x.mean(0)).sum(1) ** 2).mean())
    n = torch.tensor(len(x)).double()
    found = gaussian.ledoit_wolf(torch.tensor(np.cov(x.T)), fourth, n, n)
    assert float(found) == pytest.approx(share, rel=1e-10)
    plain = torch.tensor(np.cov(x.T, ddof=0))
    np.testing.assert_allclose(gaussian.shrink(plain, found), cov, rtol=1e-10)


def test_mahalanobis_is_the_mean_over_all_disjoint_texts():
    x, label = classes(9, 8, width=2)
    xt, _, weights = tensors(x, label)
    found = float(gaussian.mahalanobis(moments_of(xt, weights), torch.ones(2))[0])
    a, b = x[label == 0], x[label == 1]
    pooled = (8 * np.cov(a.T) + 7 * np.cov(b.T)) / 15
    inverse = np.linalg.inv(pooled)
    products = [
        (b[i] - a[j]) @ inverse @ (b[k] - a[h])
        for i in range(8) for k in range(8) if k != i
        for j in range(9) for h in range(9) if h != j
    ]  # fmt: skip
    assert found == pytest.approx(np.mean(products), rel=1e-9)


def test_frechet_is_scipys_square_root():
    x, label = classes()
    xt, _, weights = tensors(x, label)
    moments = moments_of(xt, weights)
    s0, s1 = (np.cov(x[label == c].T) for c in (0, 1))
    d = x[label == 1].mean(0) - x[label == 0].mean(0)
    root = sqrtm(s0)
    expected = d @ d + np.trace(s0 + s1 - 2 * np.real(sqrtm(root @ s1 @ root)))
    assert float(gaussian.frechet(moments.shift, moments.cov)[0]) == pytest.approx(
        expected, rel=1e-9
    )
    same = torch.stack([torch.tensor(s0)] * 2)
    assert float(gaussian.frechet(torch.zeros(8).double(), same)) == pytest.approx(0, abs=1e-6)


def test_frechet_is_pots_bures_wasserstein():
    from ot.gaussian import bures_wasserstein_distance

    x, label = classes()
    a, b = x[label == 0], x[label == 1]
    cov = np.stack([np.cov(a.T), np.cov(b.T)])
    shift = b.mean(0) - a.mean(0)
    expected = bures_wasserstein_distance(a.mean(0), b.mean(0), cov[0], cov[1])
    found = gaussian.frechet(torch.tensor(shift), torch.tensor(cov))
    assert float(found) == pytest.approx(float(expected) ** 2, rel=1e-9)


DRAWN = [
    "rho_pc3", "bhattacharyya_pc3", "bhattacharyya_shrunk_pc3", "bhattacharyya_mean_pc3",
    "bhattacharyya_cov_pc3", "mahalanobis_pc3", "frechet_pc3", "hotelling_pc3",
]  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_influence_in_components_is_that_of_leaving_texts_out(name):
    rng = np.random.default_rng(0)
    label, pair = np.tile([0, 1], 150), np.repeat(np.arange(150), 2)
    spread = np.exp(-0.2 * np.arange(20))
    x = spread * (rng.standard_normal((300, 20)) + 0.6 * label[:, None] * rng.standard_normal(20))
    x[label == 1] *= 1.2
    of_pairs = metric(name).paired

    def estimate(kept):
        run = stand_in(
            {"m": {"en": x[kept][None, None]}},
            {"en": label[kept]},
            pair={"en": pair[kept]} if of_pairs else None,
        )
        ((cells,),) = read_cells(run, ["m"], "en", layers=["embed"], poolings=["mean"])
        return metric(name).estimate(cells)[0]

    every = np.arange(300)
    whole = estimate(every)
    influence = whole.influence[0].numpy()
    moved, expected = [], []
    for i in range(0, 40, 2):
        left_out = [i, i + 1] if of_pairs else [i]
        moved.append(float(whole.value - estimate(np.delete(every, left_out)).value))
        expected.append(influence[left_out].sum())
    assert abs(influence.sum()) < 1e-8
    assert np.corrcoef(moved, expected)[0, 1] > 0.99
    assert np.std(moved) == pytest.approx(np.std(expected), rel=0.1)
