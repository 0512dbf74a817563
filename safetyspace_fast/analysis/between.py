"""Base against aligned: what preference tuning changed, on the same texts, with error bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..parallel import in_parallel
from . import engine as e
from . import metrics as m
from . import uncertainty as u
from .definitions import Metric, choose
from .separation import Progress, check_paired, confounds, family_p, names_in, positions

if TYPE_CHECKING:
    import xarray

    from ..store import ModelStore, Run

GEOMETRY = {
    "direction_cosine": "cosine of the harm directions d of both models at full width",
    "direction_cosine_denoised": "the same with the noise of d taken out of dot product and "
    "lengths: what infinitely many texts would give",
    "direction_ceiling": "cosine that two equal directions would show if each were measured on "
    "texts of its own: sqrt of the product of 1 - tr V/|d|^2",
    "displacement": "length of the mean move of the texts, in units of the base model's "
    "within-class standard deviation (root of the total variance)",
    "displacement_share": "share of that move's squared length along the base model's d",
    "displacement_rank": "participation ratio of the texts' moves in the projection: how many "
    "directions they use",
    "transfer_auc": "held-out AUC of the aligned model's texts along the base model's difference "
    "of class means, in the projection that both share",
    "own_auc": "the same along the aligned model's own difference of class means",
    "cka": "linear CKA of the texts in the projection, debiased (Song et al. 2012; "
    "Kornblith et al. 2019)",
}
"""What is compared beside the metrics, for every (layer, pooling, lang)."""

SPACES = {
    "base": "base pcK: both models in the first K principal components of the base model's texts "
    "of the language, inside the seeded projection that both share; `separation` shows each model "
    "in exact components of its own, other numbers",
    "own": "own pcK: either model in components of its own, two spaces, for the models share no "
    "projection (hidden size, its width or its seed differ)",
}
"""Where `compare` sees the metrics in components."""

_EXCESS = "of the excess, as for differences"
COLUMNS = {
    "value": "the number itself, of the texts as they are",
    "low": "lower end of the 95 % interval of the value (of the difference, in `compare`): it "
    "holds the mean at this number of texts",
    "high": "upper end of the 95 % interval; see low",
    "floor": "what the value averages without any difference between the classes; every metric's "
    "own `explain` says how it is known",
    "p": "of a value: share of label permutations (swaps inside pairs) that reach it, "
    "(1 + #>=)/(1 + R); of a difference: two-sided and normal, from its interval",
    "p_family": "p of the largest statistic over all layers and languages shown, of one metric, "
    "model and pooling (Westfall & Young 1993): small where a number stands out of them all. Of "
    "differences and excesses the null turns the signs of what texts or pairs add (Hemerik, Goeman "
    "& Finos 2020), or takes the bootstrap's draws about their mean",
    "n0": "harmless texts with finite states",
    "n1": "harmful texts with finite states",
    "refused": "why there is no number here; empty where there is one",
    "space": "where the states are seen: full (every hidden dimension), projection (the seeded "
    "one), pcK (the language's own first K principal components); of two models "
    + "; ".join(SPACES.values()),
    "base": "value of the model before, on the texts that both models have finite states for; in "
    "components it is not what `separation` shows: see space",
    "aligned": "value of the model after, on the same texts and in the same space",
    "difference": "aligned less base on the same texts; low, high from the interval of either "
    "model, joined by the correlation that the same texts give them (MOVER, Zou 2007); p "
    "two-sided and normal",
    "excess": "difference of differences: that of a language less that of the reference language "
    "(English by default); texts of two languages are independent",
    "excess_low": f"lower end of the 95 % interval {_EXCESS}",
    "excess_high": f"upper end of the 95 % interval {_EXCESS}",
    "excess_p": f"p {_EXCESS}",
    "excess_p_family": f"p_family {_EXCESS}",
}
"""Columns of `separation` and `compare` that are no metrics."""


def compare(
    run: "Run",
    *,
    base: str,
    aligned: str,
    metrics: str | Sequence[str] | None = None,
    reference: str | None = "en",
    layers: Sequence[str] | None = None,
    poolings: Sequence[str] | None = None,
    languages: Sequence[str] | None = None,
    bootstraps: int = 200,
    permutations: int = 200,
    seed: int = 0,
    paired: bool | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> "xarray.Dataset":
    """Compare two models of a store on the same texts.

    The interval of a difference comes from those of both models, which `separation` shows, and from
    how far the same texts move both numbers together: what both share does not widen it.

    Args:
        run: an open store.
        base, aligned: names of the models.
        metrics: as in `separation`; aliases are left out unless named.
        reference: language for the difference of differences; None or one that is not there
            leaves it out.
        layers, poolings, languages, bootstraps, permutations, seed, paired, force, progress: as
            in `separation`.

    Returns:
        Variables (metric, layer, pooling, lang): base, aligned, difference (aligned - base), low,
        high (95 %), p (two-sided, normal), p_family (over all layers and languages), refused; if
        there is a reference language also excess (difference less that of the reference language),
        excess_low, excess_high, excess_p, excess_p_family. And
        those of `GEOMETRY` (layer, pooling, lang), NaN where the models share no projection,
        nothing moves or a direction is no longer than its noise. Beside them `CONFOUNDS` (model,
        lang). Metrics in components see both models in the base model's, inside the projection,
        where they share it (`space`, `components`: see `SPACES`), so that `base` is not the number
        of `separation` there.

    Raises:
        ConfigError: a name is not in the store, or the models have different hookpoints.
        StoreError: an array cannot be read.
    """
    import xarray

    names_in("models", [base, aligned], run.models)
    models = [run.model(base), run.model(aligned)]
    for what in ("hookpoints", "poolings"):
        ours, theirs = (getattr(model, what) for model in models)
        if tuple(ours) != tuple(theirs):
            raise ConfigError(
                f"compare: {base!r} and {aligned!r} have different {what}; run both with the same"
            )
    hookpoints, known_poolings = models[0].hookpoints, models[0].poolings
    langs = names_in("languages", languages, run.languages)
    chosen_layers = names_in("layers", positions(layers, hookpoints), hookpoints)
    chosen_poolings = names_in("poolings", poolings, known_poolings)
    with_pairs = check_paired(run, langs, paired)
    family = choose(metrics)
    if metrics is None:
        family = tuple(x for x in family if not x.alias_of and (with_pairs or not x.paired))

    shape = (len(chosen_layers), len(chosen_poolings), len(langs))
    names = ("base", "aligned", "difference", "low", "high", "p", "deviation")
    # Influences are turned as often as labels are permuted; draws are as many as bootstraps.
    nulls = np.full((len(family), *shape, max(bootstraps, permutations)), np.nan, np.float32)
    sizes = [0] * len(family)
    columns = {name: np.full((len(family), *shape), np.nan) for name in names}
    refused = np.full((len(family), *shape), "", object)
    geometry = {name: np.full(shape, np.nan) for name in GEOMETRY}
    shared = len({_projection(model) for model in models}) == 1
    whose = "base" if shared else "own"

    def fill(_: int, i_lang: int) -> None:
        # Label swaps are for what paired data put in the place of a floor.
        swaps = permutations if langs[i_lang] in with_pairs and paired is not False else 0

        def cut(model: str, beside: str) -> list[e.Block]:
            return list(
                e.blocks(
                    run,
                    model,
                    langs[i_lang],
                    layers=[hookpoints.index(name) for name in chosen_layers],
                    poolings=[known_poolings.index(name) for name in chosen_poolings],
                    bootstraps=bootstraps,
                    permutations=swaps,
                    seed=seed,
                    paired=paired is not False,
                    force=force,
                    beside=beside,
                )
            )

        for first, second in zip(cut(base, aligned), cut(aligned, base), strict=True):
            if shared:
                first.basis = second.basis = first
            signs = u.signs(first.unit, permutations, seed=seed, key=langs[i_lang])
            at = (
                [chosen_layers.index(hookpoints[layer]) for layer, _ in first.cells],
                [chosen_poolings.index(known_poolings[pooling]) for _, pooling in first.cells],
            )
            if shared and not first.constant and int(first.count.min()) >= e.MIN_TEXTS:
                for name, value in _geometry(first, second).items():
                    geometry[name][(*at, i_lang)] = value.numpy()
            for i_metric, entry in enumerate(family):
                found, reasons = _difference(first, second, entry, signs)
                place = (i_metric, *at, i_lang)
                for name in names:
                    columns[name][place] = getattr(found, name).numpy()
                refused[place] = reasons
                if found.null is not None:
                    sizes[i_metric] = found.null.shape[-1]
                    nulls[(*place, slice(sizes[i_metric]))] = found.null.numpy()

    in_parallel(fill, [(0, j) for j in range(len(langs))], progress)
    i_reference = langs.index(reference) if reference in langs else None
    if i_reference is not None:
        columns |= _excess(columns, i_reference)
    columns |= _family(
        [null[..., :size] for null, size in zip(nulls, sizes, strict=True)],
        columns.pop("deviation"),
        columns,
        refused != "",
        i_reference,
    )
    dims = ("metric", "layer", "pooling", "lang")
    return xarray.Dataset(
        {
            **{name: (dims, column) for name, column in columns.items()},
            "refused": (dims, refused.astype(str)),
            **{
                name: (dims[1:], column, {"definition": GEOMETRY[name]})
                for name, column in geometry.items()
            },
            **confounds(run, [base, aligned], langs),
        },
        coords={
            "metric": [x.name for x in family],
            "model": [base, aligned],
            "layer": list(chosen_layers),
            "pooling": list(chosen_poolings),
            "lang": list(langs),
            "space": (
                "metric",
                [f"{whose} {x.space}" if x.components else x.space for x in family],
            ),
            "definition": ("metric", [x.definition for x in family]),
            "paired": ("lang", [lang in with_pairs and paired is not False for lang in langs]),
        },
        attrs={
            "base": base,
            "aligned": aligned,
            "reference": reference if reference in langs else "",
            "components": SPACES[whose],
            "confidence": 0.95,
            "bootstraps": bootstraps,
            "permutations": permutations,
            "seed": seed,
        },
    )


def _projection(model: "ModelStore") -> tuple[int, ...]:
    """What decides a model's projection: width before and after it, and its seed."""
    arrays = (
        model.read(name, layer=0, samples=slice(1), lang=0) for name in ("class_mean", "projected")
    )
    return (*(array.shape[-1] for array in arrays), model.seed)


@dataclass(frozen=True)
class Difference:
    """Aligned less base of one metric; all tensors [cell] float64 unless said."""

    base: Tensor
    aligned: Tensor
    difference: Tensor
    low: Tensor
    high: Tensor
    p: Tensor
    deviation: Tensor
    null: Tensor | None
    """[cell, R], the difference as it varies by chance, in deviations; None without an interval."""


def _difference(
    base: e.Block, aligned: e.Block, metric: Metric, signs: Tensor
) -> tuple[Difference, list[str]]:
    """Aligned minus base for every cell, from what both intervals rest on.

    Args:
        signs: [R, unit], 1 and -1: a text's (or pair's) influence is turned where it is -1.
    """
    if metric.name == "mmd" and not base.constant and int(base.count.min()) >= e.MIN_TEXTS:
        # One kernel for both models, or the kernel would be what is compared.
        aligned.bandwidths = dict(zip(base.cells, base.kernel_widths, strict=True))
    (first, reasons), (second, others) = e.estimate(base, metric), e.estimate(aligned, metric)
    if metric.alias_of:
        reasons = [f"an alias: compare {metric.alias_of}"] * len(reasons)
    reasons = [one or other for one, other in zip(reasons, others, strict=True)]
    known = torch.tensor([not reason for reason in reasons])
    value = torch.where(known, second.value - first.value, torch.nan)
    low = high = torch.full_like(value, torch.nan)
    null = None
    if first.linear is not None and second.linear is not None:
        low, high = u.difference_interval(
            (first.value, first.low, first.high),
            (second.value, second.low, second.high),
            _correlation(first, second, base.unit),
        )
        low, high = (torch.where(known, end, torch.nan) for end in (low, high))
        null = _null(first, second, base.unit, signs)
    found = Difference(
        first.value,
        second.value,
        value,
        low,
        high,
        u.two_sided(value, low, high),
        (high - low) / (2 * u.Z95),
        null,
    )
    return found, reasons


def _correlation(first: e.Estimate, second: e.Estimate, unit: Tensor) -> Tensor:
    """Correlation of two estimates from the same texts, part by part as their variances are."""
    if first.influence is not None and second.influence is not None:
        seen = u.influence_covariance(first.influence, second.influence, unit)
        excess = u.INFLUENCE_EXCESS
    else:
        seen = u.draws_covariance(_known(first.draws), _known(second.draws))
        excess = u.DRAWS_EXCESS
    common = torch.zeros_like(seen)
    for one, other in zip(first.squares, second.squares, strict=True):
        share = one.common(one.noise(), other.noise())
        common = common + share * (one.variance * other.variance).sqrt()
    most = (_known(first.linear) * _known(second.linear)).sqrt()
    linear = (seen - (1 + excess) * common).clamp(-most, most)
    rho = (linear + common) / (first.variance * second.variance).sqrt()
    rho = torch.where(rho > 1 - 1e-12, 1.0, rho)  # rounding is no noise
    return rho.nan_to_num(0.0)


def _known(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _null(first: e.Estimate, second: e.Estimate, unit: Tensor, signs: Tensor) -> Tensor:
    """The difference as it varies by chance, in deviations: [cell, R].

    Influences with their signs turned at random (Hemerik, Goeman & Finos 2020), or the bootstrap's
    draws about their mean.
    """
    if first.influence is not None and second.influence is not None:
        found = u.unit_sums(second.influence - first.influence, unit) @ signs.T
        scale = found.square().mean(-1, keepdim=True).sqrt()
    else:
        found = _known(second.draws) - _known(first.draws)
        found = found - found.nanmean(-1, keepdim=True)
        scale = u.spread(found)[:, None]
    return torch.where(scale > 0, found / scale, 0.0)


def _excess(
    columns: dict[str, "np.ndarray[Any, np.dtype[np.float64]]"], i_reference: int
) -> dict[str, "np.ndarray[Any, np.dtype[np.float64]]"]:
    """Difference of differences against one language; texts of two languages are independent."""
    others = [torch.from_numpy(columns[name]) for name in ("difference", "low", "high")]
    reference = [part[..., i_reference, None] for part in others]
    value = others[0] - reference[0]
    low, high = u.difference_interval(
        (reference[0], reference[1], reference[2]),
        (others[0], others[1], others[2]),
        torch.zeros(()),
    )
    own = torch.arange(value.shape[-1]) == i_reference
    low, high = (torch.where(own, value, end) for end in (low, high))
    found = {
        "excess": value,
        "excess_low": low,
        "excess_high": high,
        "excess_p": u.two_sided(value, low, high),
    }
    return {name: column.numpy() for name, column in found.items()}


def _family(
    nulls: Sequence["np.ndarray[Any, np.dtype[np.float32]]"],
    deviation: "np.ndarray[Any, np.dtype[np.float64]]",
    columns: dict[str, "np.ndarray[Any, np.dtype[np.float64]]"],
    refused: "np.ndarray[Any, np.dtype[np.bool_]]",
    i_reference: int | None,
) -> dict[str, "np.ndarray[Any, np.dtype[np.float64]]"]:
    """p over the family of all layers and languages, of differences and of their excess.

    Args:
        nulls: of every metric, [layer, pooling, lang, R], in deviations.
        deviation, columns, refused: [metric, layer, pooling, lang].
    """
    deviation = np.where(np.isfinite(deviation), deviation, np.nan)  # a side without an end
    excess = {} if i_reference is None else {"excess_p_family": ("excess", "excess_p")}
    found = {}
    for name, (of, alone) in ({"p_family": ("difference", "p")} | excess).items():
        found[name] = np.full(refused.shape, np.nan)
        for i, null in enumerate(nulls):
            if null.shape[-1] == 0:
                continue
            whole, left_out = null * deviation[i][..., None], refused[i]
            if of == "excess":
                whole = whole - whole[:, :, i_reference, None]
                left_out = left_out | refused[i][..., i_reference, None]
                left_out[..., i_reference] = True
            both = np.abs(np.concatenate([columns[of][i][..., None], whole], -1))
            p = family_p(both[None, None], left_out[None, None])[0, 0]
            # What cannot vary has no place among the others, and needs none.
            found[name][i] = np.where(np.isnan(p) & ~left_out, columns[alone][i], p)
    return found


def _geometry(base: e.Block, aligned: e.Block) -> dict[str, Tensor]:
    """The entries of `GEOMETRY` for every cell."""
    pair = (base, aligned)
    dots = (base.gap * aligned.gap).sum(-1)
    noise = (base.unit_shift * aligned.unit_shift).sum((-1, -2))
    own_noise = [block.unit_shift.square().sum((-1, -2)) for block in pair]
    clean = [
        (block.shift_sq - own).clamp_min(0) for block, own in zip(pair, own_noise, strict=True)
    ]
    lengths = (base.shift_sq * aligned.shift_sq).sqrt()
    denoised = (dots - noise) / (clean[0] * clean[1]).sqrt()
    move = aligned.stored("class_mean") - base.stored("class_mean")
    move = (move * (base.count / base.count.sum())[:, None]).sum(-2)
    move_sq = move.square().sum(-1)
    within = (base.trace * base.count).sum(-1) / base.count.sum()
    moves = aligned.stored("projected") - base.stored("projected")
    eigenvalues = torch.linalg.eigvalsh(moves.transpose(-1, -2) @ moves).clamp_min(0)
    along = (move * base.gap).sum(-1).square() / (move_sq * base.shift_sq)
    return {
        "direction_cosine": dots / lengths,
        "direction_cosine_denoised": torch.where(denoised.isfinite(), denoised, torch.nan),
        "direction_ceiling": (clean[0] * clean[1]).sqrt() / lengths,
        "displacement": (move_sq / within).sqrt(),
        "displacement_share": along,
        "displacement_rank": eigenvalues.sum(-1).square() / eigenvalues.square().sum(-1),
        "transfer_auc": _heldout_auc(base, aligned),
        "own_auc": _heldout_auc(aligned, aligned),
        "cka": debiased_cka(base.projected, aligned.projected),
    }


def _heldout_auc(source: e.Block, target: e.Block) -> Tensor:
    scores = m.heldout_scores(source.projected, target.projected, target.labels, target.fold)
    auc, _ = m.fold_auc(scores, target.labels, target.fold)
    return auc


def debiased_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA from unbiased HSIC, without an n x n matrix.

    Song et al. 2012, equation 5, with K = X X' written out in features; Kornblith et al. 2019.

    Args:
        x: [..., n, p] float64, y: [..., n, q] float64, the same texts.
    """
    return _hsic(x, y) / (_hsic(x, x) * _hsic(y, y)).clamp_min(0).sqrt()


def _hsic(x: Tensor, y: Tensor) -> Tensor:
    n = x.shape[-2]
    x_sq, y_sq = x.square().sum(-1), y.square().sum(-1)
    x_row = (x @ x.sum(-2)[..., None]).squeeze(-1) - x_sq
    y_row = (y @ y.sum(-2)[..., None]).squeeze(-1) - y_sq
    trace = (x.transpose(-1, -2) @ y).square().sum((-1, -2)) - (x_sq * y_sq).sum(-1)
    sums = x_row.sum(-1) * y_row.sum(-1) / ((n - 1) * (n - 2))
    return (trace + sums - 2 / (n - 2) * (x_row * y_row).sum(-1)) / (n * (n - 3))
