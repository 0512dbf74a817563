"""What tuning changed: two models on the same texts, with intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import LABELLINGS
from ..errors import ConfigError
from ..threads import in_parallel
from .cells import Cells, Space, values_in
from .confounds import confounds, dominance
from .estimate import Estimate, covariances, from_influences, known_of
from .families import choose
from .geometry import geometry, rounding_share
from .glossary import GEOMETRY, SPACES
from .groups import choose_groups, with_groups
from .intervals import difference_interval
from .items import SharedItems
from .metric import Metric, Metrics
from .reading import read_cells
from .resamples import random_signs
from .rounding import roundoff
from .selection import Names, choose_reference, paired_languages, require_permutations, select
from .settings import require_comparable, told
from .significance import (
    bounded,
    false_discovery,
    largest_p,
    sign_scores,
    student_p,
    welch_freedom,
)
from .uncertainty import unit_sums

if TYPE_CHECKING:
    import xarray

    from ..store import ModelStore, Run

Floats = NDArray[np.float64]
_NUMBERS = (
    *("base", "aligned", "difference", "low", "high", "inner_low", "inner_high", "p", "score"),
    *("deviation", "freedom", "rounding"),
)
"""What a `Difference` holds of every cell."""


def compare(
    run: "Run",
    *,
    base: str,
    aligned: str,
    metrics: Metrics = None,
    reference: str | None = "en",
    groups: Mapping[str, Sequence[str] | str] | None = None,
    layers: Names = None,
    poolings: Names = None,
    languages: Names = None,
    bootstraps: int = 200,
    permutations: int = LABELLINGS,
    seed: int = 0,
    paired: bool | None = None,
    force: bool = False,
    different_templates: bool = False,
    components: Space = "own",
    equivalence: float | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> "xarray.Dataset":
    """Compare two models of a store on the same texts.

    The interval of a difference comes from the intervals of both models and from the correlation of
    both values: what the same texts do to both models alike does not widen it.

    Args:
        run: an open store.
        base, aligned: names of the models.
        metrics: as in `separation`; None leaves out transformations of another metric.
        reference: language for the difference of differences; None, English where there is none,
            or a language that is not selected leaves it out.
        groups, layers, poolings, languages, bootstraps, permutations, seed, paired, force,
            device, progress: as in `separation`.
        different_templates: compare models whose prompts differ in the template, and say so in the
            results.
        components: `own`: each model in its own exact components, as in `separation`; `union`: both
            in those of both models together, see `moments.union_components`; `base`: both in those
            of the base model, for which the aligned model must have been run after it.
        equivalence: the largest difference that counts as no change, for metrics without a unit.

    Returns:
        Variables (metric, layer, pooling, lang): `base`, `aligned`, `difference` (aligned - base),
        `low`, `high`, `p`, `p_family`, `q`, `refused`. With `equivalence` also `verdict`. With a
        reference language also `excess`
        (difference minus that of the reference language), `excess_low`, `excess_high`, `excess_p`,
        `excess_p_family`. With languages of both groups also `group_value`, `group_low`,
        `group_high`, which have `group` where others have `lang`. `explain NAME` defines each.

        `difference_own`, `difference_base` and `difference_union`, without that of `components`:
        the difference in other components, NaN for metrics without components and where unknown.

        The variables of `GEOMETRY` (layer, pooling, lang). They are NaN if the models differ in
        hidden size or projection, if nothing moves, or if a direction is not reliable.

        The variables of `CONFOUNDS` (model, lang) and of `DOMINANCE` (model, layer, pooling, lang).
        The attributes `run_as` and `settings_differ`
        say how the models were run.

        A difference at the level of rounding (`explain rounding_share`) has p = 1.

        The coordinate `space` and the attribute `components` say in which components a metric is.

    Raises:
        ConfigError: a name is not in the store; the models have different layers, poolings or
            templates; the groups share a language; or `equivalence` is not a number above 0.
        StoreError: an array cannot be read.
    """
    import xarray

    if components not in (known := get_args(Space)):
        raise ConfigError(f"components: got {components!r}, expected one of {', '.join(known)}")
    require_permutations(permutations)
    if equivalence is not None and not 0 < equivalence < math.inf:
        raise ConfigError(
            f"equivalence: got {equivalence}, expected a number above 0: the largest difference "
            "that counts as no change"
        )
    chosen = select(
        run, models=[base, aligned], layers=layers, poolings=poolings, languages=languages
    )
    langs, chosen_groups = chosen.languages, choose_groups(groups, run.languages)
    require_comparable(
        run,
        base,
        aligned,
        compared=chosen.poolings,
        different_templates=different_templates,
    )
    with_pairs = paired_languages(run, langs, paired)
    family = choose(metrics)
    if metrics is None:
        family = tuple(x for x in family if not x.alias_of and (with_pairs or not x.paired))
        # What does not depend on the choice of components leads.
        family = tuple(sorted(family, key=lambda x: x.components > 0))

    shape = (len(chosen.layers), len(chosen.poolings), len(langs))
    columns = {name: np.full((len(family), *shape), np.nan) for name in _NUMBERS}
    refused = np.full((len(family), *shape), "", object)
    moved = {name: np.full(shape, np.nan) for name in GEOMETRY}
    nulls = np.zeros((len(family), *shape, permutations), np.float32)
    elsewhere = {
        space: np.full((len(family), *shape), np.nan)
        for space in get_args(Space)
        if space != components
    }
    projections = [_projection(run.model(name)) for name in (base, aligned)]
    shared = projections[0] == projections[1]
    shared_items = SharedItems(run, langs, (len(family), *shape), bootstraps)
    foreign = projections[0][1:] != projections[1][1:]

    def fill(_: int, i_lang: int) -> None:
        lang = langs[i_lang]
        for first, second in read_cells(
            run,
            [base, aligned],
            lang,
            layers=chosen.layers,
            poolings=chosen.poolings,
            bootstraps=bootstraps,
            permutations=permutations,  # behind the floors of metrics that subtract them
            seed=seed,
            paired=paired is not False,
            force=force,
            space=components,
            device=device,
        ):
            signs = random_signs(first.unit, permutations, seed=seed, key=lang)
            i_layers, i_poolings = chosen.positions(first.names)
            if not first.refusal():
                for name, value in geometry(first, second, shared=shared).items():
                    moved[name][i_layers, i_poolings, i_lang] = value.numpy()
            for i_metric, metric in enumerate(family):
                difference, reasons = _difference(first, second, metric, signs, foreign)
                at = (i_metric, i_layers, i_poolings, i_lang)
                for name in _NUMBERS:
                    columns[name][at] = getattr(difference, name).numpy()
                refused[at] = reasons
                of_items = difference.influence, difference.draws
                shared_items.add(at, i_lang, first.kept, first.unit, *of_items)
                if difference.null is not None:
                    nulls[at] = difference.null.numpy()
            for space, column in elsewhere.items():
                both = values_in((first, second), space)
                for i_metric, metric in enumerate(family):
                    if metric.components and not metric.alias_of:
                        before, after = (metric.estimate(cells)[0].value for cells in both)
                        at = (i_metric, i_layers, i_poolings, i_lang)
                        column[at] = (after - before).numpy()

    in_parallel(fill, [(0, j) for j in range(len(langs))], progress)
    reference = choose_reference(run, reference, langs)
    i_reference = None if reference is None else langs.index(reference)
    inner = columns.pop("inner_low"), columns.pop("inner_high")
    score, deviation, freedom = (columns.pop(name) for name in ("score", "deviation", "freedom"))
    columns["p_family"] = _family_p(score, nulls)
    correlations = shared_items.correlations()
    if i_reference is not None:
        rho = correlations[..., i_reference]
        columns |= _excess(columns, i_reference, rho)
        columns |= _excess_p(columns["excess"], deviation, freedom, nulls, i_reference, rho)
    rounding = columns.pop("rounding") == 1
    _unmark(columns, rounding, i_reference)
    columns["q"] = false_discovery(torch.from_numpy(columns["p"])).numpy()
    dims = ("metric", "layer", "pooling", "lang")
    verdict = {}
    if equivalence is not None:
        with_unit = np.array([x.unit != "1" for x in family])
        words = _verdicts(columns, inner, rounding, with_unit, equivalence)
        verdict = {"verdict": (dims, words, {"equivalence": equivalence})}
    spaces = [f"{components} {x.space}" if x.components else x.space for x in family]
    dataset = xarray.Dataset(
        {
            **{name: (dims, column) for name, column in columns.items()},
            **{f"difference_{space}": (dims, column) for space, column in elsewhere.items()},
            **verdict,
            "refused": (dims, refused.astype(str)),
            **{
                name: (dims[1:], column, {"definition": GEOMETRY[name]})
                for name, column in moved.items()
            },
            **confounds(run, [base, aligned], langs),
            **dominance(run, [base, aligned], chosen),
        },
        coords={
            "metric": [x.name for x in family],
            "resamples": ("metric", [permutations] * len(family)),
            "model": [base, aligned],
            "layer": list(chosen.layers),
            "pooling": list(chosen.poolings),
            "lang": list(langs),
            "space": ("metric", spaces),
            "definition": ("metric", [x.definition for x in family]),
            "paired": ("lang", [lang in with_pairs for lang in langs]),
        },
        attrs={
            "base": base,
            "aligned": aligned,
            "reference": reference or "",
            "components": SPACES[components],
            "confidence": 0.95,
            "bootstraps": bootstraps,
            "permutations": permutations,
            "seed": seed,
            **told(run, [base, aligned], chosen.poolings, tokenizers=True),
        },
    )
    return with_groups(dataset, chosen_groups, correlations)


def _projection(model: "ModelStore") -> tuple[int, ...]:
    """What determines the projection of a model: width before and after it, and the seed."""
    arrays = (
        model.read(name, layer=0, samples=slice(1), lang=0) for name in ("class_mean", "projected")
    )
    return (*(array.shape[-1] for array in arrays), model.seed)


@dataclass(frozen=True)
class Difference:
    """One metric of both models, and aligned - base. Tensors are [cell] float64 unless noted."""

    base: Tensor
    aligned: Tensor
    difference: Tensor
    low: Tensor
    high: Tensor
    inner_low: Tensor
    """Ends of the 90 % interval."""
    inner_high: Tensor
    p: Tensor
    score: Tensor
    """The difference as a sum of signs, see `significance.bounded`."""
    deviation: Tensor
    """Standard deviation, from influences alone: it does not depend on bootstraps."""
    freedom: Tensor
    rounding: Tensor
    """1 where the difference is at the level of rounding, else 0."""
    null: Tensor | None
    """[cell, R], the score under chance; None without an interval."""
    influence: Tensor | None
    draws: Tensor | None
    """Of the difference; see `Estimate`."""


def _difference(
    base: Cells, aligned: Cells, metric: Metric, signs: Tensor, foreign: bool
) -> tuple[Difference, list[str]]:
    """Compare a metric in each cell, and say for each cell why not, or "".

    Args:
        base, aligned: the same cells of both models.
        metric: what to compare.
        signs: [R, unit], 1 or -1: random signs for the influence of each text (or pair).
        foreign: whether the projections have other seeds or widths.
    """
    (first, reasons), (second, others) = metric.estimate(base), metric.estimate(aligned)
    if metric.alias_of:
        reasons = [f"a transformation of {metric.alias_of}: compare that"] * len(reasons)
    elif foreign and metric.space == "projection":
        reasons = ["the projections differ; run both with the same --seed and --proj-dim"]
        reasons *= len(others)
    reasons = [one or other for one, other in zip(reasons, others, strict=True)]
    known = torch.tensor([not reason for reason in reasons])
    value = torch.where(known, second.value - first.value, torch.nan)
    low = high = p = score = deviation = freedom = torch.full_like(value, torch.nan)
    inner = low, high
    null = influence = draws = None
    if first.influence is not None and second.influence is not None:
        influence = second.influence - first.influence
    elif first.draws is not None and second.draws is not None:
        draws = second.draws - first.draws
    if first.linear is not None and second.linear is not None:
        rho = _correlation(first, second, base.unit)
        low, high = difference_interval(first.with_ends(0.95), second.with_ends(0.95), rho)
        inner = difference_interval(first.with_ends(0.9), second.with_ends(0.9), rho)
        moved = unit_sums(known_of(second.influence) - known_of(first.influence), base.unit)
        one, other = (from_influences(x, base.unit) for x in (first, second))
        common = _correlation(one, other, base.unit) * (one.variance * other.variance).sqrt()
        deviation = (one.variance + other.variance - 2 * common).clamp_min(0).sqrt()
        freedom = welch_freedom(moved, _class_of_units(base))
        t = torch.where(value == 0, 0.0, value / deviation)
        p, score = student_p(t, freedom), bounded(t, freedom)
        low, high, p, score, deviation = (
            torch.where(known, part, torch.nan) for part in (low, high, p, score, deviation)
        )
        null = sign_scores(moved, signs)
    coarser = max(roundoff(cells.window.model) for cells in (base, aligned))
    small = value.abs() <= coarser * torch.maximum(first.value.abs(), second.value.abs())
    rounding = (small | (rounding_share(base, aligned) >= 1)).double()
    return Difference(
        first.value, second.value, value, low, high, *inner, p, score, deviation, freedom,
        rounding, null, influence, draws,
    ), reasons  # fmt: skip


def _class_of_units(cells: Cells) -> Tensor:
    """[unit] int64, the label of the texts of a unit, or 2 where it has both."""
    harmful = unit_sums(cells.labels.double(), cells.unit)
    size = torch.bincount(cells.unit)
    return torch.where(harmful == 0, 0, torch.where(harmful == size, 1, 2))


def _correlation(first: Estimate, second: Estimate, unit: Tensor) -> Tensor:
    """Correlation of two estimates from the same texts: of linear and of quadratic parts."""
    shared = sum(covariances(first, second, unit), torch.zeros_like(first.value))
    rho = shared / (first.variance * second.variance).sqrt()
    rho = torch.where(rho > 1 - 1e-12, 1.0, rho)  # below 1 only by rounding
    return rho.nan_to_num(0.0)


def _excess(columns: dict[str, Floats], i_reference: int, rho: Floats) -> dict[str, Floats]:
    """Difference of each language minus that of the reference.

    Args:
        columns: [metric, layer, pooling, lang]; rho: the same, correlation with the reference.
        i_reference: index of the reference language.
    """
    others = [torch.from_numpy(columns[name]) for name in ("difference", "low", "high")]
    reference = [part[..., i_reference, None] for part in others]
    value = others[0] - reference[0]
    low, high = difference_interval(
        (reference[0], reference[1], reference[2]),
        (others[0], others[1], others[2]),
        torch.from_numpy(rho),
    )
    own = torch.arange(value.shape[-1]) == i_reference
    low, high = (torch.where(own, value, end) for end in (low, high))
    excess = {"excess": value, "excess_low": low, "excess_high": high}
    return {name: column.numpy() for name, column in excess.items()}


def _family_p(score: Floats, nulls: NDArray[np.float32]) -> Floats:
    """p corrected for all differences of the results, one family over all their axes.

    Args:
        score: [metric, layer, pooling, lang], NaN where there is none.
        nulls: [metric, layer, pooling, lang, R].
    """
    if nulls.shape[-1] == 0:
        return np.full(score.shape, np.nan)
    flat = torch.from_numpy(nulls.reshape(-1, nulls.shape[-1]))
    return largest_p(torch.from_numpy(score.ravel()), flat).numpy().reshape(score.shape)


def _excess_p(
    excess: Floats,
    deviation: Floats,
    freedom: Floats,
    nulls: NDArray[np.float32],
    i_reference: int,
    rho: Floats,
) -> dict[str, Floats]:
    """p of the differences of differences, alone and corrected for all of the results.

    Args:
        excess, deviation, freedom, nulls: of all metrics, layers, poolings and languages.
        i_reference: index of the reference language.
        rho: correlation with the reference.
    """
    both = np.stack(np.broadcast_arrays(deviation, deviation[..., i_reference, None]))
    total = np.sqrt((both**2).sum(0))
    apart = np.sqrt(np.maximum((both**2).sum(0) - 2 * rho * both.prod(0), 0))
    least = torch.from_numpy(np.minimum(freedom, freedom[..., i_reference, None]))
    value = torch.from_numpy(excess)
    t = torch.where(value == 0, 0.0, value / torch.from_numpy(apart))
    score = bounded(t, least).numpy()
    score[..., i_reference] = np.nan
    share = np.divide(both, total, out=np.zeros_like(both), where=total > 0).astype(np.float32)
    chance = share[0][..., None] * nulls
    chance -= share[1][..., None] * nulls[..., i_reference, None, :]
    return {"excess_p": student_p(t, least).numpy(), "excess_p_family": _family_p(score, chance)}


def _verdicts(
    columns: dict[str, Floats],
    inner: tuple[Floats, Floats],
    rounding: NDArray[np.bool_],
    with_unit: NDArray[np.bool_],
    equivalence: float,
) -> NDArray[np.str_]:
    """What can be said of each difference: two one-sided tests at 5 % each (Schuirmann 1987).

    Args:
        columns: [metric, layer, pooling, lang].
        inner: ends of the 90 % interval; rounding: whether the difference is of its level.
        with_unit: [metric], whether no number is the largest that counts as no change.
        equivalence: that number.
    """
    low, high = columns["low"], columns["high"]
    cases = {
        "": np.isnan(columns["difference"]),
        "has a unit": np.broadcast_to(with_unit[:, None, None, None], low.shape),
        "no interval": np.isnan(low),
        f"no change larger than {equivalence:g}": (-equivalence <= inner[0])
        & (inner[1] <= equivalence),
        "changed": ((low > 0) | (high < 0)) & ~rounding,
    }
    return np.select(list(cases.values()), list(cases), "undecided")


def _unmark(
    columns: dict[str, Floats], rounding: NDArray[np.bool_], i_reference: int | None
) -> None:
    """Set p to 1 where a difference, or both of an excess, are at the level of rounding."""
    chance = {"p": rounding, "p_family": rounding}
    if i_reference is not None:
        both = rounding & rounding[..., i_reference, None]
        chance |= {"excess_p": both, "excess_p_family": both}
    for name, where in chance.items():
        columns[name][where & ~np.isnan(columns[name])] = 1.0
