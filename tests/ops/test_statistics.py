import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import normal, two_classes
from sklearn.metrics import pairwise_distances, silhouette_samples
from sklearn.neighbors import KNeighborsClassifier

from safetyspace_fast import ops
from safetyspace_fast.errors import ConfigError


def split(x, labels, metric="euclidean"):
    """Distances within class 0, within class 1 (no pair twice, none with itself), between."""
    a, b = x[labels == 0].double().numpy(), x[labels == 1].double().numpy()

    def upper(z):
        return pairwise_distances(z, metric=metric)[np.triu_indices(len(z), 1)]

    return upper(a), upper(b), pairwise_distances(a, b, metric=metric)


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 60), st.integers(2, 8), st.integers(0, 999), st.sampled_from(ops.METRICS))
def test_silhouette_is_scikit_learns(N, C, seed, metric):
    x = normal(N, 6, seed=seed, dtype=torch.float64)
    labels = torch.randint(0, C, (N,), generator=torch.Generator().manual_seed(seed)) * 7 - 3
    if not 2 <= len(labels.unique()) < N:
        with pytest.raises(ConfigError, match="labels: expected 2 to"):
            ops.silhouette_samples(x, labels)
        return
    expected = silhouette_samples(x.numpy(), labels.numpy(), metric=metric)
    np.testing.assert_allclose(
        ops.silhouette_samples(x, labels, metric=metric), expected, atol=1e-9
    )
    single = ops.silhouette_samples(x.float(), labels, metric=metric)
    np.testing.assert_allclose(single, expected, atol=2e-5)


def test_silhouette_of_equal_samples_is_0():
    assert (ops.silhouette_samples(torch.ones(6, 3), torch.arange(6) % 2) == 0).all()


def test_silhouette_of_a_bad_sample_is_nan():
    x, labels = two_classes(10)
    x[4] = torch.nan
    assert ops.silhouette_samples(x, labels)[4].isnan()


@pytest.mark.parametrize("metric", ops.METRICS)
def test_energy_distance(metric):
    x, labels = two_classes()
    within0, within1, between = split(x, labels, metric)
    expected = 2 * between.mean() - within0.mean() - within1.mean()
    assert ops.energy_distance(x, labels, metric=metric).item() == pytest.approx(expected, rel=1e-5)
    n0, n1 = between.shape
    biased = 2 * between.mean() - 2 * within0.sum() / n0**2 - 2 * within1.sum() / n1**2
    actual = ops.energy_distance(x, labels, metric=metric, biased=True)
    assert actual.item() == pytest.approx(biased, rel=1e-5)


def test_energy_distance_of_means_is_the_squared_form():
    # 2 E|X-Y|^2 - E|X-X'|^2 - E|Y-Y'|^2 with samples counted against themselves is 2 |m1 - m0|^2.
    x, labels = two_classes(dtype=torch.float64)
    shift = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    actual = ops.energy_distance(x, labels, metric="sqeuclidean", biased=True)
    assert actual.item() == pytest.approx(2 * shift.square().sum().item(), rel=1e-11)


def test_mmd():
    x, labels = two_classes()
    within0, within1, between = split(x, labels)
    n0, n1 = between.shape
    for gamma in (0.01, 0.1, 1.0):
        k0, k1, k01 = (np.exp(-gamma * d**2) for d in (within0, within1, between))
        unbiased = k0.mean() + k1.mean() - 2 * k01.mean()
        biased = (2 * k0.sum() + n0) / n0**2 + (2 * k1.sum() + n1) / n1**2 - 2 * k01.mean()
        assert ops.mmd(x, labels, gamma).item() == pytest.approx(unbiased, rel=1e-5, abs=1e-8)
        actual = ops.mmd(x, labels, gamma, biased=True).item()
        assert actual == pytest.approx(biased, rel=1e-5, abs=1e-8)


def test_dunn():
    x, labels = two_classes()
    within0, within1, between = split(x, labels)
    expected = between.min() / max(within0.max(), within1.max())
    assert ops.dunn(x, labels).item() == pytest.approx(expected, rel=1e-5)
    assert ops.dunn(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])).item() == float("inf")


def test_nn_accuracy():
    x, labels = two_classes(200, 4, shift=1.0)
    correct = 0.0
    for i in range(len(x)):
        rest = np.delete(np.arange(len(x)), i)
        model = KNeighborsClassifier(1).fit(x[rest], labels[rest])
        correct += model.predict(x[i : i + 1])[0] == labels[i].item()
    assert ops.nn_accuracy(x, labels).item() == pytest.approx(correct / len(x), abs=1e-12)
    ties = torch.zeros(4, 2)
    assert ops.nn_accuracy(ties, torch.tensor([0, 0, 1, 1])).item() == 0.5


@pytest.mark.parametrize("function", [ops.energy_distance, lambda x, y: ops.mmd(x, y, 1.0)])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 2], [0, 1, 1, 1]])
def test_two_classes_of_two_samples_are_needed(function, labels):
    with pytest.raises(ConfigError, match="labels: expected 0 and 1, each at least twice"):
        function(torch.ones(4, 2), torch.tensor(labels))


@pytest.mark.parametrize("function", [ops.dunn, ops.nn_accuracy])
def test_one_class_is_not_enough(function):
    with pytest.raises(ConfigError, match="labels: expected at least 2 classes, got 1"):
        function(torch.ones(4, 2), torch.zeros(4).long())


def test_wrong_arguments_are_named():
    x, labels = two_classes(6)
    with pytest.raises(ConfigError, match=r"x, labels: expected \[N, D\] and \[N\]"):
        ops.silhouette_samples(x, labels[:3])
    with pytest.raises(ConfigError, match="labels: expected integers"):
        ops.silhouette_samples(x, labels.double())
    with pytest.raises(ConfigError, match="gamma: expected finite numbers"):
        ops.mmd(x, labels, -1.0)
    with pytest.raises(ConfigError, match=r"one for each layer of x, got shape \[3\]"):
        ops.mmd(x.expand(2, -1, -1), labels, torch.ones(3))
    with pytest.raises(ConfigError, match=r"or \[L, N, D\] and \[N\] or \[R, N\]"):
        ops.energy_distance(x, labels[None, None])


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("shift", [0.0, 1e5])
def test_many_labellings_at_once(impl, shift):
    # Under permutation the statistic is a small difference of large means.
    x = normal(1300, 20) + shift
    generator = torch.Generator().manual_seed(1)
    labels = torch.stack([torch.randperm(1300, generator=generator) < n for n in (650, 400, 2)])
    for statistic in (
        lambda z, y: ops.energy_distance(z, y, impl=impl),
        lambda z, y: ops.energy_distance(z, y, metric="cosine", impl=impl),
        lambda z, y: ops.mmd(z, y, 0.02, impl=impl),
    ):
        for row, value in zip(labels, statistic(x, labels.long()), strict=True):
            alone = statistic(x, row.long()).item()
            assert value.item() == pytest.approx(alone, rel=1e-4, abs=1e-9)
    exact = ops.energy_distance(x.double(), labels.long())
    errors = (ops.energy_distance(x, labels.long(), impl=impl) - exact).abs()
    assert errors.max() < 1e-6  # float32 distances of about 6


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("many", [False, True])
def test_layers_at_once_give_what_each_gives_alone(impl, many):
    """Each with its own scale, and for MMD its own bandwidth."""
    x, labels = two_classes()
    x = torch.stack([x, x.flip(0) * 1000, x * 0.01])
    gammas = 0.1 / torch.tensor([1.0, 1e6, 1e-4], dtype=torch.float64)
    labels = torch.stack([labels, labels.roll(5)]) if many else labels
    for metric in ops.METRICS:
        together = ops.energy_distance(x, labels, metric=metric, impl=impl)
        alone = [ops.energy_distance(layer, labels, metric=metric, impl=impl) for layer in x]
        assert torch.equal(together, torch.stack(alone))
    together = ops.mmd(x, labels, gammas, impl=impl)
    alone = [
        ops.mmd(layer, labels, float(g), impl=impl) for layer, g in zip(x, gammas, strict=True)
    ]
    assert torch.equal(together, torch.stack(alone))


def test_labellings_do_not_depend_on_the_number_of_threads(threads):
    x = normal(1500, 30)
    labels = torch.stack([torch.randperm(1500) % 2 for _ in range(7)])
    for statistic in (ops.energy_distance, lambda z, y: ops.mmd(z, y, 0.02)):
        threads(1)
        expected = statistic(x, labels)
        for count in (2, 4):
            threads(count)
            assert torch.equal(statistic(x, labels), expected)
