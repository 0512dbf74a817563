"""Growing a store: a larger one is made beside it, takes over what stays, and replaces it.

The larger store lies in the work folder until every model of the old store is complete in it; until
then readers see the old store. A language with the same texts, labels and folds is copied. At the
end two renames swap the stores; `settle` finishes a swap that a crash interrupted.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import zarr

from ..errors import StoreError
from . import files
from .access import names_in, open_root, read_array
from .layout import MODEL, Array, Attributes, expected_arrays, shards_of
from .lock import Claim
from .place import Place
from .reader import Run
from .session import Journal, clear
from .writer import Contents, create_run, resume_run

# No model has a name that begins with a dot.
_GROWN = ".grown"
_BEFORE = ".before"
_BY_BASIS = {spec.name for spec in MODEL if "basis" in spec.dims}


def settle(place: Place, claimed: Collection[str] = ()) -> None:
    """Finish a swap of the old store and the larger one, if a crash interrupted it.

    Args:
        place: of the store; the caller is `alone`.
        claimed: the models that the caller has claimed.

    Raises:
        StoreError: another process is writing a model.
    """
    before = place.work / _BEFORE
    if place.path is None or not before.exists():
        return
    if not place.exists():
        files.move(place.work / _GROWN, place.path)
    _clear_models(place, claimed)
    files.remove_tree(before)


def discard(place: Place, claimed: Collection[str]) -> None:
    """Delete what unfinished runs left in the work folder.

    Args:
        place: of the store; the caller is `alone`.
        claimed: the models that the caller has claimed.

    Raises:
        StoreError: another process is writing a model.
    """
    _clear_models(place, claimed)
    _remove_grown(place)


@dataclass(frozen=True)
class Kept:
    """What a growing store takes over of one model."""

    manifest: Attributes = field(default_factory=dict)
    """The model's manifest in the old store; empty if it is not in it."""
    languages: Mapping[str, Callable[[], dict[str, Array]]] = field(default_factory=dict)
    """Functions that read all arrays of a language, as `Session.write_language` takes them."""
    bases: list[str] = field(default_factory=list)
    """The models in whose components the states are expressed too, in the old store."""

    def with_bases(self, bases: list[str]) -> Mapping[str, Callable[[], dict[str, Array]]]:
        """`languages`, without what was expressed in the components of other models than these."""

        def known(read: Callable[[], dict[str, Array]]) -> dict[str, Array]:
            return {name: array for name, array in read().items() if name not in _BY_BASIS}

        if bases == self.bases:
            return self.languages
        return {lang: partial(known, read) for lang, read in self.languages.items()}

    def manifest_with(self, new: Attributes) -> Attributes:
        """The old manifest with the new data and their plans; copied languages keep their plans."""
        if not self.manifest:
            return {}
        plans = {lang: self.manifest["plan_sha256"][lang] for lang in self.languages}
        plans = new["plan_sha256"] | plans
        return self.manifest | {"data_sha256": new["data_sha256"], "plan_sha256": plans}


class Growth:
    """A store with more texts than the one that it will replace."""

    def __init__(self, run: Run, languages: tuple[str, ...], columns: Mapping[str, Array]) -> None:
        """Compare the old and the new texts; nothing is written.

        Args:
            run: the old store.
            languages: of the new data.
            columns: `SAMPLES` of the new data, by name.

        Raises:
            StoreError: a text is missing or has another label; or the store is an object store.
        """
        if run.place.path is None or run.place.path.is_symlink():
            kind = "a link" if run.place.path else "an object store"
            raise StoreError(f"{run.place}: {kind} cannot grow in its place; write a new store")
        self._run = run
        self.location = run.place.work / _GROWN
        """Where the larger store is, until it is complete."""
        self._same = _same_languages(run, languages, columns)

    def open(self, claimed: Collection[str], **contents: Unpack[Contents]) -> zarr.Group:
        """Make the larger store, or go on with it.

        Args:
            claimed: the models that the caller has claimed.
            contents: of the larger store, as for `create_run`.

        Raises:
            StoreError: another process grows the store with other data.
        """
        earlier = None
        with suppress(StoreError):  # missing, half made or half deleted
            earlier = Run(self.location).attrs["data_sha256"]
        if earlier == contents["data_sha256"]:
            return resume_run(self.location, samples=lambda: contents["samples"])
        if earlier is not None:
            _refuse_other_writers(self._run.place, claimed)
        _remove_grown(self._run.place)
        return create_run(self.location, **contents)

    def kept(self, model: str) -> Kept:
        """What the larger store takes over of a model."""
        group = open_root(self._run.place).get(f"models/{model}")
        attributes: Attributes = dict(group.attrs) if isinstance(group, zarr.Group) else {}
        if not isinstance(group, zarr.Group) or "manifest" not in attributes:
            return Kept()
        written = Journal(self._run.place.work / model).shards()
        languages = {
            lang: partial(self._arrays, group, lang, samples)
            for lang, samples in self._same.items()
            if attributes["complete"] or written.issuperset(shards_of(samples))
        }
        return Kept(attributes["manifest"], languages, attributes.get("bases", []))

    def finish(self, claimed: Collection[str]) -> str | None:
        """Swap the stores, or say what the larger one waits for.

        Args:
            claimed: the models that the caller has claimed; it is `alone`.
        """
        place = self._run.place
        names, grown = names_in(open_root(place), "models"), Run(self.location)
        if waiting := ", ".join(name for name in names if name not in grown.models):
            return f"the store stays as it was until these models are run too: {waiting}"
        try:
            _refuse_other_writers(place, claimed)
        except StoreError as error:
            return f"the store stays as it was until this run is repeated: {error}"
        if (work := grown.place.work).exists():
            files.remove_tree(work)
        files.move(place.folder, place.work / _BEFORE)
        settle(place, claimed)
        return None

    def _arrays(self, group: zarr.Group, lang: str, samples: slice) -> dict[str, Array]:
        i_lang = self._run.languages.index(lang)
        arrays = {}
        for spec in expected_arrays(MODEL, dict(group.attrs)):
            if spec.by_sample:
                arrays[spec.name] = read_array(group, spec.name, np.s_[:, :, samples])
            elif spec.by_language:
                index = (slice(None),) * spec.dims.index("lang") + (i_lang,)
                arrays[spec.name] = read_array(group, spec.name, index)
        return arrays


def _same_languages(
    run: Run, languages: tuple[str, ...], columns: Mapping[str, Array]
) -> dict[str, slice]:
    """The languages that are the same in old and new data, with their samples in the old store.

    Raises:
        StoreError: a text of the store is not in the new data, or has another label there.
    """
    before = run.samples
    bounds = np.searchsorted(columns["lang"], range(len(languages) + 1))
    same = {}
    for lang in run.languages:
        old_rows, new_rows = run.lang_range(lang), slice(0, 0)
        if lang in languages:
            new_rows = slice(*bounds[languages.index(lang) :][:2].tolist())
        old, new = (
            [(bytes(sha256), int(label)) for sha256, label in zip(hashes, labels, strict=True)]
            for hashes, labels in (
                (before.text_sha256[old_rows], before.label[old_rows]),
                (columns["text_sha256"][new_rows], columns["label"][new_rows]),
            )
        )
        if old == new and np.array_equal(before.fold[old_rows], columns["fold"][new_rows]):
            same[lang] = old_rows
        elif missing := Counter(old) - Counter(new):
            sha256, label = next(iter(missing))
            row = before.file_position[old_rows][old.index((sha256, label))] + 1
            changed = (sha256, 1 - label) in new
            what = f"now has label {1 - label}" if changed else "is gone, or was left out"
            raise StoreError(
                f"{run.place}: a store grows by texts and languages and loses none; of its {lang} "
                f"texts, {missing.total()} are not in the data: the first, row {row} of the data "
                f"that it was made from, {what}; give all its texts, or write a new store"
            )
    return same


def _other_models(place: Place, claimed: Collection[str]) -> Iterator[Path]:
    """Work folders of the models that the caller has not claimed, each claimed for a moment."""
    for folder in sorted(place.work.iterdir()):
        if folder.is_dir() and folder.name[0] != "." and folder.name not in claimed:
            with Claim(folder, f"{place}: model {folder.name!r}"):
                yield folder


def _refuse_other_writers(place: Place, claimed: Collection[str]) -> None:
    for _ in _other_models(place, claimed):
        pass


def _clear_models(place: Place, claimed: Collection[str]) -> None:
    for folder in _other_models(place, claimed):
        clear(folder)
    for name in claimed:
        clear(place.work / name)


def _remove_grown(place: Place) -> None:
    for path in (place.work / _GROWN, Place(place.work / _GROWN).work):
        if path.exists():
            files.remove_tree(path)
