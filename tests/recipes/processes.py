"""Work that two processes do at the same time."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any

_task: list[tuple[Callable[[], Any], Barrier]] = []
"""What a process does, and where it waits for the other before."""


def in_two_processes(work: Callable[[], Any]) -> list[Any]:
    """Do the same in two forked processes; give both results, or raise."""
    fork = get_context("fork")
    task = work, fork.Barrier(2, timeout=60)
    with ProcessPoolExecutor(
        2, mp_context=fork, initializer=_task.append, initargs=(task,)
    ) as pool:
        return [each.result() for each in [pool.submit(_do) for _ in range(2)]]


def _do() -> Any:
    ((work, barrier),) = _task
    barrier.wait()
    return work()
