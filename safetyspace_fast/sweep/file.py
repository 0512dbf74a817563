"""Sweep files, in TOML or JSON: many models over several data sets, one store a data set."""

import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from ..config import DataFields, RunConfig
from ..errors import ConfigError, first_line
from ..models import parse_model
from ..names import nearest

DATA_FIELDS = tuple(DataFields.__annotations__)
"""How a data set is read; may stand at the top of a file or in an entry of `data`."""
MODEL_FIELDS = tuple(
    field.name
    for field in fields(RunConfig)
    if field.name not in {*DATA_FIELDS, "models", "data", "out", "resume", "overwrite"}
)
"""How a model is run; may stand at the top of a file or in an entry of `models`."""

_ROLES = ("base", "aligned")


@dataclass(frozen=True)
class ModelEntry:
    """A model of a sweep.

    text: `[NAME=]BASE[+ADAPTER]...`.
    changes: fields of `RunConfig` that differ from those of the sweep.
    where: its place in the file, for messages.
    """

    text: str
    changes: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class DataEntry:
    """A data set of a sweep, and the store that it fills.

    data: as in `RunConfig`.
    out: the store.
    changes: fields of `RunConfig` that differ from those of the sweep.
    where: its place in the file, for messages.
    """

    data: str | tuple[str, ...]
    out: str
    changes: Mapping[str, Any]
    where: str


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says; `configs` gives its runs.

    name: of the file, for messages.
    shared: fields of `RunConfig` that hold for every run.
    """

    name: str
    models: tuple[ModelEntry, ...]
    data: tuple[DataEntry, ...]
    shared: Mapping[str, Any]

    def configs(self) -> tuple[RunConfig, ...]:
        """One run for each model and data set, in a fixed order: model after model, base first.

        Each has exactly one model. All may find their store begun by another (`resume`).

        Raises:
            ConfigError: a value is out of range; the message names its place in the file.
        """
        return tuple(self._config(model, data) for model in self.models for data in self.data)

    def _config(self, model: ModelEntry, data: DataEntry) -> RunConfig:
        chosen = {**self.shared, **data.changes, **model.changes}
        try:
            return RunConfig(models=model.text, data=data.data, out=data.out, resume=True, **chosen)
        except ConfigError as error:
            field = str(error).partition(":")[0]
            where = next((f"{e.where}." for e in (model, data) if field in e.changes), "")
            raise ConfigError(f"{self.name}: {where}{error}") from error


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file; its format is told by the ending `.json`, or else is TOML.

    Raises:
        ConfigError: it cannot be read, or a key or a value is wrong; the message names its place.
    """
    file, name = Path(path).expanduser(), Path(path).name
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: no sweep file can be read here: {error.strerror}") from error
    decode = msgspec.json.decode if file.suffix == ".json" else msgspec.toml.decode
    try:
        tree = decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        kind = "JSON" if file.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: not {kind}: {first_line(error)}") from error
    return decode_sweep(tree, name)


def decode_sweep(tree: object, name: str = "sweep") -> Sweep:
    """Check the content of a sweep file.

    Args:
        tree: the file's content as dicts and lists.
        name: of the file, for messages.

    Raises:
        ConfigError: a key or a value is wrong; the message names its place.
    """
    top = _entry(tree, _TOP, name, "")
    models = (*_models(top.models, name), *_pairs(top.pairs, name))
    if not models:
        raise ConfigError(
            f"{name}: no models; add `models = [..]`, or pairs as `NAME = [BASE, ALIGNED]` in "
            "[pairs]"
        )
    data = tuple(_data_sets(top.data, top.out, name))
    if not data:
        raise ConfigError(f"{name}: no data; add `data = [..]`")
    _refuse_twice(((parse_model(m.text).name, m.where) for m in models), name, "name")
    _refuse_twice(((d.out, d.where) for d in data), name, "store")
    sweep = Sweep(name, models, data, _given(top, (*DATA_FIELDS, *MODEL_FIELDS)))
    sweep.configs()
    return sweep


def _models(entries: Sequence[object], name: str) -> Iterator[ModelEntry]:
    for number, entry in enumerate(entries):
        where = f"models[{number}]"
        model = _entry({"model": entry} if isinstance(entry, str) else entry, _MODEL, name, where)
        yield _named(ModelEntry(model.model, _given(model, MODEL_FIELDS), where), name)


def _pairs(pairs: Mapping[str, object], name: str) -> Iterator[ModelEntry]:
    """The models of pairs, named `PAIR.base` and `PAIR.aligned`."""
    for pair, models in pairs.items():
        where = f"pairs.{pair}"
        for role, model in zip(_ROLES, _entry(models, tuple[str, str], name, where), strict=True):
            entry = _named(ModelEntry(f"{pair}.{role}={model}", {}, f"{where}.{role}"), name)
            if parse_model(entry.text).name != f"{pair}.{role}":
                raise ConfigError(f"{name}: {where}: no name for models; leave out '=' and '/'")
            yield entry


def _named(entry: ModelEntry, name: str) -> ModelEntry:
    try:
        parse_model(entry.text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {entry.where}: {error}") from error
    return entry


def _data_sets(entries: Sequence[object], folder: str, name: str) -> Iterator[DataEntry]:
    for number, entry in enumerate(entries):
        where = f"data[{number}]"
        data = _entry({"data": entry} if isinstance(entry, str) else entry, _DATA, name, where)
        first = data.data if isinstance(data.data, str) else next(iter(data.data), "")
        store = data.name if data.name is not msgspec.UNSET else _store_name(first)
        if not store or "/" in store:
            raise ConfigError(f"{name}: {where}.name: got {store!r}, expected a name for its store")
        out = f"{folder.rstrip('/')}/{store}.zarr"
        yield DataEntry(data.data, out, _given(data, DATA_FIELDS), where)


def _store_name(data: str) -> str:
    """What a data set's store is called: the last part of its path or id, without an ending."""
    last = data.rstrip("/").rpartition("/")[2].rpartition(":")[2].rpartition("=")[2]
    return Path(last.partition("@")[0]).stem


def _refuse_twice(names: Iterator[tuple[str, str]], file: str, what: str) -> None:
    first: dict[str, str] = {}
    for name, where in names:
        if name.casefold() in first:
            raise ConfigError(
                f"{file}: {where}: its {what} {name!r} is also that of {first[name.casefold()]}; "
                + ("write NAME=MODEL" if what == "name" else 'give one a `name = ".."`')
            )
        first[name.casefold()] = where


def _given(entry: Any, names: Collection[str]) -> dict[str, Any]:  # structs are made at run time
    values = {name: getattr(entry, name) for name in names if hasattr(entry, name)}
    return {name: value for name, value in values.items() if value is not msgspec.UNSET}


def _entry(value: object, kind: Any, name: str, where: str) -> Any:
    """Convert a table to a struct, strictly.

    Raises:
        ConfigError: a key is not known, or a value has another type.
    """
    if isinstance(value, Mapping) and kind in _REQUIRED:
        dot = f"{where}." if where else ""
        for key in value:
            if key not in kind.__struct_fields__:
                near = nearest(str(key), kind.__struct_fields__)
                raise ConfigError(f"{name}: {dot}{key}: no such key{near}")
        for key, advice in _REQUIRED[kind].items():
            if key not in value:
                raise ConfigError(f"{name}: {dot}{key}: missing; {advice}")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$")
        place = f"{where}{place.rstrip('`')}".lstrip(".") or "the file"
        for word, usual in (("array", "list"), ("object", "table"), ("null", "nothing")):
            said = re.sub(rf"\b{word}\b", usual, said)
        raise ConfigError(f"{name}: {place}: {said[0].lower()}{said[1:]}") from error


def _plain(hint: Any) -> Any:  # any type hint
    """A hint of `RunConfig` as msgspec takes it: one kind of list, no paths, whole numbers kept.

    Names of choices stay strings: `RunConfig` refuses a wrong one with the nearest.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _plain(inner[0])
    if origin in (Union, types.UnionType):
        return Union[tuple(_plain(one) for one in inner)]  # noqa: UP007 - made at run time
    if origin is Literal or hint is Path:
        return str
    if inner:
        return tuple[_plain(inner[0]), ...]  # type: ignore[misc]  # made at run time
    return int | float if hint is float else hint


def _struct(name: str, own: Sequence[Any], names: Collection[str]) -> Any:
    hints = get_type_hints(RunConfig, include_extras=True)
    options = [(field, _plain(hints[field]) | msgspec.UnsetType, msgspec.UNSET) for field in names]
    return msgspec.defstruct(name, [*own, *options], frozen=True, kw_only=True)


_MODEL = _struct("Model", [("model", str)], MODEL_FIELDS)
_DATA = _struct(
    "Data",
    [
        ("data", str | tuple[str, ...]),
        ("name", cast(Any, str | msgspec.UnsetType), msgspec.UNSET),
    ],
    DATA_FIELDS,
)
_TOP = _struct(
    "Sweep",
    [
        ("out", str),
        ("models", tuple[str | dict[str, Any], ...], ()),
        ("pairs", dict[str, Any], msgspec.field(default_factory=dict)),
        ("data", tuple[str | dict[str, Any], ...], ()),
        ("study", dict[str, Any], msgspec.field(default_factory=dict)),
    ],
    (*DATA_FIELDS, *MODEL_FIELDS),
)
_REQUIRED: dict[Any, dict[str, str]] = {
    _TOP: {"out": "name a folder for the stores, one for each data set"},
    _MODEL: {"model": "write [NAME=]BASE[+ADAPTER].."},
    _DATA: {"data": "name a file, a directory or a hub id"},
}
