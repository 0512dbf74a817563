"""Whether every file of a store is there and whole, and what must be done again if not."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync

from ..errors import StoreError
from .access import (
    below,
    damaged_chunks,
    names_of,
    open_group,
    opened,
    opened_group,
    read_array,
    refuse_misfit,
)
from .layout import MODEL, SAMPLES, ArraySpec, shards_of
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
    """What `check` found."""

    complete: list[str] = field(default_factory=list)
    """Models all of whose samples are in the store."""
    incomplete: dict[str, str] = field(default_factory=dict)
    """How far the other models came."""
    damage: list[Damage] = field(default_factory=list)


def check(location: str | Path, *, repair: bool = False) -> Report:
    """Read every file of a store; verify checksums, journals, shapes and coverage.

    With `repair`, damaged files are deleted and their models marked as incomplete, so that the
    `run` command that made the store, repeated with `--resume`, does that part again and no other.

    Raises:
        StoreError: there is no store, or its own zarr.json is damaged, which nothing can repair;
            or a model that needs repair is being written.
    """
    place = Place(location)
    root = open_group(place)
    report = Report(damage=_stale_copies(root))
    facts: dict[str, Any] = dict(root.attrs)
    languages: list[str] = facts["languages"]
    for name, attributes in (("samples", {"languages": languages}), ("models", {})):
        try:
            opened_group(root, name)
        except _UNREADABLE as error:
            report.damage.append(Damage(f"{name}/zarr.json", str(error)))
            if not repair:
                return report  # what lies below cannot be opened
            write_bare_group(place, name, attributes)
    columns: dict[str, np.ndarray[Any, Any]] = {}
    for spec in SAMPLES:  # a resumed run writes those again that are not there
        try:
            columns[spec.name] = read_array(opened_group(root, "samples"), spec.name)
        except StoreError as error:
            report.damage.append(Damage(f"samples/{spec.name}", str(error)))
            if repair:
                sync(place.store(read_only=False).delete_dir(f"samples/{spec.name}"))
    n = min((len(column) for column in columns.values()), default=0)
    ranges = [slice(0, n)] * len(languages)  # if `lang` is damaged, all of them may be concerned
    if "lang" in columns:
        bounds = np.searchsorted(columns["lang"], range(len(languages) + 1)).tolist()
        ranges = [slice(low, high) for low, high in pairwise(bounds)]
    for name in below(root, "models"):
        _check_model(place, root, name, ranges, n, report, repair)
    if repair and report.damage:
        with alone(place.work):
            consolidate(location)
    return report


def _check_model(
    place: Place,
    root: zarr.Group,
    name: str,
    ranges: list[slice],
    n_samples: int,
    report: Report,
    repair: bool,
) -> None:
    folder = place.work / name
    try:
        group = opened_group(root, f"models/{name}")
        attributes: dict[str, Any] = dict(group.attrs)
        axes = {"lang": len(ranges), "sample": n_samples}
        if "hookpoints" in attributes:
            for axis, key in (("layer", "hookpoints"), ("pooling", "poolings")):
                axes[axis] = len(names_of(attributes, key, f"models/{name}/zarr.json"))
    except _UNREADABLE as error:
        report.damage.append(Damage(f"models/{name}/zarr.json", str(error)))
        report.incomplete[name] = "nothing that can be used"
        if repair:
            with Claim(folder, f"{place}: model {name!r}"):
                clear(folder)
                sync(place.store(read_only=False).delete_dir(f"models/{name}"))
        return
    if "hookpoints" not in attributes:
        report.incomplete[name] = "begun"
        return
    n_shards = len(shards_of(slice(0, n_samples)))
    complete = bool(attributes.get("complete"))
    done = set(range(n_shards)) if complete else Journal(folder).shards()

    def stands_for(spec: ArraySpec, index: tuple[int, ...] | None) -> set[int]:
        """The shards to do again if a chunk, or for None a whole array, is not there."""
        if not spec.by_sample and not spec.by_language:
            return set()  # every resumed run writes it
        if index is None:
            return set(range(n_shards))
        if spec.by_sample:
            return {index[2]}
        return set(shards_of(ranges[index[spec.dims.index("lang")]]))

    found: list[tuple[ArraySpec, tuple[int, ...] | None, Damage]] = []
    for spec in MODEL:
        key = f"models/{name}/{spec.name}"
        try:
            array = opened(group, spec.name)
            if not isinstance(array, zarr.Array):
                raise StoreError(f"{key}: a group, expected an array")
            refuse_misfit(array, spec, axes)
        except _UNREADABLE as error:
            found.append((spec, None, Damage(f"{key}/zarr.json", str(error))))
            continue

        def is_due(index: tuple[int, ...], spec: ArraySpec = spec) -> bool:
            due = stands_for(spec, index)
            return complete or bool(due and due <= done)

        for index, file, reason in damaged_chunks(array, is_due):
            found.append((spec, index, Damage(file, str(reason))))
    report.damage += [damage for _, _, damage in found]
    for spec, place_in_grid, _ in found:
        done -= stands_for(spec, place_in_grid)
    if complete and not found:
        report.complete.append(name)
        return
    report.incomplete[name] = f"{len(done)} of {n_shards} shards written"
    if repair and found:
        with Claim(folder, f"{place}: model {name!r}"):
            _mark(place, name, folder, done, [damage.file for _, _, damage in found])


def _mark(place: Place, name: str, folder: Path, done: set[int], damaged: list[str]) -> None:
    """Delete damaged files, and say what is left in the attributes and in a new journal."""
    root = place.group(read_only=False)
    # First, since a crash after it only means that more is done again.
    opened_group(root, f"models/{name}").attrs["complete"] = False
    Journal(folder).replace(done)
    store = place.store(read_only=False)
    for file in damaged:
        if file.endswith("/zarr.json"):
            sync(store.delete_dir(file.removesuffix("/zarr.json")))
        else:
            sync(store.delete(file))


def _stale_copies(root: zarr.Group) -> list[Damage]:
    """Consolidated metadata that differ from what they are copies of."""
    try:
        copies = zarr.open_group(root.store, mode="r", zarr_format=3).metadata.consolidated_metadata
        seals = {
            key: dict[str, Any](copy.attributes).get(SEAL)
            for key, copy in (copies.flattened_metadata if copies else {}).items()
        }
    except Exception as error:  # of any kind, over metadata that make no sense
        return [Damage("zarr.json", f"its copies of other metadata make no sense: {error}")]
    for key, seal in seals.items():
        try:
            if opened(root, key).attrs[SEAL] != seal:
                return [Damage("zarr.json", f"its copy of {key}/zarr.json is older or damaged")]
        except _UNREADABLE:
            continue  # reported above
    return []
