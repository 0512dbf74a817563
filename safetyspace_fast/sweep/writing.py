"""What it takes to write a model on this machine: a trial with random numbers."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..data import Samples
from ..extract.loop import write_rest
from ..runner import sample_columns
from ..store import ModelWriter, consolidate, create_run
from ..store.layout import MODEL, Array
from .work import Work


@dataclass(frozen=True)
class Writing:
    """What writing takes, for models of one shape.

    lexical_s: seconds to score the texts of a language without a model, for a new store.
    store_s: to make a store.
    model_s: to make the arrays of a model, and to complete it.
    text_s: to write what each text of a language has.
    language_s: to write what a language has once.
    """

    lexical_s: float
    store_s: float
    model_s: float
    text_s: float
    language_s: float

    def once_s(self, work: Work) -> float:
        """Seconds that a run takes beside its languages."""
        store_s = self.store_s + self.lexical_s * len(work.texts)
        return self.model_s + work.makes_store * store_s


def measure_writing(work: Work, samples: Samples) -> Writing:
    """Write a store of one model and one language into a temporary folder, twice.

    Args:
        work: of one run.
        samples: texts of one language.
    """
    sizes = replace(work, texts=(len(samples),), bases=0).sizes
    arrays = _random_arrays(sizes)
    _write(work.model, samples, sizes, arrays)  # warms up
    return _write(work.model, samples, sizes, arrays)


def _random_arrays(sizes: Mapping[str, int]) -> dict[str, Array]:
    """Every array of a model with one language; nothing is negative, as variances are not."""
    generator = np.random.default_rng(0)
    arrays = {}
    for spec in MODEL:
        if spec.fits(sizes):
            shape = [sizes[dim] for dim in spec.dims if dim != "lang"]
            values = generator.random(shape, np.float32)
            arrays[spec.name] = (values if spec.dtype[0] == "f" else 2 * values).astype(spec.dtype)
    return arrays


def _write(
    model: str, samples: Samples, sizes: Mapping[str, int], arrays: Mapping[str, Array]
) -> Writing:
    times = [time.perf_counter()]

    def lap() -> float:
        times.append(time.perf_counter())
        return times[-1] - times[-2]

    columns = sample_columns(samples)
    lexical_s = lap()
    with tempfile.TemporaryDirectory() as folder:
        root = create_run(
            f"{folder}/trial.zarr",
            created_by="a trial",
            data_name=samples.name,
            data_sha256=samples.sha256,
            languages=samples.languages,
            samples=columns,
        )
        store_s = lap()
        writer = ModelWriter(root, model, sizes)
        writer.create({})
        model_s = lap()
        specs = writer.specs.values()
        for spec in specs:
            if spec.by_sample:
                writer.write_rows(spec.name, 0, arrays[spec.name])
        text_s = lap() / len(samples)
        for spec in specs:
            if spec.by_language:
                writer.write_language(spec.name, 0, arrays[spec.name])
        language_s = lap()
        for name in ("n_tokens", "truncated"):
            writer.write(name, arrays[name])
        write_rest(writer, 0)
        writer.finish({})
        consolidate(f"{folder}/trial.zarr")
        model_s += lap()
    return Writing(lexical_s, store_s, model_s, text_s, language_s)
