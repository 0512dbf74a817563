import pytest
import torch
from device_runner import WHERE, run

from safetyspace_fast.ops import reference
from safetyspace_fast.ops.triton import pairwise_reduce as kernels

METRICS = ["euclidean", "sqeuclidean", "cosine"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draw_labels(N, C, seed=0):
    return torch.randint(0, C, (N,), generator=torch.Generator().manual_seed(seed))


def center_of(rows, metric="euclidean"):
    L, N, D = rows.shape
    return reference.center_of(rows, metric) if N else torch.zeros(L, D, dtype=torch.float64)


def check(where, rows, cols, labels, C, metric="euclidean", gammas=()):
    """Every distance within 1e-5 of the reference's in float64; so are sums, minima and maxima."""
    rest = (center_of(rows if cols is None else cols, metric), labels, C, metric, list(gammas))
    result = run(where, kernels.pairwise_reduce, rows, cols, *rest)
    wide = [None if t is None else t.double() for t in (rows, cols)]
    expected = reference.pairwise_reduce(*wide, *rest)
    for got, wanted in zip(result[:3], expected[:3], strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0, equal_nan=True)
    # exp(-gamma d^2) errs by at most 2e-5 gamma d^2 exp(-gamma d^2) <= 2e-5 / e a pair.
    bound = 1e-5 * labels.shape[0]
    torch.testing.assert_close(result[3], expected[3], rtol=0, atol=bound, equal_nan=True)
    return result


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_matches_float64(where, metric, symmetric):
    """Three tiles, the last not full; classes that cross tiles, and one without columns."""
    rows = draw(1, 150, 70)
    cols = None if symmetric else draw(1, 90, 70, seed=1)
    labels = draw_labels(rows.shape[1] if symmetric else 90, 4)
    labels[labels == 2] = 3
    gammas = [] if metric == "cosine" else [0.01, 0.002]
    result = check(where, rows, cols, labels, 4, metric, gammas)
    assert (result[0][..., 2] == 0).all()
    assert (result[1][..., 2] == torch.inf).all()
    assert (result[2][..., 2] == -torch.inf).all()


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(where, dtype):
    check(where, draw(1, 100, 33).to(dtype), None, draw_labels(100, 2), 2)
    check(where, draw(1, 9, 33).to(dtype), draw(1, 11, 33).to(dtype), draw_labels(11, 2), 2)


@pytest.mark.parametrize("where", WHERE)
def test_many_classes(where):
    """Texts and their translations: a class has two members, a tile 32 classes."""
    check(where, draw(1, 130, 20), None, torch.arange(130) % 65, 65)


@pytest.mark.parametrize("where", WHERE)
def test_smallest(where):
    result = check(where, draw(1, 1, 1), None, torch.tensor([0]), 1)
    assert [float(t) for t in result[:3]] == [0.0, torch.inf, -torch.inf]
    check(where, draw(1, 1, 1), draw(1, 1, 1, seed=1), torch.tensor([0]), 1)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("M", "N", "L"), [(0, 5, 1), (5, 0, 1), (5, 5, 0)])
def test_nothing_to_do(where, M, N, L):
    result = check(where, draw(L, M, 3), draw(L, N, 3), draw_labels(N, 2), 2, "euclidean", [1.0])
    assert (result[0] == 0).all()


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda x: x[..., ::2], id="every other dimension"),
        pytest.param(lambda x: x.transpose(0, 1), id="rows outermost"),
        pytest.param(lambda x: x.transpose(1, 2), id="dimensions outermost"),
    ],
)
def test_strides(where, view):
    rows = view(draw(2, 3, 28))
    check(where, rows, None, draw_labels(rows.shape[1], 2), 2)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x[..., :4].add_(3000), id="four dimensions shifted by 3,000"),
        pytest.param(lambda x: x.add_(1e6), id="everything translated by 1e6"),
        pytest.param(lambda x: x.mul_(1e12), id="large"),
        pytest.param(lambda x: x.mul_(1e-12), id="small"),
        pytest.param(lambda x: x[:, ::50].mul_(1000), id="one row in fifty far out"),
    ],
)
def test_scales(where, metric, change):
    rows = draw(1, 100, 64)
    change(rows)
    check(where, rows, None, draw_labels(100, 2), 2, metric)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("metric", METRICS)
def test_equal_and_nearly_equal_rows(where, metric):
    """They are in one tile and in two, in one class and in two."""
    rows = draw(1, 100, 40)
    rows[:, 80] = rows[:, 3]
    rows[:, 4] = rows[:, 3] + 1e-4 * draw(1, 40, seed=1)
    rows[:, 7] = rows[:, 90] * (1 + 1e-6)
    labels = draw_labels(100, 2)
    total, low, _, _ = check(where, rows, None, labels, 2, metric)
    assert low[0, 3, labels[80]] == low[0, 80, labels[3]] == 0
    assert (total[0] > 0).all()
    check(where, rows, rows.flip(1), labels, 2, metric)


@pytest.mark.parametrize("where", WHERE)
def test_all_rows_equal(where):
    result = check(where, torch.ones(1, 20, 5), None, draw_labels(20, 2), 2)
    assert (result[0] == 0).all()
    assert (result[2] == 0).all()


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_row_is_seen_by_its_class_alone(where, value):
    rows, labels = draw(1, 100, 20), draw_labels(100, 2)
    rows[0, 77, 3] = value
    total, low, high, _ = check(where, rows, None, labels, 2)
    others = torch.arange(100) != 77
    for result in (total, low, high):
        assert result[0, 77].isnan().all()
        assert result[0, others, labels[77]].isnan().all()
        assert not result[0, others, 1 - labels[77]].isnan().any()


@pytest.mark.parametrize("where", WHERE)
def test_labels_out_of_range_are_left_out(where):
    rows, cols, labels = draw(1, 5, 8), draw(1, 40, 8, seed=1), draw_labels(40, 3)
    inside = labels < 2
    marked = torch.where(inside, labels, torch.where(torch.arange(40) % 2 == 0, -7, 2))
    center = center_of(cols)
    call = (where, kernels.pairwise_reduce, rows)
    result = run(*call, cols, center, marked, 2, "euclidean", [])
    expected = run(*call, cols[:, inside], center, labels[inside], 2, "euclidean", [])
    for got, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("where", WHERE)
def test_layers_do_not_see_each_other(where):
    rows, labels = draw(2, 70, 20), draw_labels(70, 2)
    center = center_of(rows)
    call = (where, kernels.pairwise_reduce)
    together = run(*call, rows, None, center, labels, 2, "euclidean", [0.1])
    again = run(*call, rows, None, center, labels, 2, "euclidean", [0.1])
    alone = run(*call, rows[1:2], None, center[1:2], labels, 2, "euclidean", [0.1])
    for all_layers, same, one in zip(together, again, alone, strict=True):
        assert torch.equal(all_layers, same)
        assert torch.equal(all_layers[1:2], one)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("D", [3, 256])
def test_split_keeps_the_digits_of_float32(where, D):
    """In three dimensions errors have nothing to average out with. One class a column: no sums."""
    rows, cols = draw(1, 100, D), draw(1, 100, D, seed=1)
    center = torch.zeros(1, D, dtype=torch.float64)
    arguments = (rows, cols, center, torch.arange(100), 100, "sqeuclidean", [])
    result = run(where, kernels.pairwise_reduce, *arguments)[0]
    exact = (rows[0, :, None].double() - cols[0].double()).square().sum(-1)
    norms = rows[0].double().square().sum(-1)[:, None] + cols[0].double().square().sum(-1)
    assert ((result[0] - exact).abs() / norms).max() < 4e-7


@pytest.mark.needs_cuda
@pytest.mark.parametrize("metric", METRICS)
def test_large(metric):
    rows = draw(2, 3000, 1000)
    rows[..., :4] += 3000
    gammas = [] if metric == "cosine" else [1e-3, 5e-4]
    check("cuda", rows, None, draw_labels(3000, 5), 5, metric, gammas)


def test_reasons():
    rows, labels = draw(1, 3, 3), draw_labels(3, 2)
    center = torch.zeros(1, 3, dtype=torch.float64)
    arguments = (None, center, labels, 2, "euclidean")
    reasons = kernels.supports(rows.double(), *arguments, [1.0] * 5)
    assert len(reasons) == 3
    assert reasons[0] == "rows is on cpu, not on a GPU"
    assert "torch.float64" in reasons[1]
    assert "5 gammas" in reasons[2]
