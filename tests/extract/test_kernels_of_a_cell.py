"""What MMD^2 needs of a cell, against all pairs of texts in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmd_truth import gaussian, mmd
from test_one_device import draw, write_texts

from safetyspace_fast.data import read_samples
from safetyspace_fast.extract.chance import Chance
from safetyspace_fast.extract.finish import finish_cell


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
    kept_same = same[np.ix_(keep, keep)]
    kernel, by_width = gaussian(wide[keep], kept_same, distance[others].mean())
    sums = np.stack([kernel[:, labels[keep] == c].sum(1) for c in (0, 1)], 1)
    np.testing.assert_allclose(found["kernel_sum"][kept], sums, rtol=1e-6)
    assert found["kernel_sum"][~kept].isnan().all()
    nulls = [mmd(kernel, one[keep].astype(float), kept_same) for one in chance._labels.numpy()]
    np.testing.assert_allclose(found["kernel_null"], nulls, rtol=1e-4, atol=1e-6)
    slope = mmd(by_width, labels[keep].astype(float), kept_same)
    assert float(found["kernel_slope"]) == pytest.approx(slope, rel=1e-4, abs=1e-6)
