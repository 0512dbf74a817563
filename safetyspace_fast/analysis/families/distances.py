"""Metrics made of distances between texts.

Values at full width come from the store's sums, minima and maxima of distances. Nulls take one pass
over the distances in the projection, or in components, for all labellings at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ...ops import label_sums, pack_labels
from ..cells import Cells, Refusal, once
from ..estimate import Estimate, make_estimate, swap_floor
from ..metric import (
    BINOMIAL,
    INFLUENCE,
    NONE,
    NULL_MEAN,
    OWN_COMPONENTS,
    SHUFFLE,
    SHUFFLE_PROJECTION,
    InComponents,
    Metric,
)
from ..moments import centred, direction_scores
from ..uncertainty import inverse_interval, share_interval

TILE_BYTES = 5 << 19
"""Working memory of one tile of distances: small enough for a cache, large enough for products."""


# What the metrics share ----------------------------------------------------------------------


def mean_distances(
    pair_sum: Tensor, labels: Tensor, copies: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean distance of each text to the other texts of its class, and to the other class.

    Args:
        pair_sum: [..., n, 2], sums of distances to each class, 0 to the text itself.
        labels: [n] int64.
        copies: [n] float64, how often each text is in its class; copies are not other texts. None
            if every text is there once.

    Returns:
        own [..., n], other [..., n].
    """
    count = torch.bincount(labels, minlength=2).to(pair_sum.dtype)
    index = labels.expand(pair_sum.shape[:-1])[..., None]
    others = (count - 1)[labels] if copies is None else count[labels] - copies
    own = pair_sum.gather(-1, index).squeeze(-1) / others
    other = pair_sum.gather(-1, 1 - index).squeeze(-1) / count[1 - labels]
    return own, other


@once
def _full_width(cells: Cells) -> tuple[Tensor, Tensor]:
    """`mean_distances` at full width, [cell, n] each."""
    return mean_distances(cells.stored("pair_sum"), cells.labels, cells.copies)


def _distance_tiles(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the Euclidean distance matrix, as many at a time as fit `TILE_BYTES`.

    The product of [x, |x|^2, 1] with [-2y, 1, |y|^2] is |x - y|^2. Each tile overwrites the one
    before.
    """
    n = x.shape[0]
    norm_sq = x.square().sum(-1, keepdim=True)
    one = torch.ones_like(norm_sq)
    left, right = torch.cat([x, norm_sq, one], -1), torch.cat([-2 * x, one, norm_sq], -1).T
    tile = max(1, TILE_BYTES // (8 * n))
    space = torch.empty(min(tile, n), n, dtype=x.dtype)
    for start in range(0, n, tile):
        rows = slice(start, min(start + tile, n))
        distance = space[: rows.stop - start]
        torch.mm(left[rows], right, out=distance).clamp_min_(0).sqrt_()
        distance.diagonal(start).zero_()
        yield rows, distance


@dataclass(frozen=True)
class LabelledDistances:
    """Results of one pass over all distances, for R labellings.

    pair_sum: [n, 2] float64, sums of distances to each class under the first labelling;
    silhouette, energy: [R] float64, of each labelling, from sums in float32;
    nearest: [n] int64, nearest other text of each text, no copy; empty unless `neighbours`.
    """

    pair_sum: Tensor
    silhouette: Tensor
    energy: Tensor
    nearest: Tensor


def labelled_distances(
    x: Tensor,
    labels: Tensor,
    *,
    bandwidth: float | None = None,
    neighbours: bool = False,
    copy: Tensor | None = None,
) -> LabelledDistances:
    """Silhouette and energy distance of many labellings, from one pass over all distances.

    Sums over a class are the product of distances and labellings, one tile of rows at a time. Its
    2 n^2 R flops are nearly all of the work. Labellings are a null and are compared only with each
    other, so float32 is exact enough.

    Args:
        x: [n, k] float64, roughly centred.
        labels: [R, n] float64, one labelling a row, each with the same number of ones.
        bandwidth: use minus the Gaussian kernel exp(-|x-y|^2/(2 bandwidth^2)) as the distance;
            `energy` is then the MMD^2.
        neighbours: also find `nearest`.
        copy: [n] int64, the same number for copies of a text, which have one label in each
            labelling; None if there are none.
    """
    n1 = float(labels[0].sum())
    n0 = len(x) - n1
    single = labels.T.float().contiguous()
    packed = pack_labels(labels)
    first = torch.stack([1 - labels[0], labels[0]], -1)
    pair_sum = torch.empty(len(x), 2, dtype=x.dtype)
    near = torch.empty(len(x) if neighbours else 0, dtype=torch.int64)
    silhouette, within1, more0, more1 = (torch.zeros(len(labels), dtype=x.dtype) for _ in range(4))
    copies = None if copy is None else torch.bincount(copy)[copy][:, None].float()
    # Scaled to fit float32; every statistic scales with the distances.
    scale = float(x.abs().max().clamp_min(1e-300)) if bandwidth is None else 1.0
    for rows, distance in _distance_tiles(x / scale):
        if bandwidth is not None:
            distance.div_(bandwidth).square_().mul_(-0.5).exp_().neg_()
        _fill_equal(distance, rows, copy, 0.0)
        pair_sum[rows] = distance @ first
        if neighbours:
            _fill_equal(distance, rows, copy, torch.inf)
            near[rows] = distance.argmin(-1)
            _fill_equal(distance, rows, copy, 0.0)
        to1 = label_sums(distance, packed)[:, : len(labels)]
        member = single[rows]
        within1 += (to1 * member).sum(0)
        same: Tensor | float = 1.0
        if copies is not None:  # means over n - same other texts instead of n - 1
            same = copies[rows]
            to0 = pair_sum[rows].sum(-1, keepdim=True).float() - to1
            more0 += (to0 * (1 - member) * ((same - 1) / (n0 - same))).sum(0)
            more1 += (to1 * member * ((same - 1) / (n1 - same))).sum(0)
        if bandwidth is None:
            to0 = pair_sum[rows].sum(-1, keepdim=True).float() - to1
            silhouette += _signed_silhouettes(to0, to1, member, n0, n1, same).sum(0)
    row_sum = pair_sum.sum(-1)
    across = labels @ row_sum - within1
    within0 = row_sum.sum() - 2 * across - within1
    within0, within1 = within0 + more0, within1 + more1
    energy = 2 * across / (n0 * n1) - within1 / (n1 * (n1 - 1)) - within0 / (n0 * (n0 - 1))
    return LabelledDistances(pair_sum * scale, silhouette / len(x), energy * scale, near)


def _fill_equal(distance: Tensor, rows: slice, copy: Tensor | None, value: float) -> None:
    """Set the entries of each text of a tile, its `rows`, with itself and with its copies."""
    if copy is None:
        distance.diagonal(rows.start).fill_(value)
    else:
        distance.masked_fill_(copy[rows, None] == copy, value)


def _signed_silhouettes(
    to0: Tensor,
    to1: Tensor,
    member: Tensor,
    n0: float,
    n1: float,
    copies: Tensor | float = 1.0,
) -> Tensor:
    """Silhouettes from sums of distances to both classes; overwrites `to0` and `to1`.

    With q = a/b, (b - a)/max(a, b) = min(1/q, 1) - min(q, 1). Swapping the classes turns q into 1/q
    and changes only the sign: one formula serves both classes without a branch.

    Args:
        to0, to1: [n, R] float32; member: [n, R] float32, 1 where a text is in class 1.
        n0, n1: texts in each class.
        copies: [n, 1] float32, how often each text is in its class.
    """
    in1, in0 = n0 / (n1 - copies), (n0 - copies) / n1
    weight = member.mul(in1 - in0).add_(in0)
    ratio = to1.div_(to0).mul_(weight)
    toward = torch.reciprocal(ratio, out=to0).clamp_max_(1).sub_(ratio.clamp_max_(1))
    return toward.nan_to_num_(0.0).mul_(torch.mul(member, 2, out=weight).sub_(1))


Space = int | Literal["projection", "kernel"]
"""A number of components, the projection, or a Gaussian kernel in the projection."""


@once
def _labelled(cells: Cells, space: Space) -> list[LabelledDistances]:
    """`labelled_distances` of each cell, for the true labels and every permutation."""
    x = cells.components(space) if isinstance(space, int) else cells.projected
    widths = _kernel_widths(cells) if space == "kernel" else [None] * len(x)
    return [
        labelled_distances(
            texts,
            cells.resamples.labellings,
            bandwidth=width,
            neighbours=space == "projection",
            copy=cells.copy,
        )
        for texts, width in zip(x, widths, strict=True)
    ]


def _pair_sums(labelled: list[LabelledDistances], cells: Cells) -> tuple[Tensor, Tensor]:
    """`mean_distances` from a pass over all distances, [cell, n] each."""
    sums = torch.stack([cell.pair_sum for cell in labelled])
    return mean_distances(sums, cells.labels, cells.copies)


# silhouette ----------------------------------------------------------------------------------


def silhouette_samples(own: Tensor, other: Tensor) -> Tensor:
    """(b - a)/max(a, b) per text (Rousseeuw 1987); 0 where both are 0, as in scikit-learn."""
    return ((other - own) / torch.maximum(own, other)).nan_to_num(0.0)


def silhouette_influence(own: Tensor, other: Tensor, labels: Tensor) -> Tensor:
    """Influence of each text on the mean silhouette.

    A text adds its own value, and changes `a` of the texts in its class and `b` of the others. The
    slopes of (b - a)/max(a, b) differ between texts; they are replaced by their class mean, so that
    stored sums are enough.

    Args:
        own, other: [..., n], see `mean_distances`.
        labels: [n] int64.
    """
    n = labels.numel()
    value = silhouette_samples(own, other)
    by_own, by_other = _silhouette_slopes(own, other)
    influence = torch.empty_like(value)
    for label in (0, 1):
        own_class, other_class = labels == label, labels != label
        count = own_class.sum()
        deviation = centred(value[..., own_class])
        own_pull = by_own[..., own_class].sum(-1, keepdim=True) * centred(own[..., own_class])
        other_pull = by_other[..., other_class].sum(-1, keepdim=True) * centred(
            other[..., own_class]
        )
        influence[..., own_class] = (deviation + (own_pull + other_pull) / count) / n
    return influence


def _silhouette_slopes(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of (b - a)/max(a, b) by a and by b, for each text."""
    largest = torch.maximum(own, other)
    near = own < other
    by_own = torch.where(near, -1 / largest, -other / largest**2).nan_to_num(0.0, 0.0, 0.0)
    by_other = torch.where(near, own / largest**2, 1 / largest).nan_to_num(0.0, 0.0, 0.0)
    return by_own, by_other


def labelled_cosine(x: Tensor, labels: Tensor, copies: Tensor | None = None) -> Tensor:
    """Cosine silhouette of many labellings, from class sums of unit vectors.

    Args:
        x: [n, k] float64, not centred; labels: [R, n] float64, each with the same number of ones.
        copies: as in `mean_distances`.

    Returns:
        [R] float64; class sums are float64, silhouettes of texts float32.
    """
    n1 = float(labels[0].sum())
    n0 = len(x) - n1
    norm = x.norm(dim=-1, keepdim=True)
    unit = torch.where(norm > 0, x / norm, 0.0)
    sums = labels @ unit
    total = unit.sum(0)
    alone = (norm == 0).double()  # at distance 1 from all, but 0 from itself
    silhouette = torch.zeros(len(labels), dtype=x.dtype)
    size = max(1, TILE_BYTES // (8 * len(labels)))
    for rows in (slice(i, i + size) for i in range(0, len(x), size)):
        member = labels[:, rows].T
        to1 = n1 - unit[rows] @ sums.T - alone[rows] * member
        to0 = (n0 - unit[rows] @ total + n1 - alone[rows, 0])[:, None] - to1
        sums0, sums1 = to0.clamp_min_(0).float(), to1.clamp_min_(0).float()
        same = 1.0 if copies is None else copies[rows, None].float()
        silhouette += _signed_silhouettes(sums0, sums1, member.float(), n0, n1, same).sum(0)
    return silhouette / len(x)


def grouped_silhouettes(x: Tensor, group: Tensor) -> Tensor:
    """Silhouette of each text for any number of groups, as in scikit-learn; 0 in a group of one.

    Args:
        x: [n, k] float64, roughly centred; group: [n] int64, 0 .. G - 1.
    """
    order = torch.argsort(group, stable=True)
    count = torch.bincount(group)
    ends = count.cumsum(0)
    silhouette = torch.empty(len(x), dtype=x.dtype)
    for rows, distance in _distance_tiles(x[order]):
        total = torch.nn.functional.pad(distance.cumsum(-1), (1, 0))
        sums = total[:, ends] - total[:, ends - count]
        own_group = group[order[rows]][:, None]
        own = sums.gather(-1, own_group).squeeze(-1) / (count[own_group.squeeze(-1)] - 1)
        other = (sums / count).scatter(-1, own_group, torch.inf).amin(-1)
        value = silhouette_samples(own, other)
        silhouette[order[rows]] = torch.where(count[own_group.squeeze(-1)] > 1, value, 0.0)
    return silhouette


def _mean_silhouette(cells: Cells, own: Tensor, other: Tensor, null: Tensor) -> Estimate:
    """The mean silhouette from `mean_distances`, [cell, n] each."""
    return make_estimate(
        cells,
        silhouette_samples(own, other).mean(-1),
        null=null,
        influence=silhouette_influence(own, other, cells.labels),
    )


def _euclidean(cells: Cells) -> Estimate:
    null = torch.stack([cell.silhouette for cell in _labelled(cells, "projection")])
    return _mean_silhouette(cells, *_full_width(cells), null)


_DEFINITION = (
    "mean over texts of (b-a)/max(a,b), a the mean distance to the other texts of the same class, "
    "b to the texts of the other class"
)
_SOURCE = "Rousseeuw 1987, as in scikit-learn"
_INTERVAL = INFLUENCE + "; the slope of each text is replaced by the mean slope of its class"

_SILHOUETTE = Metric(
    name="silhouette",
    title="silhouette, Euclidean",
    space="full",
    kind="C",
    unit="1",
    definition=_DEFINITION,
    source=_SOURCE,
    pitfalls="Do not compare values of different spaces. In many dimensions distances become "
    "alike: full-width values are small even for classes that separate perfectly.",
    interval=_INTERVAL,
    null=SHUFFLE_PROJECTION,
    floor=NULL_MEAN,
    default=True,
    estimator=_euclidean,
)


def _cosine(cells: Cells) -> Estimate:
    labels = cells.resamples.labellings
    null = torch.stack(
        [labelled_cosine(x, labels, cells.copies) for x in cells.stored("projected")]
    )
    means = mean_distances(cells.stored("cos_sum"), cells.labels, cells.copies)
    return _mean_silhouette(cells, *means, null)


_SILHOUETTE_COSINE = Metric(
    name="silhouette_cosine",
    title="silhouette, cosine",
    space="full",
    kind="C",
    unit="1",
    definition="as silhouette, with distance 1 - cos(x, y)",
    source=_SOURCE,
    pitfalls="The mean state is not subtracted; one very large dimension makes all texts alike.",
    interval=_INTERVAL,
    null=SHUFFLE_PROJECTION,
    floor=NULL_MEAN,
    estimator=_cosine,
)


def _in_components(cells: Cells, k: int) -> Estimate:
    labelled = _labelled(cells, k)
    own, other = _pair_sums(labelled, cells)
    null = torch.stack([cell.silhouette for cell in labelled])
    return _mean_silhouette(cells, own, other, null)


def _silhouette_in_components(k: int) -> Metric:
    return Metric(
        name=f"silhouette_pc{k}",
        title="silhouette in PCs",
        space=f"pc{k}",
        components=k,
        kind="C",
        unit="1",
        definition=_DEFINITION,
        source=_SOURCE,
        pitfalls="Larger than at full width, because the noise of the other dimensions is gone. "
        + OWN_COMPONENTS,
        interval=_INTERVAL,
        null=SHUFFLE,
        floor=NULL_MEAN,
        default=k in (2, 10),
        estimator=partial(_in_components, k=k),
    )


# davies_bouldin ------------------------------------------------------------------------------


def davies_bouldin(sqdist: Tensor, shift_sq: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Davies-Bouldin index in scikit-learn's convention, and the influence of each text.

    Args:
        sqdist: [..., n, 2], squared distance to each class mean.
        shift_sq: [...], squared distance of the class means.
        labels: [n] int64.
    """
    gap = shift_sq.sqrt()
    radius = sqdist.gather(-1, labels.expand(sqdist.shape[:-1])[..., None]).squeeze(-1).sqrt()
    spread = sum((radius[..., labels == c].mean(-1) for c in (0, 1)), torch.zeros_like(gap))
    along, _ = direction_scores(sqdist, shift_sq, labels)
    influence = torch.empty_like(radius)
    for label, sign in ((0, -1), (1, 1)):
        inside = labels == label
        by_gap = -(spread / gap**3)[..., None] * sign * along[..., inside]
        by_radius = centred(radius[..., inside]) / gap[..., None]
        influence[..., inside] = (by_radius + by_gap) / inside.sum()
    return spread / gap, influence


def _davies_bouldin(cells: Cells) -> Estimate:
    value, influence = davies_bouldin(cells.sqdist, cells.shift_sq, cells.labels)
    return make_estimate(cells, value, influence=influence, ends=inverse_interval)


_DAVIES_BOULDIN = Metric(
    name="davies_bouldin",
    title="Davies-Bouldin",
    space="full",
    kind="B",
    unit="1",
    definition="(s0+s1)/|m1-m0|, s0 and s1 the mean distance of the texts to their class mean",
    source="Davies & Bouldin 1979, as in scikit-learn",
    pitfalls="Small means separated. Biased downwards if the class means hardly differ.",
    interval=f"{INFLUENCE}; s0 and s1 as if the class means were known; normal on 1/value, so that "
    "the upper end may be infinite",
    null=NONE,
    floor=NONE,
    grows=False,
    estimator=_davies_bouldin,
)


# dunn ----------------------------------------------------------------------------------------


def dunn(pair_min: Tensor, pair_max: Tensor, labels: Tensor) -> Tensor:
    """Smallest distance between the classes over the largest inside a class (Dunn 1974).

    Args:
        pair_min, pair_max: [..., n, 2], smallest and largest distance of each text to each class.
        labels: [n] int64.
    """
    index = labels.expand(pair_min.shape[:-1])[..., None]
    between = pair_min.gather(-1, 1 - index).squeeze(-1).amin(-1)
    return between / pair_max.gather(-1, index).squeeze(-1).amax(-1)


def _dunn(cells: Cells) -> Estimate:
    value = dunn(cells.stored("pair_min"), cells.stored("pair_max"), cells.labels)
    return make_estimate(cells, value)


_DUNN = Metric(
    name="dunn",
    title="Dunn index",
    space="full",
    kind="C",
    unit="1",
    definition="smallest distance between the classes / largest distance inside a class",
    source="Dunn 1974",
    pitfalls="Two texts decide it. A text that is in both classes makes it 0.",
    interval=NONE,
    null=NONE,
    floor=NONE,
    estimator=_dunn,
)


# nn_accuracy ---------------------------------------------------------------------------------


def nn_hits(pair_min: Tensor, labels: Tensor) -> Tensor:
    """1 if the nearest other text is of the same class, 1/2 in a tie, else 0: [..., n]."""
    index = labels.expand(pair_min.shape[:-1])[..., None]
    gap = pair_min.gather(-1, 1 - index) - pair_min.gather(-1, index)
    return (gap.sign().squeeze(-1) + 1) / 2


def _nn_accuracy(cells: Cells) -> Estimate:
    hits = nn_hits(cells.stored("pair_min"), cells.labels)
    neighbours = [cell.nearest for cell in _labelled(cells, "projection")]
    if cells.copies is not None:  # at full width the nearest stored distance is to the copy
        near = torch.stack(neighbours)
        hits = torch.where(cells.copies > 1, (cells.labels[near] == cells.labels).double(), hits)
    value = hits.mean(-1)
    labels = cells.resamples.labellings
    null = torch.stack([(labels == labels[:, near]).double().mean(-1) for near in neighbours])
    # Two texts that are the nearest of each other are both hits or both misses.
    text = cells.resamples.copy
    mutual = torch.stack([(text[near[near]] == text).double().mean() for near in neighbours])
    influence = (hits - value[:, None]) / hits.shape[-1] * (1 + mutual).sqrt()[:, None]
    return make_estimate(cells, value, null=null, influence=influence, ends=share_interval)


_NN_ACCURACY = Metric(
    name="nn_accuracy",
    title="1-nearest-neighbour accuracy",
    space="full",
    kind="C",
    unit="1",
    definition="share of texts whose nearest other text is of the same class; ties count half. A "
    "copy is not another text: where a text has copies, its nearest text is that in the projection",
    source="Cover & Hart 1967",
    pitfalls="Near-duplicates decide it. On paired data the nearest text is often the partner, and "
    "the value falls below chance.",
    interval=f"{BINOMIAL}; two texts that are the nearest of each other count as one",
    null=SHUFFLE_PROJECTION,
    floor=NULL_MEAN,
    estimator=_nn_accuracy,
)


# energy_distance -----------------------------------------------------------------------------


def energy_distance(own: Tensor, other: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Energy distance over distinct texts, and the influence of each text.

    2E|X-Y| - E|X-X'| - E|Y-Y'| (Szekely & Rizzo 2013). With minus a kernel as the distance it is
    the MMD^2 (Gretton et al. 2012).

    Args:
        own, other: [..., n], see `mean_distances`.
        labels: [n] int64.

    Returns:
        value [...], influence [..., n].
    """
    influence = torch.empty_like(own)
    value = torch.zeros_like(own[..., 0])
    for label in (0, 1):
        inside = labels == label
        value = value + other[..., inside].mean(-1) - own[..., inside].mean(-1)
        pull = other[..., inside] - own[..., inside]
        influence[..., inside] = 2 * centred(pull) / inside.sum()
    return value, influence


def _energy_distance(cells: Cells) -> Estimate:
    value, influence = energy_distance(*_full_width(cells), cells.labels)
    null = torch.stack([cell.energy for cell in _labelled(cells, "projection")])
    floor = swap_floor(cells, 0.0, null)
    return make_estimate(cells, value, null=null, floor=floor, influence=influence)


_ENERGY_DISTANCE = Metric(
    name="energy_distance",
    title="energy distance",
    space="full",
    kind="C",
    unit="state",
    definition="2E|X-Y| - E|X-X'| - E|Y-Y'|, means over distinct texts",
    source="Szekely & Rizzo 2013, U-statistic",
    pitfalls="In units of the hidden state. The interval is first-order: close to zero it is too "
    "narrow; use p there.",
    interval=INFLUENCE,
    null=SHUFFLE_PROJECTION,
    floor="0; on paired data the mean over label swaps, in the projection",
    estimator=_energy_distance,
)


# mmd -----------------------------------------------------------------------------------------


def median_distance(x: Tensor, most: int = 1000) -> float:
    """Median distance between distinct texts, of at most `most` evenly spaced ones: x [n, k]."""
    some = x[:: -(-x.shape[0] // most)]
    return float(torch.pdist(some).median())


@once
def _kernel_widths(cells: Cells) -> list[float]:
    """Bandwidth of the Gaussian kernel of each cell: in a comparison the base model's."""
    if cells.base is not None:
        return _kernel_widths(cells.base)
    return [median_distance(x if cells.copies is None else x[cells.first]) for x in cells.projected]


def _mmd(cells: Cells) -> Estimate:
    if min(_kernel_widths(cells)) <= 0:
        raise Refusal("the median distance is 0, and so is the bandwidth of the kernel")
    labelled = _labelled(cells, "kernel")
    value, influence = energy_distance(*_pair_sums(labelled, cells), cells.labels)
    null = torch.stack([cell.energy for cell in labelled])
    floor = swap_floor(cells, 0.0, null)
    return make_estimate(cells, value, null=null, floor=floor, influence=influence)


_MMD = Metric(
    name="mmd",
    title="MMD^2, Gaussian kernel",
    space="projection",
    kind="C",
    unit="1",
    definition="E k(X,X') + E k(Y,Y') - 2E k(X,Y), k = exp(-|x-y|^2/(2h^2)), h = median "
    "distance; means over distinct texts",
    source="Gretton et al. 2012, U-statistic",
    pitfalls="Depends on the bandwidth; `compare` uses that of the base model for both models. The "
    "interval is first-order: close to zero it is too narrow; use p there.",
    interval=INFLUENCE,
    null=SHUFFLE,
    floor="0; on paired data the mean over label swaps",
    estimator=_mmd,
)


METRICS: tuple[Metric | InComponents, ...] = (
    _SILHOUETTE,
    _SILHOUETTE_COSINE,
    _silhouette_in_components,
    _DAVIES_BOULDIN,
    _DUNN,
    _NN_ACCURACY,
    _ENERGY_DISTANCE,
    _MMD,
)
