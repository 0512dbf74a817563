"""Statistics of many labellings against other libraries and every labelling alone."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, silhouette_score
from torch.utils._python_dispatch import TorchDispatchMode

from safetyspace_fast.ops import _native, distance_sums, labelled
from safetyspace_fast.ops.labellings import FoldLabellings
from safetyspace_fast.ops.scores import _wins, labelled_auc, ridge_scores
from safetyspace_fast.ops.spread import robust_scale, shift_noise


def draw(n=70, width=9, labellings=4, *, ones=28, seed=0):
    """Texts whose class 1 is shifted, and labellings with different numbers of ones."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, width)) * np.exp(rng.standard_normal(width)) + 3
    y = rng.permutation(np.arange(n) < ones)
    x[y] += 0.5
    labels = np.stack([y, *(rng.permutation(np.arange(n) < ones + r) for r in range(labellings))])
    return x, labels, rng.integers(0, 5, n)


def held_out(x, y, fold):
    score = np.empty(len(x))
    for f in np.unique(fold):
        train = fold != f
        m0, m1 = x[train & ~y].mean(0), x[train & y].mean(0)
        score[~train] = (x[~train] - (m0 + m1) / 2) @ (m1 - m0)
    return score


def fold_auc(score, y, fold):
    wins = pairs = 0
    for f in np.unique(fold):
        here = fold == f
        number = y[here].sum() * (~y[here]).sum()
        if number:
            wins += number * roc_auc_score(y[here], score[here])
            pairs += number
    return wins / pairs


def between(x, y):
    """rho, and Welch's ratio."""
    a, b = x[~y], x[y]
    shift = ((b.mean(0) - a.mean(0)) ** 2).sum()
    square = len(a) * len(b) / len(x) * shift
    within = ((len(a) - 1) * a.var(0, ddof=1) + (len(b) - 1) * b.var(0, ddof=1)).sum()
    noise = (a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b)).sum()
    return square / (square + within), shift / noise


def energy(x, y):
    distance = np.sqrt(((x[:, None] - x) ** 2).sum(-1))

    def mean(a, b):
        off = distance[np.ix_(a, b)]
        return off.sum() / (len(a) * (len(b) - (len(a) == len(b) and (a == b).all())))

    a, b = np.flatnonzero(~y), np.flatnonzero(y)
    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


@pytest.fixture(params=["compiled", "plain"])
def form(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(_native, "simd_level", lambda: "avx2")
    elif _native.simd_level() != "avx512":
        pytest.skip("needs the compiled CPU kernels and AVX-512")


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("tile_bytes", [1, 10_000, 5 << 19])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_all_statistics_are_those_of_each_labelling_alone(monkeypatch, tile_bytes, dtype):
    monkeypatch.setattr(distance_sums, "TILE_BYTES", tile_bytes)
    x, labels, fold = draw()
    scale = np.linspace(0.5, 2, x.shape[1])
    found, near = labelled.labelled_statistics(
        torch.tensor(x).to(dtype),
        torch.tensor(scale).to(dtype),
        FoldLabellings(torch.tensor(labels.astype(np.uint8)), torch.tensor(fold)),
    )
    of = dict(zip(labelled.STATISTICS, found.numpy(), strict=True))
    distance = np.sqrt(((x[:, None] - x) ** 2).sum(-1)) + np.diag(np.full(len(x), np.inf))
    assert near.tolist() == distance.argmin(1).tolist()
    for r, y in enumerate(labels):
        score = held_out(x, y, fold)
        right = [(score[y] > 0).mean(), (score[~y] <= 0).mean()]
        rho, welch = between(x, y)
        thin_rho, thin_welch = between(x / scale, y)
        expected = {
            "rho": rho,
            "welch": welch,
            "rho_standardized": thin_rho,
            "welch_standardized": thin_welch,
            "silhouette": silhouette_score(x, y),
            "silhouette_cosine": silhouette_score(x, y, metric="cosine"),
            "energy_distance": energy(x, y),
            "nn_accuracy": (y == y[distance.argmin(1)]).mean(),
            "auc_direction": fold_auc(score, y, fold),
            "accuracy_direction": np.mean(right),
            "auc_standardized": fold_auc(held_out(x / scale, y, fold), y, fold),
        }
        for name, value in expected.items():
            assert of[name][r] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert np.isnan(of["paired_shift"]).all()


def test_statistics_of_pairs_are_those_of_swapped_labels():
    rng = np.random.default_rng(1)
    pairs, width = 40, 6
    partners = rng.permutation(2 * pairs).reshape(pairs, 2)
    x = rng.standard_normal((2 * pairs, width))
    x[partners[:, 1]] += 0.4
    fold = np.empty(2 * pairs, np.int64)
    fold[partners] = (np.arange(pairs) % 5)[:, None]
    swap = np.stack([np.zeros(pairs, bool), rng.integers(0, 2, pairs).astype(bool)])
    labels = np.zeros((2, 2 * pairs), bool)
    for row, swapped in zip(labels, swap, strict=True):
        row[np.where(swapped, partners[:, 0], partners[:, 1])] = True
    found, _ = labelled.labelled_statistics(
        torch.tensor(x),
        torch.ones(width).double(),
        FoldLabellings(torch.tensor(labels.astype(np.uint8)), torch.tensor(fold)),
        partners=torch.tensor(partners),
    )
    of = dict(zip(labelled.STATISTICS, found.numpy(), strict=True))
    for r, y in enumerate(labels):
        high, low = (np.where(swap[r], partners[:, 1 - k], partners[:, k]) for k in (1, 0))
        difference = x[high] - x[low]
        score = held_out(x, y, fold)
        gap = score[high] - score[low]
        noise = difference.var(0, ddof=1).sum() / pairs
        shift = (difference.mean(0) ** 2).sum() - noise
        assert of["paired_shift"][r] == pytest.approx(shift, rel=1e-9)
        assert of["paired_accuracy"][r] == pytest.approx((gap > 0).mean())
        # Each fold has a direction of its own length.
        assert of["paired_effect"][r] == pytest.approx(gap.mean() / gap.std(ddof=1), rel=0.05)


def test_silhouettes_of_texts_that_are_all_alike():
    labels = torch.tensor([[0.0, 1, 0, 1, 0], [1, 1, 0, 0, 0]]).double()
    found = distance_sums.labelled_distances(torch.zeros(5, 3).double(), labels)
    assert found.silhouette.tolist() == [0, 0]
    assert found.energy.tolist() == [0, 0]


def test_a_ridge_probe_is_that_of_every_fold_fitted_alone():
    x, labels, fold = draw(80, 6, 1)
    fold = np.sort(fold)
    of = FoldLabellings(torch.tensor(labels), torch.tensor(fold))
    found = ridge_scores(torch.tensor(x), of, 1.0)
    design = (x - x.mean(0)) / x.std(0)
    for r, y in enumerate(labels):
        for f in range(5):
            train = fold != f
            m0, m1 = (design[train & (y == c)].mean(0) for c in (0, 1))
            centred = design[train] - design[train].mean(0)
            direction = np.linalg.solve(centred.T @ centred + np.eye(6), m1 - m0)
            expected = (design[~train] - (m0 + m1) / 2) @ direction
            np.testing.assert_allclose(found[~train, r], expected, atol=1e-5)


def test_the_score_of_an_auc_is_normal_for_classes_of_unequal_spread():
    """180 texts beside 20 of three times the spread: ranks alone are wrong in more than 10 %."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((200, 400))
    x[180:] *= 3
    rows = np.broadcast_to(np.arange(200) >= 180, (400, 200)).copy()
    of = FoldLabellings(torch.tensor(rows), torch.zeros(200, dtype=torch.int64))
    scores = torch.zeros_like(of.member)
    scores[:, :400] = torch.tensor(x)
    auc, score = labelled_auc(scores, of)
    rank = (auc - 0.5) / math.sqrt(201 / (12 * 180 * 20))
    assert float((rank.abs() > 1.96).double().mean()) > 0.1
    assert 0.02 < float((score.abs() > 1.96).double().mean()) < 0.08
    scores[:] = torch.arange(200)[:, None]
    auc, score = labelled_auc(scores, of)
    assert (auc == 1).all()
    assert ((score > 5) & (score < 200)).all()


@pytest.mark.usefixtures("form")
def test_ties_win_half_and_exchanging_the_labels_changes_no_score():
    rng = np.random.default_rng(5)
    fold = np.repeat(np.arange(4), (40, 3, 90, 17))
    n = len(fold)
    labels = rng.random((30, n)) < 0.4
    labels[:, :: n // 12] = True
    of, other = (
        FoldLabellings(torch.tensor(rows), torch.tensor(fold)) for rows in (labels, ~labels)
    )
    scores = torch.zeros_like(of.member)
    scores[:, :30] = torch.tensor(rng.integers(-3, 4, (n, 30)) / 3)
    scores[:, :15] = torch.randn(n, 15, generator=torch.Generator().manual_seed(0))
    auc, score = labelled_auc(scores, of)
    for r, y in enumerate(labels):
        assert float(auc[r]) == pytest.approx(fold_auc(scores[:, r].numpy(), y, fold), abs=1e-12)
    swapped = labelled_auc(-scores, other)
    assert torch.equal(auc, swapped[0])
    assert torch.equal(score, swapped[1])


@pytest.mark.skipif(
    _native.simd_level() != "avx512", reason="needs the compiled CPU kernels and AVX-512"
)
def test_the_compiled_wins_are_those_of_the_plain_ones_to_the_bit():
    rng = np.random.default_rng(6)
    fold = np.sort(rng.integers(0, 7, 500))
    labels = torch.tensor(rng.random((100, 500)) < 0.3)
    of = FoldLabellings(labels, torch.tensor(fold))
    scores = torch.zeros_like(of.member)
    scores[:, :100] = torch.tensor(rng.standard_normal((500, 100)))
    scores[:, 50:100] = torch.tensor(rng.integers(-4, 4, (500, 50)) / 7)
    scores[::7, 50:100] *= 1 + 2**-23  # rounding
    scores[1::2] *= torch.where(scores[1::2] == 0, -1.0, 1.0)
    ends = torch.tensor([i.stop for i in of.folds])
    compiled = torch.ops.safetyspace_fast.label_wins(scores, of.packed, ends)[:, :100]
    assert torch.equal(compiled, _wins(scores, of)[:, :100])


def test_the_plain_wins_launch_as_little_with_twenty_folds_as_with_two():
    """But for the largest score of each. On a GPU each operation is a launch."""

    class Counted(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.number += not func.is_view
            return func(*args, **(kwargs or {}))

    found = []
    for folds in (2, 20):
        labels = (torch.arange(200) % 2)[None].expand(3, -1)
        of = FoldLabellings(labels, torch.arange(200) % folds)
        with Counted() as counted:
            _wins(torch.randn_like(of.member), of)
        found.append(counted.number)
    assert found[1] - found[0] == 2 * 18
    assert found[0] < 70


def test_a_scale_is_robust_and_no_dimension_with_rare_peaks_rules():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 4))
    x[0, 0] = 1e4
    x[:, 1] = 0
    x[:40, 1] = rng.standard_normal(40)
    x[:, 2] = 7
    scale = robust_scale(torch.tensor(x))
    assert float(scale[3]) == pytest.approx(1, rel=0.1)
    assert float(scale[0]) == pytest.approx(x[:, 0].std(ddof=1) / 10, rel=1e-6)
    assert float(scale[1]) == pytest.approx(x[:, 1].std(ddof=1) / 10, rel=1e-6)
    assert math.isinf(float(scale[2]))


def test_the_noise_of_a_shift_is_unbiased_over_units():
    """tr V^2 of independent texts, and of texts that come in fours, from 100 data sets."""
    rng = np.random.default_rng(0)
    spread = np.array([3.0, 1.0, 1.0])
    y = torch.tensor(np.repeat([0, 1], [400, 240]))
    for size in (1, 4):
        unit = torch.tensor(np.arange(640) // size)
        found = []
        for _ in range(100):
            x = np.repeat(rng.standard_normal((640 // size, 3)), size, 0) * spread
            found.append(float(shift_noise(torch.tensor(x), y, unit)))
        truth = (spread**4).sum() * (size / 400 + size / 240) ** 2
        assert np.mean(found) == pytest.approx(truth, rel=0.15)
