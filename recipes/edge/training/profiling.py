"""What a step takes: memory, and where its time goes."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from recipes.edge.ranks.distributed import World


def peak_memory(device: torch.device) -> int:
    """Give the most memory that this process has used so far.

    Args:
        device: Where it computes.

    Returns:
        Bytes: what torch has allocated on a GPU, or the process's resident set.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


@contextmanager
def profiled(folder: Path, world: World, *, wanted: bool) -> Iterator[None]:
    """Write a profiler's trace of what happens inside, one file for each rank.

    Args:
        folder: Where ``trace-{rank}.json`` goes; Perfetto and Chrome show it.
        world: The ranks.
        wanted: Whether to profile at all.
    """
    if not wanted:
        yield
        return
    with torch.profiler.profile(profile_memory=True) as profile:
        yield
    profile.export_chrome_trace(str(folder / f"trace-{world.rank}.json"))
