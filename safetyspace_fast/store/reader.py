"""Reading a store: lazy, read-only."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
import zarr.errors
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from ..errors import StoreError, first_line
from .layout import FORMAT_VERSION, MODEL, SAMPLES, ArraySpec
from .place import SEAL, Place

if TYPE_CHECKING:
    import xarray

Array = np.ndarray[Any, np.dtype[Any]]
_SPECS = {spec.name: spec for spec in (*SAMPLES, *MODEL)}
_UNKNOWN: Mapping[str, int] = {}


def open_group(place: Place, *, read_only: bool = True) -> zarr.Group:
    """Open a store's root group and check its format.

    Raises:
        StoreError: no store is there, or a newer version of the package wrote it.
    """
    if not place.exists():
        begun = ", but it is being made or grown; if no run is at it, --resume goes on"
        raise StoreError(f"{place}: no such store{begun if place.work.exists() else ''}")
    try:
        root = place.group(read_only=read_only)
    except StoreError:
        raise
    except Exception as error:  # of any kind, over metadata that make no sense
        raise StoreError(f"{place}: not a safetyspace-fast store") from error
    if root.attrs.get("format_version") != FORMAT_VERSION:  # a newer one is refused by `unsealed`
        raise StoreError(f"{place}: half made; run it again with --resume")
    names_of(root.attrs, "languages", f"{place}/zarr.json")
    return root


def opened(group: zarr.Group, name: str) -> zarr.Array[Any] | zarr.Group:
    """What lies in a group.

    Raises:
        KeyError: nothing does.
        StoreError: its metadata are damaged or make no sense.
    """
    try:
        return group[name]
    except (KeyError, StoreError):
        raise
    except Exception as error:  # see above
        raise StoreError(
            f"{group.store_path}/{name}/zarr.json: makes no sense: {first_line(error)}"
        ) from error


def opened_group(root: zarr.Group, path: str) -> zarr.Group:
    """A group of a store, with the errors of `opened`, and one if an array is in its place."""
    group = opened(root, path)
    if not isinstance(group, zarr.Group):
        raise StoreError(f"{root.store}/{path}/zarr.json: an array, expected a group")
    return group


def names_of(attributes: Mapping[str, Any], key: str, file: str) -> tuple[str, ...]:
    """Names along an axis, out of the attributes.

    Raises:
        StoreError: there are none.
    """
    names = attributes.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StoreError(f"{file}: has no names of {key}; `check` lists all damage")
    return tuple(names)


def refuse_misfit(array: zarr.Array[Any], spec: ArraySpec, sizes: Mapping[str, int]) -> None:
    """Refuse an array that is not what the layout says, before anything of its size is made.

    Args:
        array: the array.
        spec: what it should be.
        sizes: lengths of the axes that are known.

    Raises:
        StoreError: type, axes, chunks or shards differ.
    """
    if len(array.shape) == len(spec.dims):
        shape = dict(zip(spec.dims, array.shape, strict=True))
        cut = (spec.chunks(shape), spec.shards(shape))
        known = all(shape.get(axis, size) == size for axis, size in sizes.items())
        if known and array.dtype == spec.dtype and (array.chunks, array.shards) == cut:
            return
    raise StoreError(
        f"{array.store}/{array.path}/zarr.json: {array.dtype} {array.shape} does not fit the store"
    )


def refuse_other(group: zarr.Group) -> None:
    """Refuse to go on with a group if another store or model has taken its place.

    Raises:
        StoreError: its metadata are not those it was opened with.
    """
    place = group.store_path
    now = sync(place.store.get(f"{place.path}/zarr.json".lstrip("/"), default_buffer_prototype()))
    try:
        seal = json.loads(now.to_bytes())["attributes"][SEAL] if now is not None else None
    except (ValueError, KeyError, TypeError):
        seal = None
    if seal is None or seal != group.attrs.get(SEAL):
        raise StoreError(f"{place}: was replaced since it was opened; open it again")


def below(root: zarr.Group, path: str) -> list[str]:
    """Names of what lies in a group, whole or not."""

    async def names() -> list[str]:
        return [name async for name in root.store.list_dir(path)]

    return sorted(name for name in sync(names()) if not name.startswith("zarr.json"))


def read_array(
    group: zarr.Group, name: str, index: Any = ..., sizes: Mapping[str, int] = _UNKNOWN
) -> Array:
    """Read an array, or part of it; `sizes` are the lengths of the axes that are known.

    Raises:
        StoreError: the array is not there, or damaged; the message names the file.
    """
    try:
        array = opened(group, name)
    except KeyError as error:
        raise StoreError(f"{group.store_path}: no array {name!r}") from error
    if not isinstance(array, zarr.Array):
        raise StoreError(f"{group.store_path}/{name}/zarr.json: a group, expected an array")
    refuse_misfit(array, _SPECS[name], sizes)
    try:
        return np.asarray(array[index])
    except StoreError:
        raise
    except MemoryError as error:
        raise StoreError(f"{group.store_path}/{name}: does not fit into memory") from error
    except Exception as error:  # what a codec raises over damaged bytes is not in its contract
        _, file, reason = next(damaged_chunks(array), ((), array.path, error))
        raise StoreError(f"{group.store}/{file}: damaged ({reason})") from error


def damaged_chunks(
    array: zarr.Array[Any], is_due: Callable[[tuple[int, ...]], bool] = lambda _: True
) -> Iterator[tuple[tuple[int, ...], str, Exception]]:
    """The files of an array that cannot be read: place in the grid, key and reason of each.

    Args:
        array: the array.
        is_due: whether the file of a place should be there.
    """
    cut = array.shards or array.chunks
    counts = [-(-size // step) for size, step in zip(array.shape, cut, strict=True)]
    for place in filter(is_due, np.ndindex(*counts)):
        index = tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, cut, strict=True))
        try:
            array[index]
        except Exception as error:  # see above
            yield place, "/".join([array.path, "c", *map(str, place)]), error


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
        if self.place.path is None:
            raise StoreError(f"{self.place}: is not on a local disk")
        return self.place.path

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
        from .results import load_results

        return load_results(self, name)

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
