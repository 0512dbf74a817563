"""Tensors in safetensors files, each read by itself."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ModelError
from .source import Source

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
    "U8": torch.uint8,
}


class TensorOnDisk(Protocol):
    """A tensor in a file; `[...]` reads it, as transformers asks for it."""

    @property
    def nbytes(self) -> int:
        """Its size in the file."""

    def __getitem__(self, everything: object, /) -> Tensor:
        """Read it; ModelError if that cannot be."""

    def empty(self) -> Tensor:
        """The same without content or memory."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file; `[...]` reads it, as transformers asks for it.

    It is read, not mapped: a mapped file counts as a whole against a limit of address space.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    mtime_ns: int
    """When the file was changed last: what is read later must be what was hashed."""

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, _everything: object) -> Tensor:
        """Read it.

        Raises:
            ModelError: the file cannot be read, or has changed.
        """
        tensor = torch.empty(self.shape, dtype=self.dtype)
        place = tensor.view(-1).view(torch.uint8).numpy().data
        try:
            with self.path.open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_mtime_ns != self.mtime_ns:
                    raise ModelError(f"{self.path}: has changed since the model was opened")
                file.seek(self.offset)
                while place:
                    n_bytes = file.readinto(place)
                    if not n_bytes:
                        raise ModelError(f"{self.path}: ends early; copy or download it again")
                    place = place[n_bytes:]
        except OSError as error:
            raise ModelError(
                f"{self.path}: cannot be read ({error.strerror or error}); finished batches are "
                "kept: repeat the command with --resume when it is there again"
            ) from error
        return tensor

    def empty(self) -> Tensor:
        """The same without content or memory."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def stored_tensors(source: Source) -> dict[str, StoredTensor]:
    """All tensors of a model's files by name.

    Raises:
        ModelError: a file is cut short, or holds other types of numbers.
    """
    tensors = {}
    for path in source.weight_files():
        with path.open("rb") as file:
            n_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(n_bytes))
        header.pop("__metadata__", None)
        size, mtime_ns = path.stat().st_size, path.stat().st_mtime_ns
        for name, entry in header.items():
            start, stop = (8 + n_bytes + offset for offset in entry["data_offsets"])
            if stop > size:
                raise ModelError(
                    f"{path}: ends early ({size} of at least {stop} bytes); copy or download it "
                    "again"
                )
            if entry["dtype"] not in _DTYPES:
                raise ModelError(
                    f"{source.asked}: {name} holds numbers of type {entry['dtype']}, which cannot "
                    "be streamed; use --weights load"
                )
            shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
            tensors[name] = StoredTensor(path, start, shape, dtype, mtime_ns)
    return tensors


def plain_numbers(source: Source) -> list[tuple[tuple[int, ...], torch.dtype]] | None:
    """Shape and dtype of every tensor in a model's files; None if some are no plain floats."""
    from safetensors import safe_open

    tensors: list[tuple[tuple[int, ...], torch.dtype]] = []
    for file in source.weight_files():
        if file.suffix != ".safetensors":
            return None
        with safe_open(file, framework="pt") as opened:
            parts = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118 - no dict
        for part in parts:
            dtype = _DTYPES.get(part.get_dtype())
            if dtype is None or not dtype.is_floating_point:
                return None
            tensors.append((tuple(part.get_shape()), dtype))
    return tensors
