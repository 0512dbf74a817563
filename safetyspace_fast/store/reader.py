"""Reading a store: lazy, read-only."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from ..errors import StoreError
from .access import below, names_of, open_group, opened, opened_group, read_array, refuse_other
from .layout import MODEL, SAMPLES, Array
from .place import Place
from .results import load_results

if TYPE_CHECKING:
    import xarray

_UNKNOWN: Mapping[str, int] = {}


@dataclass(frozen=True)
class SampleTable:
    """The samples of a store, in canonical order; every array is `[sample]`."""

    file_position: Array
    lang_index: Array
    label: Array
    pair: Array
    item: Array
    fold: Array
    text_sha256: Array
    n_chars: Array


class ModelStore:
    """One model's arrays and attributes."""

    def __init__(self, group: zarr.Group, name: str, sizes: Mapping[str, int] = _UNKNOWN) -> None:
        """Wrap a group; nothing is read yet. `sizes`: lengths of axes that others share."""
        self.name = name
        self._group = group
        self._sizes = sizes
        self._dims = {spec.name: spec.dims for spec in MODEL}

    @cached_property
    def attrs(self) -> dict[str, Any]:
        """The manifest, package versions, timings and whether the model is complete."""
        return dict(self._group.attrs)

    @property
    def complete(self) -> bool:
        """Whether every sample of this model is in the store."""
        return bool(self.attrs.get("complete"))

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """Names along the `layer` axis, in order of depth."""
        return names_of(self.attrs, "hookpoints", f"{self._group.store_path}/zarr.json")

    @property
    def poolings(self) -> tuple[str, ...]:
        """Names along the `pooling` axis."""
        return names_of(self.attrs, "poolings", f"{self._group.store_path}/zarr.json")

    @property
    def seed(self) -> int:
        """Seed of the projection.

        Raises:
            StoreError: there is none.
        """
        manifest = self.attrs.get("manifest")
        seed = manifest.get("seed") if isinstance(manifest, dict) else None
        if not isinstance(seed, int):
            place = f"{self._group.store_path}/zarr.json"
            raise StoreError(f"{place}: has no seed of the projection; `check` lists all damage")
        return seed

    def read(
        self,
        name: str,
        *,
        layer: int | slice = slice(None),
        pooling: int | slice = slice(None),
        samples: slice = slice(None),
        lang: int | slice = slice(None),
    ) -> Array:
        """Read part of an array; an index that the array has no axis for is ignored.

        Raises:
            StoreError: the array is not there, or its bytes are damaged.
        """
        chosen = {"layer": layer, "pooling": pooling, "sample": samples, "lang": lang}
        if name not in self._dims:
            raise StoreError(f"{self._group.store_path}: no array {name!r}")
        index = tuple(chosen.get(dim, slice(None)) for dim in self._dims[name])
        own = {"layer": len(self.hookpoints), "pooling": len(self.poolings)}
        try:
            return read_array(self._group, name, index, {**self._sizes, **own})
        finally:  # comes before any other reason
            refuse_other(self._group)


class Run:
    """A store of one data set and any number of models."""

    def __init__(self, path: str | Path) -> None:
        """Open a store.

        Raises:
            StoreError: see `open_group`.
        """
        self.place = Place(path)
        self._root = open_group(self.place)
        self.attrs: dict[str, Any] = dict(self._root.attrs)

    @property
    def path(self) -> Path:
        """The store's folder.

        Raises:
            StoreError: it lies in an object store.
        """
        return self.place.folder

    @property
    def languages(self) -> tuple[str, ...]:
        """Names along the `lang` axis."""
        return tuple(self.attrs["languages"])

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Names of the models whose samples are all there."""
        complete = []
        for name in below(self._root, "models"):
            with suppress(KeyError):  # a group that is just being made
                if opened(self._root, f"models/{name}").attrs.get("complete"):
                    complete.append(name)
        return tuple(complete)

    @cached_property
    def samples(self) -> SampleTable:
        """Where every sample comes from and what it is.

        Raises:
            StoreError: a column is not there, or damaged.
        """
        try:
            group = opened_group(self._root, "samples")
        except KeyError as error:
            raise StoreError(
                f"{self.place}/samples/zarr.json: missing; `check` lists it"
            ) from error
        columns: dict[str, Array] = {}
        for spec in SAMPLES:  # the first says how many there are
            sizes = {"sample": len(next(iter(columns.values())))} if columns else _UNKNOWN
            columns[spec.name] = read_array(group, spec.name, sizes=sizes)
        refuse_other(self._root)
        return SampleTable(lang_index=columns.pop("lang"), **columns)

    def lang_range(self, lang: str) -> slice:
        """The samples of one language, which stand together.

        Raises:
            StoreError: the store has no such language.
        """
        if lang not in self.languages:
            raise StoreError(f"{self.place}: no language {lang!r}; has {', '.join(self.languages)}")
        i_lang = self.languages.index(lang)
        bounds = np.searchsorted(self.samples.lang_index, [i_lang, i_lang + 1])
        return slice(int(bounds[0]), int(bounds[1]))

    def model(self, name: str) -> ModelStore:
        """One model.

        Raises:
            StoreError: the store has no such model, or it is not complete.
        """
        path = f"models/{name}"
        try:
            group = opened_group(self._root, path)
        except KeyError as error:
            raise StoreError(
                f"{self.place}: no model {name!r}; has {', '.join(self.models)}"
            ) from error
        refuse_other(self._root)
        sizes = {"sample": len(self.samples.label), "lang": len(self.languages)}
        store = ModelStore(group, name, sizes)
        if not store.complete:
            raise StoreError(
                f"{self.place}: model {name!r} is not complete; finish it with --resume"
            )
        return store

    def separation(self, name: str) -> "xarray.Dataset":
        """The stored results of one model: every metric [layer, pooling, lang, number].

        Raises:
            StoreError: `separation` was not run, or by a newer version of the package.
        """
        return load_results(self.place, name)

    def dataset(self, name: str) -> "xarray.Dataset":
        """One model's arrays, lazily, with named coordinates, and the samples' columns."""
        import xarray

        store = self.model(name)
        try:
            arrays = xarray.open_zarr(self._root.store, group=f"models/{name}", consolidated=False)
            columns = {
                f"sample_{column}": ("sample", getattr(self.samples, column))
                for column in ("label", "pair", "item", "fold")
            }
            dataset: xarray.Dataset = arrays.assign_coords(
                layer=list(store.hookpoints),
                pooling=list(store.poolings),
                lang=list(self.languages),
                label=[0, 1],
                sample_lang=("sample", np.asarray(self.languages)[self.samples.lang_index]),
                **columns,
            )
        except StoreError:
            raise
        except Exception as error:  # see `open_group`
            raise StoreError(f"{self.place}/models/{name}: makes no sense: {error}") from error
        return dataset
