"""Between-class ratios against scikit-learn, NumPy and leaving texts out."""

import numpy as np
import pytest
import torch
from sklearn.metrics import calinski_harabasz_score
from toys import classes, full_width, moments_of, stored, tensors

from safetyspace_fast.analysis import moments
from safetyspace_fast.analysis.families import ratio


def test_ratio_aliases_are_scikit_learns_and_xie_benis():
    x, label = classes()
    shift_sq, trace, count = full_width(x, label)
    n = float(count.sum())
    rho = ratio.between_ratio(shift_sq, trace, count)
    assert float(ratio.calinski_harabasz(rho, n)) == pytest.approx(
        calinski_harabasz_score(x, label), rel=1e-10
    )
    centres = [x[label == c].mean(0) for c in (0, 1)]
    compact = sum(((x[label == c] - centres[c]) ** 2).sum() for c in (0, 1))
    xie_beni = compact / (len(x) * ((centres[1] - centres[0]) ** 2).sum())
    assert float(ratio.xie_beni(rho, count)) == pytest.approx(xie_beni, rel=1e-10)
    adjusted = ratio.adjusted_ratio(rho, n)
    assert float(adjusted) == pytest.approx(float(1 - (1 - rho) * (n - 1) / (n - 2)), rel=1e-14)
    assert float(ratio.unadjusted_ratio(adjusted, n)) == pytest.approx(float(rho), rel=1e-12)


def test_standardized_ratio_is_the_mean_of_every_dimensions_own():
    x, label = classes()
    x[:, 3] = 5.0
    arrays, _ = stored(x, label)
    count = torch.tensor(np.bincount(label)).double()
    found = ratio.standardized_ratio(arrays["class_mean"], arrays["class_var"], count)
    kept = np.delete(x, 3, axis=1)
    ratios = []
    for column in kept.T:
        total = ((column - column.mean()) ** 2).sum()
        within = sum(((column[label == c] - column[label == c].mean()) ** 2).sum() for c in (0, 1))
        ratios.append(1 - within / total)
    assert float(found) == pytest.approx(np.mean(ratios), rel=1e-10)


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
    rho = ratio.between_ratio(found.shift.square().sum(-1), found.trace, found.count)
    assert float(rho) == pytest.approx(1 - within / total, rel=1e-9)


def test_influences_of_full_width_moments_are_those_of_leaving_texts_out():
    x, label = classes(300, 240, width=6, shift=0.4)
    arrays, _ = stored(x, label)
    shift_sq, trace, count = full_width(x, label)
    y = torch.tensor(label)
    on_shift, on_within = moments.shift_influence(arrays["class_sqdist"], shift_sq, trace, y)
    by_shift, by_within = ratio.ratio_slopes(shift_sq, trace, count, count.sum(-1))
    influence = by_shift * on_shift + by_within * on_within

    def adjusted(keep):
        rho = ratio.between_ratio(*full_width(x[keep], label[keep]))
        return float(ratio.adjusted_ratio(rho, float(keep.sum())))

    whole = adjusted(np.ones(len(x), bool))
    jackknife = []
    for i in range(0, len(x), 9):
        keep = np.arange(len(x)) != i
        jackknife.append(whole - adjusted(keep))
    np.testing.assert_allclose(influence[::9], jackknife, rtol=0.05, atol=0.02 * np.std(jackknife))
