"""The formulas against other libraries, brute force and known truths."""

import math

import numpy as np
import pytest
import torch
from oracle import language_arrays
from scipy.linalg import sqrtm
from scipy.spatial.distance import pdist, squareform
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    calinski_harabasz_score,
    davies_bouldin_score,
    roc_auc_score,
    silhouette_score,
)

from safetyspace_fast.analysis import metrics as m


def classes(n0=60, n1=45, width=8, shift=0.7, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat([0, 1], [n0, n1]))
    x = rng.standard_normal((n0 + n1, width)) * np.exp(rng.standard_normal(width))
    x[label == 1] = x[label == 1] * 1.3 + shift
    return x, label


def tensors(x, label):
    y = torch.tensor(label)
    weights = torch.stack([(y == 0).double(), (y == 1).double()])[None]
    return torch.tensor(x), y, weights


def moments_of(x, weights):
    return m.moments(
        (weights.flatten(0, 1) @ m.products(x)).unflatten(-2, weights.shape[:2]),
        weights.sum(-1),
        x.shape[-1],
    )


def stored(x, label, seed=0):
    fold = np.random.default_rng(seed).permutation(len(x)) % 10
    projection = np.eye(x.shape[1])
    row, _, cell = language_arrays(x, label, fold, projection)
    return {k: torch.tensor(v).double() for k, v in (row | cell).items()}, torch.tensor(fold)


def full_width(x, label):
    arrays, _ = stored(x, label)
    shift_sq = (arrays["class_mean"][1] - arrays["class_mean"][0]).square().sum()
    return shift_sq, arrays["class_var"].sum(-1), torch.tensor(np.bincount(label)).double()


def test_moments_are_numpys_for_every_resample():
    x, label = classes()
    xt, y, _ = tensors(x, label)
    rng = np.random.default_rng(1)
    times = torch.tensor(rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=3)).double()
    weights = torch.stack([times * (y == 0), times * (y == 1)], 1)
    found = moments_of(xt.expand(2, -1, -1), weights)
    for r in range(3):
        for c in (0, 1):
            rows = np.repeat(x, weights[r, c].int().numpy(), axis=0)
            assert found.count[r, c] == len(rows)
            np.testing.assert_allclose(found.mean[1, r, c], rows.mean(0), rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(found.cov[1, r, c], np.cov(rows.T), rtol=1e-10, atol=1e-12)


def test_ratio_aliases_are_scikit_learns_and_xie_benis():
    x, label = classes()
    shift_sq, trace, count = full_width(x, label)
    n = float(count.sum())
    rho = m.between_ratio(shift_sq, trace, count)
    assert float(m.calinski_harabasz(rho, n)) == pytest.approx(
        calinski_harabasz_score(x, label), rel=1e-10
    )
    centres = [x[label == c].mean(0) for c in (0, 1)]
    compact = sum(((x[label == c] - centres[c]) ** 2).sum() for c in (0, 1))
    xie_beni = compact / (len(x) * ((centres[1] - centres[0]) ** 2).sum())
    assert float(m.xie_beni(rho, count)) == pytest.approx(xie_beni, rel=1e-10)
    adjusted = m.adjusted_ratio(rho, n)
    assert float(adjusted) == pytest.approx(float(1 - (1 - rho) * (n - 1) / (n - 2)), rel=1e-14)
    assert float(m.unadjusted_ratio(adjusted, n)) == pytest.approx(float(rho), rel=1e-12)


def test_standardized_ratio_is_the_mean_of_every_dimensions_own():
    x, label = classes()
    x[:, 3] = 5.0
    arrays, _ = stored(x, label)
    count = torch.tensor(np.bincount(label)).double()
    found = m.standardized_ratio(arrays["class_mean"], arrays["class_var"], count)
    kept = np.delete(x, 3, axis=1)
    ratios = []
    for column in kept.T:
        total = ((column - column.mean()) ** 2).sum()
        within = sum(((column[label == c] - column[label == c].mean()) ** 2).sum() for c in (0, 1))
        ratios.append(1 - within / total)
    assert float(found) == pytest.approx(np.mean(ratios), rel=1e-10)


def test_davies_bouldin_and_silhouettes_are_scikit_learns():
    x, label = classes()
    arrays, _ = stored(x, label)
    shift_sq, *_ = full_width(x, label)
    y = torch.tensor(label)
    value, _ = m.davies_bouldin(arrays["class_sqdist"], shift_sq, y)
    assert float(value) == pytest.approx(davies_bouldin_score(x, label), rel=1e-9)
    for name, metric in (("pair_sum", "euclidean"), ("cos_sum", "cosine")):
        own, other = m.mean_distances(arrays[name], y)
        value = m.silhouette_samples(own, other).mean()
        assert float(value) == pytest.approx(silhouette_score(x, label, metric=metric), abs=1e-9)


def test_labelled_silhouettes_are_scikit_learns_in_every_tile(monkeypatch):
    x, label = classes()
    x[7] = x[8]
    rng = np.random.default_rng(2)
    labels = np.stack([label, *(rng.permutation(label) for _ in range(3))])
    xt, many = torch.tensor(x), torch.tensor(labels).double()
    expected = [silhouette_score(x, row) for row in labels]
    cosine = [silhouette_score(x, row, metric="cosine") for row in labels]
    for tile_bytes in (1, 10_000, 32 << 20):
        monkeypatch.setattr(m, "TILE_BYTES", tile_bytes)
        found = m.labelled_distances(xt, many)
        np.testing.assert_allclose(found.silhouette, expected, atol=2e-6)
        np.testing.assert_allclose(m.labelled_cosine(xt, many), cosine, atol=2e-6)
        own, other = m.mean_distances(found.pair_sum, torch.tensor(label))
        exact = m.silhouette_samples(own, other).mean()
        assert float(exact) == pytest.approx(expected[0], abs=1e-9)


def test_labelled_statistics_of_texts_that_are_all_alike_or_zero():
    labels = torch.tensor([[0.0, 1, 0, 1, 0], [1, 1, 0, 0, 0]]).double()
    found = m.labelled_distances(torch.zeros(5, 3).double(), labels)
    assert found.silhouette.tolist() == [0, 0]
    assert found.energy.tolist() == [0, 0]
    x = torch.tensor([[0.0, 0], [1, 0], [0, 2], [3, 3], [0, 0]]).double()
    distance = 1 - x @ x.T / x.norm(dim=1).clamp_min(1e-9)[:, None] / x.norm(dim=1).clamp_min(1e-9)
    distance.fill_diagonal_(0)
    expected = [silhouette_score(distance, row.int(), metric="precomputed") for row in labels]
    np.testing.assert_allclose(m.labelled_cosine(x, labels), expected, atol=1e-6)


def test_energy_and_mmd_against_all_pairs_of_distinct_texts():
    x, label = classes(20, 14)
    labels = torch.tensor(np.stack([label, label[::-1]])).double()
    a, b = x[label == 0], x[label == 1]

    def brute(kernel):
        def mean(u, v, same):
            rows = [
                kernel(p, q) for i, p in enumerate(u) for j, q in enumerate(v) if not same or i != j
            ]
            return np.mean(rows)

        return 2 * mean(a, b, False) - mean(a, a, True) - mean(b, b, True)

    distance = brute(lambda p, q: np.linalg.norm(p - q))
    found = m.labelled_distances(torch.tensor(x), labels)
    own, other = m.mean_distances(found.pair_sum, torch.tensor(label))
    value, _ = m.energy_distance(own, other, torch.tensor(label))
    assert float(value) == pytest.approx(distance, rel=1e-9)
    assert float(found.energy[0]) == pytest.approx(distance, rel=1e-4)
    width = m.median_distance(torch.tensor(x))
    kernel = brute(lambda p, q: -math.exp(-((p - q) @ (p - q)) / (2 * width**2)))
    found = m.labelled_distances(torch.tensor(x), labels, bandwidth=width)
    own, other = m.mean_distances(found.pair_sum, torch.tensor(label))
    value, _ = m.energy_distance(own, other, torch.tensor(label))
    assert float(value) == pytest.approx(kernel, rel=1e-9)
    assert float(found.energy[0]) == pytest.approx(kernel, rel=1e-3)


def test_dunn_and_nearest_neighbour_by_hand():
    x = np.array([[0.0], [1.0], [3.0], [4.5], [6.5]])
    label = np.array([0, 0, 1, 1, 1])
    arrays, _ = stored(x, label)
    y = torch.tensor(label)
    assert float(m.dunn(arrays["pair_min"], arrays["pair_max"], y)) == pytest.approx(2 / 3.5)
    assert m.nn_hits(arrays["pair_min"], y).tolist() == [1, 1, 1, 1, 1]
    near = m.labelled_distances(torch.tensor(x), y[None].double(), neighbours=True).nearest
    assert near.tolist()[:2] == [1, 0]
    assert near.tolist()[4] == 3
    tie = np.array([[0.0], [1.0], [-1.0], [9.0]])
    arrays, _ = stored(tie, np.array([0, 0, 1, 1]))
    assert m.nn_hits(arrays["pair_min"], torch.tensor([0, 0, 1, 1])).tolist() == [0.5, 1, 0, 0]


def gaussian_terms(x, label, k):
    xt, _, weights = tensors(x, label)
    found = moments_of(xt[:, :k], weights)
    t1, t2 = m.bhattacharyya(found.shift, found.cov)
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
    floor = sum(m.bhattacharyya_floor(k, n, n))
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
        assert round(sum(m.bhattacharyya_floor(k, n, n)), digits) == pytest.approx(floor, rel=0.01)


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
    floor = sum(m.bhattacharyya_floor(k, n, n))
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
    found = m.ledoit_wolf(torch.tensor(np.cov(x.T)), fourth, n)
    assert float(found) == pytest.approx(share, rel=1e-10)
    plain = torch.tensor(np.cov(x.T, ddof=0))
    np.testing.assert_allclose(m.shrink(plain, found), cov, rtol=1e-10)


def test_mahalanobis_is_the_mean_over_all_disjoint_texts():
    x, label = classes(9, 8, width=2)
    xt, _, weights = tensors(x, label)
    found = float(m.mahalanobis(moments_of(xt, weights))[0])
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
    assert float(m.frechet(moments.shift, moments.cov)[0]) == pytest.approx(expected, rel=1e-9)
    same = torch.stack([torch.tensor(s0)] * 2)
    assert float(m.frechet(torch.zeros(8).double(), same)) == pytest.approx(0, abs=1e-6)


def test_hotelling_with_swapped_pairs():
    rng = np.random.default_rng(0)
    gap = rng.standard_normal((30, 3)) + 0.2
    signs = rng.choice([-1.0, 1.0], size=(2, 30))
    found = m.hotelling(torch.tensor(gap), torch.tensor(signs))
    for r in range(2):
        flipped = gap * signs[r][:, None]
        mean = flipped.mean(0)
        expected = mean @ np.linalg.solve(np.cov(flipped.T), mean)
        assert float(found[r]) == pytest.approx(expected, rel=1e-10)


def test_influences_of_full_width_moments_are_those_of_leaving_texts_out():
    x, label = classes(300, 240, width=6, shift=0.4)
    arrays, _ = stored(x, label)
    shift_sq, trace, count = full_width(x, label)
    y = torch.tensor(label)
    on_shift, on_within = m.shift_influence(arrays["class_sqdist"], shift_sq, trace, y)
    by_shift, by_within = m.ratio_slopes(shift_sq, trace, count)
    influence = by_shift * on_shift + by_within * on_within

    def adjusted(keep):
        rho = m.between_ratio(*full_width(x[keep], label[keep]))
        return float(m.adjusted_ratio(rho, float(keep.sum())))

    whole = adjusted(np.ones(len(x), bool))
    jackknife = []
    for i in range(0, len(x), 9):
        keep = np.arange(len(x)) != i
        jackknife.append(whole - adjusted(keep))
    np.testing.assert_allclose(influence[::9], jackknife, rtol=0.05, atol=0.02 * np.std(jackknife))


@pytest.mark.parametrize("metric", ["silhouette", "energy"])
def test_influences_from_distance_sums_give_the_jackknifes_deviation(metric):
    x, label = classes(90, 70, width=5, shift=0.8)
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)

    def evaluate(keep):
        some, y = distance[np.ix_(keep, keep)], torch.tensor(label[keep])
        sums = torch.tensor(np.stack([some[:, label[keep] == c].sum(1) for c in (0, 1)], -1))
        own, other = m.mean_distances(sums, y)
        if metric == "silhouette":
            value = m.silhouette_samples(own, other).mean()
            return float(value), m.silhouette_influence(own, other, y)
        value, influence = m.energy_distance(own, other, y)
        return float(value), influence

    n = len(x)
    _, influence = evaluate(np.arange(n))
    left = np.array([evaluate(np.delete(np.arange(n), i))[0] for i in range(n)])
    for c in (0, 1):  # the sizes of the classes are fixed
        left[label == c] -= left[label == c].mean()
    jackknife = math.sqrt((left**2).sum())
    assert float(influence.square().sum().sqrt()) == pytest.approx(jackknife, rel=0.05)
    assert np.corrcoef(influence, -left)[0, 1] > 0.98


def test_noise_of_the_shift_is_recovered_through_the_projection():
    rng = np.random.default_rng(0)
    scale = np.exp(0.5 * rng.standard_normal(300))
    units = rng.standard_normal((200, 300)) * scale
    truth = (scale**4).sum() * 200**2
    plain = float(m.shift_noise(torch.tensor(units), width=0))
    assert plain == pytest.approx(truth, rel=0.05)
    found = []
    for _ in range(40):
        projection = rng.standard_normal((300, 64)) / 8
        found.append(float(m.shift_noise(torch.tensor(units @ projection), width=64)))
    assert np.mean(found) == pytest.approx(plain, rel=3 * np.std(found) / np.mean(found) / 40**0.5)
    assert np.std(found) < 0.2 * plain


def test_fold_auc_is_scikit_learns_in_every_fold():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    fold = rng.integers(0, 5, 200)
    scores = np.round(rng.standard_normal(200) + label, 1) + 100 * fold
    value, influence = m.fold_auc(torch.tensor(scores), torch.tensor(label), torch.tensor(fold))
    weights, parts = [], []
    for f in range(5):
        here = fold == f
        weights.append((label[here] == 0).sum() * (label[here] == 1).sum())
        parts.append(roc_auc_score(label[here], scores[here]))
    assert float(value) == pytest.approx(np.average(parts, weights=weights), rel=1e-12)
    assert float(influence.sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("folds", [1, 15])
def test_delong_deviation_is_that_of_fresh_samples(folds):
    rng = np.random.default_rng(0)
    label, fold = torch.tensor(np.repeat([0, 1], 60)), torch.arange(120) % folds
    scores = torch.tensor(rng.standard_normal((2000, 120))) + 0.8 * label
    values, influence = m.fold_auc(scores, label, fold)
    # A variance from 2000 draws is known to 3 %; DeLong's is 11 % too large for four texts a class.
    ratio = float(influence.square().sum(-1).mean() / values.var())
    assert 0.92 < ratio < 1.2


@pytest.mark.parametrize(("n", "shift", "scale"), [(300, 0.3, 1.0), (60, 3.0, 100.0)])
def test_logistic_probe_is_scikit_learns(n, shift, scale):
    rng = np.random.default_rng(n)
    label, fold = np.arange(n) % 2, rng.permutation(n) % 10
    x = scale * (rng.standard_normal((2, n, 20)) * np.exp(rng.standard_normal(20)))
    x += scale * shift * label[:, None]
    x[1, :, 7] = 4.0
    found = m.logistic_scores(torch.tensor(x), torch.tensor(label), torch.tensor(fold)).numpy()
    for layer in range(2):
        for f in range(10):
            train = fold != f
            mean, spread = x[layer, train].mean(0), x[layer, train].std(0)
            spread[spread < 1e-9] = 1
            probe = LogisticRegression(tol=1e-10, max_iter=10_000)
            probe.fit((x[layer, train] - mean) / spread, label[train])
            expected = probe.decision_function((x[layer, ~train] - mean) / spread)
            np.testing.assert_allclose(found[layer, ~train], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ridge", [None, 1.0])
def test_refitted_scores_are_those_of_every_fold_fitted_alone(ridge):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 6)) @ rng.standard_normal((6, 6))
    fold = np.sort(rng.permutation(83)[:80] % 5)
    labels = np.stack([np.arange(80) % 2, rng.permutation(np.arange(80) % 2)])
    found = m.crossfit_scores(
        torch.tensor(x), torch.tensor(labels).double(), torch.tensor(fold), ridge
    )
    design = x - x.mean(0)
    if ridge is not None:
        design = design / design.std(0)
    for r, y in enumerate(labels):
        for f in range(5):
            train = fold != f
            m0, m1 = (design[train & (y == c)].mean(0) for c in (0, 1))
            direction = m1 - m0
            if ridge is not None:
                centred = design[train] - design[train].mean(0)
                direction = np.linalg.solve(centred.T @ centred + ridge * np.eye(6), direction)
            expected = (design[~train] - (m0 + m1) / 2) @ direction
            np.testing.assert_allclose(found[r, ~train], expected, atol=1e-9)
    auc = m.labelled_auc(found, torch.tensor(labels).double(), torch.tensor(fold))
    exact, _ = m.fold_auc(found[1], torch.tensor(labels[1]), torch.tensor(fold))
    assert float(auc[1]) == pytest.approx(float(exact), rel=1e-12)


def test_influence_on_davies_bouldin_is_that_of_leaving_texts_out():
    x, label = classes(300, 240, width=4, shift=2.0)
    x[label == 1] += np.abs(x[label == 1])  # skewed: far from its mean also means far along d
    arrays, _ = stored(x, label)
    shift_sq, *_ = full_width(x, label)
    _, influence = m.davies_bouldin(arrays["class_sqdist"], shift_sq, torch.tensor(label))
    places = np.arange(0, len(x), 7)
    left = np.array([davies_bouldin_score(np.delete(x, i, 0), np.delete(label, i)) for i in places])
    moved = davies_bouldin_score(x, label) - left
    assert np.corrcoef(influence[places], moved)[0, 1] > 0.97
    assert float(influence[places].std()) == pytest.approx(np.std(moved), rel=0.15)


def test_energy_distance_is_dcors():
    import dcor

    x, label = classes(20, 14)
    a, b = x[label == 0], x[label == 1]
    arrays, _ = stored(x, label)
    own, other = m.mean_distances(arrays["pair_sum"], torch.tensor(label))
    value, _ = m.energy_distance(own, other, torch.tensor(label))
    u_form = dcor.energy_distance(a, b, estimation_stat="u_statistic")
    assert float(value) == pytest.approx(u_form, rel=1e-10)
    # The V form counts every text's distance of 0 to itself.
    sums = arrays["pair_sum"].numpy()
    within = [sums[label == c, c].sum() / (label == c).sum() ** 2 for c in (0, 1)]
    v_form = 2 * sums[label == 0, 1].sum() / (len(a) * len(b)) - sum(within)
    assert v_form == pytest.approx(dcor.energy_distance(a, b), rel=1e-10)


def test_frechet_is_pots_bures_wasserstein():
    from ot import gaussian

    x, label = classes()
    a, b = x[label == 0], x[label == 1]
    cov = np.stack([np.cov(a.T), np.cov(b.T)])
    shift = b.mean(0) - a.mean(0)
    expected = gaussian.bures_wasserstein_distance(a.mean(0), b.mean(0), cov[0], cov[1])
    found = m.frechet(torch.tensor(shift), torch.tensor(cov))
    assert float(found) == pytest.approx(float(expected) ** 2, rel=1e-9)


@pytest.mark.parametrize("k", [2, 10, 200])
def test_ratio_in_components_is_the_ancestors_at_any_width(k):
    """Lin et al. 2024: between over total sum of squares of PCA coordinates."""
    x, label = classes(260, 240, width=300)
    coords = np.linalg.svd(x - x.mean(0), full_matrices=False)
    coords = (coords[0] * coords[1])[:, :k]
    total = (coords**2).sum()
    within = sum(((coords[label == c] - coords[label == c].mean(0)) ** 2).sum() for c in (0, 1))
    xt, _, weights = tensors(coords, label)
    found = moments_of(xt, weights)
    rho = m.between_ratio(found.shift.square().sum(-1), found.trace, found.count)
    assert float(rho) == pytest.approx(1 - within / total, rel=1e-9)


def test_own_axes_of_a_resample_are_the_components_of_its_texts():
    x, label = classes(width=5)
    xt, y, _ = tensors(x - x.mean(0), label)
    times = torch.tensor(np.random.default_rng(3).multinomial(len(x), np.full(len(x), 1 / len(x))))
    weights = torch.stack([times * (y == 0), times * (y == 1)])[None].double()
    found = moments_of(xt, weights)
    turned = found.along(found.axes()).leading(2)
    rows = np.repeat(x, times.numpy(), axis=0)
    again = np.repeat(label, times.numpy())
    centred = rows - rows.mean(0)
    coords = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    gap = coords[again == 1].mean(0) - coords[again == 0].mean(0)
    expected = sum(np.trace(np.cov(coords[again == c].T)) for c in (0, 1))
    assert float(turned.shift.square().sum()) == pytest.approx(gap @ gap, rel=1e-9)
    assert float(turned.trace.sum()) == pytest.approx(expected, rel=1e-9)


def test_the_silhouette_moves_as_its_components_turn():
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [30, 50])
    x = rng.standard_normal((80, 6)) + 0.7 * y[:, None]
    distance = squareform(pdist(x[:, :2]))
    sums = torch.tensor(np.stack([distance[:, y == c].sum(1) for c in (0, 1)], -1))
    labels = torch.tensor(y)
    found = m.silhouette_turning(torch.tensor(x), 2, *m.mean_distances(sums, labels), labels)
    for i, j in np.ndindex(2, 4):
        ends = []
        for angle in (-1e-5, 1e-5):
            turned = x[:, :2].copy()
            turned[:, i] += angle * x[:, 2 + j]
            ends.append(silhouette_score(turned, y))
        slope = (ends[1] - ends[0]) / 2e-5
        assert float(found[i, j]) == pytest.approx(slope, abs=1e-7), (i, j)
