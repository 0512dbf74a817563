"""Results of `separation` in the store: a group a model, replaced as a whole or not at all."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from ..errors import StoreError
from .reader import Run

if TYPE_CHECKING:
    import xarray

RESULTS_VERSION = 1
_NUMBERS = ("value", "low", "high", "floor", "p", "p_family")
_AXES = ("layer", "pooling", "lang")


def save_results(run: Run, dataset: "xarray.Dataset") -> None:
    """Write what `separation` returned to `separation/<model>/`, one group for every model in it.

    Every metric is an array [layer, pooling, lang, number] whose last axis holds value, low, high,
    floor, p and p_family; attributes say what it is. A model's group is built beside its place and
    renamed: a crash leaves the old results, or none, and never half of them.

    Raises:
        StoreError: the store cannot be written to.
    """
    try:
        zarr.open_group(run.path, mode="r+").require_group("separation")
        for model in dataset["model"].to_numpy().tolist():
            _replace(run.path / "separation" / model, dataset.sel(model=model))
    except (OSError, ValueError) as error:
        raise StoreError(f"{run.path}: results cannot be written: {error}") from error


def load_results(run: Run, model: str) -> "xarray.Dataset":
    """What `save_results` keeps of one model, with names along every axis.

    Raises:
        StoreError: there are no results, or a newer version of the package wrote them.
    """
    import xarray

    place = f"separation/{model}"
    if not (run.path / place / "zarr.json").exists():
        raise StoreError(f"{run.path}: no results for {model!r}; run `separation` first")
    found = xarray.open_zarr(run.path, group=place, consolidated=False)
    version = found.attrs["format_version"]
    if version != RESULTS_VERSION:
        raise StoreError(
            f"{run.path}: results of format_version {version}, this package reads "
            f"{RESULTS_VERSION}; update safetyspace-fast"
        )
    names = {axis: found.attrs[f"{axis}_names"] for axis in (*_AXES, "number")}
    named: xarray.Dataset = found.assign_coords(names)
    return named


def _replace(place: Path, dataset: "xarray.Dataset") -> None:
    new, old = (place.with_name(f".{place.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    try:
        _write(new, dataset)
        for path in (*new.rglob("*"), new):
            _fsync(path)
        if place.exists():
            place.rename(old)
        new.rename(place)
        _fsync(place.parent)
    finally:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _write(path: Path, dataset: "xarray.Dataset") -> None:
    names = {f"{axis}_names": dataset[axis].to_numpy().tolist() for axis in _AXES}
    group = zarr.create_group(
        path,
        attributes={
            "format_version": RESULTS_VERSION,
            "settings": dict(dataset.attrs),
            "number_names": list(_NUMBERS),
            **names,
        },
    )
    for i, name in enumerate(dataset["metric"].to_numpy().tolist()):
        one = dataset.isel(metric=i)
        refused = one["refused"].transpose(*_AXES).to_numpy()
        reasons = sorted({str(reason) for reason in refused.flat} - {""})
        coords = {key: value for key, value in one.coords.items() if key not in one.dims}
        said = {str(key): value.item() for key, value in coords.items() if value.ndim == 0}
        array = np.stack([one[part].transpose(*_AXES).to_numpy() for part in _NUMBERS], -1)
        attributes = {**said, "units": said.pop("unit"), "refused_reasons": ["", *reasons]}
        _array(group, name, array, (*_AXES, "number"), attributes)
        codes = np.searchsorted(["", *reasons], refused.astype(str)).astype(np.int16)
        about = {"units": "1", "long_name": f"why there is no {name}: index in its refused_reasons"}
        _array(group, f"{name}_refused", codes, _AXES, about)
    for name, variable in dataset.data_vars.items():
        if "metric" not in variable.dims:
            dims = [axis for axis in _AXES if axis in variable.dims]
            values = variable.transpose(*dims).to_numpy()
            _array(group, str(name), values, dims, dict(variable.attrs))


def _array(
    group: zarr.Group, name: str, values: Any, dims: Any, attributes: dict[str, Any]
) -> None:
    created = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=tuple(max(1, size) for size in values.shape),
        dimension_names=dims,
        attributes=attributes,
        fill_value=np.nan if values.dtype.kind == "f" else 0,
    )
    created[...] = values


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
