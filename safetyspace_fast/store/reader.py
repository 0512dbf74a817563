"""Reading a store: lazy, read-only."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
import zarr.errors

from ..errors import StoreError
from .layout import FORMAT_VERSION, MODEL, SAMPLES

if TYPE_CHECKING:
    import xarray

Array = np.ndarray[Any, np.dtype[Any]]


def open_group(path: Path, mode: str = "r") -> zarr.Group:
    """Open a store's root group and check its format.

    Raises:
        StoreError: no store is there, or a newer version of the package wrote it.
    """
    if not path.exists():
        raise StoreError(f"{path}: no such store")
    try:
        root = zarr.open_group(path, mode="r+" if mode == "r+" else "r")
        version = root.attrs["format_version"]
    except (zarr.errors.GroupNotFoundError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: not a safetyspace-fast store") from error
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{path}: format_version {version}, this package reads {FORMAT_VERSION}; "
            "update safetyspace-fast"
        )
    return root


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


class ModelStore:
    """One model's arrays and attributes."""

    def __init__(self, group: zarr.Group, name: str) -> None:
        """Wrap a group; nothing is read yet."""
        self.name = name
        self._group = group
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
        return tuple(self.attrs["hookpoints"])

    @property
    def poolings(self) -> tuple[str, ...]:
        """Names along the `pooling` axis."""
        return tuple(self.attrs["poolings"])

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
        try:
            array = self._group[name]
            assert isinstance(array, zarr.Array)
            dims = self._dims[name]
            return np.asarray(array[tuple(chosen.get(dim, slice(None)) for dim in dims)])
        except KeyError as error:
            raise StoreError(f"{self._group.store_path}: no array {name!r}") from error
        except (ValueError, RuntimeError, OSError) as error:
            raise StoreError(f"{self._group.store_path}/{name}: damaged: {error}") from error


class Run:
    """A store of one data set and any number of models."""

    def __init__(self, path: Path) -> None:
        """Open a store.

        Raises:
            StoreError: see `open_group`.
        """
        self.path = Path(path)
        self._root = open_group(self.path)
        self.attrs: dict[str, Any] = dict(self._root.attrs)

    @property
    def languages(self) -> tuple[str, ...]:
        """Names along the `lang` axis."""
        return tuple(self.attrs["languages"])

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Names of the models whose samples are all there."""
        groups = self._root.require_group("models").groups()
        return tuple(sorted(name for name, group in groups if group.attrs.get("complete")))

    @cached_property
    def samples(self) -> SampleTable:
        """Where every sample comes from and what it is."""
        group = self._root["samples"]
        assert isinstance(group, zarr.Group)
        columns: dict[str, Array] = {}
        for spec in SAMPLES:
            array = group[spec.name]
            assert isinstance(array, zarr.Array)
            columns["lang_index" if spec.name == "lang" else spec.name] = np.asarray(array[...])
        return SampleTable(**columns)

    def lang_range(self, lang: str) -> slice:
        """The samples of one language, which stand together.

        Raises:
            StoreError: the store has no such language.
        """
        if lang not in self.languages:
            raise StoreError(f"{self.path}: no language {lang!r}; has {', '.join(self.languages)}")
        i_lang = self.languages.index(lang)
        bounds = np.searchsorted(self.samples.lang_index, [i_lang, i_lang + 1])
        return slice(int(bounds[0]), int(bounds[1]))

    def model(self, name: str) -> ModelStore:
        """One model.

        Raises:
            StoreError: the store has no such model, or it is not complete.
        """
        path = f"models/{name}"
        if path not in self._root:
            raise StoreError(f"{self.path}: no model {name!r}; has {', '.join(self.models)}")
        group = self._root[path]
        assert isinstance(group, zarr.Group)
        store = ModelStore(group, name)
        if not store.complete:
            raise StoreError(
                f"{self.path}: model {name!r} is not complete; finish it with --resume"
            )
        return store

    def dataset(self, name: str) -> "xarray.Dataset":
        """One model's arrays, lazily, with named coordinates, and the samples' columns."""
        import xarray

        store = self.model(name)
        columns = xarray.open_zarr(self.path, group="samples", consolidated=False)
        arrays = xarray.open_zarr(self.path, group=f"models/{name}", consolidated=False)
        names = np.asarray(self.languages)
        dataset: xarray.Dataset = arrays.assign_coords(
            layer=list(store.hookpoints),
            pooling=list(store.poolings),
            lang=list(self.languages),
            label=[0, 1],
            sample_lang=("sample", names[columns["lang"].to_numpy()]),
            sample_label=columns["label"].load(),
            sample_pair=columns["pair"].load(),
            sample_item=columns["item"].load(),
            sample_fold=columns["fold"].load(),
        )
        return dataset
