"""What is computed from the pooled states of one language when all of them are there."""

import torch

from ..data import NUM_FOLDS
from ..ops import pairwise_reduce
from ..store.layout import COMPONENTS

Cell = dict[str, torch.Tensor]


def finish_cell(
    states: torch.Tensor, labels: torch.Tensor, folds: torch.Tensor, impl: str | None = None
) -> Cell:
    """Everything the store keeps of one layer, pooling and language.

    Samples with a state that is not finite are left out of every sum; their own rows are NaN.

    Args:
        states: `[n, D] float32`, pooled states.
        labels: `[n] int64`, 0 or 1.
        folds: `[n] int64`, below `NUM_FOLDS`.
        impl: a forced implementation of `pairwise_reduce`.

    Returns:
        rows `pca_coords [n, K]`, `pair_sum`, `pair_min`, `pair_max`, `cos_sum`, `class_sqdist`
        `[n, 2]`, `heldout_score [n]`; and `pca_explained [K]`, `pca_components [K, D]` (float32),
        `class_mean`, `class_var` `[2, D]` (float64). K is `COMPONENTS`; components that the data do
        not have are zero.
    """
    n, width = states.shape
    keep = states.isfinite().all(1)
    x, y, fold = states[keep], labels[keep], folds[keep]
    euclidean = pairwise_reduce(x, x, y, 2, impl=impl)
    member = torch.zeros(2 * NUM_FOLDS, len(x), dtype=torch.float64, device=x.device)
    member[y * NUM_FOLDS + fold, torch.arange(len(x), device=x.device)] = 1
    of_class = member.view(2, NUM_FOLDS, -1).sum(1)
    fold_count = member.sum(1).view(2, NUM_FOLDS, 1)
    count = fold_count.sum(1)
    wide = x.double()
    del x  # here and below: two cells at a time are what a run needs most memory for

    # Cosine distances need no pairs: over a class they sum to n - u . (sum of the class's u).
    norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    inverse = torch.where(norm > 0, 1 / norm, 0)
    alike = inverse * (wide @ ((of_class * inverse.T) @ wide).T)
    itself = of_class.T * (norm == 0)  # a zero vector is at distance 1 from all, and left out here
    cosine = (count.T - alike - itself).clamp_min(0)

    centre = wide.mean(0)
    centred = wide.sub_(centre)
    fold_sum = (member @ centred).view(2, NUM_FOLDS, width)
    total = fold_sum.sum(1)
    means = total / count
    squares = centred.square()
    variances = (of_class @ squares - count * means.square()).clamp_min(0) / (count - 1)
    sqdist = squares.sum(1)[:, None] - 2 * (centred @ means.T) + means.square().sum(1)
    sqdist = sqdist.clamp_min(0)
    del squares

    others = (total[:, None] - fold_sum) / (count[:, None] - fold_count)  # means without the fold
    direction = torch.nn.functional.normalize(others[1] - others[0], dim=1)
    midpoint = (direction * others.sum(0)).sum(1) / 2
    heldout = (centred @ direction.T - midpoint).gather(1, fold[:, None])[:, 0]
    variance, components = principal_components(centred, COMPONENTS)

    def rows(values: torch.Tensor) -> torch.Tensor:
        full = values.new_full((n, *values.shape[1:]), torch.nan)
        full[keep] = values
        return full

    return {
        "pca_coords": rows((centred @ components.T).float()),
        "pair_sum": rows(euclidean.sum),
        "pair_min": rows(euclidean.min),
        "pair_max": rows(euclidean.max),
        "cos_sum": rows(cosine),
        "class_sqdist": rows(sqdist),
        "heldout_score": rows(heldout.float()),
        "pca_explained": variance,
        "pca_components": components.float(),
        "class_mean": means + centre,
        "class_var": variances,
    }


def principal_components(centred: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The leading principal components, to more than float32 precision.

    Block Krylov iteration with full reorthogonalisation on the smaller of the covariance and the
    Gram matrix (Golub and Van Loan, 4th ed., 10.3), accepted only if every residual is below
    1e-8 of its eigenvalue; otherwise a full eigendecomposition.

    Args:
        centred: `[n, D] float64` with zero column means.
        k: how many.

    Returns:
        variances `[k]` (ddof 1) and components `[k, D]`, orthonormal rows, each with its largest
        entry positive; those beyond the rank of the data are zero.
    """
    n, width = centred.shape
    variance, components = centred.new_zeros(k), centred.new_zeros(k, width)
    if n < 2:
        return variance, components
    wide = width > n
    matrix = centred @ centred.T if wide else centred.T @ centred
    values, vectors = _leading(matrix, min(k, len(matrix)))
    floor = values.amax().clamp_min(torch.finfo(torch.float64).tiny) * 1e-14 * len(matrix)
    real = values > floor
    if wide:
        vectors = centred.T @ vectors / values.clamp_min(floor).sqrt()
    vectors = vectors * real
    peak = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    vectors = vectors * torch.where(peak < 0, -1.0, 1.0)
    variance[: len(values)] = torch.where(real, values, 0) / (n - 1)
    components[: len(values)] = vectors.T
    return variance, components


def _leading(matrix: torch.Tensor, k: int, block: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` largest eigenvalues of a positive semidefinite matrix, and their eigenvectors.

    Equal eigenvalues are told apart up to `block` of them.
    """
    n = len(matrix)
    generator = torch.Generator().manual_seed(0)
    newest = torch.randn(n, block, generator=generator, dtype=matrix.dtype).to(matrix.device)
    basis, image = matrix.new_empty(n, n // 2), matrix.new_empty(n, n // 2)  # image: matrix @ basis
    due = 12 * block  # few spectra need less; then look every third block
    for m in range(block, basis.shape[1] + 1, block):
        known = basis[:, : m - block]
        for _ in range(2):  # once leaves rounding behind
            newest = newest - known @ (known.T @ newest)
        basis[:, m - block : m] = torch.linalg.qr(newest)[0]
        image[:, m - block : m] = newest = matrix @ basis[:, m - block : m]
        if m < due:
            continue
        due += 3 * block
        values, rotation = torch.linalg.eigh(basis[:, :m].T @ image[:, :m])
        values, rotation = values.flip(0)[:k], rotation.flip(1)[:, :k]
        vectors = basis[:, :m] @ rotation
        residual = torch.linalg.vector_norm(image[:, :m] @ rotation - vectors * values, dim=0)
        if bool((residual <= 1e-8 * values).all()):
            return values, vectors
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0)[:k], vectors.flip(1)[:, :k]


def merge_bases(
    counts: list[int], centres: torch.Tensor, variances: torch.Tensor, components: torch.Tensor
) -> torch.Tensor:
    """One basis for all languages out of each language's own leading components.

    Each language stands for itself by `sqrt((n - 1) variance) * component` rows and one row
    `sqrt(n) (centre - grand centre)`; their stacked SVD is the PCA of all samples but for what the
    languages' own truncation left out (Liang et al. 2014, distributed PCA).

    Args:
        counts: samples of each language, `C` of them.
        centres: `[C, D] float64`.
        variances: `[C, K] float64`.
        components: `[C, K, D]`.

    Returns:
        `[D, K] float32`, orthonormal columns; zero where there are fewer than K.
    """
    weights = torch.tensor(counts, dtype=torch.float64)
    grand = (weights[:, None] * centres).sum(0) / weights.sum()
    spread = ((weights - 1).clamp_min(0)[:, None] * variances).sqrt()[:, :, None] * components
    shift = weights.sqrt()[:, None] * (centres - grand)
    k, width = components.shape[1:]
    _, basis = principal_components(torch.cat([spread.reshape(-1, width), shift]).double(), k)
    return basis.T.float()
