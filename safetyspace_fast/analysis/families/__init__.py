"""Every metric: one file a family, and in it record, formula and estimator of each metric."""

import re
from collections.abc import Sequence

from ...errors import ConfigError
from ...store.layout import COMPONENTS
from ..metric import Metric
from . import distances, gaussian, held_out, paired, ratio

_ENTRIES = (
    *ratio.METRICS,
    *gaussian.METRICS,
    *distances.METRICS,
    *held_out.METRICS,
    *paired.METRICS,
)
METRICS: dict[str, Metric] = {
    metric.name: metric
    for entry in _ENTRIES
    for metric in ((entry,) if isinstance(entry, Metric) else (entry(10), entry(2)))
}
"""Every metric by name. Those in principal components also exist for any other K up to 16."""


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
    raise ConfigError(f"metric: no {name!r}; choose from {', '.join(METRICS)}")


def choose(names: str | Sequence[str] | None) -> tuple[Metric, ...]:
    """Metrics by name; None gives the default ones, `all` every one.

    Raises:
        ConfigError: a name is unknown or given twice.
    """
    if names is None:
        return tuple(entry for entry in METRICS.values() if entry.default)
    if names == "all" or list(names) == ["all"]:
        return tuple(METRICS.values())
    if isinstance(names, str):
        names = names.split(",")
    if len(set(names)) != len(names):
        raise ConfigError(f"metric: {','.join(names)} names one twice; name each once")
    return tuple(metric(name) for name in names)
