"""Metrics of distances against other libraries, brute force and leaving texts out."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import davies_bouldin_score, silhouette_score
from toys import classes, full_width, stored

from safetyspace_fast.analysis.families import distances
from safetyspace_fast.ops.distance_sums import labelled_distances


def test_davies_bouldin_and_silhouettes_are_scikit_learns():
    x, label = classes()
    arrays, _ = stored(x, label)
    shift_sq, *_ = full_width(x, label)
    y = torch.tensor(label)
    value, _ = distances.davies_bouldin(arrays["class_sqdist"], shift_sq, y)
    assert float(value) == pytest.approx(davies_bouldin_score(x, label), rel=1e-9)
    for name, metric in (("pair_sum", "euclidean"), ("cos_sum", "cosine")):
        own, other = distances.mean_distances(arrays[name], y)
        value = distances.silhouette_samples(own, other).mean()
        assert float(value) == pytest.approx(silhouette_score(x, label, metric=metric), abs=1e-9)


@pytest.mark.parametrize("copied", [False, True])
def test_derivatives_of_silhouettes_by_coordinates_are_those_of_the_formula(copied):
    x, label = classes(14, 9, width=3)
    if copied:
        x[label == 0] = np.repeat(x[label == 0][:7], 2, axis=0)
    place, y = torch.tensor(x, requires_grad=True), torch.tensor(label)
    equal = (place[:, None] == place).all(-1) & (y[:, None] == y)
    gap = (place[:, None] - place).square().sum(-1)
    distance = torch.where(gap > 0, gap, 1).sqrt() * (gap > 0)
    same = (y[:, None] == y) & ~equal
    own = (distance * same).sum(1) / same.sum(1)
    other = (distance * (y[:, None] != y)).sum(1) / (y[:, None] != y).sum(1)
    ((other - own) / torch.maximum(own, other)).mean().backward()
    slopes = distances.silhouette_by_place(
        place.detach(), own.detach(), other.detach(), y, equal.sum(1).double() if copied else None
    )
    torch.testing.assert_close(slopes, place.grad, rtol=1e-5, atol=1e-7)


def test_energy_distance_against_all_pairs_of_distinct_texts():
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
    found = labelled_distances(torch.tensor(x), labels)
    own, other = distances.mean_distances(found.pair_sum, torch.tensor(label))
    value, _ = distances.energy_distance(own, other, torch.tensor(label))
    assert float(value) == pytest.approx(distance, rel=1e-9)
    assert float(found.energy[0]) == pytest.approx(distance, rel=1e-4)


def test_energy_distance_is_dcors():
    import dcor

    x, label = classes(20, 14)
    a, b = x[label == 0], x[label == 1]
    arrays, _ = stored(x, label)
    own, other = distances.mean_distances(arrays["pair_sum"], torch.tensor(label))
    value, _ = distances.energy_distance(own, other, torch.tensor(label))
    u_form = dcor.energy_distance(a, b, estimation_stat="u_statistic")
    assert float(value) == pytest.approx(u_form, rel=1e-10)
    # The V form counts every text's distance of 0 to itself.
    sums = arrays["pair_sum"].numpy()
    within = [sums[label == c, c].sum() / (label == c).sum() ** 2 for c in (0, 1)]
    v_form = 2 * sums[label == 0, 1].sum() / (len(a) * len(b)) - sum(within)
    assert v_form == pytest.approx(dcor.energy_distance(a, b), rel=1e-10)


def test_dunn_and_nearest_neighbour_by_hand():
    x = np.array([[0.0], [1.0], [3.0], [4.5], [6.5]])
    label = np.array([0, 0, 1, 1, 1])
    arrays, _ = stored(x, label)
    y = torch.tensor(label)
    assert float(distances.dunn(arrays["pair_min"], arrays["pair_max"], y)) == pytest.approx(
        2 / 3.5
    )
    assert (distances.nn_gap(arrays["pair_min"], y) > 0).all()
    near = labelled_distances(torch.tensor(x), y[None].double(), neighbours=True).nearest
    assert near.tolist()[:2] == [1, 0]
    assert near.tolist()[4] == 3
    tie = np.array([[0.0], [1.0], [-1.0], [9.0]])
    arrays, _ = stored(tie, np.array([0, 0, 1, 1]))
    gap = distances.nn_gap(arrays["pair_min"], torch.tensor([0, 0, 1, 1]))
    assert gap.sign().tolist() == [0, 1, -1, -1]


@pytest.mark.parametrize("metric", ["silhouette", "energy"])
def test_influences_from_distance_sums_give_the_jackknifes_deviation(metric):
    x, label = classes(90, 70, width=5, shift=0.8)
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)

    def evaluate(keep):
        some, y = distance[np.ix_(keep, keep)], torch.tensor(label[keep])
        sums = torch.tensor(np.stack([some[:, label[keep] == c].sum(1) for c in (0, 1)], -1))
        own, other = distances.mean_distances(sums, y)
        if metric == "silhouette":
            value = distances.silhouette_samples(own, other).mean()
            return float(value), distances.silhouette_influence(own, other, y)
        value, influence = distances.energy_distance(own, other, y)
        return float(value), influence

    n = len(x)
    _, influence = evaluate(np.arange(n))
    left = np.array([evaluate(np.delete(np.arange(n), i))[0] for i in range(n)])
    for c in (0, 1):  # the sizes of the classes are fixed
        left[label == c] -= left[label == c].mean()
    jackknife = math.sqrt((left**2).sum())
    assert float(influence.square().sum().sqrt()) == pytest.approx(jackknife, rel=0.05)
    assert np.corrcoef(influence, -left)[0, 1] > 0.98


def test_influence_on_davies_bouldin_is_that_of_leaving_texts_out():
    x, label = classes(300, 240, width=4, shift=2.0)
    x[label == 1] += np.abs(x[label == 1])  # skewed: far from its mean also means far along d
    arrays, _ = stored(x, label)
    shift_sq, *_ = full_width(x, label)
    _, influence = distances.davies_bouldin(arrays["class_sqdist"], shift_sq, torch.tensor(label))
    places = np.arange(0, len(x), 7)
    left = np.array([davies_bouldin_score(np.delete(x, i, 0), np.delete(label, i)) for i in places])
    moved = davies_bouldin_score(x, label) - left
    assert np.corrcoef(influence[places], moved)[0, 1] > 0.97
    assert float(influence[places].std()) == pytest.approx(np.std(moved), rel=0.15)
