"""Growing a store: one with more texts is made beside it, takes over what it can, and replaces it.

The new store lies in the work folder until every model of the old one is complete in it; until
then the old one is read as before. A language whose texts, labels and folds are the same is taken
over as it is. Then the two change places by two renames, which `settle` finishes after a crash.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from ..errors import StoreError
from . import files
from .access import below, open_group, read_array
from .layout import MODEL, Array, shards_of
from .lock import Claim
from .place import Place
from .reader import Run
from .session import Journal, clear
from .writer import create_run, resume_run

# No model has a name that begins with a dot.
_GROWN = ".grown"
_BEFORE = ".before"


def settle(place: Place, mine: Collection[str] = ()) -> None:
    """Finish a change of places, which a crash may have broken off; the caller is `alone`."""
    before = place.work / _BEFORE
    if place.path is None or not before.exists():
        return
    if not place.exists():
        files.move(place.work / _GROWN, place.path)
    _clear_models(place, mine)
    files.remove_tree(before)


def discard(place: Place, mine: Collection[str]) -> None:
    """Delete what unfinished runs left in the work folder; the caller is `alone`.

    Args:
        place: of the store.
        mine: the models that the caller has claimed.

    Raises:
        StoreError: another process writes a model.
    """
    _clear_models(place, mine)
    _remove_grown(place)


@dataclass(frozen=True)
class Kept:
    """What a store that grows takes over of one model."""

    manifest: dict[str, Any] = field(default_factory=dict)
    """With which the model was run before; empty if it was not."""
    languages: Mapping[str, Callable[[], dict[str, Array]]] = field(default_factory=dict)
    """Reads the arrays of a language: those of samples as `[layer, pooling, n, ...]`, those by
    language without that axis."""

    def manifest_with(self, new: dict[str, Any]) -> dict[str, Any]:
        """The earlier manifest over the new texts: data and plans may differ, but not the plans of
        languages that are kept."""
        if not self.manifest:
            return {}
        plans = {lang: self.manifest["plan_sha256"][lang] for lang in self.languages}
        plans = new["plan_sha256"] | plans
        return self.manifest | {"data_sha256": new["data_sha256"], "plan_sha256": plans}


class Growth:
    """A store with more texts than the one whose place it will take."""

    def __init__(self, run: Run, languages: tuple[str, ...], columns: dict[str, Array]) -> None:
        """Compare the texts; nothing is written.

        Args:
            run: the store as it is.
            languages: of the new data.
            columns: `SAMPLES` of the new data, by name.

        Raises:
            StoreError: a text is gone or has another label, or the store is an object store.
        """
        if run.place.path is None or run.place.path.is_symlink():
            kind = "a link" if run.place.path else "an object store"
            raise StoreError(f"{run.place}: {kind} cannot grow in its place; write a new store")
        self._run = run
        self.location = run.place.work / _GROWN
        self._same = _same_languages(run, languages, columns)

    def open(self, mine: Collection[str], **content: Any) -> zarr.Group:
        """Make the new store, or go on with it; `content` as for `create_run`.

        Raises:
            StoreError: another process grows the store with other data.
        """
        begun = None
        with suppress(StoreError):  # not there, half made, or half deleted
            begun = Run(self.location).attrs["data_sha256"]
        if begun == content["data_sha256"]:
            return resume_run(self.location, samples=content["samples"])
        if begun is not None:
            for _ in _others(self._run.place, mine):
                pass
        _remove_grown(self._run.place)
        return create_run(self.location, **content)

    def kept(self, model: str) -> Kept:
        """What is taken over of a model."""
        group = open_group(self._run.place).get(f"models/{model}")
        attributes: dict[str, Any] = dict(group.attrs) if isinstance(group, zarr.Group) else {}
        if not isinstance(group, zarr.Group) or "manifest" not in attributes:
            return Kept()
        done = Journal(self._run.place.work / model).shards()
        languages = {
            lang: partial(self._arrays, group, lang, there)
            for lang, there in self._same.items()
            if attributes["complete"] or done.issuperset(shards_of(there))
        }
        return Kept(attributes["manifest"], languages)

    def finish(self, mine: Collection[str]) -> str | None:
        """Put the new store in its place, or say what it waits for; the caller is `alone`."""
        place = self._run.place
        names, grown = below(open_group(place), "models"), Run(self.location)
        if waiting := ", ".join(name for name in names if name not in grown.models):
            return f"the store stays as it was until the models {waiting} are run too"
        try:
            for _ in _others(place, mine):
                pass
        except StoreError as error:
            return f"the store stays as it was until this run is repeated: {error}"
        assert place.path is not None
        if (work := grown.place.work).exists():
            files.remove_tree(work)
        files.move(place.path, place.work / _BEFORE)
        settle(place, mine)
        return None

    def _arrays(self, group: zarr.Group, lang: str, there: slice) -> dict[str, Array]:
        i_lang = self._run.languages.index(lang)
        arrays = {}
        for spec in MODEL:
            if spec.by_sample:
                arrays[spec.name] = read_array(group, spec.name, np.s_[:, :, there])
            elif spec.by_language:
                index = (slice(None),) * spec.dims.index("lang") + (i_lang,)
                arrays[spec.name] = read_array(group, spec.name, index)
        return arrays


def _same_languages(
    run: Run, languages: tuple[str, ...], columns: dict[str, Array]
) -> dict[str, slice]:
    """Where the store has the languages that are the same in the new data.

    Raises:
        StoreError: a text of the store is not in the new data, or has another label there.
    """
    before = run.samples
    bounds = np.searchsorted(columns["lang"], range(len(languages) + 1))
    same = {}
    for lang in run.languages:
        there = run.lang_range(lang)
        here = slice(0, 0)
        if lang in languages:
            here = slice(*bounds[languages.index(lang) :][:2].tolist())
        old, new = (
            [(bytes(sha256), int(label)) for sha256, label in zip(hashes, labels, strict=True)]
            for hashes, labels in (
                (before.text_sha256[there], before.label[there]),
                (columns["text_sha256"][here], columns["label"][here]),
            )
        )
        if old == new and np.array_equal(before.fold[there], columns["fold"][here]):
            same[lang] = there
        elif gone := Counter(old) - Counter(new):
            sha256, label = next(iter(gone))
            row = before.file_position[there][old.index((sha256, label))] + 1
            changed = (sha256, 1 - label) in new
            what = f"has now label {1 - label}" if changed else "is gone, or was left out"
            raise StoreError(
                f"{run.place}: a store grows by texts and languages and loses none; of its {lang} "
                f"texts, {gone.total()} are not in the data: the first, row {row} of the data it "
                f"was made from, {what}; give all its texts, or write a new store"
            )
    return same


def _others(place: Place, mine: Collection[str]) -> Iterator[Path]:
    """The folders of models that are not `mine`, each claimed while it is looked at."""
    for folder in sorted(place.work.iterdir()):
        if folder.is_dir() and folder.name[0] != "." and folder.name not in mine:
            with Claim(folder, f"{place}: model {folder.name!r}"):
                yield folder


def _clear_models(place: Place, mine: Collection[str]) -> None:
    for folder in _others(place, mine):
        clear(folder)
    for name in mine:
        clear(place.work / name)


def _remove_grown(place: Place) -> None:
    for path in (place.work / _GROWN, Place(place.work / _GROWN).work):
        if path.exists():
            files.remove_tree(path)
