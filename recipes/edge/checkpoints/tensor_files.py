"""Tensors of a checkpoint, as DCP writes them, read without trusting a pickle.

DCP describes its files in a pickle, ``.metadata``. A pickle can call anything, so it is
read with a list of what it may name: DCP's own records and a few values of torch. The
tensors themselves are read by ``torch.load`` with ``weights_only``. Values that are no
tensors are neither written nor read: DCP would unpickle them.
"""

import io
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from recipes.edge.ranks.distributed import World

METADATA = ".metadata"
"""Name of the file in which DCP says where each tensor is."""

_DTYPES = {
    name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}


def _member(kind: object, name: str) -> Any:
    """Give a member of the one enumeration that a description holds, and nothing else.

    Python 3.11.2, which Debian 12 has, writes one down as ``getattr`` of its class.
    """
    if kind is not metadata._MEM_FORMAT_ENCODING:
        raise pickle.UnpicklingError(f"it takes {name} of {kind}")
    return metadata._MEM_FORMAT_ENCODING[name]


_KNOWN: Mapping[tuple[str, str], Any] = {
    **{
        (kind.__module__, kind.__qualname__): kind
        for kind in (
            metadata.ChunkStorageMetadata,
            metadata.Metadata,
            metadata.MetadataIndex,
            metadata.StorageMeta,
            metadata.TensorProperties,
            metadata.TensorStorageMetadata,
            metadata._MEM_FORMAT_ENCODING,
            filesystem._StorageInfo,
        )
    },
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    ("builtins", "getattr"): _member,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): {
        str(torch.strided): torch.strided
    }.__getitem__,
    ("pathlib", "PosixPath"): PurePosixPath,
    ("pathlib._local", "PosixPath"): PurePosixPath,  # as Python 3.13 calls it
}
"""All that a description may name, and what stands for it."""


def write_tensors(folder: Path, tensors: dict[str, Any], world: World) -> None:
    """Write tensors, each rank its shards; all ranks call this together.

    Args:
        folder: An empty folder, which every rank sees.
        tensors: Tensors by name, in dicts at any depth.
        world: The ranks.

    Raises:
        OSError: On every rank, if any rank cannot write.
    """
    writer = filesystem.FileSystemWriter(folder)
    writer.fs = _FolderThatStays()
    try:
        save(tensors, storage_writer=writer, process_group=world.group)
    except CheckpointException as error:
        rank, (reason, _) = next(iter(error.failures.items()))
        raise OSError(f"rank {rank} cannot write to {folder}: {reason}") from error


def read_tensors(folder: Path, tensors: dict[str, Any], world: World) -> None:
    """Read tensors in place, each rank its shards; all ranks call this together.

    Args:
        folder: What ``write_tensors`` wrote, on any number of ranks.
        tensors: Tensors of the same names and shapes.
        world: The ranks.

    Raises:
        ValueError: If the description of the files is none that DCP wrote.
    """
    load(tensors, storage_reader=_Reader(folder), process_group=world.group)


def read_shapes(folder: Path) -> dict[str, torch.Size]:
    """Give the shape of every tensor in a folder, by its dotted name.

    Args:
        folder: What ``write_tensors`` wrote.

    Raises:
        ValueError: If the description of the files is none that DCP wrote, or holds
            anything but tensors.
    """
    entries: dict[str, Any] = _read_metadata(folder).state_dict_metadata
    return {name: entry.size for name, entry in entries.items()}


class _FolderThatStays(filesystem.FileSystem):
    """Never makes a folder: one that has vanished is an error, not to be made anew."""

    @classmethod
    def mkdir(cls, path: str | os.PathLike[str]) -> None:
        """Leave it as it is."""

    @contextmanager
    def create_stream(
        self, path: str | os.PathLike[str], mode: str
    ) -> Iterator[io.IOBase]:
        """Open a file; where the system refuses a write, say what it said."""
        try:
            with _Stream(io.FileIO(path, mode)) as stream:
                yield stream
        except RuntimeError as error:  # torch's archive, on the way out
            reason: BaseException | None = error
            while reason is not None and not isinstance(reason, OSError):
                reason = reason.__context__
            raise reason or error from None


class _Stream(io.BufferedWriter):
    """A file that may be flushed once it is closed.

    Where a write is refused, what torch put around the file goes later than the file,
    and flushes it then; from Python 3.13 on that is an error that is printed.
    """

    def flush(self) -> None:
        """Write what is not written yet."""
        if not self.closed:
            super().flush()


class _Reader(filesystem.FileSystemReader):
    """Reads the description without executing it."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read ``.metadata``."""
        found = _read_metadata(Path(self.path))
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


class _Unpickler(pickle.Unpickler):
    """Knows the names of a description, and no others."""

    def find_class(self, module: str, name: str) -> Any:
        """Give what a name stands for."""
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


def _read_metadata(folder: Path) -> Metadata:
    """Read ``.metadata``, and check that it describes tensors in this folder."""
    file = folder / METADATA
    content = file.read_bytes()
    try:
        found: Metadata = _Unpickler(io.BytesIO(content)).load()
        entries = list(found.state_dict_metadata.values())
        files = {info.relative_path for info in found.storage_data.values()}
    except Exception as error:  # broken bytes can raise anything
        raise ValueError(
            f"{file} is not read ({error}); it may hold records of DCP alone"
        ) from error
    if not all(isinstance(entry, TensorStorageMetadata) for entry in entries):
        raise ValueError(f"{file} describes what is no tensor; only tensors are read")
    if not all(name == PurePosixPath(name).name for name in files):
        raise ValueError(f"{file} names files elsewhere; only its own folder is read")
    return found
