"""Held-out scores, their AUC and its deviation against scikit-learn and fresh samples."""

import math

import numpy as np
import pytest
import torch
from oracle import planted, stand_in
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from safetyspace_fast.analysis import separation
from safetyspace_fast.analysis.auc import fold_auc, grow
from safetyspace_fast.analysis.families.detection import fold_effect
from safetyspace_fast.analysis.families.scores import probe_noise, whiten_inside
from safetyspace_fast.analysis.probe import logistic_scores
from safetyspace_fast.analysis.uncertainty import influence_variance
from safetyspace_fast.data import NUM_FOLDS


def test_fold_auc_is_scikit_learns_in_every_fold():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    fold = rng.integers(0, 5, 200)
    scores = np.round(rng.standard_normal(200) + label, 1) + 100 * fold
    value, influence = fold_auc(torch.tensor(scores), torch.tensor(label), torch.tensor(fold))
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
    values, influence = fold_auc(scores, label, fold)
    # A variance from 2000 draws is known to 3 %; DeLong's is 11 % too large for four texts a class.
    ratio = float(influence.square().sum(-1).mean() / values.var())
    assert 0.92 < ratio < 1.2


def test_dprime_is_that_of_least_squares_with_a_level_for_each_fold():
    rng = np.random.default_rng(0)
    label, fold = rng.integers(0, 2, 200), rng.integers(0, 10, 200)
    scores = rng.standard_normal((3, 200)) + 0.8 * label + 5 * fold
    parts = (torch.tensor(x) for x in (scores, label, fold))
    value, influence, _ = fold_effect(*parts)
    design = np.c_[label, np.eye(10)[fold]]
    weights, rest, *_ = np.linalg.lstsq(design, scores.T, rcond=None)
    np.testing.assert_allclose(value, weights[0] / np.sqrt(rest / (200 - 11)), rtol=1e-12)
    assert float(influence.sum(-1).abs().max()) < 0.02
    alone, _, _ = fold_effect(*(torch.tensor(x) for x in (scores - 5 * fold, label, fold)))
    np.testing.assert_allclose(value, alone, rtol=1e-12)
    for text in (0, 17, 99):
        kept = np.arange(200) != text
        less, _, _ = fold_effect(*(torch.tensor(x[..., kept]) for x in (scores, label, fold)))
        np.testing.assert_allclose(value - less, influence[:, text], atol=2e-3, rtol=0.15)


def test_dprime_deviation_is_that_of_fresh_samples():
    rng = np.random.default_rng(0)
    label, fold = torch.tensor(np.repeat([0, 1], [90, 30])), torch.arange(120) % 10
    values, influence, _ = fold_effect(
        torch.tensor(rng.standard_normal((2000, 120))) + 1.5 * label, label, fold
    )
    ratio = float(influence.square().sum(-1).mean() / values.var())
    assert 0.85 < ratio < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("large", [1, 100])
@pytest.mark.parametrize("tail", ["normal", "t3"])
@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("counts", [(20, 20), (60, 60), (380, 20), (400, 400)])
def test_intervals_of_dprime_cover_at_the_nominal_rate(counts, shift, tail, large, request):
    """With one large dimension too; every layer is one draw."""
    if (counts, shift, tail, large) == ((60, 60), 0, "normal", 1):
        why = "0.9875: without any difference a little too wide"
        request.applymarker(pytest.mark.xfail(strict=True, reason=why))
    rng, n = np.random.default_rng(2), sum(counts)
    label, parts = np.repeat([0, 1], counts), []
    for _ in range(4):
        shape = (100, 1, n, 6)
        x = rng.standard_normal(shape) if tail == "normal" else rng.standard_t(3, shape)
        x[..., 1] *= large
        x[..., 0] += shift * label
        found = separation(
            stand_in({"m": {"en": x}}, {"en": label}, proj=6),
            metrics="dprime", bootstraps=2, permutations=0,
        )  # fmt: skip
        parts.append([found[part].to_numpy().squeeze() for part in ("value", "low", "high")])
    value, low, high = np.concatenate(parts, -1)
    covered = ((low <= value.mean()) & (value.mean() <= high)).mean()
    # 400 draws know a rate of 95 % to 1.1 %.
    assert 0.91 <= covered <= 0.985


@pytest.mark.parametrize(("n", "shift"), [(50, 1.0), (100, 1.0), (300, 0.5), (50, 0.0)])
def test_a_probe_knows_the_noise_of_a_direction_in_many_dimensions(n, shift):
    rng, width = np.random.default_rng(0), 40
    label = torch.tensor(np.repeat([0, 1], n))
    along = shift * (torch.arange(width) < 4).double()
    told, off = [], []
    for _ in range(30):
        x = torch.tensor(rng.standard_normal((2 * n, width))) + label[:, None] * along
        means = torch.stack([x[label == c].mean(0) for c in (0, 1)])
        d, inside = means[1] - means[0], x - means[label]
        unit = inside * ((2.0 * label - 1) / n)[:, None]
        white, white_d, white_unit = whiten_inside(inside, d[None], unit)
        leverage = white.square().sum() / (2 * n - 2)
        told.append(float(probe_noise(white_d[0], white_unit, leverage)))
        within = inside.T @ inside
        weight = torch.linalg.solve(within + 2 / n * within.diagonal().diag(), d)
        off.append(
            1 - float((weight @ along).square() / weight.square().sum()) / (4 * shift**2 or 1)
        )
    if shift:
        assert np.mean(told) == pytest.approx(np.mean(off), abs=0.05)
    else:  # a ratio that is 1 on average, but counts as no more than 1
        assert 0.7 < np.mean(told) < 1


def test_dprime_of_few_texts_is_refused():
    x, label = planted(n=20, width=6, shift=1.0)
    run = stand_in({"m": {"en": x}}, {"en": label}, proj=6)
    found = separation(run, metrics="dprime", bootstraps=2, permutations=0)
    assert found["refused"].item() == "d' needs 11 texts more than there are folds"


@pytest.mark.parametrize(("n", "shift", "scale"), [(300, 0.3, 1.0), (60, 3.0, 100.0)])
def test_logistic_probe_is_scikit_learns(n, shift, scale):
    rng = np.random.default_rng(n)
    label, fold = np.arange(n) % 2, rng.permutation(n) % 10
    x = scale * (rng.standard_normal((2, n, 20)) * np.exp(rng.standard_normal(20)))
    x += scale * shift * label[:, None]
    x[1, :, 7] = 4.0
    found = logistic_scores(torch.tensor(x), torch.tensor(label), torch.tensor(fold)).numpy()
    for layer in range(2):
        for f in range(10):
            train = fold != f
            mean, spread = x[layer, train].mean(0), x[layer, train].std(0)
            spread[spread < 1e-9] = 1
            probe = LogisticRegression(tol=1e-10, max_iter=10_000)
            probe.fit((x[layer, train] - mean) / spread, label[train])
            expected = probe.decision_function((x[layer, ~train] - mean) / spread)
            np.testing.assert_allclose(found[layer, ~train], expected, atol=1e-4, rtol=1e-4)


def test_a_fold_meets_a_direction_without_its_noise():
    """Where d is only noise, d of the other folds times that of the fold varies by 2 tr V^2 and
    2 tr V^2/(K - 1): that is 2 + 2/(K - 1) times the variance along a fixed direction, tr V^2."""
    rng, p = np.random.default_rng(0), 20
    fold = rng.standard_normal((20_000, NUM_FOLDS, p)) * math.sqrt(NUM_FOLDS)  # V is 1
    others = (fold.sum(1, keepdims=True) - fold) / (NUM_FOLDS - 1)
    seen = (fold * others).sum(-1).mean(-1).var() / p
    assert seen == pytest.approx(2 + 2 / (NUM_FOLDS - 1), rel=0.03)
    influence, one = torch.tensor([[1.0, -1.0] * 50]).double(), torch.ones(1).double()
    along = influence_variance(influence, torch.arange(100))
    grown, square = grow(influence, influence, torch.arange(100), one)
    whole = influence_variance(grown, torch.arange(100)) - square  # less the excess
    torch.testing.assert_close(whole / along, one * (2 + 2 / (NUM_FOLDS - 1)))
    still, none = grow(influence, influence, torch.arange(100), 0 * one)
    assert torch.equal(still, influence)
    assert float(none) == 0
