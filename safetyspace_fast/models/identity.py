"""What identifies a model in a store's manifest: names and hashes of its files."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .model import Json
from .source import Source, find_sources, sha256
from .spec import ModelSpec
from .weights import RANDOM_SEED

RANDOM_WEIGHTS = {"random": f"seed {RANDOM_SEED}"}
"""What takes the place of the hashes of files in a control."""


@contextmanager
def hashing(files: Mapping[str, Path], wait: bool) -> Iterator[Callable[[], dict[str, str]]]:
    """Hash files in threads while they load: both read the same pages, and hashlib frees the GIL.

    Args:
        files: by name.
        wait: for the hashes, at the end of the block. Beside a GPU they may take longer than
            loading; on a CPU they would slow down what follows.

    Yields:
        A function that waits for the hashes, and returns them by name.
    """
    pool = ThreadPoolExecutor(4)
    hashes = {name: pool.submit(sha256, file) for name, file in files.items()}
    try:
        yield lambda: {name: digest.result() for name, digest in hashes.items()}
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown(wait)


def weight_files(source: Source, adapters: list[Source]) -> dict[str, Path]:
    """All files that hold weights, by their names in the store's manifest."""
    files = {file.name: file for file in source.weight_files()}
    for number, adapter in enumerate(adapters, 1):
        for file in adapter.adapter_files():
            files[file.name if number == 1 else f"{number}/{file.name}"] = file
    return files


def weights_changed(
    spec: ModelSpec,
    identity: Mapping[str, Any],
    ended: float,
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> bool:
    """Whether a model is not the one that was run under its name.

    Its weight files are hashed only if they could be others: if the model was named in another way,
    or a file is newer than the run.

    Args:
        spec: the model.
        identity: of the model that was run, as a store keeps it.
        ended: when that run ended, in seconds since 1970.
        allow_pickle, trust_remote_code: as in `load_model`.

    Raises:
        ModelError: a file of the model is not there, or not complete.
    """
    source, adapters = find_sources(spec, allow_pickle, trust_remote_code)
    files = weight_files(source, adapters)
    if spec.random:
        control = (spec.asked, _listing_sha256(RANDOM_WEIGHTS))
        return control != (identity.get("id"), identity.get("weights_sha256"))
    same_name = (spec.base, "+".join(spec.adapters) or None, source.commit) == (
        identity.get("id"),
        identity.get("adapter"),
        identity.get("commit"),
    )
    if same_name and all(file.stat().st_mtime < ended for file in files.values()):
        return False
    with ThreadPoolExecutor(4) as pool:
        digests = dict(zip(files, pool.map(sha256, files.values()), strict=True))
    return _listing_sha256(digests) != identity.get("weights_sha256")


def _listing_sha256(weights: Mapping[str, str]) -> str:
    """Hash of what `sha256sum` prints for files: their hashes by name."""
    listing = "".join(f"{digest}  {name}\n" for name, digest in weights.items())
    return hashlib.sha256(listing.encode()).hexdigest()


def identity_of(
    spec: ModelSpec,
    source: Source,
    adapters: list[Source],
    config: Any,
    weights: Mapping[str, str],
) -> dict[str, Json]:
    """The facts that identify a model's weights: names and hashes.

    weights_sha256 is the hash of what `sha256sum` prints for all weight files: the base's in name
    order, then the adapters'.
    """
    config_file = source.directory / "config.json"
    commits = [adapter.commit for adapter in adapters]
    return {
        "id": spec.asked,
        "revision": spec.revision,
        "commit": source.commit,
        "architecture": (config.architectures or [None])[0],
        "model_type": config.model_type,
        "config_sha256": sha256(config_file) if source.gguf is None else None,
        "weights_sha256": _listing_sha256(weights),
        "weights": dict(weights),
        "adapter": "+".join(spec.adapters) or None,
        "adapter_commit": "+".join(commit or "" for commit in commits) if any(commits) else None,
    }
