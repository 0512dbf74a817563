"""The store of a run: made when its first model is ready, gone on with, or replaced."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import zarr

from .. import info
from ..config import RunConfig, data_fields
from ..data import NUM_FOLDS, Samples, lexical_scores, read_samples
from ..errors import StoreError
from ..extract.chance import AXES as CHANCE_AXES
from ..extract.prepare import Prepared
from ..store import (
    Claim,
    Contents,
    Growth,
    Place,
    Run,
    alone,
    create_run,
    discard,
    half_made,
    resume_run,
    settle,
)
from ..store.layout import COMPONENTS, Array, Attributes


def refuse_existing(
    config: RunConfig, instead: str = "continue with --resume, or --overwrite it"
) -> None:
    """Raise StoreError if the store exists, and is neither to be gone on with nor overwritten.

    Args:
        config: of the run.
        instead: what the user may do.
    """
    place = Place(config.out)
    if place.exists() and not (config.overwrite or config.resume or half_made(place)):
        raise StoreError(f"{place}: exists already; {instead}")


def start_afresh(config: RunConfig, names: Sequence[str]) -> None:
    """Replace a store by one without models, to which workers then add these."""
    samples = read_samples(config.data, on_note=lambda _: None, **data_fields(config))
    place = Place(config.out)
    with ExitStack() as claims:
        for name in names:
            claims.enter_context(Claim(place.work / name, f"{place}: model {name!r}"))
        with alone(place.work):
            settle(place)
            RunOutput(config, names, samples).open()


class RunOutput:
    """The store of a run. One that is not there yet is made when its first model is ready."""

    def __init__(self, config: RunConfig, names: Sequence[str], samples: Samples) -> None:
        """Open and make nothing yet.

        Args:
            config: of the run.
            names: the models that the run has claimed.
            samples: what the store is to hold.
        """
        self.place = Place(config.out)
        """Where models are written; of a store that grows, another place until all is done."""
        self.root: zarr.Group | None = None
        """None: not opened yet."""
        self.growth: Growth | None = None
        """How the store grows, if it has fewer samples."""
        self._config = config
        self._names = names
        self._samples = samples

    def goes_on(self) -> bool:
        """Whether the run adds to a store that is there."""
        return self._config.resume and self.place.exists() and not half_made(self.place)

    def open(self) -> zarr.Group:
        """Open or make the store; the caller is `alone`.

        Raises:
            StoreError: it cannot be opened, made or replaced.
        """
        run = Run(str(self.place)) if self.goes_on() else None
        if run is not None and run.attrs["data_sha256"] == self._samples.sha256:
            columns = partial(sample_columns, self._samples)
            self.root = resume_run(str(self.place), samples=columns)
            return self.root
        contents: Contents = {
            "created_by": f"safetyspace-fast {info.package_versions()['safetyspace-fast']}",
            "data_name": self._samples.name,
            "data_sha256": self._samples.sha256,
            "languages": self._samples.languages,
            "samples": sample_columns(self._samples),
        }
        if run is None:
            discard(self.place, self._names)
            self.root = create_run(str(self.place), overwrite=self._config.overwrite, **contents)
            return self.root
        self.growth = Growth(run, self._samples.languages, contents["samples"])
        self.root = self.growth.open(self._names, **contents)
        self.place = Place(self.growth.location)
        return self.root

    def attributes(self, name: str) -> Attributes:
        """The attributes of a model in the store; empty if it is not in it."""
        group = f"models/{name}"
        return dict(self.root[group].attrs) if self.root is not None and group in self.root else {}


def sample_columns(samples: Samples) -> dict[str, Array]:
    """The arrays of a store's group `samples`, by name."""
    return {
        "file_position": samples.file_position,
        "text_sha256": samples.text_sha256,
        "n_chars": np.array([len(text) for text in samples.texts]),
        "lang": samples.lang_index,
        "label": samples.labels,
        "pair": samples.pair,
        "item": samples.item,
        "cluster": samples.cluster,
        "fold": samples.fold,
        "lexical_score": lexical_scores(samples),
    }


def axis_sizes(samples: Samples, work: Prepared, n_bases: int = 0) -> dict[str, int]:
    """Lengths of the axes of a model's arrays."""
    hidden_size, proj_dim = work.projection.shape
    return {
        "layer": len(work.hookpoints),
        "pooling": len(work.tokens.poolings),
        "sample": len(samples),
        "lang": len(samples.languages),
        "hidden": hidden_size,
        "proj": proj_dim,
        "component": COMPONENTS,
        "basis": n_bases,
        "class": 2,
        "label": 2,
        "fold": NUM_FOLDS,
        **CHANCE_AXES,
    }
