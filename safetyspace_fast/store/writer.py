"""Making a store, and writing the arrays of its models in whole shards."""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import zarr
import zarr.errors
from numcodecs.bitround import BitRound
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec
from zarr.core.buffer.cpu import Buffer
from zarr.core.sync import sync

from ..errors import StoreError
from . import files
from .access import Index, ZarrArray, names_in, open_root, read_array
from .layout import (
    FORMAT_VERSION,
    MODEL,
    SAMPLES,
    SHARD_SAMPLES,
    Array,
    ArraySpec,
    Attributes,
    shards_of,
)
from .place import Place
from .shard import encode_shard


class Contents(TypedDict):
    """What a store holds before any model is run."""

    created_by: str
    """Name and version of the program."""
    data_name: str
    data_sha256: str
    languages: tuple[str, ...]
    """Names along the `lang` axis."""
    samples: Mapping[str, Array]
    """The arrays of `layout.SAMPLES`, by name."""


def create_run(
    location: str | Path, *, overwrite: bool = False, **contents: Unpack[Contents]
) -> zarr.Group:
    """Make a store with its samples and no models; also finish a half-made one.

    Args:
        location: path or URL.
        overwrite: replace a store that exists.
        contents: see `Contents`.

    Raises:
        StoreError: something exists at `location` and may not be replaced.
    """
    place = Place(location)
    if place.exists():
        files.sync_all()
    if place.exists() and not half_made(place):
        if not overwrite:
            raise StoreError(f"{place}: exists already; continue with --resume, or --overwrite it")
        if place.path is not None and not (place.path / "zarr.json").exists():
            raise StoreError(f"{place}: not a store, so it is not overwritten; remove it yourself")
        if place.path is not None and place.path.is_symlink():
            raise StoreError(f"{place}: a link, so it is not overwritten; give its target")
    attributes = {key: contents[key] for key in ("created_by", "data_sha256")}
    write_bare_group(place, "", attributes)  # marks it as half made, until the last step below
    store = place.store(read_only=False)
    for name in ("models", "samples", "separation"):
        sync(store.delete_dir(name))
    root = place.group(read_only=False)
    languages = list(contents["languages"])
    given = contents["samples"]
    optional = [spec.name for spec in SAMPLES if spec.optional and spec.name in given]
    group = root.create_group(
        "samples", attributes={"languages": languages, "optional_arrays": optional}
    )
    for spec in SAMPLES:
        if spec.name in contents["samples"] or not spec.optional:
            _write_samples(group, spec, contents["samples"])
    root.create_group("models")
    root.update_attributes(
        {
            "format_version": FORMAT_VERSION,
            "created_by": contents["created_by"],
            "data_name": contents["data_name"],
            "data_sha256": contents["data_sha256"],
            "languages": languages,
        }
    )
    return root


def write_bare_group(place: Place, path: str, attributes: Attributes) -> None:
    """Replace a group's metadata without opening it."""
    metadata = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    key = f"{path}/zarr.json".removeprefix("/")
    store = place.store(read_only=False)
    sync(store.set(key, Buffer.from_bytes(json.dumps(metadata).encode())))


def half_made(place: Place) -> bool:
    """Whether there is nothing but what a crash in `create_run` left."""
    if place.path is not None and place.path.is_dir():
        names = {path.name for path in place.path.iterdir()}
        if names <= {"zarr.json.tmp"}:
            return True
    try:
        attributes = place.group(read_only=True).attrs
    except (zarr.errors.GroupNotFoundError, StoreError, ValueError):
        return False
    return "data_sha256" in attributes and "format_version" not in attributes


def resume_run(location: str | Path, *, samples: Callable[[], Mapping[str, Array]]) -> zarr.Group:
    """Open a store of the same data to add to it; damaged columns of samples are written again.

    Args:
        location: path or URL.
        samples: gives the arrays of `layout.SAMPLES`, by name; asked only if one is damaged.

    Raises:
        StoreError: there is no store.
    """
    place = Place(location)
    files.sync_all()
    root = open_root(place, read_only=False)
    stored, group = open_root(place)["samples"], root["samples"]
    assert isinstance(stored, zarr.Group)
    assert isinstance(group, zarr.Group)
    damaged = [spec for spec in SAMPLES if not _is_readable(stored, spec.name)]
    columns = samples() if damaged else {}
    for spec in damaged:
        if spec.name in columns or not spec.optional:
            _write_samples(group, spec, columns)
    lacking = [spec.name for spec in damaged if spec.name not in columns]
    optional = [spec.name for spec in SAMPLES if spec.optional and spec.name not in lacking]
    if group.attrs.get("optional_arrays") != optional:  # an earlier version wrote fewer
        group.update_attributes({"optional_arrays": optional})
    return root


def _is_readable(group: zarr.Group, name: str) -> bool:
    try:
        read_array(group, name)
    except StoreError:
        return False
    return True


def consolidate(location: str | Path) -> None:
    """Copy all metadata into the root's zarr.json, where other tools look first."""
    place = Place(location)
    with warnings.catch_warnings():  # that Zarr's specification does not have this yet
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)
        zarr.consolidate_metadata(place.store(read_only=False), zarr_format=3)


class ModelWriter:
    """Writes the arrays of one model.

    Rows of arrays with shards may come in any order, and in ranges that cross shards. A shard is
    written once, when its last row has come, and never changed.
    """

    def __init__(self, root: zarr.Group, name: str, sizes: Mapping[str, int]) -> None:
        """Open the model's group, or make it.

        Args:
            root: the store.
            name: of the model.
            sizes: length of every axis.

        Raises:
            StoreError: another model has the same name but for capitals.
        """
        for other in names_in(root, "models"):
            if other != name and other.casefold() == name.casefold():
                raise StoreError(
                    f"{root.store}: has a model {other!r}, and some disks cannot tell {name!r} "
                    "from it; choose another NAME="
                )
        self._group = root.require_group(f"models/{name}")
        self._sizes = sizes
        self._incomplete: dict[tuple[str, int], tuple[Array, int]] = {}
        """Rows of an array's shard, and how many have come."""
        self._skip: set[int] = set()
        self._arrays: dict[str, ZarrArray] = {}
        self.specs = {spec.name: spec for spec in MODEL if spec.fits(sizes)}
        """The arrays that the model has."""

    def create(self, attributes: Attributes) -> None:
        """Make every missing array at its full shape, and write the attributes."""
        for spec in self.specs.values():
            if spec.name not in self._group:
                _create(self._group, spec, self._sizes)
        optional = [name for name, spec in self.specs.items() if spec.optional]
        self._group.update_attributes(
            {**attributes, "optional_arrays": optional, "complete": False}
        )

    def write(self, name: str, values: Array) -> None:
        """Write a whole array that has no shards."""
        self._set(name, (...,), values)

    def read(self, name: str) -> Array:
        """Read a whole array back."""
        return read_array(self._group, name)

    def write_language(self, name: str, i_lang: int, values: Array) -> None:
        """Write one language of an array with a `lang` axis, which `values` lacks."""
        axis = self.specs[name].dims.index("lang")
        self._set(name, (slice(None),) * axis + (i_lang,), values)

    def skip_shards(self, shards: Iterable[int]) -> None:
        """Take rows of these shards without writing them: the store has them already."""
        self._skip.update(shards)

    def write_rows(self, name: str, start: int, values: Array) -> list[int]:
        """Take rows of an array with shards.

        Args:
            name: the array.
            start: first sample, in canonical order.
            values: `[layer, pooling, n, ...]`; copied.

        Returns:
            The shards that these rows completed, and that are now written.
        """
        written = []
        stop = start + values.shape[2]
        for shard in shards_of(slice(start, stop)):
            if shard in self._skip:
                continue
            low, high = self._shard_range(shard)
            first, last = max(start, low), min(stop, high)
            if (name, shard) not in self._incomplete:
                self._incomplete[name, shard] = (self._empty_shard(name, shard), 0)
            rows, n_rows = self._incomplete.pop((name, shard))
            rows[:, :, first - low : last - low] = values[:, :, first - start : last - start]
            n_rows += last - first
            if n_rows < high - low:
                self._incomplete[name, shard] = (rows, n_rows)
                continue
            self._write_shard(name, shard, rows)
            written.append(shard)
        return written

    def finish(self, attributes: Attributes) -> None:
        """Mark the model complete.

        Raises:
            StoreError: a shard has not got all its rows; nothing is marked.
        """
        if self._incomplete:
            names = ", ".join(f"{name}[{shard}]" for name, shard in sorted(self._incomplete))
            raise StoreError(f"{self._group.store_path}: shards without all their rows: {names}")
        self._group.update_attributes({**attributes, "complete": True})

    def _shard_range(self, shard: int) -> tuple[int, int]:
        """First sample of a shard and one past its last."""
        low = shard * SHARD_SAMPLES
        return low, min(low + SHARD_SAMPLES, self._sizes["sample"])

    def _empty_shard(self, name: str, shard: int) -> Array:
        low, high = self._shard_range(shard)
        spec = self.specs[name]
        shape = [self._sizes[dim] for dim in spec.dims]
        shape[2] = high - low
        return spec.unknown(shape)

    def _write_shard(self, name: str, shard: int, rows: Array) -> None:
        array = self._array(name)
        key = "/".join([array.path, "c", "0", "0", str(shard), *(array.ndim - 3) * ["0"]])
        encoded = encode_shard(self._rounded(name, rows), array.fill_value)
        sync(array.store.set(key, Buffer.from_bytes(encoded)))

    def _set(self, name: str, index: tuple[Index, ...], values: Array) -> None:
        self._array(name)[index] = self._rounded(name, values)

    def _array(self, name: str) -> ZarrArray:
        """An array, whose metadata are read once."""
        if name not in self._arrays:
            array = self._group[name]
            assert isinstance(array, zarr.Array)
            # Also chunks of the fill value: a missing chunk is a lost one.
            self._arrays[name] = array.with_config({"write_empty_chunks": True})
        return self._arrays[name]

    def _rounded(self, name: str, values: Array) -> Array:
        """Values with the mantissa bits that the array keeps."""
        keepbits = self.specs[name].keepbits
        if keepbits is None:
            return values
        encoded = BitRound(keepbits).encode(np.ascontiguousarray(values))
        rounded: Array = encoded.view(values.dtype).reshape(values.shape)
        return rounded


def _write_samples(group: zarr.Group, spec: ArraySpec, samples: Mapping[str, Array]) -> None:
    _create(group, spec, {"sample": len(samples["label"]), "byte": 32})[...] = samples[spec.name]


def _create(group: zarr.Group, spec: ArraySpec, sizes: Mapping[str, int]) -> ZarrArray:
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
        overwrite=True,  # of chunks without metadata
    )
