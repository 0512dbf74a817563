"""How many texts show a difference of a given size, from a pilot store."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..config import LABELLINGS
from ..errors import ConfigError
from ..threads import in_parallel
from .cells import Cells
from .estimate import Estimate, covariances, from_influences, known_of
from .families import choose
from .glossary import POWER
from .intervals import Z95, Around
from .metric import Metric, Metrics
from .reading import read_cells
from .selection import Names, paired_languages, select
from .settings import require_comparable, told
from .texts import MIN_TEXTS
from .uncertainty import influence_variance, unit_sums

if TYPE_CHECKING:
    import xarray

    from ..store import Run

DRAWS = 60
"""Bootstraps of the pilot behind the interval of the texts that are needed."""


def power(
    run: "Run",
    *,
    metrics: Metrics,
    difference: float,
    models: Names = None,
    versus: str | None = None,
    level: float = 0.05,
    power: float = 0.8,
    layers: Names = None,
    poolings: Names = None,
    languages: Names = None,
    paired: bool | None = None,
    permutations: int = LABELLINGS,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> "xarray.Dataset":
    """Compute how many texts of each label show a difference of a given size.

    Of one model: with how many texts the interval of its value excludes a number that is
    `difference` away, such as its floor. Of two: with how many texts, the same in both models,
    `compare` shows a difference of this size.

    The texts to come are like those of the pilot: as spread, in units as large (pairs, clusters),
    in the same proportion of labels, and as separated. With m times the texts, the linear part of
    the variance is 1/m of that of the pilot, and the quadratic part 1/m^2. Student's t of a mean
    that is not 0 is about normal, of variance 1 + t^2/(2 freedom) (Johnson & Welch 1940).

    Args:
        run: the pilot.
        metrics: as in `separation`, at least one; they need an interval.
        difference: what is to be shown, above 0, in units of the metrics.
        models: names; None selects all.
        versus: another model, whose difference from each of `models` is to be shown.
        level: largest p that counts as shown, two-sided, not corrected for several numbers.
        power: share of studies that show the difference, if it is there.
        permutations: behind the floors that are a mean over them.
        layers, poolings, languages, paired, force, progress: as in `separation`.

    Returns:
        The variables of `POWER` (metric, model, layer, pooling, lang), and `refused`; `n0`, `n1`
        (model, layer, pooling, lang). A number is NaN only if `refused` says why, or as `POWER`
        says of `needed_low`. The attributes hold what was asked.

    Raises:
        ConfigError: a name is not in the store, a metric does not exist, a number is out of range,
            or `versus` cannot be compared with a model.
        StoreError: an array cannot be read.
    """
    import xarray

    for name, value, high in (
        ("difference", difference, math.inf),
        ("level", level, 1.0),
        ("power", power, 1.0),
    ):
        if not 0 < value < high:
            most = "" if high == math.inf else f" and below {high:g}"
            raise ConfigError(f"{name}: got {value}, expected a number above 0{most}")
    if metrics is None:
        raise ConfigError("metrics: none named; name one, such as rho_adjusted")
    family = choose(metrics)
    chosen = select(run, models=models, layers=layers, poolings=poolings, languages=languages)
    names = tuple(name for name in chosen.models if name != versus)
    if versus is not None:
        select(run, models=versus, layers=None, poolings=None, languages=None)
        if not names:
            raise ConfigError(f"versus: {versus!r} is the only model; name another one to compare")
        for name in names:
            require_comparable(
                run, versus, name, compared=chosen.poolings, different_templates=False
            )
    paired_languages(run, chosen.languages, paired)
    axes = (names, chosen.layers, chosen.poolings, chosen.languages)
    shape = (len(family), *(len(axis) for axis in axes))
    columns = {name: np.full(shape, np.nan) for name in POWER}
    refused = np.full(shape, "the model has no such layer or pooling", object)
    counts = np.zeros((2, *shape[1:]), np.int64)

    def fill(i_model: int, i_lang: int) -> None:
        for cells in read_cells(
            run,
            [name for name in (versus, names[i_model]) if name is not None],
            chosen.languages[i_lang],
            layers=chosen.layers,
            poolings=chosen.poolings,
            permutations=permutations,
            paired=paired is not False,
            force=force,
        ):
            i_layers, i_poolings = chosen.positions(cells[0].names)
            counts[:, i_model, i_layers, i_poolings, i_lang] = cells[0].count.numpy()[:, None]
            for i_metric, metric in enumerate(family):
                pilot, reasons = _pilot(cells, metric)
                at = (i_metric, i_model, i_layers, i_poolings, i_lang)
                refused[at] = reasons
                if pilot is None:
                    continue
                known = torch.tensor([not reason for reason in reasons])
                for name, column in _plan(pilot, difference, level, power).items():
                    columns[name][at] = torch.where(known, column, torch.nan).numpy()

    jobs = [(i, j) for i in range(len(names)) for j in range(len(chosen.languages))]
    in_parallel(fill, jobs, progress)
    dims = ("metric", "model", "layer", "pooling", "lang")
    return xarray.Dataset(
        {
            **{
                name: (dims, column, {"definition": POWER[name]})
                for name, column in columns.items()
            },
            "refused": (dims, refused.astype(str)),
            "n0": (dims[1:], counts[0]),
            "n1": (dims[1:], counts[1]),
        },
        coords={
            "metric": [metric.name for metric in family],
            "space": ("metric", [metric.space for metric in family]),
            "definition": ("metric", [metric.definition for metric in family]),
            **{dim: list(axis) for dim, axis in zip(dims[1:], axes, strict=True)},
        },
        attrs={
            "asked_difference": difference,
            "level": level,
            "power": power,
            "versus": versus or "",
            **told(run, [name for name in (versus, *names) if name is not None], chosen.poolings),
        },
    )


@dataclass(frozen=True)
class _Pilot:
    """A value of the pilot and what makes it vary; [cell] each unless noted."""

    value: Tensor
    floor: Tensor
    linear: Tensor
    """Variance of the linear part, and of all that falls with the square of the texts."""
    square: Tensor
    growth: Tensor
    """See `estimate.Square`; of two models the larger one."""
    falls: bool
    """Whether the linear part is smaller in a sample whose value happens to be nearer its floor."""
    follows: Callable[[Tensor], Tensor]
    """See `_follows`; constant for two models."""
    unit_effect: Tensor
    count: Tensor
    """[2], texts of each label."""
    units: int
    freedom: Tensor
    """[cell], of Student's t: of one model, those of its variance."""
    around: Around | None
    """See `Estimate`; None for two models."""
    subtracted: Tensor | float
    scored: bool
    """Whether the interval is a score interval; False for two models."""
    influence: Tensor
    """[cell, unit], influence of each unit on the value."""

    def deviation(self, more: Tensor) -> Tensor:
        """Standard deviation with `more` times the texts, [cell], as a study of them has it.

        Few texts draw the means of their classes to themselves: see `uncertainty.stretch`.
        """
        grown = (1 + (self.growth - 1) / more) / self.growth
        few = (self.count.min() * more).clamp_min(2)
        linear = self.linear / more * few / (few - 1)
        return grown * (linear + self.square / more.square()).sqrt()

    def drawn(self) -> "_Pilot":
        """Bootstraps of the pilot: [draw, cell] where this has [cell].

        A draw takes each unit as often as a Poisson of mean 1 says. The value moves by the
        influences of the units, and so do what the linear part of the variance `follows` and the
        squares of the influences that this part is made of.
        """
        rng = np.random.Generator(np.random.PCG64(0))
        times = torch.from_numpy(rng.poisson(1.0, (DRAWS, self.influence.shape[1]))).double()
        value = self.value + (times - 1) @ self.influence.T
        square = self.influence.square()
        linear = self.linear * (times @ square.T) / square.sum(-1)
        moved = (self.follows(value) / self.follows(self.value)).nan_to_num(1.0)
        linear = linear * moved.clamp_min(0.05)
        return replace(self, value=value, linear=linear)


def _pilot(cells: tuple[Cells, ...], metric: Metric) -> tuple[_Pilot | None, list[str]]:
    """The value of one model or the difference of two, and for each cell why not, or ""."""
    (estimate, reasons), *others = (metric.estimate(one) for one in cells)
    known = [estimate, *(other for other, _ in others)]
    for _, more in others:
        reasons = [one or other for one, other in zip(reasons, more, strict=True)]
    if any(one.influence is None for one in known):
        why = f"a transformation of {metric.alias_of}: ask for that" if metric.alias_of else ""
        return None, [reason or why or "it has no interval" for reason in reasons]
    unit = cells[0].unit
    each = [from_influences(one, unit) for one in known]
    linear, square = _variances(each[-1])
    value, floor, influence = each[-1].value, each[-1].floor, known_of(each[-1].influence)
    if len(each) == 2:
        shared, *rest = covariances(each[0], each[1], unit)
        first_linear, first_square = _variances(each[0])
        linear = (linear + first_linear - 2 * shared).clamp_min(0)
        square = square + first_square - 2 * sum(rest, torch.zeros_like(shared))
        square = square.clamp_min(0)
        value, floor = value - each[0].value, torch.zeros_like(value)
        influence = influence - known_of(each[0].influence)
    alone = influence_variance(influence, torch.arange(len(unit)))
    most = torch.full_like(value, cells[0].freedom)
    pilot = _Pilot(
        value,
        floor,
        linear,
        square,
        torch.stack([_growth(one) for one in each]).amax(0),
        len(each) == 1 and any(part.growth is None for part in each[0].squares if not part.unseen),
        _follows(each[0]) if len(each) == 1 else torch.ones_like,
        influence_variance(influence, unit) / alone,
        cells[0].count,
        int(unit.max()) + 1,
        cells[0].freedom_of(influence) if len(each) == 1 else most,
        each[0].around if len(each) == 1 else None,
        each[0].subtracted,
        len(each) == 1 and each[0].scored is not None,
        unit_sums(influence, unit),
    )
    still = pilot.deviation(torch.ones_like(value)) <= 1e-6 * each[-1].value.abs()
    reasons = [
        reason or ("it does not vary over these texts" if constant else "")
        for reason, constant in zip(reasons, still.tolist(), strict=True)
    ]
    return pilot, reasons


def _variances(estimate: Estimate) -> tuple[Tensor, Tensor]:
    """Variance of the linear part, and of all others, [cell] each."""
    linear = known_of(estimate.linear)
    return linear, estimate.variance - linear


def _follows(estimate: Estimate) -> Callable[[Tensor], Tensor]:
    """What the linear part of a variance is proportional to, from the value, [..., cell].

    That of a share along a fitted direction to p (1 - p); that of a metric without such a direction
    to the value above its floor, since it is quadratic in d; nothing is assumed of others.
    """
    fitted = any(part.growth is not None for part in estimate.squares)
    share = any(part.unseen for part in estimate.squares)
    if fitted and share:
        return lambda p: p.clamp(0.02, 0.98) * (1 - p.clamp(0.02, 0.98))
    if fitted or share:
        return torch.ones_like
    floor = estimate.floor.nan_to_num(0.0)  # that of a metric whose permutations were not asked for
    return lambda value: value - floor


def _growth(estimate: Estimate) -> Tensor:
    """[cell], see `estimate.Square`."""
    growth = torch.ones_like(estimate.value)
    for part in estimate.squares:
        growth = growth if part.growth is None else growth * part.growth
    return growth


def _plan(pilot: _Pilot, difference: float, level: float, power: float) -> dict[str, Tensor]:
    """The variables of `POWER`, [cell] each."""
    one = torch.ones_like(pilot.value)

    def enough(apart: Tensor, more: Tensor) -> Tensor:
        return _shown(pilot, apart, more, level) >= power

    most = pilot.deviation(one) * 1e3
    fewest = float(MIN_TEXTS / pilot.count.min())
    more = _more(pilot, difference, level, power).clamp_min(fewest)
    reach = Z95 * _more(pilot.drawn(), difference, level, power).clamp_min(fewest).log().std(0)
    reach = torch.where(pilot.linear > 0, reach, torch.nan)  # else nothing of the variance is seen
    ends = [(pilot.count.sum() * more * (side * reach).exp()).ceil() for side in (-1, 1)]
    needed = (pilot.count[:, None] * more * (1 - 1e-9)).ceil()
    return {
        "value": pilot.value,
        "floor": pilot.floor,
        "deviation": pilot.deviation(one),
        "detectable": _least(lambda apart: enough(apart, one), most * 1e-9, most),
        "needed0": needed[0],
        "needed1": needed[1],
        "needed_low": ends[0].clamp_min(2 * MIN_TEXTS),
        "needed_high": ends[1].clamp_min(2 * MIN_TEXTS),
        "needed_units": (pilot.units * more * (1 - 1e-9)).ceil(),
        "unit_effect": pilot.unit_effect,
    }


def _more(pilot: _Pilot, difference: float, level: float, power: float) -> Tensor:
    """How many times the texts of the pilot show the difference, as `pilot.value` in shape."""
    asked = torch.full_like(pilot.value, difference)
    return _least(
        lambda more: _shown(pilot, asked, more, level) >= power,
        torch.full_like(asked, 1e-9),
        torch.full_like(asked, 1e17),
    )


def _least(enough: Callable[[Tensor], Tensor], few: Tensor, many: Tensor) -> Tensor:
    """The least numbers between two positive ends that are enough, by bisection of logarithms."""
    few, many = few.log(), many.log()
    for _ in range(40):
        middle = (few + many) / 2
        good = enough(middle.exp())
        few, many = torch.where(good, few, middle), torch.where(good, middle, many)
    return many.exp()


def _shown(pilot: _Pilot, apart: Tensor, more: Tensor, level: float) -> Tensor:
    """Probability that `more` times the texts exclude a number that is `apart` below the mean.

    The interval of a sample excludes it if the sample's value is t of its own deviations above; a
    score interval, if t of the deviations there, and as much more as t is above that of a normal
    distribution (`intervals.growing_ends`). If the linear part is proportional to the value above
    its floor, this is quadratic in the value, and the root of the value is closer to normal than
    the value.

    Returns:
        [cell].
    """
    freedom = (pilot.freedom * more).clamp_min(1.0)
    t = t_quantile(freedom, level)
    deviation = pilot.deviation(more)
    above = pilot.value - pilot.floor
    falls = pilot.falls & (above > 0)
    slope = torch.where(falls, pilot.linear / above / more, 0.0)

    def deviation_at(reach: Tensor) -> Tensor:
        return (deviation.square() - slope * (apart - reach)).clamp_min(0.0).sqrt()

    least = (t * deviation_at(torch.zeros_like(t))).square()  # t^2 times the variance down there
    normal = NormalDist().inv_cdf(1 - level / 2) if pilot.scored else 0.0
    farther = (t.square() - normal**2) * slope
    reach = (farther + farther.square().add(4 * least).sqrt()) / 2
    if pilot.around is not None:
        less = pilot.subtracted / more
        excluded, few = pilot.value - apart + less, torch.zeros_like(reach)
        for _ in range(12):
            middle = (few + reach) / 2
            low, _ = pilot.around(excluded + middle, t * deviation_at(middle))
            few, reach = (
                torch.where(low < excluded, middle, few),
                torch.where(low < excluded, reach, middle),
            )
    there = deviation_at(reach)
    z = 2 * (apart - reach) / (deviation + there) - slope / (4 * deviation)
    return 0.5 * torch.erfc(-z / (2 + t.square() / freedom).sqrt())


def t_quantile(freedom: Tensor, level: float) -> Tensor:
    """Student's t that is exceeded on either side with probability level/2.

    Fisher & Cornish's expansion (Abramowitz & Stegun 1964, 26.7.5), for freedom [...] float64. At
    level 0.05 it is too small by 24 % for 1 degree of freedom, 3 % for 2 and less than 1 % above;
    `intervals.t_reach` is exact, and too slow for a bisection.
    """
    z = NormalDist().inv_cdf(1 - level / 2)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom.square())
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
