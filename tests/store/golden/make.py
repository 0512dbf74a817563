"""Makes a golden store of today's format, once: `python tests/store/golden/make.py NAME`.

A tiny random model `m` over 40 of the packaged sentences, after another one, so that it has arrays
in the other's basis too. The store is zipped, and beside it is what is to be read from it: a hash
of every array, and what `separation` makes of it.
"""

import hashlib
import json
import math
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from safetyspace_fast import api
from safetyspace_fast.store.layout import FORMAT_VERSION, MODEL

HERE = Path(__file__).parent


def hashes(run: api.Run) -> dict[str, str]:
    """SHA-256 of the values of every array."""
    model = run.model("m")
    arrays = {spec.name: model.read(spec.name) for spec in MODEL if model.has(spec.name)}
    columns = {name: column for name, column in vars(run.samples).items() if column is not None}
    arrays |= {f"samples/{name}": column for name, column in columns.items()}
    return {
        name: hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()
        for name, array in arrays.items()
    }


def values(run: api.Run) -> dict[str, float | None]:
    """Every metric by metric, model, layer, pooling and language; None where there is none."""
    dataset = api.separation(run, bootstraps=0, permutations=0, force=True)
    cells: dict[str, Any] = dataset["value"].to_series().to_dict()
    return {
        " ".join(key): None if math.isnan(value) else float(value) for key, value in cells.items()
    }


def make(name: str, folder: Path) -> None:
    """Run both models and write both files."""
    sys.path.append(str(HERE.parents[1]))
    from tiny_models import save_tiny

    archive = HERE / f"version-{FORMAT_VERSION}-{name}.zip"
    assert not archive.exists(), "a golden store is made once and then only read"
    first, model = (
        save_tiny(
            "llama", folder / name, hidden_size=16, num_hidden_layers=1, initializer_range=spread
        )
        for name, spread in (("first", 0.05), ("m", 0.02))
    )
    config = api.RunConfig(
        models=(f"first={first}", f"m={model}"),
        data="sample:polite",
        out=folder / "run.zarr",
        languages=("en",),
        limit=20,
        layers="final_norm",
        poolings=("mean",),
        template="none",
        proj_dim=8,
    )
    run = api.run(config)
    expected = {"arrays": hashes(run), "separation": values(run)}
    archive.with_suffix(".json").write_text(json.dumps(expected, indent=1) + "\n")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(run.path.rglob("*")):
            file.write(path, path.relative_to(run.path))


if __name__ == "__main__":
    temporary = Path(tempfile.mkdtemp())
    try:
        make(sys.argv[1], temporary)
    finally:
        shutil.rmtree(temporary)
