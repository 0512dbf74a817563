"""Finding damaged and missing files of a store, and preparing them to be computed again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import zarr
from zarr.core.sync import sync

from ..errors import StoreError
from .access import (
    axis_names,
    damaged_chunks,
    member,
    names_in,
    open_root,
    read_array,
    refuse_misfit,
    subgroup,
)
from .layout import MODEL, SAMPLES, Array, ArraySpec, Attributes, shards_of
from .lock import Claim, alone
from .place import SEAL, Place
from .session import Journal, clear
from .writer import consolidate, write_bare_group

_UNREADABLE = (StoreError, KeyError)


@dataclass(frozen=True)
class Damage:
    """One file that is not what was written."""

    file: str
    """Its key in the store."""
    reason: str


@dataclass
class Report:
    """The result of `check`."""

    complete: list[str] = field(default_factory=list)
    """Models with all samples in the store, undamaged."""
    incomplete: dict[str, str] = field(default_factory=dict)
    """The other models, and how much of each is written."""
    damage: list[Damage] = field(default_factory=list)


def check(location: str | Path, *, repair: bool = False) -> Report:
    """Read every file of a store; compare checksums, shapes and the journal's shards.

    Args:
        location: path or URL of the store.
        repair: delete damaged files and mark their models incomplete. Then the `run` command that
            made the store, with `--resume`, computes only these parts again.

    Raises:
        StoreError: there is no store; its own zarr.json is damaged, which cannot be repaired; or a
            model that needs repair is being written.
    """
    place = Place(location)
    root = open_root(place)
    report = Report(damage=_stale_copies(root))
    attributes: Attributes = dict(root.attrs)
    languages: list[str] = attributes["languages"]
    for name, own in (("samples", {"languages": languages}), ("models", {})):
        try:
            subgroup(root, name)
        except _UNREADABLE as error:
            report.damage.append(Damage(f"{name}/zarr.json", str(error)))
            if not repair:
                return report  # nothing below it can be opened
            write_bare_group(place, name, own)
    columns = _check_samples(place, root, report, repair)
    n = min((len(column) for column in columns.values()), default=0)
    ranges = [slice(0, n)] * len(languages)  # without `lang`, a shard may be of any language
    if "lang" in columns:
        bounds = np.searchsorted(columns["lang"], range(len(languages) + 1)).tolist()
        ranges = [slice(low, high) for low, high in pairwise(bounds)]
    for name in names_in(root, "models"):
        _Model(place, root, name, ranges, n).check(report, repair)
    if repair and report.damage:
        with alone(place.work):
            consolidate(location)
    return report


def _check_samples(
    place: Place, root: zarr.Group, report: Report, repair: bool
) -> dict[str, Array]:
    """Read the columns of `samples`; a resumed run writes those that are deleted here."""
    columns = {}
    for spec in SAMPLES:
        group = subgroup(root, "samples")
        if spec.optional and spec.name not in names_in(root, "samples"):
            continue
        try:
            columns[spec.name] = read_array(group, spec.name)
        except StoreError as error:
            report.damage.append(Damage(f"samples/{spec.name}", str(error)))
            if repair:
                sync(place.store(read_only=False).delete_dir(f"samples/{spec.name}"))
    return columns


class _Model:
    """One model of a store that is checked."""

    def __init__(
        self, place: Place, root: zarr.Group, name: str, ranges: list[slice], n_samples: int
    ) -> None:
        """Say which model, and the samples of each language."""
        self._place = place
        self._root = root
        self._name = name
        self._ranges = ranges
        self._n_samples = n_samples
        self._n_shards = len(shards_of(slice(0, n_samples)))
        self._folder = place.work / name

    def check(self, report: Report, repair: bool) -> None:
        """Read all arrays; add to the report; with `repair`, delete what is damaged."""
        name, metadata = self._name, f"models/{self._name}/zarr.json"
        try:
            group = subgroup(self._root, f"models/{name}")
            attributes: Attributes = dict(group.attrs)
            sizes = {"lang": len(self._ranges), "sample": self._n_samples}
            if "hookpoints" in attributes:
                for axis, key in (("layer", "hookpoints"), ("pooling", "poolings")):
                    sizes[axis] = len(axis_names(attributes, key, metadata))
        except _UNREADABLE as error:
            report.damage.append(Damage(metadata, str(error)))
            report.incomplete[name] = "nothing that can be used"
            if repair:
                with self._claim():
                    clear(self._folder)
                    sync(self._place.store(read_only=False).delete_dir(f"models/{name}"))
            return
        if "hookpoints" not in attributes:
            report.incomplete[name] = "begun"
            return
        complete = bool(attributes.get("complete"))
        done = set(range(self._n_shards)) if complete else Journal(self._folder).shards()
        damaged: list[str] = []
        has = attributes.get("optional_arrays")
        has = has if isinstance(has, list) else []
        specs = [spec for spec in MODEL if not spec.optional or spec.name in has]
        written = None if complete else frozenset(done)
        for damage, shards in self._damage(group, specs, sizes, written):
            report.damage.append(damage)
            damaged.append(damage.file)
            done -= shards
        if complete and not damaged:
            report.complete.append(name)
            return
        report.incomplete[name] = f"{len(done)} of {self._n_shards} shards written"
        if repair and damaged:
            with self._claim():
                self._repair(done, damaged)

    def _claim(self) -> Claim:
        return Claim(self._folder, f"{self._place}: model {self._name!r}")

    def _damage(
        self,
        group: zarr.Group,
        specs: Sequence[ArraySpec],
        sizes: dict[str, int],
        written: frozenset[int] | None,
    ) -> Iterator[tuple[Damage, set[int]]]:
        """Every damaged file, and the shards to write again because of it.

        Args:
            group: the model's.
            specs: its arrays.
            sizes: lengths of the axes that are known.
            written: the shards that should exist; None: all files should.
        """
        for spec in specs:
            key = f"models/{self._name}/{spec.name}"
            try:
                array = member(group, spec.name)
                if not isinstance(array, zarr.Array):
                    raise StoreError(f"{key}: a group, expected an array")
                refuse_misfit(array, spec, sizes)
            except _UNREADABLE as error:
                yield Damage(f"{key}/zarr.json", str(error)), self._shards_lost_with(spec, None)
                continue

            def is_due(index: tuple[int, ...], spec: ArraySpec = spec) -> bool:
                shards = self._shards_lost_with(spec, index)
                return written is None or bool(shards and shards <= written)

            for index, file, reason in damaged_chunks(array, is_due):
                yield Damage(file, str(reason)), self._shards_lost_with(spec, index)

    def _shards_lost_with(self, spec: ArraySpec, index: tuple[int, ...] | None) -> set[int]:
        """The shards to write again if a file is missing.

        Args:
            spec: its array.
            index: of the file in the array's grid of files; None: all its files.
        """
        if not spec.by_sample and not spec.by_language:
            return set()  # every resumed run writes it
        if index is None:
            return set(range(self._n_shards))
        if spec.by_sample:
            return {index[2]}
        return set(shards_of(self._ranges[index[spec.dims.index("lang")]]))

    def _repair(self, done: set[int], damaged: list[str]) -> None:
        """Mark the model incomplete, enter the undamaged shards, delete the damaged files."""
        root = self._place.group(read_only=False)
        # First: after a crash behind this line, more is computed again than needed, never less.
        subgroup(root, f"models/{self._name}").attrs["complete"] = False
        Journal(self._folder).replace(done)
        store = self._place.store(read_only=False)
        for file in damaged:
            if file.endswith("/zarr.json"):
                sync(store.delete_dir(file.removesuffix("/zarr.json")))
            else:
                sync(store.delete(file))


def _stale_copies(root: zarr.Group) -> list[Damage]:
    """Consolidated metadata that differ from the metadata they are copies of."""
    try:
        copies = zarr.open_group(root.store, mode="r", zarr_format=3).metadata.consolidated_metadata
        seals = {
            key: dict[str, object](copy.attributes).get(SEAL)
            for key, copy in (copies.flattened_metadata if copies else {}).items()
        }
    except Exception as error:  # damaged metadata can raise anything
        return [Damage("zarr.json", f"its copies of other metadata are damaged: {error}")]
    for key, seal in seals.items():
        try:
            if member(root, key).attrs[SEAL] != seal:
                return [Damage("zarr.json", f"its copy of {key}/zarr.json is older or damaged")]
        except _UNREADABLE:
            continue  # reported by `check`
    return []
