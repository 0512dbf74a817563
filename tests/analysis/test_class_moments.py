"""Class moments against NumPy."""

import numpy as np
import pytest
import torch
from toys import classes, moments_of, tensors

from safetyspace_fast.analysis import moments


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


def test_own_axes_of_a_resample_are_the_components_of_its_texts():
    x, label = classes(width=5)
    xt, y, _ = tensors(x - x.mean(0), label)
    times = torch.tensor(np.random.default_rng(3).multinomial(len(x), np.full(len(x), 1 / len(x))))
    weights = torch.stack([times * (y == 0), times * (y == 1)])[None].double()
    found = moments_of(xt, weights)
    turned = found.along(moments.principal_axes([found])).leading(2)
    rows = np.repeat(x, times.numpy(), axis=0)
    again = np.repeat(label, times.numpy())
    centred = rows - rows.mean(0)
    coords = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    gap = coords[again == 1].mean(0) - coords[again == 0].mean(0)
    expected = sum(np.trace(np.cov(coords[again == c].T)) for c in (0, 1))
    assert float(turned.shift.square().sum()) == pytest.approx(gap @ gap, rel=1e-9)
    assert float(turned.trace.sum()) == pytest.approx(expected, rel=1e-9)


def test_noise_of_the_shift_is_recovered_through_the_projection():
    rng = np.random.default_rng(0)
    scale = np.exp(0.5 * rng.standard_normal(300))
    units = rng.standard_normal((200, 300)) * scale
    truth = (scale**4).sum() * 200**2
    plain = float(moments.shift_noise(torch.tensor(units), width=0))
    assert plain == pytest.approx(truth, rel=0.05)
    found = []
    for _ in range(40):
        projection = rng.standard_normal((300, 64)) / 8
        found.append(float(moments.shift_noise(torch.tensor(units @ projection), width=64)))
    assert np.mean(found) == pytest.approx(plain, rel=3 * np.std(found) / np.mean(found) / 40**0.5)
    assert np.std(found) < 0.2 * plain
