"""Opening the groups and arrays of a store; refusing what is damaged or does not fit the layout."""

import json
from collections.abc import Callable, Iterator, Mapping
from types import EllipsisType
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from ..errors import StoreError, first_line
from .layout import FORMAT_VERSION, MODEL, SAMPLES, Array, ArraySpec, Attributes
from .place import SEAL, Place

ZarrArray = zarr.Array[Any]  # Any: the metadata of Zarr 2 or 3, which no caller looks at
Index = int | slice | EllipsisType

_SPECS = {spec.name: spec for spec in (*SAMPLES, *MODEL)}


def open_root(place: Place, *, read_only: bool = True) -> zarr.Group:
    """Open a store's root group and check its format.

    Raises:
        StoreError: there is no store, or a newer version of this package wrote it.
    """
    if not place.exists():
        unfinished = " yet, but an unfinished run; wait for it, or finish it with --resume"
        raise StoreError(f"{place}: no such store{unfinished if place.work.exists() else ''}")
    try:
        root = place.group(read_only=read_only)
    except StoreError:
        raise
    except Exception as error:  # damaged metadata can raise anything
        raise StoreError(f"{place}: not a safetyspace-fast store") from error
    if root.attrs.get("format_version") != FORMAT_VERSION:  # a newer one was refused above
        raise StoreError(f"{place}: only half made; run it again with --resume")
    axis_names(dict(root.attrs), "languages", f"{place}/zarr.json")
    return root


def member(group: zarr.Group, name: str) -> ZarrArray | zarr.Group:
    """Open an array or a group in a group.

    Raises:
        KeyError: there is none of this name.
        StoreError: its metadata are damaged.
    """
    try:
        return group[name]
    except (KeyError, StoreError):
        raise
    except Exception as error:  # damaged metadata can raise anything
        raise StoreError(
            f"{group.store_path}/{name}/zarr.json: cannot be understood: {first_line(error)}"
        ) from error


def subgroup(root: zarr.Group, path: str) -> zarr.Group:
    """Open a group below a group.

    Raises:
        KeyError: there is none at this path.
        StoreError: its metadata are damaged, or it is an array.
    """
    group = member(root, path)
    if not isinstance(group, zarr.Group):
        raise StoreError(f"{root.store}/{path}/zarr.json: an array, expected a group")
    return group


def axis_names(attributes: Attributes, key: str, file: str) -> tuple[str, ...]:
    """Names along an axis, from the attributes of a group.

    Args:
        attributes: of the group.
        key: the attribute: `languages`, `hookpoints` or `poolings`.
        file: what an error calls the group's metadata.

    Raises:
        StoreError: the attribute is missing, or is no list of names.
    """
    names = attributes.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StoreError(f"{file}: no names of {key}; `check` lists all damage")
    return tuple(names)


def names_in(root: zarr.Group, path: str) -> list[str]:
    """Names of all arrays and groups in a group, also of damaged ones."""

    async def names() -> list[str]:
        return [name async for name in root.store.list_dir(path)]

    return sorted(name for name in sync(names()) if not name.startswith("zarr.json"))


def read_array(
    group: zarr.Group,
    name: str,
    index: Index | tuple[Index, ...] = ...,
    sizes: Mapping[str, int] | None = None,
) -> Array:
    """Read an array, or part of it.

    Args:
        group: where it is.
        name: one of the layout.
        index: which part.
        sizes: lengths of the axes that are known; the array must agree.

    Raises:
        StoreError: the array is missing, damaged or of another shape; the message names the file.
    """
    try:
        array = member(group, name)
    except KeyError as error:
        raise StoreError(f"{group.store_path}: no array {name!r}") from error
    if not isinstance(array, zarr.Array):
        raise StoreError(f"{group.store_path}/{name}/zarr.json: a group, expected an array")
    refuse_misfit(array, _SPECS[name], sizes or {})
    try:
        return np.asarray(array[index])
    except StoreError:
        raise
    except MemoryError as error:
        raise StoreError(f"{group.store_path}/{name}: does not fit into memory") from error
    except Exception as error:  # codecs raise anything over damaged bytes
        _, file, reason = next(damaged_chunks(array), ((), array.path, error))
        raise StoreError(f"{group.store}/{file}: damaged ({reason})") from error


def damaged_chunks(
    array: ZarrArray, is_due: Callable[[tuple[int, ...]], bool] = lambda _: True
) -> Iterator[tuple[tuple[int, ...], str, Exception]]:
    """Find the files of an array that cannot be read.

    Args:
        array: the array.
        is_due: whether the file at an index of the grid of files should exist.

    Returns:
        Index in the grid of files, key in the store, and reason, of each.
    """
    file_shape = array.shards or array.chunks
    grid = [-(-size // step) for size, step in zip(array.shape, file_shape, strict=True)]
    for index in filter(is_due, np.ndindex(*grid)):
        values = tuple(
            slice(i * step, (i + 1) * step) for i, step in zip(index, file_shape, strict=True)
        )
        try:
            array[values]
        except Exception as error:  # codecs raise anything over damaged bytes
            yield index, "/".join([array.path, "c", *map(str, index)]), error


def refuse_misfit(array: ZarrArray, spec: ArraySpec, sizes: Mapping[str, int]) -> None:
    """Refuse an array that differs from the layout, before memory of its size is used.

    Args:
        array: the array.
        spec: what it should be.
        sizes: lengths of the axes that are known.

    Raises:
        StoreError: type, axes, chunks or shards differ.
    """
    if len(array.shape) == len(spec.dims):
        shape = dict(zip(spec.dims, array.shape, strict=True))
        known = all(shape.get(axis, size) == size for axis, size in sizes.items())
        files = (spec.chunks(shape), spec.shards(shape))
        if known and array.dtype == spec.dtype and (array.chunks, array.shards) == files:
            return
    raise StoreError(
        f"{array.store}/{array.path}/zarr.json: {array.dtype} {array.shape} does not fit the store"
    )


def refuse_replaced(group: zarr.Group) -> None:
    """Refuse to go on with a group that another store or model has replaced.

    Raises:
        StoreError: its metadata are not those it was opened with.
    """
    path = group.store_path
    content = sync(path.store.get(f"{path.path}/zarr.json".lstrip("/"), default_buffer_prototype()))
    try:
        seal = json.loads(content.to_bytes())["attributes"][SEAL] if content is not None else None
    except (ValueError, KeyError, TypeError):
        seal = None
    if seal is None or seal != group.attrs.get(SEAL):
        raise StoreError(f"{path}: was replaced since it was opened; open it again")
