"""Tensors in a GGUF file, each unpacked by itself.

The steps are those of transformers' reader (`load_gguf_checkpoint`), which takes all tensors at
once: it names them, unpacks them with the package `gguf`, and undoes what llama.cpp's conversion
did to them. Both packages take time to import, and are imported inside functions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ModelError, first_line
from .stored import StoredTensor

Array = NDArray[Any]


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a GGUF file; `[...]` reads and unpacks it."""

    packed: StoredTensor
    """Its bytes in the file."""
    kind: Any
    """How they are packed: a `gguf.GGMLQuantizationType`."""
    undo: Callable[[Array], Array]
    """From the values in the file to those in the model."""
    shape: tuple[int, ...]
    """In the file, unpacked."""
    dtype: torch.dtype
    """Of what is read. Values are unpacked in float32."""

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return self.packed.nbytes

    def __getitem__(self, everything: object) -> Tensor:
        """Read and unpack it; errors are those of `StoredTensor`."""
        import gguf

        values = gguf.dequantize(self.packed[everything].numpy(), self.kind)
        return torch.from_numpy(np.array(self.undo(values))).to(self.dtype)

    def empty(self) -> Tensor:
        """The same without content or memory."""
        values = np.broadcast_to(np.float32(-1), self.shape)  # Mamba takes the logarithm of -x
        return torch.empty(self.undo(values).shape, dtype=self.dtype, device="meta")


def gguf_tensors(path: Path, model: Any, dtype: torch.dtype) -> dict[str, GgufTensor]:
    """All tensors of a GGUF file that a model has a place for, by their names in the model.

    Args:
        path: of a file that `why_not_one_by_one` has nothing against.
        model: of transformers, with its head.
        dtype: of what is read.

    Raises:
        ModelError: the file is cut short, or cannot be read.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reader

    header = _header(path)
    config = reader.load_gguf_checkpoint(str(path))["config"]
    processor = reader.TENSOR_PROCESSORS.get(header.architecture, reader.TensorProcessor)(config)
    names = reader.get_gguf_hf_weights_map(model, processor)

    def undo(name: str) -> Callable[[Array], Array]:
        return lambda values: processor.process(weights=values, name=name).weights

    mtime_ns = path.stat().st_mtime_ns
    tensors = {}
    for info in header.tensors:
        if info.name in names:
            kind = gguf.GGMLQuantizationType(info.ggml_type)
            in_bytes = gguf.quant_shape_to_byte_shape(info.shape, kind)
            start = header.data_start + info.offset
            packed = StoredTensor(path, start, in_bytes, torch.uint8, mtime_ns)
            tensors[names[info.name]] = GgufTensor(packed, kind, undo(info.name), info.shape, dtype)
    return tensors


def gguf_shapes(path: Path) -> list[tuple[int, ...]]:
    """Shapes of all tensors, unpacked; of a file as for `gguf_tensors`, with the same errors."""
    return [info.shape for info in _header(path).tensors]


def why_not_one_by_one(path: Path) -> str | None:
    """Why a GGUF file's tensors cannot be unpacked one by one; None if they can."""
    import transformers

    if not hasattr(transformers, "GgufConfig"):
        return "this version of transformers unpacks a GGUF file as a whole; use a newer one"
    from transformers.integrations.gguf import is_gguf_arch_supported

    try:
        header = _header(path)
    except ModelError as error:  # types of blocks that only the package gguf knows, for instance
        return str(error)
    if is_gguf_arch_supported(header.architecture):
        return (
            f"transformers reads GGUF files of {header.architecture} in a way of its own, which is "
            "not done here block by block"
        )
    if any("_exps." in info.name for info in header.tensors):
        return (
            f"transformers puts the experts of {header.architecture} together from several tensors "
            "of a GGUF file, after it has unpacked the whole file"
        )
    return None


def _header(path: Path) -> Any:
    """A `GgufHeader` of transformers: the architecture, and where each tensor lies."""
    from transformers.integrations.gguf import GgufHeader

    try:
        header = GgufHeader.from_file(str(path))
    except Exception as error:  # struct, numpy and codecs all have their own
        raise ModelError(
            f"the header of {path.name} cannot be read ({first_line(error)})"
        ) from error
    size = path.stat().st_size
    stop = max((header.data_start + t.offset + t.nbytes for t in header.tensors), default=0)
    if stop > size:
        raise ModelError(
            f"{path.name} ends early ({size} of {stop} bytes): copy or download it again"
        )
    return header
