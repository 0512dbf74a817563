"""Work on one core: independent jobs side by side, and products that must not depend on threads."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager

import torch


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def on_one_core() -> Iterator[None]:
    """Let torch use one thread. MKL rounds some small products otherwise with two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_parallel(
    work: Callable[[int, int], None],
    jobs: list[tuple[int, int]],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Run independent jobs on as many threads as torch has, one core each.

    Small products are not faster on two cores; two jobs side by side are.

    Args:
        work: called with the arguments of each job. After an exception in a job no further job is
            started, and the exception is raised.
        jobs: the arguments of each job.
        progress: called with the number of jobs done and their total.
    """
    threads = torch.get_num_threads()
    # OpenMP counts threads per calling thread: every worker sets its own.
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    with on_one_core(), pool:
        tasks = [pool.submit(work, *job) for job in jobs]
        try:
            for i, task in enumerate(as_completed(tasks), 1):
                task.result()
                if progress is not None:
                    progress(i, len(jobs))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
