"""One model that several workers write: what they agree on, and what each has done.

All of it is in the folder `units` of the model's work folder:

    plan.json               how the model was begun; every worker works by it
    part-000003.lease       a worker extracts this part
    part-000003.done        all its pooled states are in its segment, durably
    language-000001.lease   a worker computes the arrays of this language
    language-000001.npz     they are computed; the segments of the language are deleted
    language-000001.done    and how long that took

When all languages are computed, one worker merges them into the store, language by language, as a
run in one process does (`Session`). So the bytes do not depend on who did what. A run in one
process with --resume goes on from the same files.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from . import files
from .layout import Array, Attributes
from .place import Place
from .segments import Segments

FOLDER = "units"


class Shared:
    """The files that the workers on one model share."""

    def __init__(self, place: Place, name: str) -> None:
        """Give the store and the model; nothing is opened."""
        self._model = place.work / name
        self._folder = self._model / FOLDER

    def make_folder(self) -> None:
        """Make the folder, so that leases can be in it."""
        files.make_folder(self._folder)

    def remove_folder(self) -> None:
        """Delete the folder, if it is empty."""
        with suppress(OSError):
            self._folder.rmdir()

    def plan(self) -> Attributes | None:
        """How the model was begun; None: it was not, or is complete."""
        try:
            plan: Attributes = json.loads((self._folder / "plan.json").read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{self._folder / 'plan.json'}: damaged; remove {self._folder} and run again"
            ) from error
        return plan

    def begin(self, plan: Mapping[str, Any]) -> bool:
        """Write how the model was begun, durably; its worker has the lease for that.

        Returns:
            Whether this is the plan; False: another worker has written one, which stays.
        """
        self.make_folder()  # making the store may have cleared it away
        return files.create(self._folder / "plan.json", json.dumps(plan).encode())

    def segments(self, row_shape: tuple[int, int, int]) -> Segments:
        """The segments of the model."""
        return Segments(self._model, row_shape)

    def part(self, number: int) -> str:
        """The name of a part, among the leases of the store."""
        return self._named(f"part-{number:06d}")

    def language(self, i_lang: int) -> str:
        """The name of a language, among the leases of the store."""
        return self._named(f"language-{i_lang:06d}")

    def _named(self, unit: str) -> str:
        return f"{self._model.name}/{FOLDER}/{unit}"

    def _file(self, unit: str, suffix: str) -> Path:
        return self._folder / (unit.rpartition("/")[2] + suffix)

    def done(self, unit: str) -> Attributes | None:
        """What was said of a unit when it was done; None: it is not."""
        try:
            content: Attributes = json.loads(self._file(unit, ".done").read_bytes())
        except (OSError, ValueError):
            return None
        return content

    def set_done(self, unit: str, **about: float) -> None:
        """Mark a unit as done, durably; all that it wrote is durable before."""
        files.replace(self._file(unit, ".done"), json.dumps(about).encode())

    def is_computed(self, i_lang: int) -> bool:
        """Whether the arrays of a language are computed."""
        return self._file(self.language(i_lang), ".npz").exists()

    def write_language(self, i_lang: int, arrays: Mapping[str, Array]) -> None:
        """Keep all arrays of a language, as `Session.write_language` takes them; durable."""
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        files.replace(self._file(self.language(i_lang), ".npz"), content.getbuffer())

    def read_language(self, i_lang: int) -> dict[str, Array]:
        """The arrays of a language.

        Raises:
            StoreError: the file is damaged.
        """
        path = self._file(self.language(i_lang), ".npz")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise StoreError(f"{path}: damaged; remove it and run again") from error

    def computed(self, languages: Sequence[str]) -> dict[str, Callable[[], dict[str, Array]]]:
        """Functions that read the arrays of each language which is computed, by its name."""
        return {
            lang: partial(self.read_language, i_lang)
            for i_lang, lang in enumerate(languages)
            if self.is_computed(i_lang)
        }

    def forget(self, i_lang: int, parts: Sequence[int]) -> None:
        """Have a language done again: its arrays are damaged, or states are missing."""
        unit = self.language(i_lang)
        for path in (
            *(self._file(self.part(number), ".done") for number in parts),
            self._file(unit, ".npz"),
            self._file(unit, ".done"),
        ):
            files.remove(path)


def clear_shared(folder: Path) -> None:
    """Delete what workers left in a model's folder."""
    units = folder / FOLDER
    try:
        left = sorted(units.iterdir(), reverse=True)
    except FileNotFoundError:  # there were none, or another worker was faster
        return
    for path in left:  # first what says that units are done: a worker that comes now finds no plan
        files.remove(path)
    with suppress(OSError):  # a worker has just made a lease in it
        units.rmdir()
