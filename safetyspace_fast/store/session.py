"""One model being written, so that a crash at any moment loses nothing that was reported.

An unfinished model has a folder on a local disk, `<work>/<model>/`, with segments and a journal.
A language is written in four steps, and each is durable before the next begins:

1. Its pooled states are appended to segments, batch by batch.
2. When it has them all, its arrays are computed and written. A shard is written when its last row
   has come; two languages may share a shard.
3. A shard of which all arrays are written is entered in the journal.
4. When all shards of a language are in the journal, its segments are deleted.

A resumed run skips the shards in the journal and the samples in segments. It does all else again,
and the bytes are the same. When the model is complete, segments and journal are deleted.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import zarr

from ..errors import StoreError
from . import files, scratch, segments
from .layout import Array, ArraySpec, Attributes, shards_of
from .place import Place
from .segments import Segments
from .shared import clear_shared
from .writer import ModelWriter


class Session:
    """One model being written, from the point where an earlier run stopped."""

    def __init__(
        self,
        place: Place,
        root: zarr.Group,
        name: str,
        sizes: Mapping[str, int],
        *,
        languages: Sequence[slice],
        parts: Sequence[Sequence[int]],
        attributes: Attributes,
        earlier: Attributes | None = None,
    ) -> None:
        """Make the model's arrays, or go on with those that an earlier run began.

        Args:
            place: of the store; the caller has claimed the model.
            root: the store.
            name: of the model.
            sizes: length of every axis.
            languages: the samples of each language.
            parts: the numbers of each language's parts; see `Segments`.
            attributes: of the model; its `manifest` holds all that decides the numbers.
            earlier: the manifest that an earlier run began the model with; None: a new model.

        Raises:
            StoreError: the manifests differ; or another model has the same name but for capitals.
        """
        self.folder = place.work / name
        """For what is kept until the model is complete."""
        self._sizes = sizes
        self._languages = languages
        self._parts = parts
        self.arrays = ModelWriter(root, name, sizes)
        """The model's arrays; those without samples and languages the caller writes by itself."""
        if earlier:
            refuse_other(f"{place}: model {name!r}", attributes["manifest"], earlier)
        self.attributes = attributes
        """Of the model, as it was begun."""
        self.arrays.create(attributes)
        files.make_folder(self.folder)
        for folder in (self.folder, self.folder.parent):  # `Claim` makes them, but not durably
            files.sync(folder)
        row_shape = (sizes["layer"], sizes["pooling"], sizes["hidden"] + sizes["proj"])
        self.segments = Segments(self.folder, row_shape)
        """The pooled states of unfinished languages."""
        self._journal = Journal(self.folder)
        self._journal.mend()
        self._written = self._journal.shards()
        self.arrays.skip_shards(self._written)

    def is_written(self, i_lang: int) -> bool:
        """Whether all shards of a language are in the journal."""
        return self._written.issuperset(shards_of(self._languages[i_lang]))

    def write_language(self, i_lang: int, arrays: Mapping[str, Array]) -> None:
        """Write all arrays of a language: steps 2 to 4.

        Args:
            i_lang: the language.
            arrays: by name, every array by sample, `[layer, pooling, n, ...]` for the n samples of
                the language, and every array by language, without its axis `lang`. An optional
                array that is missing becomes NaN: an earlier version computed the language.
        """
        samples = self._languages[i_lang]
        completed = []
        for name, spec in self.arrays.specs.items():
            if spec.optional and name not in arrays:
                arrays = {**arrays, name: self._unknown(spec, samples.stop - samples.start)}
            if spec.by_sample:
                completed.append(self.arrays.write_rows(name, samples.start, arrays[name]))
            elif spec.by_language:
                self.arrays.write_language(name, i_lang, arrays[name])
        for shard in sorted(set.intersection(*map(set, completed))):
            self._journal.add(shard)
            self._written.add(shard)
        for i_other, parts in enumerate(self._parts):
            if self.is_written(i_other):  # it may have waited for a shard that this one shares
                for part in parts:
                    self.segments.drop(part)

    def _unknown(self, spec: ArraySpec, n_samples: int) -> Array:
        """NaN, or -1 of integers, in the shape that `write_language` expects."""
        sizes = {**self._sizes, "sample": n_samples}
        shape = [sizes[dim] for dim in spec.dims if dim != "lang"]
        return spec.unknown(shape)

    def finish(self, attributes: Attributes) -> None:
        """Mark the model complete, and delete its segments and journal.

        Args:
            attributes: to add to the model's.

        Raises:
            StoreError: a shard has not got all its rows; nothing is marked.
        """
        self.arrays.finish(attributes)
        clear(self.folder)


class Journal:
    """The list of a model's shards that are written, with all arrays of their samples.

    A line is a checksum and a JSON object. A damaged line is ignored: its shard is written again.
    """

    NAME = "journal.jsonl"

    def __init__(self, folder: Path) -> None:
        """Give the model's folder; a missing journal is empty."""
        self._path = folder / self.NAME

    def shards(self) -> set[int]:
        """The shards in the list."""
        lines = self._path.read_bytes().split(b"\n") if self._path.exists() else []
        pairs = [line.partition(b" ")[::2] for line in lines]
        events = [json.loads(text) for crc, text in pairs if crc == b"%08x" % zlib.crc32(text)]
        return {event["written"] for event in events}

    def add(self, shard: int) -> None:
        """Enter a shard, durably."""
        files.append(self._path, self._line(shard))
        files.sync(self._path)

    def replace(self, shards: Iterable[int]) -> None:
        """Replace the list, atomically and durably."""
        files.replace(self._path, b"".join(map(self._line, sorted(shards))))

    def mend(self) -> None:
        """Cut off a last line that a crash left incomplete; `add` needs this after a crash."""
        if self._path.exists():
            files.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)

    @staticmethod
    def _line(shard: int) -> bytes:
        text = json.dumps({"written": shard}).encode()
        return b"%08x %b\n" % (zlib.crc32(text), text)


def clear(folder: Path) -> None:
    """Delete segments, journal and the files of workers in a model's folder; keep the claim."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.suffix in (segments.SUFFIX, scratch.SUFFIX, Path(Journal.NAME).suffix, ".tmp"):
            files.remove(path)
    clear_shared(folder)


def refuse_other(model: str, manifest: Attributes, earlier: Attributes) -> None:
    """Raise StoreError if a manifest is not that which a model was begun with."""
    if differing := [key for key in manifest if earlier.get(key) != manifest[key]]:
        raise StoreError(
            f"{model} was begun with another {', '.join(differing)}; "
            "resume with the same settings, or choose another NAME="
        )
