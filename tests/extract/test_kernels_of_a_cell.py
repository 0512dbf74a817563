"""What MMD^2 needs of a cell, against all pairs of texts in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_one_device import draw, write_texts

from safetyspace_fast.data import read_samples
from safetyspace_fast.extract.chance import Chance
from safetyspace_fast.extract.finish import finish_cell

Floats = NDArray[np.float64]


def squared_mmd(kernel: Floats, y: Floats, same: NDArray[np.bool_]) -> float:
    """Means over pairs of distinct texts; entries of the kernel with copies are 0."""
    size = {c: (y == c).sum() for c in (0, 1)}
    own = 0.0
    for c in (0, 1):
        inside = kernel[y == c][:, y == c].sum(1) / (size[c] - same[y == c].sum(1))
        own += inside.mean()
    return float(own - 2 * kernel[y == 0][:, y == 1].mean())


@pytest.mark.parametrize("paired", [False, True])
def test_kernels_of_a_cell(tmp_path: Path, paired: bool) -> None:
    samples = read_samples(write_texts(tmp_path, paired=paired))
    chance = Chance(samples, "en")
    labels, texts = np.asarray(samples.labels), np.asarray(samples.texts)
    x = draw(len(samples))
    for i, text in enumerate(texts):  # copies have equal states
        x[i] = x[int(np.flatnonzero(texts == text)[0])]
    lost = int(np.flatnonzero(texts == "number 20 and 1")[0])
    x[lost, 2] = torch.nan
    fold = torch.from_numpy(np.asarray(samples.fold).astype(np.int64))
    y = torch.from_numpy(labels.astype(np.int64))
    kept = chance.counted(x)
    assert int((~kept).sum()) == (2 if paired else 1)  # with its partner
    found = chance.of_cell(x, kept, finish_cell(x, y, fold)["pair_sum"])

    wide, keep, finite = x.double().numpy(), kept.numpy(), x.isfinite().all(1).numpy()
    distance = np.linalg.norm(wide[:, None] - wide, axis=-1)
    same = (texts[:, None] == texts) & (labels[:, None] == labels)
    assert (same.sum(1) > 1).any() != paired
    others = keep[:, None] & finite & ~same
    square = (distance / distance[others].mean())[np.ix_(keep, keep)] ** 2
    same = same[np.ix_(keep, keep)]

    def kernel(log_width: float = 0.0) -> Floats:
        return np.asarray(np.exp(-square / 2 * np.exp(-2 * log_width)) * ~same)

    sums = np.stack([kernel()[:, labels[keep] == c].sum(1) for c in (0, 1)], 1)
    np.testing.assert_allclose(found["kernel_sum"][kept], sums, rtol=1e-6)
    assert found["kernel_sum"][~kept].isnan().all()
    nulls = [squared_mmd(kernel(), one[keep], same) for one in chance._labels.numpy()]
    np.testing.assert_allclose(found["kernel_null"], nulls, rtol=1e-4, atol=1e-6)
    one, other = (squared_mmd(kernel(step), labels[keep], same) for step in (1e-4, -1e-4))
    assert float(found["kernel_slope"]) == pytest.approx((one - other) / 2e-4, rel=1e-4, abs=1e-6)
