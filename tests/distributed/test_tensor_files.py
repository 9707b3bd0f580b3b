"""Files of tensors: whose words they wait for, and disks that fill up."""

import dataclasses
import gc
import resource
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from recipes.edge.checkpoints.tensor_files import read_tensors, write_tensors
from recipes.edge.ranks.distributed import World, group_of_hosts


def test_tensors_are_spoken_of_over_the_group_of_the_world(
    tmp_path: Path, world: World
) -> None:
    """Over the group of all, a thread would take the place of the training."""
    gone = dataclasses.replace(world, group=group_of_hosts())
    dist.destroy_process_group(gone.group)
    tensors = {"a": torch.ones(2)}
    write_tensors(tmp_path, tensors, world)
    for move in (write_tensors, read_tensors):
        with pytest.raises(ValueError, match="group"):
            move(tmp_path, tensors, gone)


def test_a_disk_that_fills_up_within_a_tensor_is_named(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, without what else goes wrong with a file that is closed."""
    said = list[object]()
    monkeypatch.setattr("sys.unraisablehook", said.append)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"rank 0 cannot write to .* File too"):
            write_tensors(tmp_path, {"a": torch.zeros(400_000)}, world)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    gc.collect()
    assert said == []
