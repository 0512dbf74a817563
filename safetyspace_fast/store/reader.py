"""A store for whoever reads it; arrays are read when they are asked for, and nothing is changed."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from ..errors import StoreError
from ..names import nearest, printable
from ..notebook import Section, html
from .access import (
    Index,
    axis_names,
    member,
    names_in,
    open_root,
    read_array,
    refuse_replaced,
    subgroup,
)
from .layout import MODEL, SAMPLES, Array, Attributes, expected_arrays
from .place import Place
from .results import load_results

if TYPE_CHECKING:
    import xarray

_DIMS = {spec.name: spec.dims for spec in MODEL}


@dataclass(frozen=True)
class SampleTable:
    """The samples of a store, in canonical order: the columns of `layout.SAMPLES`.

    Each is `[sample]`, but `text_sha256` `[sample, 32]`. `lang_index` is the column `lang`. Columns
    that an earlier version did not write are None.
    """

    file_position: Array
    lang_index: Array
    label: Array
    pair: Array
    item: Array
    fold: Array
    text_sha256: Array
    n_chars: Array
    cluster: Array | None = None
    lexical_score: Array | None = None


class ModelStore:
    """One model's arrays and attributes."""

    def __init__(
        self, group: zarr.Group, name: str, sizes: Mapping[str, int] | None = None
    ) -> None:
        """Wrap a group; nothing is read yet.

        Args:
            group: of the model.
            name: of the model.
            sizes: lengths of the axes `sample` and `lang`, which all models share.
        """
        self.name = name
        self._group = group
        self._sizes = sizes or {}

    def __repr__(self) -> str:
        """Texts, languages, layers and poolings, and whether the model is complete."""
        sizes = [
            f"{self._sizes[axis]:,} {what}, "
            for axis, what in (("sample", "texts"), ("lang", "languages"))
            if axis in self._sizes
        ]
        return f"<ModelStore {self.name!r}: {''.join(sizes)}{_described(self)}>"

    def _repr_html_(self) -> str:
        """What notebooks show."""
        return html(repr(self), f"ModelStore {self.name}", [Section("about", *_about(self))])

    @cached_property
    def attrs(self) -> Attributes:
        """Names of the axes, model, manifest, package versions, timings, and `complete`."""
        return dict(self._group.attrs)

    @property
    def complete(self) -> bool:
        """Whether all samples of this model are in the store."""
        return bool(self.attrs.get("complete"))

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """Names along the `layer` axis, in order of depth."""
        return axis_names(self.attrs, "hookpoints", f"{self._group.store_path}/zarr.json")

    @property
    def poolings(self) -> tuple[str, ...]:
        """Names along the `pooling` axis."""
        return axis_names(self.attrs, "poolings", f"{self._group.store_path}/zarr.json")

    @property
    def manifest(self) -> Attributes:
        """All that decides the numbers of the model: data, weights, template, dtype, seed, ...

        Empty if it is missing; entries that an earlier version did not write are missing.
        """
        manifest = self.attrs.get("manifest")
        return manifest if isinstance(manifest, dict) else {}

    @property
    def identity(self) -> str:
        """`NAME@` and 12 digits of a hash of the manifest: the same for the same model and data."""
        content = json.dumps(self.manifest, sort_keys=True)
        return f"{self.name}@{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    @property
    def seed(self) -> int:
        """Seed of the projection.

        Raises:
            StoreError: it is missing.
        """
        seed = self.manifest.get("seed")
        if not isinstance(seed, int):
            file = f"{self._group.store_path}/zarr.json"
            raise StoreError(f"{file}: no seed of the projection; `check` lists all damage")
        return seed

    def has(self, name: str) -> bool:
        """Whether the model has an array; earlier versions did not write the optional ones."""
        optional = {spec.name for spec in MODEL if spec.optional}
        names = self.attrs.get("optional_arrays")
        return name not in optional or (isinstance(names, list) and name in names)

    def read(
        self,
        name: str,
        *,
        layer: int | slice = slice(None),
        pooling: int | slice = slice(None),
        samples: slice = slice(None),
        lang: int | slice = slice(None),
    ) -> Array:
        """Read an array, or part of it; an index of an axis that it does not have is ignored.

        Args:
            name: one of the layout, such as `projected`.
            layer: index or range of hookpoints.
            pooling: index or range of poolings.
            samples: range of samples; see `Run.lang_range`.
            lang: index or range of languages.

        Raises:
            StoreError: the array is missing or damaged.
        """
        chosen: dict[str, Index] = {
            "layer": layer,
            "pooling": pooling,
            "sample": samples,
            "lang": lang,
        }
        if name not in _DIMS:
            raise StoreError(f"{self._group.store_path}: no array {name!r}")
        index = tuple(chosen.get(dim, slice(None)) for dim in _DIMS[name])
        own = {"layer": len(self.hookpoints), "pooling": len(self.poolings)}
        try:
            return read_array(self._group, name, index, {**self._sizes, **own})
        finally:  # a store that was replaced is the first reason to name
            refuse_replaced(self._group)


class Run:
    """A store of one data set and any number of models."""

    def __init__(self, path: str | Path) -> None:
        """Open a store.

        Args:
            path: a folder, or the URL of an object store.

        Raises:
            StoreError: there is no store, or a newer version of this package wrote it.
        """
        self.place = Place(path)
        self._root = open_root(self.place)
        self.attrs: Attributes = dict(self._root.attrs)

    def __repr__(self) -> str:
        """Texts, languages and models, and which of these are complete."""
        try:
            texts = f"{len(self.samples.label):,} texts"
        except StoreError:
            texts = "damaged samples"
        parts = [f"{texts} in {len(self.languages)} languages ({', '.join(self.languages)})"]
        for name in names_in(self._root, "models"):
            try:
                model = _described(ModelStore(subgroup(self._root, f"models/{name}"), name))
            except (StoreError, KeyError):
                model = "damaged"
            parts.append(f"model {name!r}: {model}")
        return printable(f"<Run {self.place}: {'; '.join(parts)}>")

    def _repr_html_(self) -> str:
        """What notebooks show: models, and texts of each language."""
        models = []
        for name in names_in(self._root, "models"):
            try:
                row = _in_table(ModelStore(subgroup(self._root, f"models/{name}"), name))
            except (StoreError, KeyError):
                row = ("damaged", "", "", "", "")
            models.append((name, *row))
        head = ("model", "state", "layers", "poolings", "dtype", "device")
        sections = [Section(f"{len(models)} models", head, models)]
        try:
            label = np.asarray(self.samples.label)
            texts = [
                (lang, int((own == 0).sum()), int((own == 1).sum()))
                for lang, own in ((lang, label[self.lang_range(lang)]) for lang in self.languages)
            ]
            title = f"{len(label):,} texts in {len(texts)} languages"
            sections.append(Section(title, ("language", "harmless", "harmful"), texts))
        except StoreError as error:
            sections.append(Section("texts: damaged", ("error",), [(error,)]))
        return html(repr(self), f"Run {self.place}", sections)

    @property
    def path(self) -> Path:
        """The store's folder.

        Raises:
            StoreError: it is an object store.
        """
        return self.place.folder

    @property
    def languages(self) -> tuple[str, ...]:
        """Names along the `lang` axis."""
        return tuple(self.attrs["languages"])

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Names of the complete models."""
        complete = []
        for name in names_in(self._root, "models"):
            with suppress(KeyError):  # a group that is just being made
                if member(self._root, f"models/{name}").attrs.get("complete"):
                    complete.append(name)
        return tuple(complete)

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Names of the models that are not complete: of a run that goes on or has stopped."""
        return tuple(x for x in names_in(self._root, "models") if x not in self.models)

    @cached_property
    def samples(self) -> SampleTable:
        """Source, label, language, pair and fold of every sample.

        Raises:
            StoreError: a column is missing or damaged.
        """
        try:
            group = subgroup(self._root, "samples")
        except KeyError as error:
            raise StoreError(
                f"{self.place}/samples/zarr.json: missing; `check` lists all damage"
            ) from error
        columns: dict[str, Array] = {}
        sizes: dict[str, int] = {}
        for spec in expected_arrays(SAMPLES, dict(group.attrs)):
            columns[spec.name] = read_array(group, spec.name, sizes=sizes)
            sizes["sample"] = len(columns[spec.name])  # all others must be as long as the first
        refuse_replaced(self._root)
        return SampleTable(lang_index=columns.pop("lang"), **columns)

    def lang_range(self, lang: str) -> slice:
        """The samples of one language, which are adjacent.

        Raises:
            StoreError: the store has no such language.
        """
        if lang not in self.languages:
            raise StoreError(
                f"{self.place}: no language {lang!r}; has {', '.join(self.languages)}"
                f"{nearest(lang, self.languages)}"
            )
        i_lang = self.languages.index(lang)
        bounds = np.searchsorted(self.samples.lang_index, [i_lang, i_lang + 1])
        return slice(int(bounds[0]), int(bounds[1]))

    def model(self, name: str) -> ModelStore:
        """Open one model.

        Raises:
            StoreError: the store has no such model, or it is not complete.
        """
        try:
            group = subgroup(self._root, f"models/{name}")
        except KeyError as error:
            raise StoreError(
                f"{self.place}: no model {name!r}; has {', '.join(self.models)}"
                f"{nearest(name, self.models)}"
            ) from error
        refuse_replaced(self._root)
        sizes = {"sample": len(self.samples.label), "lang": len(self.languages)}
        store = ModelStore(group, name, sizes)
        if not store.complete:
            raise StoreError(
                f"{self.place}: model {name!r} is not complete; finish it with --resume"
            )
        return store

    @cached_property
    def plot(self) -> Any:
        """Figures of this store, as Altair charts: `run.plot.layers()`; see `report.plot.Plots`.

        `report` lies above this room. It is loaded by name and only here, so that whoever reads a
        store needs nothing of it.
        """
        return import_module("safetyspace_fast.report.plot").Plots(self)

    def separation(self, name: str) -> "xarray.Dataset":
        """The stored results of one model: for each metric `[layer, pooling, lang, number]`.

        Raises:
            StoreError: there are none, or a newer version of this package wrote them.
        """
        return load_results(self.place, name)

    def dataset(self, name: str) -> "xarray.Dataset":
        """One model's arrays as xarray, lazily, with names along every axis and sample columns.

        Its attributes are strings and numbers, as netCDF takes them: `model`, `manifest` and
        `versions` are JSON. `ModelStore.attrs` has them as they are.

        Raises:
            StoreError: as for `model`; or its metadata are damaged.
        """
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
        except Exception as error:  # damaged metadata can raise anything
            raise StoreError(f"{self.place}/models/{name}: damaged metadata: {error}") from error
        return dataset.assign_attrs({key: _scalar(value) for key, value in arrays.attrs.items()})


def _scalar(value: object) -> str | int | float:
    """An attribute as netCDF takes it; what is neither a string nor a number becomes JSON."""
    if isinstance(value, str | int | float):
        return int(value) if isinstance(value, bool) else value
    return json.dumps(value, ensure_ascii=False)


def _described(store: ModelStore) -> str:
    """`32 layers (embed to final_norm), poolings mean, last, complete`."""
    complete = "complete" if store.complete else "not complete"
    try:
        names, poolings = store.hookpoints, ", ".join(store.poolings)
    except StoreError:
        return f"{complete}, without names of layers and poolings"
    layers = f"{names[0]} to {names[-1]}" if len(names) > 2 else ", ".join(names)
    return f"{len(names)} layers ({layers}), poolings {poolings}, {complete}"


def _in_table(store: ModelStore) -> tuple[object, ...]:
    """A model in the table of its run: state, layers, poolings, dtype, device."""
    return (
        "complete" if store.complete else "not complete",
        len(store.hookpoints),
        ", ".join(store.poolings),
        store.manifest.get("dtype", ""),
        store.attrs.get("device", ""),
    )


def _about(store: ModelStore) -> tuple[tuple[str, str], list[tuple[str, object]]]:
    """Head and rows of a model's table."""
    model = store.attrs.get("model")
    files = model if isinstance(model, dict) else {}
    names = ("state", "layers", "poolings", "dtype", "device")
    rows = list(zip(names, _in_table(store), strict=True))
    rows += [(name, files[name]) for name in ("id", "revision", "architecture") if files.get(name)]
    rows += [("tokens", store.attrs["tokens"])] if "tokens" in store.attrs else []
    rows += [("identity", store.identity)]
    return ("what", "value"), rows
