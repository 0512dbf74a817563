"""Results of `separation` in the store: a group a model, replaced as a whole or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from ..errors import StoreError
from . import files
from .lock import alone
from .place import Place
from .writer import consolidate

if TYPE_CHECKING:
    import xarray

RESULTS_VERSION = 1
_NUMBERS = ("value", "low", "high", "floor", "p", "p_family")
_AXES = ("layer", "pooling", "lang")


def save_results(place: Place, dataset: "xarray.Dataset") -> None:
    """Write what `separation` returned to `separation/<model>/`, one group for every model in it.

    Every metric is an array [layer, pooling, lang, number] whose last axis holds value, low, high,
    floor, p and p_family; attributes say what it is. A model's group is built in the work folder
    and moved: a crash leaves the old results, or none, and never half of them.

    Raises:
        StoreError: the store cannot be written to, or is an object store.
    """
    folder, work = place.folder / "separation", place.work
    with alone(work):
        try:
            place.group(read_only=False).require_group("separation")
            for model in dataset["model"].to_numpy().tolist():
                _replace(folder / model, work, dataset.sel(model=model))
            consolidate(place.folder)
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{place}: results cannot be written: {error}") from error


def load_results(place: Place, model: str) -> "xarray.Dataset":
    """What `save_results` keeps of one model, with names along every axis.

    Raises:
        StoreError: there are no results, or a newer version of the package wrote them.
    """
    import xarray

    root = place.group(read_only=True)
    group = f"separation/{model}"
    try:
        if group not in root:
            raise StoreError(f"{place}: no results for {model!r}; run `separation` first")
        found = xarray.open_zarr(root.store, group=group, consolidated=False)
        names = {axis: found.attrs[f"{axis}_names"] for axis in (*_AXES, "number")}
        named: xarray.Dataset = found.assign_coords(names)
    except StoreError:
        raise
    except Exception as error:  # of any kind, over metadata that make no sense
        raise StoreError(f"{place}/{group}: results that make no sense: {error}") from error
    return named


def _replace(folder: Path, work: Path, dataset: "xarray.Dataset") -> None:
    new, old = (work / f".results-{kind}" for kind in ("new", "old"))
    for leftover in filter(Path.is_dir, (new, old)):  # of a crash
        files.remove_tree(leftover)
    try:
        _write(new, dataset)
        if folder.exists():
            files.move(folder, old)
        files.move(new, folder)
    finally:
        if old.is_dir() and not folder.exists():
            files.move(old, folder)
        for leftover in filter(Path.is_dir, (new, old)):
            files.remove_tree(leftover)


def _write(path: Path, dataset: "xarray.Dataset") -> None:
    names = {f"{axis}_names": dataset[axis].to_numpy().tolist() for axis in _AXES}
    group = zarr.create_group(
        Place(path).store(read_only=False),
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
        attributes = {"units": said.pop("unit"), **said, "refused_reasons": ["", *reasons]}
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
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},  # a chunk that is not there counts as damage
        dimension_names=dims,
        attributes=attributes,
        fill_value=np.nan if values.dtype.kind == "f" else 0,
    )
    created[...] = values
