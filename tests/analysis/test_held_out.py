"""Held-out scores, their AUC and its deviation against scikit-learn and fresh samples."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from safetyspace_fast.analysis.families import held_out


def test_fold_auc_is_scikit_learns_in_every_fold():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 200)
    fold = rng.integers(0, 5, 200)
    scores = np.round(rng.standard_normal(200) + label, 1) + 100 * fold
    value, influence = held_out.fold_auc(
        torch.tensor(scores), torch.tensor(label), torch.tensor(fold)
    )
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
    values, influence = held_out.fold_auc(scores, label, fold)
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
    found = held_out.logistic_scores(
        torch.tensor(x), torch.tensor(label), torch.tensor(fold)
    ).numpy()
    for layer in range(2):
        for f in range(10):
            train = fold != f
            mean, spread = x[layer, train].mean(0), x[layer, train].std(0)
            spread[spread < 1e-9] = 1
            probe = LogisticRegression(tol=1e-10, max_iter=10_000)
            probe.fit((x[layer, train] - mean) / spread, label[train])
            expected = probe.decision_function((x[layer, ~train] - mean) / spread)
            np.testing.assert_allclose(found[layer, ~train], expected, atol=1e-4, rtol=1e-4)
