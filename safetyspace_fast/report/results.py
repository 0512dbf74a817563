"""What figures and pages show of one store: every result is computed once, when first needed."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..analysis import compare, directions, parallel, separation
from ..analysis.families import choose
from ..analysis.metric import MetricName, Metrics
from ..analysis.selection import Names, listed, select
from ..config import layer_name
from ..errors import ConfigError
from ..notebook import Section, html

if TYPE_CHECKING:
    import xarray

    from ..store import Run

METRICS: tuple[MetricName, ...] = ("auc_direction", "rho_adjusted")
"""Shown if none are named. The first has one scale for all models, languages and controls."""

Pair = tuple[str, str]
"""Names of a model before and after tuning."""


@dataclass(repr=False)
class Results:
    """The results of one store, for one selection of it.

    Figures show one metric and one pooling, those named first, and some of them one layer, the last
    as in tables. `showing` changes them.
    """

    run: "Run"
    models: Names = None
    layers: Names = None
    poolings: Names = None
    languages: Names = None
    metrics: Metrics = METRICS
    pairs_asked: Sequence[Pair] | None = None
    """Pairs to compare; None: those that `pairs` finds."""
    progress: Callable[[str, int, int], None] | None = None
    """Called with what is computed, the steps that are done, and of all."""
    _computed: "dict[object, xarray.Dataset | ConfigError]" = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check all names.

        Raises:
            ConfigError: a name is not in the store or no metric, or no model is complete.
        """
        self.selection = select(
            self.run,
            models=self.models,
            layers=self.layers,
            poolings=self.poolings,
            languages=self.languages,
        )
        for pair in self.pairs_asked or ():
            select(self.run, models=pair, layers=None, poolings=None, languages=None)
            if pair[0] == pair[1]:
                raise ConfigError(f"base, aligned: both are {pair[0]!r}; name two models")
        self.family = choose(self.metrics)
        self.metric = self.family[0]
        asked = self.selection.poolings if self.poolings is None else listed(self.poolings)
        self.pooling = asked[0]
        self.layer = self.selection.layers[-1]

    def __repr__(self) -> str:
        """What is selected, what is shown, and what has been computed."""
        chosen = self.selection
        done = ", ".join(str(key) for key in self._computed) or "nothing"
        return (
            f"<Results of {self.run.place}: {len(chosen.models)} models, {len(chosen.layers)} "
            f"layers, {len(chosen.languages)} languages; shows {self.metric.name}, pooling "
            f"{self.pooling}, layer {self.layer}; computed: {done}>"
        )

    def _repr_html_(self) -> str:
        """What notebooks show."""
        shown = {"metric": self.metric.name, "pooling": self.pooling, "layer": self.layer}
        chosen = vars(self.selection)
        return html(
            repr(self),
            f"Results of {self.run.place}",
            [
                Section("shown", ("what", "name"), list(shown.items())),
                Section(
                    "selected", ("what", "names"), [(k, ", ".join(v)) for k, v in chosen.items()]
                ),
                Section("computed", ("result",), [(key,) for key in self._computed]),
            ],
        )

    def showing(
        self,
        *,
        metric: str | None = None,
        layer: str | None = None,
        pooling: str | None = None,
    ) -> "Results":
        """The same results with another metric, layer or pooling shown.

        What was computed is kept, for both.

        Raises:
            ConfigError: it is not one of these results.
        """
        other = copy.copy(self)
        names = [entry.name for entry in self.family]
        if metric is not None:
            if metric not in names:
                raise ConfigError(f"metric: no {metric!r} here; choose from {', '.join(names)}")
            other.metric = self.family[names.index(metric)]
        if layer is not None:
            other.layer = layer_name(layer, self.selection.layers)
            if other.layer not in self.selection.layers:
                raise ConfigError(
                    f"layer: no {layer!r} here; has {', '.join(self.selection.layers)}"
                )
        if pooling is not None:
            if pooling not in (poolings := self.selection.poolings):
                raise ConfigError(f"pooling: no {pooling!r} here; has {', '.join(poolings)}")
            other.pooling = pooling
        return other

    @property
    def names(self) -> tuple[str, ...]:
        """The selected models: each after those that were run before it, controls last."""

        def place(name: str) -> tuple[bool, int]:
            earlier = self.run.model(name).attrs.get("bases", [])
            return name in self.controls, len(set(earlier) & set(self.selection.models))

        return tuple(sorted(self.selection.models, key=place))

    @property
    def controls(self) -> tuple[str, ...]:
        """Untrained models (`random:BASE`)."""
        return tuple(
            name
            for name in self.selection.models
            if "random" in self._described(name).get("weights", {})
        )

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """Models before and after tuning: each with the first of its kind that was run before it.

        Models are of one kind if they have the same architecture and the same hookpoints.
        """
        if self.pairs_asked is not None:
            return tuple(self.pairs_asked)
        chosen = []
        for name in self.names:
            for earlier in self.run.model(name).attrs.get("bases", []):
                if earlier in self.selection.models and self._alike(earlier, name):
                    chosen.append((earlier, name))
                    break
        return tuple(chosen)

    def _alike(self, one: str, other: str) -> bool:
        if {one, other} & set(self.controls):
            return False
        kinds = [
            (self._described(name).get("architecture"), self.run.model(name).hookpoints)
            for name in (one, other)
        ]
        return kinds[0] == kinds[1]

    def _described(self, name: str) -> dict[str, dict[str, str]]:
        """What the store says of a model's files."""
        described = self.run.model(name).attrs.get("model")
        return described if isinstance(described, dict) else {}

    @property
    def separation(self) -> "xarray.Dataset":
        """What `analysis.separation` gives for the selection."""
        return self._once("separation", self._separation)

    def comparison(self, pair: Pair) -> "xarray.Dataset":
        """What `analysis.compare` gives for a pair.

        Raises:
            ConfigError: the models cannot be compared; the message says why.
        """

        def compute() -> "xarray.Dataset":
            return compare(
                self.run,
                base=pair[0],
                aligned=pair[1],
                metrics=self.metrics,
                layers=self._layers(),
                poolings=self.selection.poolings,
                languages=self.selection.languages,
                progress=self._show(f"{pair[0]} > {pair[1]}"),
            )

        return self._once(pair, compute)

    def comparisons(self) -> "dict[Pair, xarray.Dataset]":
        """Those of all pairs that can be compared.

        Raises:
            ConfigError: a pair that was asked for cannot be compared.
        """
        comparisons = {}
        for pair in self.pairs:
            try:
                comparisons[pair] = self.comparison(pair)
            except ConfigError:
                if self.pairs_asked is not None:
                    raise
        return comparisons

    @property
    def directions(self) -> "xarray.Dataset":
        """What `analysis.directions` gives for the layer and the pooling that are shown."""
        return self._once(("directions", self.layer, self.pooling), self._directions)

    @property
    def parallel(self) -> "xarray.Dataset":
        """What `analysis.parallel` gives for the selection."""
        return self._once("parallel", self._parallel)

    def _separation(self) -> "xarray.Dataset":
        return separation(
            self.run,
            models=self.selection.models,
            metrics=self.metrics,
            layers=self._layers(),
            poolings=self.selection.poolings,
            languages=self.selection.languages,
            progress=self._show("separation"),
        )

    def _directions(self) -> "xarray.Dataset":
        return directions(
            self.run,
            models=self.selection.models,
            layers=[self.layer],
            poolings=[self.pooling],
            languages=self.selection.languages,
            progress=self._show("directions"),
        )

    def _parallel(self) -> "xarray.Dataset":
        return parallel(
            self.run,
            models=self.selection.models,
            layers=self._layers(),
            poolings=self.selection.poolings,
            languages=self.selection.languages,
            progress=self._show("parallel texts"),
        )

    def _layers(self) -> list[str]:
        return list(self.selection.layers)

    def _once(self, key: object, compute: "Callable[[], xarray.Dataset]") -> "xarray.Dataset":
        """The result of this name, computed at the first call; also an error is kept."""
        if key not in self._computed:
            try:
                self._computed[key] = compute()
            except ConfigError as error:
                self._computed[key] = error
        result = self._computed[key]
        if isinstance(result, ConfigError):
            raise result
        return result

    def _show(self, what: str) -> Callable[[int, int], None] | None:
        progress = self.progress
        if progress is None:
            return None
        return lambda done, total: progress(what, done, total)


def named_pairs(base: Names, aligned: Names) -> list[Pair] | None:
    """Pairs of models from the names of those before and after tuning; None without names.

    A single model before tuning belongs to every model after it.

    Raises:
        ConfigError: only one of both is given, or their numbers differ.
    """
    if base is None and aligned is None:
        return None
    if base is None or aligned is None:
        raise ConfigError("base, aligned: they belong together; name both or none")
    before, after = listed(base), listed(aligned)
    before = before * len(after) if len(before) == 1 else before
    if len(before) != len(after):
        raise ConfigError(
            f"base, aligned: got {len(before)} and {len(after)} names, expected as many of both, "
            "or one base for all"
        )
    return list(zip(before, after, strict=True))


def rounded(number: float, digits: int = 5) -> float | None:
    """A number with so many significant digits; None if it is not finite."""
    if not math.isfinite(number):
        return None
    return float(f"{number:.{digits}g}")
