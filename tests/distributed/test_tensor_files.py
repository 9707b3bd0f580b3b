"""Files of tensors: whose words they wait for, and disks that fill up."""

import dataclasses
import gc
import io
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata

from recipes.edge.checkpoints.tensor_files import (
    _Unpickler,
    read_tensors,
    write_tensors,
)
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


def test_members_are_read_as_python_3_11_2_writes_them(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        _MEM_FORMAT_ENCODING,
        "__reduce_ex__",
        lambda self, _: (getattr, (type(self), self.name)),
    )
    write_tensors(tmp_path, {"a": torch.ones(2)}, world)
    assert b"getattr" in (tmp_path / ".metadata").read_bytes()
    found = {"a": torch.zeros(2)}
    read_tensors(tmp_path, found, world)
    assert torch.equal(found["a"], torch.ones(2))


@pytest.mark.parametrize(
    ("kind", "name"), [(_MEM_FORMAT_ENCODING, "__class__"), (Metadata, "__init__")]
)
def test_nothing_but_a_member_is_taken_of_a_class(kind: type, name: str) -> None:
    class Attribute:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, (kind, name)

    content = pickle.dumps(Attribute())
    assert pickle.loads(content) is getattr(kind, name)
    with pytest.raises((pickle.UnpicklingError, KeyError), match=name):
        _Unpickler(io.BytesIO(content)).load()


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
