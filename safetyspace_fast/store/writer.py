"""Writing a store: whole shards, each once, by one owner."""

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.errors
from numcodecs.bitround import BitRound
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec
from zarr.core.buffer.cpu import Buffer
from zarr.core.sync import sync

from ..errors import StoreError
from . import files
from .access import below, open_group, read_array
from .layout import FORMAT_VERSION, MODEL, SAMPLES, SHARD_SAMPLES, Array, ArraySpec, shards_of
from .place import Place


def create_run(
    location: str | Path,
    *,
    created_by: str,
    data_name: str,
    data_sha256: str,
    languages: tuple[str, ...],
    samples: dict[str, Array],
    overwrite: bool = False,
) -> zarr.Group:
    """Make a store with its `samples` group and no models; also finish one that was half made.

    Args:
        location: path or URL.
        created_by: name and version of the program.
        data_name: what the data set is called.
        data_sha256: hash of its content.
        languages: names along the `lang` axis.
        samples: `SAMPLES` by name.
        overwrite: replace a store that is there.

    Raises:
        StoreError: something is at `location` already and may not be replaced.
    """
    place = Place(location)
    if place.exists():
        files.sync_all()
    if place.exists() and not half_made(place):
        if not overwrite:
            raise StoreError(f"{place}: exists already; use --resume to go on or --overwrite")
        if place.path is not None and not (place.path / "zarr.json").exists():
            raise StoreError(f"{place}: not a store, so it is not overwritten; remove it yourself")
        if place.path is not None and place.path.is_symlink():
            raise StoreError(f"{place}: a link, so it is not overwritten; name what it leads to")
    # Until the last line below, what is there says that it is half made.
    attributes = {"created_by": created_by, "data_sha256": data_sha256}
    write_bare_group(place, "", attributes)
    store = place.store(read_only=False)
    for name in ("models", "samples", "separation"):
        sync(store.delete_dir(name))
    root = place.group(read_only=False)
    group = root.create_group("samples", attributes={"languages": list(languages)})
    for spec in SAMPLES:
        _write_samples(group, spec, samples)
    root.create_group("models")
    root.update_attributes(
        {
            "format_version": FORMAT_VERSION,
            "created_by": created_by,
            "data_name": data_name,
            "data_sha256": data_sha256,
            "languages": list(languages),
        }
    )
    return root


def write_bare_group(place: Place, path: str, attributes: dict[str, Any]) -> None:
    """Write a group's metadata over whatever is there, without opening it."""
    bare = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    key = f"{path}/zarr.json".removeprefix("/")
    store = place.store(read_only=False)
    sync(store.set(key, Buffer.from_bytes(json.dumps(bare).encode())))


def half_made(place: Place) -> bool:
    """Whether nothing is at a place but what a crash left of a store that was being created."""
    if place.path is not None and place.path.is_dir():
        names = {path.name for path in place.path.iterdir()}
        if names <= {"zarr.json.tmp"}:
            return True
    try:
        attributes = place.group(read_only=True).attrs
    except (zarr.errors.GroupNotFoundError, StoreError, ValueError):
        return False
    return "data_sha256" in attributes and "format_version" not in attributes


def resume_run(location: str | Path, *, samples: dict[str, Array]) -> zarr.Group:
    """Open a store of the same data to add to it.

    Columns of `samples` that are damaged or missing are written again.

    Raises:
        StoreError: there is no store.
    """
    place = Place(location)
    files.sync_all()
    root = open_group(place, read_only=False)
    kept, group = open_group(place)["samples"], root["samples"]
    assert isinstance(kept, zarr.Group)
    assert isinstance(group, zarr.Group)
    for spec in SAMPLES:
        try:
            read_array(kept, spec.name)
        except StoreError:
            _write_samples(group, spec, samples)
    return root


def consolidate(location: str | Path) -> None:
    """Copy all metadata into the root's, where other tools look first."""
    place = Place(location)
    with warnings.catch_warnings():  # that it is not yet in Zarr's specification
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(place.store(read_only=False), zarr_format=3)


class ModelWriter:
    """Fills the group of one model.

    Rows of sample arrays may come in any order and in ranges that cross shards; a shard is written
    when its last row is there. Arrays of one shard are never touched again.
    """

    def __init__(self, root: zarr.Group, name: str, sizes: Mapping[str, int]) -> None:
        """Open the model's group.

        Args:
            root: the store.
            name: the model's group.
            sizes: length of every axis.
        """
        for other in below(root, "models"):
            if other != name and other.casefold() == name.casefold():
                raise StoreError(
                    f"{root.store}: has a model {other!r}, which is {name!r} where a disk takes "
                    "capitals for small letters; choose another NAME="
                )
        self._group = root.require_group(f"models/{name}")
        self._sizes = sizes
        self._open: dict[tuple[str, int], tuple[Array, int]] = {}
        self._skip: set[int] = set()
        self._specs = {spec.name: spec for spec in MODEL}

    def create(self, attributes: Mapping[str, Any]) -> None:
        """Make every array that is not there at its full shape, and write the attributes."""
        for spec in MODEL:
            if spec.name not in self._group:
                _create(self._group, spec, self._sizes)
        self._group.update_attributes({**attributes, "complete": False})

    def write(self, name: str, values: Array) -> None:
        """Write a whole array that is not cut into shards."""
        self._set(name, (...,), values)

    def read(self, name: str) -> Array:
        """Read a whole array back."""
        return read_array(self._group, name)

    def write_language(self, name: str, i_lang: int, values: Array) -> None:
        """Write one language of an array with a `lang` axis; `values` lacks that axis."""
        axis = self._specs[name].dims.index("lang")
        self._set(name, (slice(None),) * axis + (i_lang,), values)

    def skip_shards(self, shards: Iterable[int]) -> None:
        """Rows of these shards are in the store already: take them without writing."""
        self._skip.update(shards)

    def write_rows(self, name: str, start: int, values: Array) -> list[int]:
        """Take rows `start ..` of a sample array; return the shards that this completed.

        Args:
            name: the array.
            start: first sample, in canonical order.
            values: `[layer, pooling, n, ...]`, copied.
        """
        written = []
        stop = start + values.shape[2]
        for shard in shards_of(slice(start, stop)):
            if shard in self._skip:
                continue
            low, high = self.shard_range(shard)
            first, last = max(start, low), min(stop, high)
            buffer, filled = self._open.get((name, shard)) or (self._shard_buffer(name, shard), 0)
            buffer[:, :, first - low : last - low] = values[:, :, first - start : last - start]
            filled += last - first
            if filled < high - low:
                self._open[name, shard] = (buffer, filled)
                continue
            self._open.pop((name, shard), None)
            self._set(name, (slice(None), slice(None), slice(low, high)), buffer)
            written.append(shard)
        return written

    def shard_range(self, shard: int) -> tuple[int, int]:
        """First sample of a shard and one past its last."""
        low = shard * SHARD_SAMPLES
        return low, min(low + SHARD_SAMPLES, self._sizes["sample"])

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Mark the model complete.

        Raises:
            StoreError: a shard never got all its rows; nothing is marked.
        """
        if self._open:
            names = ", ".join(f"{name}[{shard}]" for name, shard in sorted(self._open))
            raise StoreError(f"{self._group.store_path}: shards without all their rows: {names}")
        self._group.update_attributes({**attributes, "complete": True})

    def _set(self, name: str, index: tuple[Any, ...], values: Array) -> None:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        keepbits = self._specs[name].keepbits
        if keepbits is not None:
            encoded = BitRound(keepbits).encode(np.ascontiguousarray(values))
            values = encoded.view(values.dtype).reshape(values.shape)
        # A chunk that is missing was lost.
        array.with_config({"write_empty_chunks": True})[index] = values

    def _shard_buffer(self, name: str, shard: int) -> Array:
        low, high = self.shard_range(shard)
        spec = self._specs[name]
        shape = [self._sizes[dim] for dim in spec.dims]
        shape[2] = high - low
        return np.full(shape, np.nan, spec.dtype)


def _write_samples(group: zarr.Group, spec: ArraySpec, samples: dict[str, Array]) -> None:
    _create(group, spec, {"sample": len(samples["label"]), "byte": 32})[...] = samples[spec.name]


def _create(group: zarr.Group, spec: ArraySpec, sizes: Mapping[str, int]) -> zarr.Array[Any]:
    floating = spec.dtype.startswith("float")
    itemsize = np.dtype(spec.dtype).itemsize
    return group.create_array(
        spec.name,
        shape=tuple(sizes[dim] for dim in spec.dims),
        dtype=spec.dtype,
        chunks=spec.chunks(sizes),
        shards=spec.shards(sizes),
        compressors=[
            BloscCodec(cname="zstd", clevel=1, shuffle=BloscShuffle.bitshuffle, typesize=itemsize),
            Crc32cCodec(),
        ],
        fill_value=np.nan if floating else 0,
        dimension_names=spec.dims,
        attributes={"units": spec.unit, "long_name": spec.meaning},
        config={"write_empty_chunks": True},
        overwrite=True,  # of chunks whose metadata are lost
    )
