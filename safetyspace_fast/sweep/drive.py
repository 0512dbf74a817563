"""A sweep in this process: one run after the other, and the next model read ahead."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path

from ..config import RunConfig
from ..errors import SafetySpaceError
from ..extract import Event
from ..models import ModelSpec, find_sources, parse_model
from ..runner import run_models
from .events import RunBegun, RunEnded, in_store
from .shared import SharedWork

_PIECE = 64 << 20
"""Bytes that are asked of the file system at a time."""
_FETCH = (
    "import os, pickle, sys; os.nice(10); from safetyspace_fast.models import find_sources; "
    "find_sources(*pickle.load(sys.stdin.buffer))"
)
_MEMORY_SHARE = 4
"""Weights are read ahead only if they take less than this part of the machine's memory."""


def run_sweep(
    configs: Sequence[RunConfig], shared: SharedWork | None = None
) -> Generator[Event, None, None]:
    """Run one config after the other; one that fails is reported and stops no other.

    Closing the generator stops the sweep; running it again goes on where it stopped.

    Args:
        configs: each with one model, and `resume`; as `Sweep.configs` gives them.
        shared: what an estimate has read already.
    """
    shared = shared or SharedWork(configs)
    with _ReadAhead() as ahead:
        for number, config in enumerate(configs):
            spec, out = parse_model(*config.models), str(config.out)
            upcoming = [other for other in configs[number + 1 :] if other.models != config.models]
            if upcoming:
                ahead.begin(upcoming[0])
            yield RunBegun(spec.name, out=out)
            error: Exception | None = None
            try:
                yield from in_store(run_models(config, shared.steps), out)
            except Exception as caught:  # also what nobody foresaw: the other models count
                error = (
                    caught.with_traceback(None) if isinstance(caught, SafetySpaceError) else caught
                )
            stays = number + 1 < len(configs) and configs[number + 1].models == config.models
            if error is not None or config.compile or not stays:
                shared.forget_model()
            yield RunEnded(spec.name, error, out=out)


class _ReadAhead:
    """Downloads a model and reads its files into the page cache while another one runs."""

    def __init__(self) -> None:
        """Read nothing yet."""
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._download: subprocess.Popen[bytes] | None = None
        self._asked: set[ModelSpec] = set()

    def __enter__(self) -> "_ReadAhead":
        """Begin with `begin`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the thread end after the piece in hand, and end a download."""
        self._stop.set()
        if self._download is not None:
            self._download.kill()
            self._download.wait()

    def begin(self, config: RunConfig) -> None:
        """Fetch the model of a config, unless it was asked for before or another one is fetched."""
        spec = parse_model(*config.models)
        if spec in self._asked or (self._thread is not None and self._thread.is_alive()):
            return
        self._asked.add(spec)
        self._thread = threading.Thread(target=self._fetch, args=(spec, config), daemon=True)
        self._thread.start()

    def _fetch(self, spec: ModelSpec, config: RunConfig) -> None:
        asked = (spec, config.allow_pickle, config.trust_remote_code)
        with suppress(SafetySpaceError, OSError):  # its own run says so
            if not all(Path(part).expanduser().exists() for part in (spec.base, *spec.adapters)):
                self._fetch_from_hub(asked)
            if self._stop.is_set():
                return
            source, adapters = find_sources(*asked)
            if spec.random:
                return
            files = source.weight_files() + [f for a in adapters for f in a.adapter_files()]
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if sum(file.stat().st_size for file in files) < memory / _MEMORY_SHARE:
                for file in files:
                    self._read(file)

    def _fetch_from_hub(self, asked: tuple[ModelSpec, bool, bool]) -> None:
        """Download in a process: the hub's threads would keep this one alive until they are done.

        Those of `concurrent.futures` are waited for when Python exits, whoever has started them.
        """
        self._download = subprocess.Popen(
            [sys.executable, "-c", _FETCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C reaches this process alone, which ends it
        )
        if self._stop.is_set():
            self._download.kill()
        with suppress(BrokenPipeError):
            self._download.communicate(pickle.dumps(asked))

    def _read(self, file: Path) -> None:
        """Ask the system to read a file; it takes no time of a processor."""
        with file.open("rb") as opened:
            for start in range(0, file.stat().st_size, _PIECE):
                if self._stop.is_set():
                    return
                os.posix_fadvise(opened.fileno(), start, _PIECE, os.POSIX_FADV_WILLNEED)
