"""What tuning changed: two models on the same texts, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..threads import in_parallel
from .cells import Cells, read_cells
from .confounds import confounds, dominance
from .estimate import Estimate
from .families import choose
from .geometry import geometry, rounding_share
from .glossary import GEOMETRY, SPACES
from .groups import choose_groups, with_groups
from .metric import Metric, Metrics
from .rounding import roundoff
from .selection import Names, choose_reference, has_copies, paired_languages, select
from .settings import require_comparable, told
from .uncertainty import (
    DRAWS_EXCESS,
    INFLUENCE_EXCESS,
    Z95,
    difference_interval,
    draws_covariance,
    family_p,
    influence_covariance,
    random_signs,
    spread,
    two_sided,
    unit_sums,
)

if TYPE_CHECKING:
    import xarray

    from ..store import ModelStore, Run

Floats = NDArray[np.float64]
_NUMBERS = ("base", "aligned", "difference", "low", "high", "p", "deviation", "rounding")
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
    permutations: int = 200,
    seed: int = 0,
    paired: bool | None = None,
    force: bool = False,
    different_templates: bool = False,
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
            progress: as in `separation`.
        different_templates: compare models whose prompts differ in the template, and say so in the
            results.

    Returns:
        Variables (metric, layer, pooling, lang): `base`, `aligned`, `difference` (aligned - base),
        `low`, `high`, `p`, `p_family`, `refused`. With a reference language also `excess`
        (difference minus that of the reference language), `excess_low`, `excess_high`, `excess_p`,
        `excess_p_family`. With languages of both groups also `group_value`, `group_low`,
        `group_high`, which have `group` where others have `lang`. `explain NAME` defines each.

        The variables of `GEOMETRY` (layer, pooling, lang). They are NaN if the models do not share
        a projection, if nothing moves, or if a direction is not longer than its noise.

        The variables of `CONFOUNDS` (model, lang) and of `DOMINANCE` (model, layer, pooling, lang).
        The attributes `run_as` and `settings_differ`
        say how the models were run.

        A difference at the level of rounding (`explain rounding_share`) has p = 1.

        If both models share a projection, metrics in components use the components of the base
        model inside it (see `space` and the attribute `components`): `base` then differs from the
        value that `separation` returns.

    Raises:
        ConfigError: a name is not in the store; the models have different layers, poolings or
            templates; or the groups share a language.
        StoreError: an array cannot be read.
    """
    import xarray

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

    shape = (len(chosen.layers), len(chosen.poolings), len(langs))
    columns = {name: np.full((len(family), *shape), np.nan) for name in _NUMBERS}
    refused = np.full((len(family), *shape), "", object)
    moved = {name: np.full(shape, np.nan) for name in GEOMETRY}
    # A null has as many entries as permutations (from influences) or bootstraps (from draws).
    nulls = np.full((len(family), *shape, max(bootstraps, permutations)), np.nan, np.float32)
    sizes = [0] * len(family)
    projections = [_projection(run.model(name)) for name in (base, aligned)]
    shared = projections[0] == projections[1]
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
            # Only the floors of paired data and of copies need permutations here.
            permutations=permutations if lang in with_pairs or has_copies(run, lang) else 0,
            seed=seed,
            paired=paired is not False,
            force=force,
            in_projection=shared,
        ):
            signs = random_signs(first.unit, permutations, seed=seed, key=lang)
            i_layers, i_poolings = chosen.positions(first.names)
            if not first.refusal():
                measured = {"rounding_share": rounding_share(first, second)}
                measured |= geometry(first, second) if shared else {}
                for name, value in measured.items():
                    moved[name][i_layers, i_poolings, i_lang] = value.numpy()
            for i_metric, metric in enumerate(family):
                difference, reasons = _difference(first, second, metric, signs, foreign)
                at = (i_metric, i_layers, i_poolings, i_lang)
                for name in _NUMBERS:
                    columns[name][at] = getattr(difference, name).numpy()
                refused[at] = reasons
                if difference.null is not None:
                    sizes[i_metric] = difference.null.shape[-1]
                    nulls[(*at, slice(sizes[i_metric]))] = difference.null.numpy()

    in_parallel(fill, [(0, j) for j in range(len(langs))], progress)
    reference = choose_reference(run, reference, langs)
    i_reference = None if reference is None else langs.index(reference)
    if i_reference is not None:
        columns |= _excess(columns, i_reference)
    columns |= _family_p(
        [null[..., :size] for null, size in zip(nulls, sizes, strict=True)],
        columns.pop("deviation"),
        columns,
        refused != "",
        i_reference,
    )
    _unmark(columns, columns.pop("rounding") == 1, i_reference)
    dims = ("metric", "layer", "pooling", "lang")
    whose = "base" if shared else "own"
    spaces = [f"{whose} {x.space}" if x.components else x.space for x in family]
    dataset = xarray.Dataset(
        {
            **{name: (dims, column) for name, column in columns.items()},
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
            "resamples": ("metric", sizes),
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
            "components": SPACES[whose],
            "confidence": 0.95,
            "bootstraps": bootstraps,
            "permutations": permutations,
            "seed": seed,
            **told(run, [base, aligned], tokenizers=True),
        },
    )
    return with_groups(dataset, chosen_groups)


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
    p: Tensor
    deviation: Tensor
    rounding: Tensor
    """1 where the difference is at the level of rounding, else 0."""
    null: Tensor | None
    """[cell, R], the difference under chance, in standard deviations; None without an interval."""


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
    low = high = torch.full_like(value, torch.nan)
    null = None
    if first.linear is not None and second.linear is not None:
        low, high = difference_interval(
            (first.value, first.low, first.high),
            (second.value, second.low, second.high),
            _correlation(first, second, base.unit),
        )
        low, high = (torch.where(known, end, torch.nan) for end in (low, high))
        null = _null(first, second, base.unit, signs)
    coarser = max(roundoff(cells.window.model) for cells in (base, aligned))
    small = value.abs() <= coarser * torch.maximum(first.value.abs(), second.value.abs())
    rounding = (small | (rounding_share(base, aligned) >= 1)).double()
    p, deviation = two_sided(value, low, high), (high - low) / (2 * Z95)
    parts = (first.value, second.value, value, low, high, p, deviation, rounding)
    return Difference(*parts, null), reasons


def _correlation(first: Estimate, second: Estimate, unit: Tensor) -> Tensor:
    """Correlation of two estimates from the same texts: of linear and of quadratic parts."""
    if first.influence is not None and second.influence is not None:
        seen = influence_covariance(first.influence, second.influence, unit)
        excess = INFLUENCE_EXCESS
    else:
        seen = draws_covariance(_known(first.draws), _known(second.draws))
        excess = DRAWS_EXCESS
    common = torch.zeros_like(seen)
    for one, other in zip(first.squares, second.squares, strict=True):
        share = one.common(one.noise(), other.noise())
        common = common + share * (one.variance * other.variance).sqrt()
    most = (_known(first.linear) * _known(second.linear)).sqrt()
    linear = (seen - (1 + excess) * common).clamp(-most, most)
    rho = (linear + common) / (first.variance * second.variance).sqrt()
    rho = torch.where(rho > 1 - 1e-12, 1.0, rho)  # below 1 only by rounding
    return rho.nan_to_num(0.0)


def _known(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _null(first: Estimate, second: Estimate, unit: Tensor, signs: Tensor) -> Tensor:
    """The difference under chance, in standard deviations: [cell, R].

    It comes from influences with random signs (Hemerik, Goeman & Finos 2020), or from bootstrap
    draws minus their mean.
    """
    if first.influence is not None and second.influence is not None:
        chance = unit_sums(second.influence - first.influence, unit) @ signs.T
        scale = chance.square().mean(-1, keepdim=True).sqrt()
    else:
        chance = _known(second.draws) - _known(first.draws)
        chance = chance - chance.nanmean(-1, keepdim=True)
        scale = spread(chance)[:, None]
    return torch.where(scale > 0, chance / scale, 0.0)


def _excess(columns: dict[str, Floats], i_reference: int) -> dict[str, Floats]:
    """Difference of each language minus that of the reference; languages are independent."""
    others = [torch.from_numpy(columns[name]) for name in ("difference", "low", "high")]
    reference = [part[..., i_reference, None] for part in others]
    value = others[0] - reference[0]
    low, high = difference_interval(
        (reference[0], reference[1], reference[2]),
        (others[0], others[1], others[2]),
        torch.zeros(()),
    )
    own = torch.arange(value.shape[-1]) == i_reference
    low, high = (torch.where(own, value, end) for end in (low, high))
    excess = {
        "excess": value,
        "excess_low": low,
        "excess_high": high,
        "excess_p": two_sided(value, low, high),
    }
    return {name: column.numpy() for name, column in excess.items()}


def _family_p(
    nulls: Sequence[NDArray[np.float32]],
    deviation: Floats,
    columns: dict[str, Floats],
    refused: NDArray[np.bool_],
    i_reference: int | None,
) -> dict[str, Floats]:
    """p corrected over all layers and languages, for differences and for excesses.

    Args:
        nulls: one for each metric, [layer, pooling, lang, R], in standard deviations.
        deviation, columns, refused: [metric, layer, pooling, lang].
        i_reference: index of the reference language, None without one.
    """
    deviation = np.where(np.isfinite(deviation), deviation, np.nan)  # an infinite end
    excess = {} if i_reference is None else {"excess_p_family": ("excess", "excess_p")}
    p_family = {}
    for name, (of, alone) in ({"p_family": ("difference", "p")} | excess).items():
        p_family[name] = np.full(refused.shape, np.nan)
        for i, null in enumerate(nulls):
            if null.shape[-1] == 0:
                continue
            chance, left_out = null * deviation[i][..., None], refused[i]
            if of == "excess":
                chance = chance - chance[:, :, i_reference, None]
                left_out = left_out | refused[i][..., i_reference, None]
                left_out[..., i_reference] = True
            both = np.abs(np.concatenate([columns[of][i][..., None], chance], -1))
            p = family_p(both[None, None], left_out[None, None])[0, 0]
            # A difference that cannot vary has no score in the family: it keeps its own p, but no
            # number of resamples can show a smaller one than 1/(1 + R).
            own = np.maximum(columns[alone][i], 1 / (1 + null.shape[-1]))
            p_family[name][i] = np.where(np.isnan(p) & ~left_out, own, p)
    return p_family


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
