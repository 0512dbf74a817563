"""Between-class ratios against scikit-learn, NumPy and leaving texts out."""

import numpy as np
import pytest
import torch
from oracle import stand_in
from sklearn.metrics import calinski_harabasz_score
from toys import classes, full_width, moments_of, stored, tensors

from safetyspace_fast.analysis import moments, separation
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


@pytest.mark.parametrize("scale", ["robust", "of an earlier version"])
def test_the_standardized_ratio_is_rho_of_scaled_dimensions(scale):
    x, label = classes(width=8)
    x[:, 3] = 5.0
    x[0, 2] *= 1e4
    run = stand_in({"m": {"en": x[None, None]}}, {"en": label})
    spread = 1.4826 * np.median(np.abs(x - np.median(x, 0)), 0)
    spread = np.maximum(spread, x.std(0, ddof=1) / 10)
    if scale != "robust":
        spread = x.std(0, ddof=1)
        for name in ("scale", "noise", "standard_sqdist", "standard_score"):
            run.model("m").remove(name)
    found = separation(run, metrics=["rho_standardized", "auc_standardized"]).squeeze()
    thin = np.delete(x / np.where(spread > 0, spread, 1), 3, axis=1)
    rho = float(ratio.between_ratio(*full_width(thin, label)))
    assert float(found["value"].sel(metric="rho_standardized")) == pytest.approx(rho, rel=1e-6)
    known = found["low"].notnull() & (found["refused"] == "")
    assert known.all() if scale == "robust" else not known.any()


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
    on_shift, on_within = moments.shift_influence(arrays["class_sqdist"], shift_sq, y)
    for c in (0, 1):  # deviations from their mean, or copies would count as other units
        assert abs(float(on_shift[y == c].sum())) < 1e-9
        assert abs(float(on_within[y == c].sum())) < 1e-9
    by_shift, by_within = ratio.ratio_slopes(shift_sq, trace, count)
    n = len(x)
    influence = (by_shift * on_shift + by_within * on_within) * (n - 1) / (n - 2)

    def adjusted(keep):
        rho = ratio.between_ratio(*full_width(x[keep], label[keep]))
        return float(ratio.adjusted_ratio(rho, float(keep.sum())))

    whole = adjusted(np.ones(n, bool))
    jackknife = []
    for i in range(0, len(x), 9):
        keep = np.arange(len(x)) != i
        jackknife.append(whole - adjusted(keep))
    np.testing.assert_allclose(influence[::9], jackknife, rtol=0.05, atol=0.02 * np.std(jackknife))


@pytest.mark.parametrize(
    ("counts", "tail", "shift"),
    [((50, 50), 3, 0.0), ((50, 50), 3, 2.0), ((190, 10), 3, 1.5), ((190, 10), 0, 1.5)],
)
def test_intervals_cover_heavy_tails_and_few_harmful_texts(counts, tail, shift):
    """A normal interval on the scale of the value covers 0.79 to 0.90 in the last three."""
    rng, label = np.random.default_rng(3), np.repeat([0, 1], counts)
    x = rng.standard_normal((300, 1, len(label), 16))
    if tail:
        x /= np.sqrt(rng.chisquare(tail, (*x.shape[:3], 1)) / tail)
    x[..., 4] += shift * label
    run = stand_in({"m": {"en": x}}, {"en": label}, proj=16)
    names = ["rho", "rho_standardized", "mean_shift"]
    found = separation(run, metrics=names, permutations=0).squeeze()
    value, low, high = (found[name].to_numpy() for name in ("value", "low", "high"))
    mean = value.mean(-1, keepdims=True)
    covered = ((low <= mean) & (mean <= high)).mean(-1)  # 300 draws know 95 % to 1.3 %
    assert (covered >= 0.915).all()
    assert (covered <= 0.99).all()
    assert (low[:2] >= 0).all()
    assert (high[:2] <= 1).all()
