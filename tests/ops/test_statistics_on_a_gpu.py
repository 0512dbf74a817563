import pytest
import torch
from device_runner import run
from implementations import two_classes

from safetyspace_fast import ops


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("metric", ops.METRICS)
def test_every_statistic_on_a_gpu(dtype, metric):
    x, labels = two_classes(700, 90, dtype=dtype)
    many = torch.stack([labels, labels.flip(0)])
    for statistic in (
        lambda z, y, _: ops.silhouette_samples(z, y, metric=metric),
        lambda z, _, many: ops.energy_distance(z, many, metric=metric),
        lambda z, _, many: ops.energy_distance(torch.stack([z, 3 * z]), many, metric=metric),
        lambda z, _, many: ops.mmd(z, many, 0.01),
        lambda z, y, _: ops.dunn(z, y, metric=metric),
        lambda z, y, _: ops.nn_accuracy(z, y, metric=metric),
    ):
        actual = run("cuda", statistic, x, labels, many)
        torch.testing.assert_close(actual, statistic(x, labels, many), rtol=1e-3, atol=2e-5)
