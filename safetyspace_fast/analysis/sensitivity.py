"""Does a claim depend on the choice of metric, layer and pooling? How many choices agree."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .families import metric
from .glossary import SENSITIVITY

if TYPE_CHECKING:
    import xarray

_AXES = ("metric", "pooling", "layer")
"""What a study chooses."""


def sensitivity(results: "xarray.Dataset") -> "xarray.Dataset":
    """Count the choices of metric, layer and pooling under which a claim holds.

    The claim of `compare` is that the aligned model holds the classes further apart than the base
    model, or less far; that of `separation`, that a value is above its floor, or below. All
    metrics, layers and poolings of the results are choices (multiverse analysis, Steegen et al.
    2016; specification curve, Simonsohn, Simmons & Nelson 2020), but no transformations of another
    metric. Metrics that fall where classes are further apart count with the other sign.

    Args:
        results: of `compare` or `separation`, with all choices that would have been reasonable.

    Returns:
        The variables of `SENSITIVITY` (choice, lang), of `separation` (choice, model, lang).
        `choice` is `all`, or all choices with one metric, pooling or layer, as in `metric rho`.

    Raises:
        ConfigError: these are results of neither.
    """
    import xarray

    if "metric" not in results.dims or not {"difference", "floor"} & {*results.data_vars}:
        raise ConfigError("sensitivity: expected what compare or separation returned")
    names = [str(name) for name in results["metric"].to_numpy()]
    kept = [name for name in names if not metric(name).alias_of]
    compared = "difference" in results
    rest = ("lang",) if compared else ("model", "lang")
    chosen = results.sel(metric=kept).transpose(*_AXES, *rest, ...)
    sign = np.array([1.0 if metric(name).grows else -1.0 for name in kept])
    zero = 0.0 if compared else chosen["floor"].to_numpy()
    value, low, high = (
        (chosen[name].to_numpy() - zero) * sign.reshape(-1, *[1] * (len(_AXES) + len(rest) - 1))
        for name in ("difference" if compared else "value", "low", "high")
    )
    rounding = chosen["p"].to_numpy() == 1 if compared else np.zeros(value.shape, bool)
    up, down = (value > 0) & ~rounding, (value < 0) & ~rounding
    marks = np.stack(
        [
            ~np.isnan(value),
            up,
            down,
            up & (np.fmin(low, high) > 0),
            down & (np.fmax(low, high) < 0),
        ]
    )
    sets = dict(_sets(chosen))
    choices, more, fewer, above, below = np.stack(
        [(marks * inside).sum((1, 2, 3)) for inside in sets.values()], 1
    ).astype(float)
    most = more >= fewer
    found = {
        "choices": choices,
        "direction": np.sign(more - fewer) + (more == fewer) * np.sign(more),
        "agree": np.where(most, more, fewer),
        "shown": np.where(most, above, below),
        "against": np.where(most, below, above),
    }
    carried = ("base", "aligned", "components", "run_as", "settings_differ")
    return xarray.Dataset(
        {
            name: (("choice", *rest), count, {"definition": SENSITIVITY[name]})
            for name, count in found.items()
        },
        coords={"choice": list(sets), **{dim: chosen[dim].to_numpy() for dim in rest}},
        attrs={name: results.attrs[name] for name in carried if name in results.attrs},
    )


def _sets(results: "xarray.Dataset") -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Names of sets of choices, and whether each [metric, pooling, layer, ..] is in it."""
    rest = len(results["refused"].dims) - len(_AXES)
    shape = tuple(results.sizes[axis] for axis in _AXES)
    yield "all", np.ones((*shape, *[1] * rest), bool)
    for i, axis in enumerate(_AXES):
        for j, name in enumerate(results[axis].to_numpy()):
            inside = np.zeros((*shape, *[1] * rest), bool)
            inside[(slice(None),) * i + (j,)] = True
            yield f"{axis} {name}", inside
