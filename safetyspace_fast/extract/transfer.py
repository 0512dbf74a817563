"""From the device to the disk without stopping the forward pass."""

import queue
import threading
from collections.abc import Callable
from typing import Any

import torch

SLOTS = 2
"""Pinned host buffers: one is written to disk while the next batch is copied."""


class HostCopy:
    """Copies results to the host on a side stream, into pinned buffers that take turns.

    On the CPU there is nothing to copy, and `start` hands the tensor through.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:  # or a stand-in
        """Make the stream and the slots.

        Args:
            device: where results come from.
            cuda: the module with streams and events; tests give a stand-in.
        """
        self._cuda = cuda if device.type == "cuda" else None
        self._free: queue.Queue[torch.Tensor] = queue.Queue()
        if self._cuda is not None:
            self._stream = self._cuda.Stream(device)
            for _ in range(SLOTS):
                self._free.put(torch.empty(0))

    def start(self, result: torch.Tensor) -> "Callable[[Callable[[torch.Tensor], None]], None]":
        """Begin the copy of one batch; waits only if every slot is still being written.

        Args:
            result: a contiguous tensor on the device, made on the current stream.

        Returns:
            a function for the writer: it waits for the copy, passes the host tensor on to its
            argument, and frees the slot when that returns.
        """
        if self._cuda is None:
            return lambda use: use(result)
        slot = self._free.get()
        if slot.numel() < result.numel():
            slot = torch.empty(result.numel(), dtype=result.dtype, pin_memory=True)
        host = slot[: result.numel()].view(result.shape)
        self._stream.wait_stream(self._cuda.current_stream(result.device))
        with self._cuda.stream(self._stream):
            host.copy_(result, non_blocking=True)
            copied = self._cuda.Event()
            copied.record(self._stream)
        result.record_stream(self._stream)  # its memory may be reused only after the copy

        def finish(use: Callable[[torch.Tensor], None]) -> None:
            try:
                copied.synchronize()
                use(host)
            finally:
                self._free.put(slot)

        return finish


class WriterThread:
    """Runs jobs in order on one thread; a bounded queue slows the caller, never grows."""

    def __init__(self, depth: int = 4) -> None:
        """Start the thread; at most `depth` jobs wait."""
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="safetyspace-writer", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Queue a job; raises what an earlier job raised."""
        self._raise()
        self._jobs.put(job)

    def flush(self) -> None:
        """Wait until every job is done; raises what one of them raised."""
        self._jobs.join()
        self._raise()

    def close(self) -> None:
        """Finish the jobs and stop the thread; raises nothing."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:  # after an error, what follows it must not be written
                    job()
            except BaseException as error:  # handed to the caller by put or flush
                self._error = error
            finally:
                self._jobs.task_done()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
