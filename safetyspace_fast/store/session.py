"""One model being written, so that a crash at any moment loses nothing that was reported.

What an unfinished model needs lies in `<work>/<model>/` on a local disk: its segments and its
journal. A language is written in this order, and each step is durable before the next begins:

1. its pooled states are appended to segments, batch after batch;
2. when all of them are there, its arrays are computed and written; a shard of sample arrays is
   written when its last row is there, which another language may hold;
3. every shard that has all its arrays is entered in the journal;
4. the segments of languages with all their shards in the journal are deleted.

A resumed run skips shards in the journal and samples in segments. All else it does again, with the
same bytes as a result. When the model is complete, segments and journal are deleted.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zarr

from ..errors import StoreError
from . import files, segments
from .layout import MODEL, Array, shards_of
from .place import Place
from .segments import Segments
from .writer import ModelWriter


class Session:
    """The right to write one model's arrays, and what an earlier run has written of them."""

    def __init__(
        self,
        place: Place,
        root: zarr.Group,
        name: str,
        sizes: Mapping[str, int],
        *,
        languages: Sequence[slice],
        parts: Sequence[Sequence[int]],
        attributes: Mapping[str, Any],
        earlier: Mapping[str, Any] | None = None,
    ) -> None:
        """Make the model's arrays, or go on with those that an earlier run began.

        Args:
            place: of the store; the caller holds the claim to the model.
            root: the store.
            name: the model's group.
            sizes: length of every axis.
            languages: the samples of each language.
            parts: numbers of the parts of each language.
            attributes: of the model's group; `manifest` is what decides its numbers.
            earlier: the manifest that the model was begun with, if it was.

        Raises:
            StoreError: the manifests differ, and nothing was changed; or see `ModelWriter`.
        """
        self._folder = place.work / name
        self._languages = languages
        self._parts = parts
        self.arrays = ModelWriter(root, name, sizes)
        """The model's arrays. Those that this class does not write are written whole."""
        if earlier:
            _refuse_other(f"{place}: model {name!r}", attributes["manifest"], earlier)
        self.arrays.create(attributes)
        files.make_folder(self._folder)
        for folder in (self._folder, self._folder.parent):  # a claim may have made them
            files.sync(folder)
        row_shape = (sizes["layer"], sizes["pooling"], sizes["hidden"] + sizes["proj"])
        self.segments = Segments(self._folder, row_shape)
        """Pooled states of the parts of unfinished languages."""
        self._journal = Journal(self._folder)
        self._journal.mend()
        self._written = self._journal.shards()
        self.arrays.skip_shards(self._written)

    def is_written(self, i_lang: int) -> bool:
        """Whether the journal has all shards of a language."""
        return self._written.issuperset(shards_of(self._languages[i_lang]))

    def write_language(self, i_lang: int, arrays: Mapping[str, Array]) -> None:
        """Write all arrays of a language: steps 2 to 4.

        Args:
            i_lang: the language.
            arrays: those of samples `[layer, pooling, n, ...]`, those by language without that
                axis.
        """
        start = self._languages[i_lang].start
        completed = []
        for spec in MODEL:
            if spec.by_sample:
                completed.append(self.arrays.write_rows(spec.name, start, arrays[spec.name]))
            elif spec.by_language:
                self.arrays.write_language(spec.name, i_lang, arrays[spec.name])
        for shard in sorted(set.intersection(*map(set, completed))):
            self._journal.add(shard)
            self._written.add(shard)
        for i_other, parts in enumerate(self._parts):
            if self.is_written(i_other):  # an earlier language may have waited for a shard
                for part in parts:
                    self.segments.drop(part)

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Mark the model complete and delete what only an unfinished one needs.

        Raises:
            StoreError: a shard never got all its rows; nothing is marked.
        """
        self.arrays.finish(attributes)
        clear(self._folder)


class Journal:
    """The shards of a model that are written, all arrays of their samples with them.

    A line is a checksum and a JSON object; one that is damaged says nothing, so that what it told
    of is done again.
    """

    NAME = "journal.jsonl"

    def __init__(self, folder: Path) -> None:
        """Say in which folder it lies; a journal that is not there is empty."""
        self._path = folder / self.NAME

    def shards(self) -> set[int]:
        """What is entered."""
        lines = self._path.read_bytes().split(b"\n") if self._path.exists() else []
        pairs = [line.partition(b" ")[::2] for line in lines]
        events = [json.loads(text) for crc, text in pairs if crc == b"%08x" % zlib.crc32(text)]
        return {event["written"] for event in events}

    def add(self, shard: int) -> None:
        """Enter a shard, durably."""
        files.append(self._path, self._line(shard))
        files.sync(self._path)

    def replace(self, shards: Iterable[int]) -> None:
        """Enter these shards and no others, durably."""
        files.replace(self._path, b"".join(map(self._line, sorted(shards))))

    def mend(self) -> None:
        """Cut off a last line that a crash left without its end, so that others can follow."""
        if self._path.exists():
            files.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)

    @staticmethod
    def _line(shard: int) -> bytes:
        text = json.dumps({"written": shard}).encode()
        return b"%08x %b\n" % (zlib.crc32(text), text)


def clear(folder: Path) -> None:
    """Delete what an unfinished model has in its folder, but not the claim to it."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.suffix in (segments.SUFFIX, Path(Journal.NAME).suffix, ".tmp"):
            files.remove(path)


def _refuse_other(model: str, manifest: Mapping[str, Any], earlier: Mapping[str, Any]) -> None:
    if differing := [key for key in manifest if earlier.get(key) != manifest[key]]:
        raise StoreError(
            f"{model} was begun with another {', '.join(differing)}; "
            "resume with the same settings, or give it another NAME="
        )
