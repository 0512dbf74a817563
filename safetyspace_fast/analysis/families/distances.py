"""Metrics made of distances between texts.

Values at full width come from the store's sums, minima and maxima of distances and its sums of
kernels, and their nulls from the store too. In components, one pass over the distances serves all
labellings at once.
"""

from functools import partial

import torch
from torch import Tensor

from ...ops.distance_sums import (
    LabelledDistances,
    distance_tiles,
    labelled_distances,
)
from ..cells import Cells, once
from ..estimate import Estimate, make_estimate, make_share
from ..intervals import inverse_ends
from ..metric import (
    BORROWED,
    INFLUENCE,
    NONE,
    NULL_MEAN,
    OWN_COMPONENTS,
    SHARE,
    SHUFFLE_FULL,
    SHUFFLE_WELCH,
    SHUFFLE_WELCH_PC,
    SPREAD_COUNTS,
    SPREAD_MOVES,
    STUDENT,
    InComponents,
    Metric,
)
from ..moments import centred, direction_scores, of_class
from ..texts import Refusal
from ..uncertainty import dyadic_variance, influence_variance
from .ratio import FOLLOWING_PERMUTED, make_following, welch_square

# What the metrics share ----------------------------------------------------------------------


def mean_distances(
    pair_sum: Tensor, labels: Tensor, copies: Tensor | None = None, lone: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean distance of each text to the other texts of its class, and to the other class.

    Args:
        pair_sum: [..., n, 2], sums of distances to each class, 0 to the text itself.
        labels: [n] int64.
        copies: [n] float64, how often each text is in its class; copies are not other texts. None
            if every text is there once.
        lone: [2] float64, texts of each class that are in the sums, but not among the n.

    Returns:
        own [..., n], other [..., n].
    """
    count = torch.bincount(labels, minlength=2).to(pair_sum.dtype)
    count = count if lone is None else count + lone
    others = (count - 1)[labels] if copies is None else count[labels] - copies
    own, other = of_class(pair_sum, labels), of_class(pair_sum, 1 - labels)
    return own / others, other / count[1 - labels]


@once
def _full_width(cells: Cells) -> tuple[Tensor, Tensor]:
    """`mean_distances` at full width, [cell, n] each."""
    return mean_distances(cells.stored("pair_sum"), cells.labels, cells.copies, cells.lone_count)


@once
def _labelled(cells: Cells, k: int) -> list[LabelledDistances]:
    """`labelled_distances` of each cell, for the true labels and every permutation behind p."""
    labellings = cells.resamples.labellings[: cells.labellings_of_null]
    return [labelled_distances(x, labellings, copy=cells.copy) for x in cells.components(k)]


def _pair_sums(labelled: list[LabelledDistances], cells: Cells) -> tuple[Tensor, Tensor]:
    """`mean_distances` from a pass over all distances, [cell, n] each."""
    sums = torch.stack([cell.pair_sum for cell in labelled])
    return mean_distances(sums, cells.labels, cells.copies)


# silhouette ----------------------------------------------------------------------------------


def silhouette_samples(own: Tensor, other: Tensor) -> Tensor:
    """(b - a)/max(a, b) per text (Rousseeuw 1987); 0 where both are 0, as in scikit-learn."""
    return ((other - own) / torch.maximum(own, other)).nan_to_num(0.0)


def silhouette_influence(
    own: Tensor, other: Tensor, labels: Tensor, units: Tensor | None = None
) -> Tensor:
    """Influence of each text on the mean silhouette.

    A text adds its own value, and changes `a` of the texts in its class and `b` of the others. The
    slopes of (b - a)/max(a, b) differ between texts; they are replaced by their class mean, so that
    stored sums are enough. Of cosine distances, 1 less an inner product, vectors give the rest.

    Args:
        own, other: [..., n], see `mean_distances`.
        labels: [n] int64.
        units: [..., n, k], vectors whose inner products are cosines.
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
        pull = own_pull + other_pull
        if units is not None:
            pull = pull - centred(
                _weighted(centred(by_own[..., own_class]), units, own_class, own_class)
                + _weighted(centred(by_other[..., other_class]), units, other_class, own_class)
            )
        influence[..., own_class] = (deviation + pull / count) / n
    return influence


def _weighted(weights: Tensor, units: Tensor, inside: Tensor, of: Tensor) -> Tensor:
    """Sums of inner products of the texts `of` with those `inside`, by weights of the latter."""
    total = weights[..., None, :] @ units[..., inside, :]
    return (units[..., of, :] @ total.transpose(-1, -2)).squeeze(-1)


def _silhouette_slopes(own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives of (b - a)/max(a, b) by a and by b, for each text."""
    largest = torch.maximum(own, other)
    near = own < other
    by_own = torch.where(near, -1 / largest, -other / largest**2).nan_to_num(0.0, 0.0, 0.0)
    by_other = torch.where(near, own / largest**2, 1 / largest).nan_to_num(0.0, 0.0, 0.0)
    return by_own, by_other


def grouped_silhouettes(x: Tensor, group: Tensor) -> Tensor:
    """Silhouette of each text for any number of groups, as in scikit-learn; 0 in a group of one.

    Args:
        x: [n, k] float64, roughly centred; group: [n] int64, 0 .. G - 1.
    """
    order = torch.argsort(group, stable=True)
    count = torch.bincount(group)
    ends = count.cumsum(0)
    silhouette = torch.empty(len(x), dtype=x.dtype)
    for rows, distance in distance_tiles(x[order]):
        total = torch.nn.functional.pad(distance.cumsum(-1), (1, 0))
        sums = total[:, ends] - total[:, ends - count]
        own_group = group[order[rows]][:, None]
        own = sums.gather(-1, own_group).squeeze(-1) / (count[own_group.squeeze(-1)] - 1)
        other = (sums / count).scatter(-1, own_group, torch.inf).amin(-1)
        value = silhouette_samples(own, other)
        silhouette[order[rows]] = torch.where(count[own_group.squeeze(-1)] > 1, value, 0.0)
    return silhouette


def silhouette_by_place(
    x: Tensor, own: Tensor, other: Tensor, labels: Tensor, copies: Tensor | None = None
) -> Tensor:
    """Derivatives of the mean silhouette by the coordinates of each text.

    Two texts pull each other along x - y by the inverse of their distance and the sum of their
    slopes. Those of a whole class are sums over a column each, so one float32 product with the
    inverse distances gives them all.

    Args:
        x: [n, k] float64, roughly centred.
        own, other: [n], see `mean_distances`; labels, copies: as there.

    Returns:
        [n, k].
    """
    n, count = len(x), torch.bincount(labels).to(x)
    size = x.square().mean().sqrt().clamp_min(torch.finfo(x.dtype).tiny)
    x, own, other = x / size, own / size, other / size  # squares must fit into float32
    by_own, by_other = _silhouette_slopes(own, other)
    by_own = by_own / (count[labels] - (1 if copies is None else copies))
    by_other = by_other / count[1 - labels]
    slopes = torch.stack([torch.ones_like(by_own), by_own * n, by_other * n], -1)
    place = torch.cat([torch.ones_like(x[:, :1]), x], -1)
    of_class = torch.nn.functional.one_hot(labels, 2).to(x)
    columns = torch.einsum("nc,ns,nk->ncsk", of_class, slopes, place).flatten(1).float()
    sums = torch.empty_like(columns)
    for rows, distance in distance_tiles(x.float()):
        inverse = distance.reciprocal_().masked_fill_(distance == torch.inf, 0.0)
        torch.mm(inverse, columns, out=sums[rows])
    every = torch.arange(n)
    by_class = sums.to(x).view(n, 2, 3, -1)
    same, others = by_class[every, labels], by_class[every, 1 - labels]
    pull = slopes[:, 1:2] * same[:, 0] + same[:, 1] + slopes[:, 2:] * others[:, 0] + others[:, 2]
    return (pull[:, :1] * x - pull[:, 1:]) / (n**2 * size)


def _mean_silhouette(
    cells: Cells,
    own: Tensor,
    other: Tensor,
    values: Tensor,
    null: Tensor,
    permuted: Tensor,
    k: int | None = None,
    turning: Tensor | float = 0.0,
    units: Tensor | None = None,
) -> Estimate:
    """The mean silhouette from `mean_distances`, [cell, n] each.

    Args:
        cells, own, other: of the texts.
        values, null: [cell, 1 + permutations], the silhouette, whose mean is the floor, and the
            statistic behind p.
        permuted, k: see `make_following`.
        turning: [cell, n], influence of each text by way of the components.
        units: see `silhouette_influence`.
    """
    fixed = silhouette_influence(own, other, cells.labels, units) * cells.borrowed(cells.sqdist)
    value = silhouette_samples(own, other).mean(-1)
    return make_following(
        cells, value, fixed + turning, k=k, null=null, floor=cells.chance(values), permuted=permuted
    )


def _euclidean(cells: Cells) -> Estimate:
    values, null = cells.null("silhouette"), cells.null("welch")
    return _mean_silhouette(cells, *_full_width(cells), values, null, cells.permuted("silhouette"))


_DEFINITION = (
    "mean over texts of (b-a)/max(a,b), a the mean distance to the other texts of the same class, "
    "b to the texts of the other class"
)
_SOURCE = "Rousseeuw 1987, as in scikit-learn"


def _interval(slopes: str = "is replaced by the mean slope of its class") -> str:
    return f"{FOLLOWING_PERMUTED}; the slope of each text {slopes}; {BORROWED}"


_SILHOUETTE = Metric(
    name="silhouette",
    title="silhouette, Euclidean",
    space="full",
    kind="C",
    unit="1",
    definition=_DEFINITION,
    source=_SOURCE,
    pitfalls="Do not compare values of different spaces. In many dimensions distances become "
    "alike: full-width values are small even for classes that separate perfectly. " + SPREAD_MOVES,
    interval=_interval(),
    null=SHUFFLE_WELCH,
    floor=NULL_MEAN,
    default=True,
    estimator=_euclidean,
)


def _cosine(cells: Cells) -> Estimate:
    means = mean_distances(cells.stored("cos_sum"), cells.labels, cells.copies, cells.lone_count)
    null = cells.null("silhouette_cosine")
    permuted = cells.permuted("silhouette_cosine")
    return _mean_silhouette(cells, *means, null, null, permuted, units=_unit_vectors(cells))


def _unit_vectors(cells: Cells) -> Tensor:
    """[cell, n, 1 + component], the texts over their lengths, as far as their components show them.

    What the components do not show of a text counts in its length alone.
    """
    axes, x = (cells.stored(name).nan_to_num(0.0) for name in ("pca_components", "pca_coords"))
    centre = cells.count / cells.count.sum() @ cells.stored("class_mean")
    inside = (axes @ centre[..., None]).squeeze(-1)
    outside = (centre.square().sum(-1) - inside.square().sum(-1)).clamp_min(0).sqrt()
    seen = torch.cat([x + inside[:, None], outside[:, None, None].expand_as(x[..., :1])], -1)
    unseen = of_class(cells.sqdist, cells.labels)
    unseen = (unseen - cells.about_class_means(x).square().sum(-1)).clamp_min(0)
    length = (seen.square().sum(-1) + unseen).sqrt()
    return seen / length.clamp_min(torch.finfo(length.dtype).tiny)[..., None]


_SILHOUETTE_COSINE = Metric(
    name="silhouette_cosine",
    title="silhouette, cosine",
    space="full",
    kind="C",
    unit="1",
    definition="as silhouette, with distance 1 - cos(x, y)",
    source=_SOURCE,
    pitfalls="The mean state is not subtracted; one very large dimension makes all texts alike. "
    + SPREAD_COUNTS,
    interval=_interval("counts as far as the first components show the texts"),
    null=SHUFFLE_FULL,
    any_difference=True,
    floor=NULL_MEAN,
    estimator=_cosine,
)


def _in_components(cells: Cells, k: int) -> Estimate:
    labelled = _labelled(cells, k)
    own, other = _pair_sums(labelled, cells)
    values = torch.stack([cell.silhouette for cell in labelled])
    null = values if cells.compared else cells.labelled(k, welch_square)
    x = cells.coords.nan_to_num(0.0)
    by_angle = torch.stack(
        [
            silhouette_by_place(one[:, :k], a, b, cells.labels, cells.copies).T @ one[:, k:]
            for one, a, b in zip(x, own, other, strict=True)
        ]
    )
    turning = centred(cells.turning(by_angle))
    return _mean_silhouette(cells, own, other, values, null, values[:, 1:], k=k, turning=turning)


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
        f"{SPREAD_MOVES} {OWN_COMPONENTS}",
        interval=f"{_interval()}; includes that other texts have other components",
        null=SHUFFLE_WELCH_PC,
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
    radius = of_class(sqdist, labels).sqrt()
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
    return make_estimate(cells, value, influence=influence, around=inverse_ends)


_DAVIES_BOULDIN = Metric(
    name="davies_bouldin",
    title="Davies-Bouldin",
    space="full",
    kind="B",
    unit="1",
    definition="(s0+s1)/|m1-m0|, s0 and s1 the mean distance of the texts to their class mean",
    source="Davies & Bouldin 1979, as in scikit-learn",
    pitfalls="Small means separated. Biased downwards if the class means hardly differ.",
    interval=f"{INFLUENCE}; s0 and s1 as if the class means were known; {STUDENT}; on 1/value, so "
    "that the upper end may be infinite",
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
    return of_class(pair_min, 1 - labels).amin(-1) / of_class(pair_max, labels).amax(-1)


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


def nn_gap(pair_min: Tensor, labels: Tensor) -> Tensor:
    """How much nearer the nearest text of the own class is than that of the other: [..., n].

    Args:
        pair_min: [..., n, 2], smallest distance of each text to each class; labels: [n] int64.
    """
    return of_class(pair_min, 1 - labels) - of_class(pair_min, labels)


def _nn_accuracy(cells: Cells) -> Estimate:
    if cells.paired:
        raise Refusal("the nearest text of a paired one is often its partner; see paired_accuracy")
    gap = nn_gap(cells.stored("pair_min"), cells.labels)
    hits = (gap.sign() + 1) / 2
    near = cells.nearest
    if cells.copies is not None:  # the nearest stored distance is to the copy
        hits = torch.where(cells.copies > 1, (cells.labels[near] == cells.labels).double(), hits)
    influence = cells.about_class_means(hits[..., None]).squeeze(-1) / hits.shape[-1]
    alone = influence_variance(influence, cells.unit)
    wider = (dyadic_variance(influence, cells.unit, near) / alone).clamp_min(1).nan_to_num(1.0)
    return make_share(
        cells,
        hits.mean(-1),
        (float(cells.units.sum()), gap),
        null=cells.null("nn_accuracy"),
        influence=influence * wider.sqrt()[:, None],
    )


_NN_ACCURACY = Metric(
    name="nn_accuracy",
    title="1-nearest-neighbour accuracy",
    space="full",
    kind="C",
    unit="1",
    definition="share of texts whose nearest other text is of the same class; ties count half. A "
    "copy is not another text",
    source="Cover & Hart 1967",
    pitfalls="Near-duplicates decide it. Refused on paired data, where the nearest text is often "
    f"the partner and the value falls below chance. {SPREAD_COUNTS}",
    interval=f"{SHARE}; that texts share a nearest text, or are each other's, is in the variance "
    "(dyadic-robust: Fafchamps & Gubert 2007; Aronow, Samii & Assenova 2015)",
    null=SHUFFLE_FULL,
    floor=NULL_MEAN,
    any_difference=True,
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
    null = cells.null("energy_distance")
    return make_following(
        cells, value, influence, null=null, floor=cells.chance(null, 0.0),
        permuted=cells.permuted("energy_distance"),
    )  # fmt: skip


_ENERGY_DISTANCE = Metric(
    name="energy_distance",
    title="energy distance",
    space="full",
    kind="C",
    unit="state",
    definition="2E|X-Y| - E|X-X'| - E|Y-Y'|, means over distinct texts",
    source="Szekely & Rizzo 2013, U-statistic",
    pitfalls=f"In units of the hidden state. {SPREAD_COUNTS}",
    interval=FOLLOWING_PERMUTED,
    null=SHUFFLE_FULL,
    floor="0 where every text is a unit of its own; else the mean over the permutations",
    any_difference=True,
    estimator=_energy_distance,
)


# mmd -----------------------------------------------------------------------------------------


def _mmd(cells: Cells) -> Estimate:
    if not cells.window.has("kernel_sum"):
        raise Refusal("the store is of an earlier version: run the model again")
    if not cells.own_null:
        raise Refusal("the store has kernels of other texts or pairs than these")
    means = mean_distances(-cells.stored("kernel_sum"), cells.labels, cells.copies)
    value, influence = energy_distance(*means, cells.labels)
    null = cells.stored("kernel_null")[:, : cells.labellings_of_null]
    distance = cells.stored("pair_sum").sum(-1)
    pull = cells.about_class_means(distance[..., None]).squeeze(-1)
    # Each text is in both places of a mean distance, which is the width of the kernel.
    on_width = 2 * pull / distance.sum(-1, keepdim=True)
    influence = influence + cells.stored("kernel_slope")[:, None] * on_width
    return make_following(
        cells, value, influence, null=null, floor=cells.chance(null, 0.0),
        permuted=cells.stored("kernel_null")[:, 1:],
    )  # fmt: skip


_MMD = Metric(
    name="mmd",
    title="MMD^2, Gaussian kernel",
    space="full",
    kind="C",
    unit="1",
    definition="E k(X,X') + E k(Y,Y') - 2E k(X,Y), k = exp(-|x-y|^2/(2h^2)), h = mean distance "
    "of two texts; means over distinct texts",
    source="Gretton et al. 2012, U-statistic",
    pitfalls="Depends on the bandwidth h, which is each model's own, also in `compare`: states "
    f"times a constant have the same value. {SPREAD_COUNTS}",
    interval=f"{FOLLOWING_PERMUTED}; the bandwidth has noise too",
    null=SHUFFLE_FULL,
    floor="0 where every text is a unit of its own; else the mean over the permutations",
    any_difference=True,
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
