"""Hotelling's T^2 of pairs against NumPy."""

import numpy as np
import pytest
import torch

from safetyspace_fast.analysis.families import paired


def test_hotelling_with_swapped_pairs():
    rng = np.random.default_rng(0)
    gap = rng.standard_normal((30, 3)) + 0.2
    signs = rng.choice([-1.0, 1.0], size=(2, 30))
    found = paired.hotelling(torch.tensor(gap), torch.tensor(signs))
    for r in range(2):
        flipped = gap * signs[r][:, None]
        mean = flipped.mean(0)
        expected = mean @ np.linalg.solve(np.cov(flipped.T), mean)
        assert float(found[r]) == pytest.approx(expected, rel=1e-10)
