import pytest
import torch
from implementations import IMPLEMENTATIONS, WITHOUT_INTERPRETER, call, normal
from tolerance import assert_as_accurate

from safetyspace_fast import ops
from safetyspace_fast.errors import ConfigError
from safetyspace_fast.ops.reference import PAIRWISE_BLOCK

CPU = ["reference", "cpu"]


def distances(rows, cols, metric):
    """Every distance in float64, from differences."""
    a, b = rows.double(), cols.double()
    if metric == "cosine":
        a, b = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
    squared = torch.stack([(row - b).square().sum(-1) for row in a])
    return squared.sqrt() if metric == "euclidean" else squared / (1 + (metric == "cosine"))


def truth(rows, cols, labels, num_classes, metric="euclidean", gammas=(), symmetric=False):
    every = distances(rows, cols, metric)
    squared = every.square() if metric == "euclidean" else every
    keep = torch.ones_like(every, dtype=torch.bool)
    if symmetric:
        keep.fill_diagonal_(False)
    fields = [[], [], [], []]
    for label in range(num_classes):
        m = keep & (labels == label)
        fields[0].append(torch.where(m, every, 0).sum(1))
        fields[1].append(torch.where(m, every, torch.inf).amin(1))
        fields[2].append(torch.where(m, every, -torch.inf).amax(1))
        kernels = [torch.where(m, (squared * -g).exp(), 0).sum(1) for g in gammas]
        fields[3].append(torch.stack(kernels, -1) if kernels else every.new_empty(len(every), 0))
    return [torch.stack(field, 1) for field in fields]


def check(impl, rows, cols, labels, num_classes, **options):
    """Compare a call with float64; cols None is the symmetric form."""
    symmetric = cols is None
    exact = truth(
        rows, rows if symmetric else cols, labels, num_classes, **options, symmetric=symmetric
    )
    others = rows if symmetric else cols
    reference = ops.pairwise_reduce(rows, others, labels, num_classes, impl="reference", **options)
    if symmetric and impl not in CPU:
        actual = call("pairwise_reduce", impl, rows, labels, num_classes, symmetric=True, **options)
    else:
        actual = call("pairwise_reduce", impl, rows, others, labels, num_classes, **options)
    for got, expected, true in zip(actual, reference, exact, strict=True):
        if expected is None:
            assert got is None
        else:
            assert got.dtype == expected.dtype
            assert_as_accurate(got, expected, true, "distance")
    return ops.PairwiseResult(*actual)


def labels_of(n, num_classes, seed=0):
    return torch.randint(0, num_classes, (n,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_every_implementation_on_a_small_problem(impl):
    check(impl, normal(12, 33), None, labels_of(12, 3), 3, gammas=[0.01])
    check(impl, normal(12, 33), normal(5, 33, seed=1), labels_of(5, 2), 2, metric="cosine")


@pytest.mark.parametrize("impl", WITHOUT_INTERPRETER)
@pytest.mark.parametrize("metric", ops.METRICS)
@pytest.mark.parametrize(
    ("N", "D", "C"),
    [
        pytest.param(1, 1, 1, id="one row has no pair"),
        pytest.param(2, 70, 2, id="one pair, D no multiple of a vector"),
        pytest.param(130, 33, 3, id="more than one tile of the GPU kernel"),
        pytest.param(300, 16, 40, id="many classes, some empty or of one row"),
    ],
)
def test_symmetric(impl, metric, N, D, C):
    check(impl, normal(N, D), None, labels_of(N, C), C, metric=metric)


@pytest.mark.parametrize("impl", CPU)
@pytest.mark.parametrize("N", [255, 256, 257, 1023, 1025, 2100])
def test_symmetric_at_the_edges_of_tiles(impl, N):
    check(impl, normal(N, 5), None, labels_of(N, 2), 2)


@pytest.mark.parametrize("impl", WITHOUT_INTERPRETER)
@pytest.mark.parametrize("metric", ops.METRICS)
@pytest.mark.parametrize(("M", "N"), [(1, 1), (70, 5), (5, 300)])
def test_rectangular(impl, metric, M, N):
    check(impl, normal(M, 20), normal(N, 20, seed=1), labels_of(N, 3), 3, metric=metric)


@pytest.mark.parametrize("impl", WITHOUT_INTERPRETER)
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean"])
def test_kernel_sums(impl, metric):
    gammas = [0.0, 1e-3, 0.05, 10.0]
    check(impl, normal(150, 30), None, labels_of(150, 2), 2, metric=metric, gammas=gammas)


@pytest.mark.parametrize("impl", CPU)
def test_kernels_of_rows_against_columns(impl):
    check(impl, normal(40, 8), normal(1100, 8), labels_of(1100, 2), 2, gammas=[0.1, 1.0])


@pytest.mark.parametrize(
    ("impl", "dtype"),
    [
        (impl, dtype)
        for impl in CPU
        for dtype in (torch.bfloat16, torch.float16, torch.float64)
        if (impl, dtype) != ("cpu", torch.float64)  # only the reference has it
    ],
)
def test_other_types(impl, dtype):
    rows = normal(300, 40, dtype=dtype)
    check(impl, rows, None, labels_of(300, 2), 2)


def test_float64_is_exact_to_float64():
    rows, labels = normal(200, 40, dtype=torch.float64) + 100, labels_of(200, 2)
    total = ops.pairwise_reduce(rows, rows, labels, 2).sum
    exact = truth(rows, rows, labels, 2, symmetric=True)[0]
    assert ((total - exact).abs() / exact).max() < 1e-11


@pytest.mark.parametrize("impl", WITHOUT_INTERPRETER)
@pytest.mark.parametrize("metric", ops.METRICS)
@pytest.mark.parametrize("shift", ["four dimensions", "everything"])
def test_every_distance_is_right_to_1e_5_under_offsets(impl, metric, shift):
    rows = normal(60, 300)
    if shift == "everything":
        rows = rows + 1e6  # float32 itself keeps 4 bits of the differences, which then count
    else:
        rows[:, :4] += 3000
    # One class per column makes every distance visible.
    result = call("pairwise_reduce", impl, rows, rows.clone(), torch.arange(60), 60, metric=metric)
    exact = distances(rows, rows, metric)
    off_diagonal = ~torch.eye(60, dtype=torch.bool)
    error = ((result[1].double() - exact).abs() / exact)[off_diagonal].max()
    assert error < 1e-5


@pytest.mark.parametrize("impl", WITHOUT_INTERPRETER)
def test_equal_and_nearly_equal_rows(impl):
    # "last token" at the embedding: the same vector for every text that ends alike.
    rows = normal(5, 64).repeat_interleave(8, 0) * 100
    rows[1::2, 0] += 1e-3
    result = call("pairwise_reduce", impl, rows, rows.clone(), torch.arange(40), 40)
    exact = distances(rows, rows, "euclidean")
    assert torch.equal(result[1] == 0, exact == 0)
    apart = exact > 0
    # Triton computes near pairs again from centred rows, which have float32's rounding.
    rounding = 0.0 if impl in CPU else 2.0**-23 * rows.abs().max().item()
    error = (result[1].double() - exact).abs()[apart] - rounding
    assert (error / exact[apart]).max() < 1e-5


@pytest.mark.parametrize("impl", CPU)
def test_an_outlier_does_not_spoil_the_others(impl):
    rows = normal(100, 32)
    rows[::25] *= 1e5
    result = ops.pairwise_reduce(rows, rows.clone(), torch.arange(100), 100, impl=impl)
    exact = distances(rows, rows, "euclidean") + torch.eye(100)
    assert ((result.min.double() + torch.eye(100) - exact).abs() / exact).max() < 1e-5


@pytest.mark.parametrize("impl", WITHOUT_INTERPRETER)
def test_a_row_that_is_not_finite_spoils_its_row_and_its_class(impl):
    rows, labels = normal(80, 10), labels_of(80, 2)
    rows[3, 4] = torch.nan
    rows[50] = torch.inf
    labels[3] = labels[50] = 1
    if impl in CPU:
        result = call("pairwise_reduce", impl, rows, rows, labels, 2)
    else:
        result = ops.PairwiseResult(*call("pairwise_reduce", impl, rows, labels, 2, symmetric=True))
    bad = torch.zeros(80, dtype=torch.bool)
    bad[[3, 50]] = True
    for field in result[:3]:
        assert field[bad].isnan().all()
        assert field[~bad, 1].isnan().all()
        assert field[~bad, 0].isfinite().all()


@pytest.mark.parametrize("impl", CPU)
def test_layers_are_independent(impl):
    # As the extraction loop holds them: samples first, layers as a strided view.
    x, labels = normal(270, 3, 12), labels_of(270, 2)
    layers = x.transpose(0, 1)
    batched = ops.pairwise_reduce(layers, layers, labels, 2, gammas=[0.1], impl=impl)
    for layer in range(3):
        rows = x[:, layer]
        single = ops.pairwise_reduce(rows, rows, labels, 2, gammas=[0.1], impl=impl)
        assert all(torch.equal(a[layer], b) for a, b in zip(batched, single, strict=True))


@pytest.mark.parametrize("impl", CPU)
@pytest.mark.parametrize("gammas", [None, [0.05]])
@pytest.mark.parametrize("steps", [[1024, 2048, 2500], [2048, 2500], [1024, 2500], [2500]])
def test_block_by_block_gives_the_bytes_of_one_call(impl, gammas, steps):
    x, labels = normal(2500, 24), labels_of(2500, 3)
    once = ops.pairwise_reduce(x, x, labels, 3, gammas=gammas, impl=impl)
    grown = ops.pairwise_empty(2600, 3, num_gammas=len(gammas or ()))
    start = 0
    for stop in steps:
        ops.pairwise_update(grown, x[:stop], labels[:stop], start, gammas=gammas, impl=impl)
        start = stop
    for a, b in zip(once, grown, strict=True):
        if a is not None:
            assert torch.equal(a, b[:2500])
    assert (grown.sum[2500:] == 0).all()


@pytest.mark.parametrize("metric", ops.METRICS)
def test_the_number_of_threads_changes_no_bit(metric, threads):
    x, labels = normal(1500, 100), labels_of(1500, 3)
    gammas = None if metric == "cosine" else [0.01]
    threads(1)
    expected = ops.pairwise_reduce(x, x, labels, 3, metric=metric, gammas=gammas)
    for count in (2, 4):
        threads(count)
        actual = ops.pairwise_reduce(x, x, labels, 3, metric=metric, gammas=gammas)
        for a, b in zip(actual, expected, strict=True):
            assert a is b is None or torch.equal(a, b)


@pytest.mark.parametrize("impl", CPU)
def test_no_rows_and_no_columns(impl):
    result = ops.pairwise_reduce(
        torch.ones(0, 3), torch.ones(4, 3), torch.zeros(4).long(), 2, impl=impl
    )
    assert result.sum.shape == (0, 2)
    empty = torch.ones(0, 3)
    result = ops.pairwise_reduce(torch.ones(4, 3), empty, torch.zeros(0).long(), 2, impl=impl)
    assert result.sum.tolist() == [[0, 0]] * 4
    assert result.min.tolist() == [[float("inf")] * 2] * 4


GOOD = {
    "rows": torch.ones(3, 4),
    "cols": torch.ones(5, 4),
    "col_labels": torch.zeros(5, dtype=torch.int64),
    "num_classes": 2,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cols": torch.ones(5, 4, device="meta")}, "cols: on meta, but rows are on cpu"),
        ({"rows": torch.ones(3, 4).int()}, "rows: expected a floating-point type"),
        ({"cols": torch.ones(5, 4).half()}, "cols: expected torch.float32 as rows"),
        ({"col_labels": torch.zeros(5)}, "labels: expected int64"),
        ({"rows": torch.ones(4)}, r"rows: expected shape \[M, D\] or \[L, M, D\], got \[4\]"),
        ({"cols": torch.ones(5, 3)}, r"cols: expected shape \['N', 4\]"),
        ({"cols": torch.ones(1, 5, 4)}, "cols: expected shape"),
        ({"rows": torch.ones(3, 0), "cols": torch.ones(5, 0)}, "at least one dimension"),
        ({"col_labels": torch.zeros(4).long()}, r"labels: expected shape \[5\]"),
        ({"col_labels": torch.tensor([0, 1, 2, 0, 0])}, r"labels: expected 0 .. 1, got 0 .. 2"),
        ({"col_labels": torch.tensor([0, 1, -1, 0, 0])}, r"got -1 .. 1"),
        ({"num_classes": 0}, "num_classes: expected at least 1"),
        ({"metric": "manhattan"}, "metric: expected one of euclidean, sqeuclidean, cosine"),
        ({"gammas": [-1.0]}, "gammas: expected finite numbers >= 0"),
        ({"gammas": [1.0], "metric": "cosine"}, "gammas: not with metric='cosine'"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message) as caught:
        ops.pairwise_reduce(**{**GOOD, **wrong})
    assert "\n" not in str(caught.value)


def test_update_wants_whole_blocks_and_room():
    x, labels = torch.ones(PAIRWISE_BLOCK + 5, 3), torch.zeros(PAIRWISE_BLOCK + 5).long()
    with pytest.raises(ConfigError, match=f"start: expected a multiple of {PAIRWISE_BLOCK}"):
        ops.pairwise_update(ops.pairwise_empty(len(x), 1), x, labels, 5)
    with pytest.raises(ConfigError, match="result: expected sums of shape"):
        ops.pairwise_update(ops.pairwise_empty(3, 1), x, labels, 0)
    with pytest.raises(ConfigError, match="gammas: expected 1 as in result, got 0"):
        ops.pairwise_update(ops.pairwise_empty(len(x), 1, num_gammas=1), x, labels, 0)
