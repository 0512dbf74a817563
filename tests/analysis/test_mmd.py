"""MMD^2 at full width: all pairs of texts, planted differences, intervals, stores without it."""

import math

import numpy as np
import pytest
import torch
from mmd_truth import gaussian, mmd
from oracle import planted, stand_in

from safetyspace_fast.analysis import compare, separation
from safetyspace_fast.ops import FoldLabellings, KernelSums, labelled_statistics

QUICK = {"metrics": "mmd", "bootstraps": 0, "permutations": 99}


def found(x, label, **options):
    run = stand_in({"m": {"en": x}}, {"en": label})
    return separation(run, **(QUICK | options)).squeeze()


@pytest.mark.parametrize("copies", [False, True])
def test_kernels_of_a_language_are_those_of_all_pairs_of_distinct_texts(copies):
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [30, 20])
    x = rng.standard_normal((50, 24)) * 300 + 1000 * label[:, None]
    copy = np.arange(50)
    if copies:
        copy[[1, 2, 40]] = copy[[0, 0, 39]]
        x = x[copy]
    same = copy[:, None] == copy
    labels = np.stack([label, *(rng.permutation(label[copy])[copy] for _ in range(9))])
    kernel, by_width = gaussian(x, same)
    centred = x - x.mean(0)
    width = np.linalg.norm(centred[:, None] - centred, axis=-1).sum() / (~same).sum()
    fold = torch.tensor(np.random.default_rng(1).integers(0, 5, 50)[copy])
    labellings = FoldLabellings(torch.tensor(labels, dtype=torch.uint8), fold)
    number = torch.tensor(np.unique(copy, return_inverse=True)[1]) if copies else None
    kernels = KernelSums(labellings, width, number)
    states = torch.tensor(x, dtype=torch.float32)
    labelled_statistics(states, torch.ones(24), labellings, copy=number, kernels=kernels)
    got = kernels.result()
    sums = np.stack([kernel[:, label == c].sum(1) for c in (0, 1)], 1)
    np.testing.assert_allclose(got["kernel_sum"], sums, rtol=1e-6)
    nulls = [mmd(kernel, one.astype(float), same) for one in labels]
    np.testing.assert_allclose(got["kernel_null"], nulls, rtol=1e-4, atol=1e-6)
    slope = mmd(by_width, label.astype(float), same)
    assert float(got["kernel_slope"]) == pytest.approx(slope, rel=1e-4)


def test_the_value_is_that_of_two_gaussians():
    """E k of a Gaussian of covariance s I at distance d: v^(D/2) exp(-v d^2 / 2), v = 1/(1+s)."""
    x, label = planted(n=500, width=8, shift=3.0)
    one = found(x, label)
    flat = x[0, 0]
    square = ((flat[:, None] - flat) ** 2).sum(-1)
    h2 = (np.sqrt(square).sum() / (500 * 499)) ** 2
    v = h2 / (h2 + 2)
    truth = 2 * v**4 * (1 - math.exp(-9 / (2 * (h2 + 2))))
    assert float(one["low"]) < truth < float(one["high"])
    assert float(one["value"]) == pytest.approx(truth, rel=0.15)
    assert float(one["p"]) == pytest.approx(0.01)


def test_without_a_difference_it_is_0_on_average_and_p_is_uniform():
    label = np.repeat([0, 1], 30)
    x = np.random.default_rng(0).standard_normal((60, 1, 60, 6))
    one = found(x, label)
    assert abs(float(one["value"].mean())) < 3 * float(one["value"].std()) / math.sqrt(60)
    assert float((one["p"] <= 0.05).mean()) < 0.13
    assert 0.35 < float(one["p"].mean()) < 0.65


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["independent", "unbalanced", "heavy tails"])
def test_the_interval_covers_the_mean(kind):
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [190, 10] if kind == "unbalanced" else [60, 60])
    x = rng.standard_normal((200, 1, len(label), 24)) * np.exp(-0.1 * np.arange(24))
    if kind == "heavy tails":
        x *= np.sqrt(3 / rng.chisquare(3, (200, 1, len(label), 1)))
    x[..., :4] += label[:, None]
    one = found(x, label)
    mean = float(one["value"].mean())
    assert 0.91 <= float(((one["low"] <= mean) & (mean <= one["high"])).mean()) <= 0.99


def test_exchanging_the_models_negates_the_difference_and_no_projection_matters():
    x, label = planted(n=80, width=24, shift=1.5)
    y = x + 0.5 * np.random.default_rng(0).standard_normal(x.shape)
    differences = []
    for models, seed in ((("a", "b"), 0), (("b", "a"), 0), (("a", "b"), 1)):
        run = stand_in({"a": {"en": x}, "b": {"en": y}}, {"en": label}, proj=8, seed=seed)
        one = compare(run, base=models[0], aligned=models[1], **QUICK).squeeze()
        differences.append([float(one[part]) for part in ("difference", "low", "high", "p")])
    there, back, again = differences
    assert there[0] != 0
    np.testing.assert_allclose(there, again, rtol=1e-9)
    np.testing.assert_allclose(there, [-back[0], -back[2], -back[1], back[3]], rtol=1e-9)


def test_a_store_of_an_earlier_version_says_so():
    x, label = planted(n=60, width=8)
    run = stand_in({"m": {"en": x}}, {"en": label})
    run.model("m").remove("kernel_sum")
    one = separation(run, **QUICK).squeeze()
    assert str(one["refused"].values) == "the store is of an earlier version: run the model again"
