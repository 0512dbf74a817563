"""Language statistics against their definitions in float64 NumPy."""

import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from safetyspace_fast.data import NUM_FOLDS
from safetyspace_fast.extract import finish
from safetyspace_fast.extract.finish import (
    Basis,
    dominance,
    finish_cell,
    merge_cell_bases,
    on_streams,
    principal_components,
)
from safetyspace_fast.store.layout import COMPONENTS


def draw(n: int, width: int, *, outlier: float = 0.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, width, generator=generator) * torch.logspace(1, -1, width)
    x[:, width // 2] += outlier
    return x


@pytest.mark.parametrize(
    ("n", "width"), [(300, 40), (40, 300), (900, 500), (500, 900), (9, 30), (2, 5)]
)
@pytest.mark.parametrize("outlier", [0.0, 3000.0])
def test_components_are_those_of_a_full_svd(n: int, width: int, outlier: float) -> None:
    x = draw(n, width, outlier=outlier).double()
    x -= x.mean(0)
    variance, components = principal_components(x, COMPONENTS)
    _, singular, vectors = np.linalg.svd(x.numpy(), full_matrices=False)
    k = min(COMPONENTS, n - 1, width)
    expected = np.zeros(COMPONENTS)
    expected[:k] = singular[:k] ** 2 / (n - 1)
    np.testing.assert_allclose(variance, expected, rtol=1e-9, atol=1e-12 * expected[0])
    cosines = np.abs((components[:k].numpy() * vectors[:k]).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-6)
    assert (components[k:] == 0).all()


@pytest.mark.parametrize("outlier", [0.0, 3000.0])
@pytest.mark.parametrize(("n", "width"), [(300, 290), (900, 500), (500, 900)])
def test_the_components_of_a_gpu_are_those_of_a_cpu(
    n: int, width: int, outlier: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU orthogonalises by products; float64 leaves nothing of the way to float32."""
    x = draw(n, width, outlier=outlier).double()
    x -= x.mean(0)
    expected = finish.principal_components(x, COMPONENTS)
    used = []

    def by_products(columns: torch.Tensor) -> torch.Tensor:
        used.append(1)
        return finish.cholesky_qr(columns)

    monkeypatch.setattr(finish, "orthonormal", by_products)
    got = finish.principal_components(x, COMPONENTS)
    assert used
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_columns_are_orthonormal_however_they_lie() -> None:
    x = draw(400, 12).double()
    nearly = x[:, :1] + 1e-12 * x  # beyond what products can part
    for columns in (x, x * torch.logspace(0, -200, 12).double(), nearly, torch.zeros(400, 12)):
        q = finish.cholesky_qr(columns.double())
        torch.testing.assert_close(q.T @ q, torch.eye(12).double(), rtol=0, atol=1e-12)


def test_components_of_constant_data_are_zero() -> None:
    variance, components = principal_components(torch.zeros(50, 20, dtype=torch.float64), 16)
    assert (variance == 0).all()
    assert (components == 0).all()


@pytest.mark.parametrize("outlier", [0.0, 3000.0])
def test_a_cell_follows_its_definitions(outlier: float) -> None:
    n, width = 120, 30
    states = draw(n, width, outlier=outlier)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 2, (n,), generator=generator)
    folds = torch.randint(0, NUM_FOLDS, (n,), generator=generator)
    states[labels == 1, :4] += 1.0
    cell = finish_cell(states, labels, folds)

    x, y, f = states.double().numpy(), labels.numpy(), folds.numpy()
    gaps = x[:, None] - x[None]
    distance = np.sqrt((gaps**2).sum(2))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for c in (0, 1):
        np.testing.assert_allclose(cell["class_mean"][c], x[y == c].mean(0), rtol=1e-12)
        np.testing.assert_allclose(cell["class_var"][c], x[y == c].var(0, ddof=1), rtol=1e-8)
        others = (y == c)[None] & ~np.eye(n, dtype=bool)
        np.testing.assert_allclose(cell["pair_sum"][:, c], (distance * others).sum(1), rtol=1e-5)
        np.testing.assert_allclose(
            cell["pair_min"][:, c], np.where(others, distance, np.inf).min(1), rtol=1e-4
        )
        np.testing.assert_allclose(cell["pair_max"][:, c], (distance * others).max(1), rtol=1e-5)
        cosine = ((1 - unit @ unit.T) * others).sum(1)
        np.testing.assert_allclose(cell["cos_sum"][:, c], cosine, rtol=1e-4, atol=1e-5)
        for fold in range(NUM_FOLDS):
            expected = x[(y == c) & (f == fold)].mean(0) - x.mean(0)
            np.testing.assert_allclose(
                cell["fold_mean"][c, fold], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max()
            )
        squared = ((x - x[y == c].mean(0)) ** 2).sum(1)
        np.testing.assert_allclose(cell["class_sqdist"][:, c], squared, rtol=1e-9)
    for i in range(n):
        m0, m1 = (x[(y == c) & (f != f[i])].mean(0) for c in (0, 1))
        direction = (m1 - m0) / np.linalg.norm(m1 - m0)
        expected = (x[i] - (m0 + m1) / 2) @ direction
        assert cell["heldout_score"][i] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_dominance_follows_its_definitions() -> None:
    n, width = 90, 12
    generator = np.random.default_rng(0)
    states = draw(n, width)
    tokens = generator.integers(1, 40, n).astype(np.int32)
    states[:, 5] += torch.from_numpy(200 / tokens)
    labels = torch.arange(n) % 2
    states[labels == 1, 2] += 1.0
    states[7, 3] = torch.nan
    folds = torch.arange(n) // 2 % NUM_FOLDS
    cell = {name: value.numpy() for name, value in finish_cell(states, labels, folds).items()}
    keep = np.arange(n) != 7
    cell["count"] = np.zeros((2, NUM_FOLDS), np.int64)
    np.add.at(cell["count"], (labels[keep], folds[keep]), 1)
    found = dominance(cell, tokens)

    x = states[torch.from_numpy(keep)].double().numpy()
    variance = x.var(0)
    first = cell["pca_coords"][keep, 0]
    assert found["largest_dim"] == variance.argmax() == 5
    assert found["largest_share"] == pytest.approx(variance[5] / variance.sum(), rel=1e-9)
    for name, other in (("pc1_tokens", tokens), ("pc1_inverse_tokens", 1 / tokens)):
        assert found[name] == pytest.approx(np.corrcoef(first, other[keep])[0, 1], rel=1e-6)
    assert abs(found["pc1_inverse_tokens"]) > 0.9
    alike = dominance(cell, np.full(n, 3, np.int32))
    assert np.isnan([alike["pc1_tokens"], alike["pc1_inverse_tokens"]]).all()
    assert alike["largest_share"] == found["largest_share"]


def test_of_states_that_do_not_vary_no_dimension_is_the_largest() -> None:
    labels, folds = torch.arange(40) % 2, torch.arange(40) // 2 % NUM_FOLDS
    cell = finish_cell(torch.ones(40, 6), labels, folds)
    arrays = {name: value.numpy() for name, value in cell.items()}
    arrays["count"] = np.full((2, NUM_FOLDS), 2)
    assert np.isnan(list(dominance(arrays, np.arange(1, 41, dtype=np.int32)).values())).all()


def test_samples_that_are_not_finite_are_left_out_of_the_rest() -> None:
    states = draw(60, 20)
    labels, folds = torch.arange(60) % 2, torch.arange(60) // 2 % NUM_FOLDS
    keep = torch.ones(60, dtype=torch.bool)
    keep[[3, 40]] = False
    without = finish_cell(states[keep], labels[keep], folds[keep])
    states[3, 5], states[40] = torch.inf, torch.nan
    cell = finish_cell(states, labels, folds)
    for name in ("pca_coords", "pair_sum", "cos_sum", "class_sqdist", "heldout_score"):
        assert cell[name][~keep].isnan().all(), name
        torch.testing.assert_close(cell[name][keep], without[name], msg=name)
    torch.testing.assert_close(cell["class_mean"], without["class_mean"])


def test_states_as_seen_from_another_model_are_those_of_its_components_and_directions() -> None:
    other, own = draw(90, 25, seed=3), draw(90, 25, seed=4)
    labels, folds = torch.arange(90) % 2, torch.arange(90) // 2 % NUM_FOLDS
    other[labels == 1, :5] += 2.0
    seen = finish_cell(other, labels, folds)
    count = torch.stack([torch.bincount(folds[labels == c], minlength=NUM_FOLDS) for c in (0, 1)])
    basis = Basis(seen["pca_components"].double(), seen["fold_mean"].double(), count.double())
    cell = finish_cell(own, labels, folds, bases=[basis, basis])
    centred = own.double() - own.double().mean(0)
    expected = centred @ seen["pca_components"].double().T
    torch.testing.assert_close(cell["basis_coords"][:, 1].double(), expected, rtol=1e-4, atol=1e-5)
    x = other.double()
    for i in range(90):
        m0, m1 = (x[(labels == c) & (folds != folds[i])].mean(0) for c in (0, 1))
        along = centred[i] @ (m1 - m0) / (m1 - m0).norm()
        assert float(cell["basis_score"][i, 0]) == pytest.approx(float(along), rel=1e-4, abs=1e-4)
    again = finish_cell(other, labels, folds, bases=[basis])
    torch.testing.assert_close(again["basis_coords"][:, 0], again["pca_coords"])
    foreign = Basis(basis.components, basis.fold_mean, basis.count, foreign=True)
    shift = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    torch.testing.assert_close(
        finish_cell(own, labels, folds, bases=[foreign])["basis_score"][:, 0].double(),
        centred @ shift / shift.norm(),
        rtol=1e-4,
        atol=1e-4,
    )
    nothing = Basis(basis.components, basis.fold_mean * torch.nan, basis.count)
    assert finish_cell(own, labels, folds, bases=[nothing])["basis_coords"].isnan().all()


def test_noise_has_no_heldout_direction() -> None:
    """In-sample, noise in 2,000 dimensions separates perfectly; across folds it must not."""
    states = torch.randn(400, 2000, generator=torch.Generator().manual_seed(0))
    labels, folds = torch.arange(400) % 2, torch.arange(400) // 2 % NUM_FOLDS
    score = finish_cell(states, labels, folds)["heldout_score"]
    above = (score[labels == 1][:, None] > score[labels == 0]).double().mean()
    assert abs(float(above) - 0.5) < 0.08


def test_merged_basis_is_the_basis_of_all_languages() -> None:
    """With languages of low rank nothing is cut off, so the merge is exact."""
    generator = torch.Generator().manual_seed(0)
    parts, counts = [], [70, 40, 90]
    for i, n in enumerate(counts):
        factors = torch.randn(n, 4, generator=generator, dtype=torch.float64)
        part = factors @ torch.randn(4, 50, generator=generator, dtype=torch.float64)
        parts.append(part + i)
    centres = torch.stack([part.mean(0) for part in parts])
    found = [
        principal_components(part - centre, COMPONENTS)
        for part, centre in zip(parts, centres, strict=True)
    ]
    basis = merge_cell_bases(
        counts,
        centres,
        torch.stack([variance for variance, _ in found]),
        torch.stack([components for _, components in found]),
    ).double()
    together = torch.cat(parts)
    _, expected = principal_components(together - together.mean(0), COMPONENTS)
    rank = int((expected.abs().sum(1) > 0).sum())
    overlap = (basis[:, :rank].T @ expected[:rank].T).abs()
    np.testing.assert_allclose(overlap.diagonal(), 1, atol=1e-5)


def test_a_layer_without_any_finite_state_has_a_basis_of_zeros() -> None:
    empty = torch.zeros(2, 3, dtype=torch.float64)
    assert not merge_cell_bases([0, 0], empty, empty[:, :2], torch.zeros(2, 2, 3)).any()


class FakeStreams:
    """Stands in for `torch.cuda`: counts the streams and the waits for them."""

    def __init__(self) -> None:
        self.made = self.waits = self.emptied = 0

    def Stream(self, _device: torch.device) -> "FakeStreams":  # noqa: N802 - torch's own name
        self.made += 1
        return self

    def stream(self, _stream: "FakeStreams") -> nullcontext[None]:
        return nullcontext()

    def synchronize(self) -> None:
        self.waits += 1

    def empty_cache(self) -> None:
        self.emptied += 1


CELLS = [(i, j) for i in range(6) for j in range(2)]
A_GPU = torch.device("cuda", 0)


def test_on_a_gpu_the_first_cell_runs_alone_and_then_two_at_a_time() -> None:
    cuda, running, seen = FakeStreams(), [0], []
    lock = threading.Lock()

    def work(*cell: int) -> None:
        with lock:
            running[0] += 1
            seen.append((cell, running[0]))
        time.sleep(0.01)
        with lock:
            running[0] -= 1

    on_streams(work, CELLS, A_GPU, cuda)
    assert sorted(cell for cell, _ in seen) == CELLS
    assert [count for _, count in seen[:2]] == [1, 1]
    assert max(count for _, count in seen) == 2
    assert cuda.waits == len(CELLS)
    on_streams(work, CELLS, A_GPU, cuda)
    assert cuda.made == 2


def test_a_cell_without_room_beside_another_one_runs_again_alone() -> None:
    cuda, running, done = FakeStreams(), [0], []
    lock = threading.Lock()

    def work(*cell: int) -> None:
        with lock:
            running[0] += 1
            crowded = running[0] > 1
        time.sleep(0.01)
        with lock:
            running[0] -= 1
        if crowded:
            raise torch.AcceleratorError("CUDA error: out of memory")  # not of the allocator
        done.append(cell)

    on_streams(work, CELLS, A_GPU, cuda)
    assert sorted(done) == CELLS
    assert cuda.emptied == 1

    def hungry(*_: int) -> None:
        raise torch.OutOfMemoryError("no room for one")

    with pytest.raises(torch.OutOfMemoryError, match="no room for one"):
        on_streams(hungry, CELLS, A_GPU, cuda)
