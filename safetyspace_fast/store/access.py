"""Opening what lies in a store and reading its arrays; refusing what does not fit the layout."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from ..errors import StoreError, first_line
from .layout import FORMAT_VERSION, MODEL, SAMPLES, Array, ArraySpec
from .place import SEAL, Place

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
