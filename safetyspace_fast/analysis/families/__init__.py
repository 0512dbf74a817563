"""All metrics. A family is one file, with definition, formula and estimator of each metric."""

import re

from ...errors import ConfigError
from ...names import nearest
from ...store.layout import COMPONENTS
from ..metric import Metric, Metrics
from . import beyond, detection, distances, gaussian, held_out, paired, ratio

FAMILIES = {
    "ratio": ratio.METRICS,
    "gaussian": gaussian.METRICS,
    "distances": distances.METRICS,
    "held_out": held_out.METRICS,
    "detection": detection.METRICS,
    "paired": paired.METRICS,
    "beyond": beyond.METRICS,
}
"""The metrics of each file of this folder; those in components as functions of K."""
_ENTRIES = tuple(entry for entries in FAMILIES.values() for entry in entries)
METRICS: dict[str, Metric] = {
    metric.name: metric
    for entry in _ENTRIES
    for metric in ((entry,) if isinstance(entry, Metric) else (entry(10), entry(2)))
}
"""All metrics by name. Those in components are listed for K = 10 and 2; see `metric`."""


def metric(name: str) -> Metric:
    """One metric by name; `NAME_pcK` works for every K from 1 to 16.

    Raises:
        ConfigError: there is no such metric.
    """
    if name in METRICS:
        return METRICS[name]
    if (match := re.fullmatch(r"\w+_pc(\d+)", name)) and 1 <= int(match[1]) <= COMPONENTS:
        for entry in _ENTRIES:
            if not isinstance(entry, Metric) and (made := entry(int(match[1]))).name == name:
                return made
    raise ConfigError(
        f"metric: no {name!r}; choose from {', '.join(METRICS)}{nearest(name, METRICS)}"
    )


def choose(names: Metrics) -> tuple[Metric, ...]:
    """Metrics by name; None gives the default ones, `all` gives all.

    Raises:
        ConfigError: a name is unknown or given twice.
    """
    if names is None:
        return tuple(entry for entry in METRICS.values() if entry.default)
    if names == "all" or list(names) == ["all"]:
        return tuple(METRICS.values())
    listed: list[str] = names.split(",") if isinstance(names, str) else list(names)
    if twice := sorted(name for name in set(listed) if listed.count(name) > 1):
        raise ConfigError(f"metric: {', '.join(twice)} is named twice; name each metric once")
    return tuple(metric(name) for name in listed)
