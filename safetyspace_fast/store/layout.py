"""The format on disk as data: every array of a store, with its axes, type, unit and meaning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""Values of an array of a store; its `ArraySpec` says of which type."""
Attributes = dict[str, Any]
"""Attributes of a group: any JSON. What a function needs of them, it checks."""

FORMAT_VERSION = 1
SHARD_SAMPLES = 256
"""Samples in one shard: one file, which is written and resumed as a whole."""
COMPONENTS = 16
"""Principal components kept for each layer, pooling and language."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    unit: str
    meaning: str
    keepbits: int | None = None
    """Mantissa bits that are kept; None keeps all: 23 of float32, 52 of float64.

    Rounding to 16 bits changes a value by at most 8e-6 of itself, to 12 bits by 1.2e-4. The bits
    below are noise that does not compress, and would be most of the store.
    """
    optional: bool = False
    """Whether a group may lack it: an earlier version wrote none, or an axis has no entries. The
    attribute `optional_arrays` of the group names those that it has."""

    @property
    def by_sample(self) -> bool:
        """Whether the array has a row for each layer, pooling and sample; then it has shards."""
        return self.dims[:3] == ("layer", "pooling", "sample")

    @property
    def by_language(self) -> bool:
        """Whether the array is written one language at a time."""
        return "lang" in self.dims

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """Whether a model with axes of these lengths has the array."""
        return not self.optional or all(sizes.get(dim, 0) > 0 for dim in self.dims)

    def unknown(self, shape: Sequence[int]) -> Array:
        """An array of numbers that are not known: NaN, or -1 of integers."""
        return np.full(shape, np.nan if self.dtype.startswith("float") else -1, self.dtype)

    def chunks(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of a chunk: one layer and pooling of a shard, one language, or the whole array.

        Args:
            sizes: length of every axis.
        """
        if self.by_sample:
            return (1, 1, SHARD_SAMPLES, *(sizes[dim] for dim in self.dims[3:]))
        return tuple(1 if dim == "lang" else max(1, sizes[dim]) for dim in self.dims)

    def shards(self, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
        """Shape of a shard: all layers and poolings of `SHARD_SAMPLES` samples; None: no shards.

        Args:
            sizes: length of every axis.
        """
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
    ArraySpec(
        "cluster",
        ("sample",),
        "int32",
        "1",
        "the same number for texts of one cluster, or that are almost equal; -1 for others",
        optional=True,
    ),
    ArraySpec(
        "lexical_score",
        ("sample",),
        "float32",
        "1",
        "score of the text's character n-grams, with weights from the other folds",
        optional=True,
    ),
)

_ROWS = ("layer", "pooling", "sample")
_LANGUAGE = ("layer", "pooling", "lang")
_CELL = (*_LANGUAGE, "label")

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
        "basis_coords",
        (*_ROWS, "basis", "component"),
        "float32",
        "state",
        "coordinates in the language's principal components of other models: attribute `bases`",
        keepbits=16,
        optional=True,
    ),
    ArraySpec(
        "basis_score",
        (*_ROWS, "basis"),
        "float32",
        "state",
        "position along the difference of the other folds' class means of these models; of all "
        "folds' where the model is of another store",
        keepbits=16,
        optional=True,
    ),
    ArraySpec(
        "pair_sum",
        (*_ROWS, "class"),
        "float64",
        "state",
        "sum of Euclidean distances to the other samples of each class of the language, full width",
        keepbits=24,
    ),
    ArraySpec(
        "pair_min",
        (*_ROWS, "class"),
        "float32",
        "state",
        "smallest of these distances",
        keepbits=16,
    ),
    ArraySpec(
        "pair_max", (*_ROWS, "class"), "float32", "state", "largest of these distances", keepbits=16
    ),
    ArraySpec(
        "cos_sum",
        (*_ROWS, "class"),
        "float64",
        "1",
        "sum of cosine distances to the other samples of each class of the language, full width",
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
        "position along the difference of the other folds' class means, from their midpoint",
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
        keepbits=16,
    ),
    ArraySpec(
        "pca_basis",
        ("layer", "pooling", "hidden", "component"),
        "float32",
        "1",
        "one basis for all languages, merged from the languages' own components",
        keepbits=12,
    ),
    ArraySpec(
        "largest_share",
        _LANGUAGE,
        "float64",
        "1",
        "share of the total variance in the dimension that varies most",
        optional=True,
    ),
    ArraySpec("largest_dim", _LANGUAGE, "float64", "1", "index of this dimension", optional=True),
    ArraySpec(
        "pc1_tokens",
        _LANGUAGE,
        "float64",
        "1",
        "correlation of the first principal component with `n_tokens`",
        optional=True,
    ),
    ArraySpec(
        "pc1_inverse_tokens",
        _LANGUAGE,
        "float64",
        "1",
        "correlation of the first principal component with 1 / `n_tokens`",
        optional=True,
    ),
    ArraySpec("count", (*_CELL, "fold"), "int64", "samples", "samples in each mean"),
    ArraySpec(
        "mean", (*_CELL, "fold", "proj"), "float64", "state", "mean of `projected`", keepbits=32
    ),
    ArraySpec(
        "class_mean", (*_CELL, "hidden"), "float64", "state", "mean, full width", keepbits=32
    ),
    ArraySpec(
        "class_var", (*_CELL, "hidden"), "float64", "state^2", "variance (ddof 1)", keepbits=32
    ),
    ArraySpec(
        "null",
        ("layer", "pooling", "lang", "statistic", "labelling"),
        "float32",
        "1",
        "statistics of the true labels, then of each permutation of them, full width; energy "
        "distances and shifts in units of the state and its square",
        keepbits=12,
        optional=True,
    ),
    ArraySpec(
        "kernel_sum",
        (*_ROWS, "class"),
        "float64",
        "1",
        "sum of the Gaussian kernel with the other samples of each class of the language, full "
        "width; its width is the mean distance of two samples",
        keepbits=24,
        optional=True,
    ),
    ArraySpec(
        "kernel_slope",
        _LANGUAGE,
        "float64",
        "1",
        "derivative of MMD^2 by the logarithm of this width",
        optional=True,
    ),
    ArraySpec(
        "kernel_null",
        ("layer", "pooling", "lang", "labelling"),
        "float32",
        "1",
        "MMD^2 of the true labels, then of each permutation of them",
        keepbits=12,
        optional=True,
    ),
    ArraySpec(
        "scale",
        ("layer", "pooling", "lang", "hidden"),
        "float32",
        "state",
        "robust scale of each dimension",
        keepbits=16,
        optional=True,
    ),
    ArraySpec(
        "noise",
        ("layer", "pooling", "lang", "space"),
        "float64",
        "state^4",
        "tr V^2 of the covariance V of the mean shift; and the same of standardised dimensions",
        optional=True,
    ),
    ArraySpec(
        "nearest",
        _ROWS,
        "int32",
        "1",
        "nearest other sample, counted from the first of the language; -1 if not finite",
        optional=True,
    ),
    ArraySpec(
        "standard_sqdist",
        (*_ROWS, "class"),
        "float64",
        "1",
        "squared distance to each class mean of the language, each dimension over its scale",
        keepbits=24,
        optional=True,
    ),
    ArraySpec(
        "standard_score",
        _ROWS,
        "float32",
        "1",
        "position along the difference of the other folds' class means, each dimension over its "
        "scale, from their midpoint",
        keepbits=16,
        optional=True,
    ),
    ArraySpec(
        "equal_length_sqdist",
        (*_ROWS, "class"),
        "float64",
        "state^2",
        "squared distance to each class mean of the language, of states less their regression on "
        "the logarithm and the inverse of `n_tokens`, full width",
        keepbits=32,
        optional=True,
    ),
    ArraySpec(
        "equal_length_score",
        _ROWS,
        "float32",
        "state",
        "position of these states along the difference of the other folds' class means, from their "
        "midpoint; the regression is that of the other folds too",
        keepbits=16,
        optional=True,
    ),
    ArraySpec(
        "equal_length_noise",
        _LANGUAGE,
        "float64",
        "state^2",
        "tr V of the covariance V of the mean shift of these states",
        optional=True,
    ),
    ArraySpec("equal_length_noise_sq", _LANGUAGE, "float64", "state^4", "tr V^2", optional=True),
    ArraySpec(
        "fold_mean",
        (*_CELL, "fold", "hidden"),
        "float32",
        "state",
        "mean minus the mean of all samples of the language, full width",
        keepbits=12,
        optional=True,
    ),
    ArraySpec("nonfinite", ("layer",), "int64", "samples", "pooled states that are not finite"),
)

ROW_ARRAYS = tuple(spec.name for spec in MODEL if spec.by_sample)
"""Names of the arrays with shards."""


def expected_arrays(specs: Sequence[ArraySpec], attributes: Attributes) -> list[ArraySpec]:
    """The arrays of a group: all that are not optional, and those that its attributes name."""
    has = attributes.get("optional_arrays")
    names = has if isinstance(has, list) else []
    return [spec for spec in specs if not spec.optional or spec.name in names]


def shards_of(samples: slice) -> range:
    """Numbers of the shards that hold some of these samples; there must be one sample or more."""
    return range(samples.start // SHARD_SAMPLES, (samples.stop - 1) // SHARD_SAMPLES + 1)
