"""The on-disk format as data: every array of a store, its axes, type, unit and meaning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
"""Values of one array, whose `ArraySpec` says of which type they are."""
FORMAT_VERSION = 1
SHARD_SAMPLES = 256
"""Samples in one Zarr shard: the unit of work, of writing and of resume."""
COMPONENTS = 16
"""Principal components kept for every layer and pooling."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    unit: str
    meaning: str
    keepbits: int | None = None
    """Mantissa bits kept before compression; None keeps all. float32 has 23; 16 moves a
    value by 8e-6 of itself, 12 by 1.2e-4; noise in further bits would be most of the store."""

    @property
    def by_sample(self) -> bool:
        """Whether the array has one row for every sample and layer, and so is cut into shards."""
        return self.dims[:3] == ("layer", "pooling", "sample")

    @property
    def by_language(self) -> bool:
        """Whether the array is written one language at a time."""
        return "lang" in self.dims

    def chunks(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of one chunk: one layer and pooling of a shard, one language, or everything."""
        if self.by_sample:
            return (1, 1, SHARD_SAMPLES, *(sizes[dim] for dim in self.dims[3:]))
        return tuple(1 if dim == "lang" else max(1, sizes[dim]) for dim in self.dims)

    def shards(self, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
        """Shape of one shard: every layer and pooling of `SHARD_SAMPLES` samples."""
        if not self.by_sample:
            return None
        return (sizes["layer"], sizes["pooling"], *self.chunks(sizes)[2:])


SAMPLES = (
    ArraySpec("file_position", ("sample",), "int64", "1", "row in the data file, from 0"),
    ArraySpec("text_sha256", ("sample", "byte"), "uint8", "1", "SHA-256 of the text in UTF-8"),
    ArraySpec("n_chars", ("sample",), "int32", "characters", "length of the text in code points"),
    ArraySpec("lang", ("sample",), "int16", "1", "index into the attribute `languages`"),
    ArraySpec("label", ("sample",), "int8", "1", "1 harmful, 0 harmless"),
    ArraySpec("pair", ("sample",), "int32", "1", "the same number for both texts of a pair, or -1"),
    ArraySpec(
        "item", ("sample",), "int32", "1", "the same number for one content in all languages, or -1"
    ),
    ArraySpec("fold", ("sample",), "int8", "1", "cross-validation fold, from the text or the pair"),
)

_ROWS = ("layer", "pooling", "sample")
_CELL = ("layer", "pooling", "lang", "label")

MODEL = (
    ArraySpec("n_tokens", ("sample",), "int32", "tokens", "the text's own tokens"),
    ArraySpec("truncated", ("sample",), "bool", "1", "whether the text was cut to fit"),
    ArraySpec(
        "projected",
        (*_ROWS, "proj"),
        "float32",
        "state",
        "pooled state times the seeded projection",
        keepbits=12,
    ),
    ArraySpec(
        "pca_coords",
        (*_ROWS, "component"),
        "float32",
        "state",
        "coordinates in the language's own principal components",
        keepbits=16,
    ),
    ArraySpec(
        "pair_sum",
        (*_ROWS, "class"),
        "float64",
        "state",
        "sum of Euclidean distances to each class of the language, full width, itself left out",
        keepbits=24,
    ),
    ArraySpec(
        "pair_min",
        (*_ROWS, "class"),
        "float32",
        "state",
        "smallest of those distances",
        keepbits=16,
    ),
    ArraySpec(
        "pair_max", (*_ROWS, "class"), "float32", "state", "largest of those distances", keepbits=16
    ),
    ArraySpec(
        "cos_sum",
        (*_ROWS, "class"),
        "float64",
        "1",
        "sum of cosine distances, likewise",
        keepbits=24,
    ),
    ArraySpec(
        "class_sqdist",
        (*_ROWS, "class"),
        "float64",
        "state^2",
        "squared Euclidean distance to each class mean of the language, full width",
        keepbits=32,
    ),
    ArraySpec(
        "heldout_score",
        _ROWS,
        "float32",
        "state",
        "place along the difference of the class means of the other folds, from their midpoint",
        keepbits=16,
    ),
    ArraySpec(
        "pca_explained",
        ("layer", "pooling", "lang", "component"),
        "float64",
        "state^2",
        "variance of each principal component (ddof 1)",
    ),
    ArraySpec(
        "pca_components",
        ("layer", "pooling", "lang", "component", "hidden"),
        "float32",
        "1",
        "the language's own principal components; zero where there are fewer",
        keepbits=7,
    ),
    ArraySpec(
        "pca_basis",
        ("layer", "pooling", "hidden", "component"),
        "float32",
        "1",
        "one basis for all languages, merged from the languages' own components",
        keepbits=12,
    ),
    ArraySpec("count", (*_CELL, "fold"), "int64", "samples", "samples behind every mean"),
    ArraySpec(
        "mean", (*_CELL, "fold", "proj"), "float64", "state", "mean of `projected`", keepbits=32
    ),
    ArraySpec(
        "class_mean", (*_CELL, "hidden"), "float64", "state", "mean, full width", keepbits=32
    ),
    ArraySpec(
        "class_var", (*_CELL, "hidden"), "float64", "state^2", "variance (ddof 1)", keepbits=32
    ),
    ArraySpec("nonfinite", ("layer",), "int64", "samples", "pooled vectors left out as not finite"),
)

ROW_ARRAYS = tuple(spec.name for spec in MODEL if spec.by_sample)
"""Arrays that fill up shard by shard."""


def shards_of(samples: slice) -> range:
    """The shards that hold some of these samples."""
    return range(samples.start // SHARD_SAMPLES, (samples.stop - 1) // SHARD_SAMPLES + 1)
