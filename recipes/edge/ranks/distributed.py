"""The process group of a run, and the few things that ranks tell each other."""

import atexit
import gc
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import (
    PrefixStore,
    Store,
    _abort_process_group,
)
from torch.distributed.rendezvous import rendezvous

from recipes.edge.ranks.failures import shared_failures

_T = TypeVar("_T")

# A reference cycle (a mesh, a sharded model, a traceback) may keep a group when the run
# is over. Gloo's threads end with it, so that is not to be after the interpreter's end,
# nor in a process that is forked: it has none of them and would crash, so it keeps all.
atexit.register(gc.collect)
os.register_at_fork(after_in_child=gc.freeze)

PATIENCE = timedelta(days=1)
"""How long ranks wait for each other's words: the main rank may download weights or
plan millions of samples meanwhile. A rank that fails ends the others at once."""

STORE_IS_FOUND = timedelta(minutes=2)
"""How long a rank looks for the store of the ``torchrun`` that started it."""


class MainRankError(RuntimeError):
    """The main rank failed where all ranks need its result.

    Attributes:
        refusal: Its words alone, where it failed with an ``OSError`` or ``ValueError``:
            what is refused, or cannot be read, raises these.
    """

    def __init__(self, words: str, refusal: str | None = None) -> None:
        """Keep the words of the main rank."""
        super().__init__(words)
        self.refusal = refusal


@dataclass(frozen=True, kw_only=True)
class World:
    """The ranks of a run, seen from one of them.

    Attributes:
        rank: This process, from 0 to ``size - 1``.
        size: Number of processes, at least 1.
        device: Where this rank computes.
        mesh: All ranks in one row, along the axis ``data``; for ``fully_shard``.
        group: What the ranks tell each other objects and numbers over, see
            ``group_of_hosts``. A thread beside the training needs one of its own, so
            that no message takes another's place.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    group: dist.ProcessGroup

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the one that writes logs."""
        return self.rank == 0


@contextmanager
def process_group() -> Iterator[World]:
    """Join the run's process group, and leave it at the end.

    Under ``torchrun`` the group is the one that its environment describes; without
    it, this process is the whole group, so ``python recipe.py`` works as well. With
    CUDA each rank takes the GPU of its ``LOCAL_RANK`` and tensors travel over NCCL,
    else it computes on the CPU and they travel over gloo, as objects and what
    ``sum_over_ranks`` adds up always do.

    An exception leaves the group and goes on, and ends the other ranks too, see
    ``shared_failures``. Under NCCL the collectives that this rank has begun are aborted
    first, because an orderly goodbye would wait for ranks that wait for this one.

    Yields:
        The world as this rank sees it.

    Raises:
        ValueError: If there are fewer GPUs than ranks on this machine.
        RuntimeError: If another rank failed before this one did.

    Example:
        >>> with process_group() as world:
        ...     (world.rank, world.size, world.is_main)
        (0, 1, True)
    """
    if "RANK" in os.environ:
        store, rank, size = _find_store()
    else:
        store, rank, size = dist.HashStore(), 0, 1  # type: ignore[attr-defined]
    with shared_failures(store, rank) as tell:
        try:
            device = _join(store, rank, size)
            yield World(
                rank=rank,
                size=size,
                device=device,
                mesh=init_device_mesh(device.type, (size,), mesh_dim_names=("data",)),
                group=group_of_hosts(),
            )
        except BaseException as error:
            if isinstance(error, Exception):
                tell(error)
            if dist.is_initialized() and dist.get_backend() == "nccl":
                _abort_process_group()  # all of them: a mesh of two axes has more
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


def _find_store() -> tuple[Store, int, int]:
    """Find the store of all ranks; give it, the rank of this one and their number.

    A ``torchrun`` has its store before it has ranks, so one that is not there has gone
    with it, while this process imported what it needs.
    """
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    timeout = STORE_IS_FOUND if is_agents else default_pg_timeout
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(default_pg_timeout)
    return _of_this_start(store), rank, size


def _of_this_start(store: Store) -> Store:
    """Keep the keys of this start of the ranks apart from those of the start before.

    A ``torchrun`` that starts its ranks again keeps the store, so new ranks would find
    there where the old ones listened, and their failure, with which they would end. All
    ranks of one agent know how often that was. Several agents count for themselves, and
    agents that come and go are not counted, so there each start needs a store of its
    own, see ``node.sh``.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    return PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)


def speaks() -> bool:
    """Tell, before the ranks have met, whether this is the main one."""
    return os.environ.get("RANK", "0") == "0"


def processes_here(of_each: int) -> int:
    """Count the processes of all ranks of this machine, as far as it has CPUs.

    Args:
        of_each: Those of each rank; no fewer are counted.

    Returns:
        Their number; without ``torchrun`` there is one rank.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(of_each, min(of_each * ranks, os.cpu_count() or 1))


def group_of_hosts() -> dist.ProcessGroup:
    """Make a group of all ranks for what the host knows, which all call together.

    It is gloo's also where tensors travel over NCCL: objects and numbers of the host do
    not pass through GPUs, and a rank waits ``PATIENCE`` for them instead of the ten
    minutes after which NCCL takes a rank for lost.
    """
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    return cast(dist.ProcessGroup, group)  # no rank is left out


def sum_over_ranks(values: Mapping[str, float | int], world: World) -> dict[str, float]:
    """Add up named numbers over all ranks, in float64 and one all-reduce.

    A checksum of the names travels along, so ranks that pass the same number of
    other names find out. Ranks that pass another number of names fail in the
    backend.

    Args:
        values: This rank's numbers; the same names in the same order on all ranks.
        world: The ranks.

    Returns:
        The sums, the same on all ranks, under the same names.

    Raises:
        ValueError: If another rank passed other names, or another order.

    Laws:
        linear: sums of sums are sums, up to rounding
        names_kept: names and their order come back unchanged

    Example:
        >>> with process_group() as world:
        ...     sum_over_ranks({"loss": 1.5, "tokens": 3.0}, world)
        {'loss': 1.5, 'tokens': 3.0}
    """
    checksum = zlib.crc32("\0".join(values).encode())
    total = torch.tensor([*values.values(), checksum], dtype=torch.float64)
    dist.all_reduce(total, group=world.group)
    *sums, checksums = total.tolist()
    if checksums != checksum * world.size:
        raise ValueError(
            f"values of rank {world.rank} has the names {', '.join(values)}, which "
            "differ from another rank's; all ranks pass the same in the same order"
        )
    return dict(zip(values, sums, strict=True))


def broadcast_from_main(make: Callable[[], _T], world: World) -> _T:
    """Run ``make`` on the main rank and give its result to every rank.

    For what must be done once (make a folder, write a data set) or must be the same
    everywhere (which checkpoint to resume from). Every rank waits for the main rank.

    Args:
        make: Called on the main rank only; its result can be pickled.
        world: The ranks.

    Returns:
        The result; the main rank gets the object itself, the others a copy.

    Raises:
        MainRankError: On every rank, with the same words, if ``make`` raises.

    Example:
        >>> with process_group() as world:
        ...     broadcast_from_main(lambda: "run-7", world)
        'run-7'
    """
    failure: Exception | None = None
    box: list[Any] = [None, None, None]
    if world.is_main:
        try:
            box[0] = make()
        except Exception as error:
            failure = error
            box[1] = f"{type(error).__name__}: {error}"
            box[2] = str(error) if isinstance(error, OSError | ValueError) else None
    dist.broadcast_object_list(box, src=0, group=world.group)
    result, reason, refusal = box
    if reason is not None:
        words = f"the main rank failed with {reason}; every rank needs its result"
        raise MainRankError(words, refusal) from failure
    answer: _T = result
    return answer


@contextmanager
def mistakes_in_words(*, has_ranks: bool = True) -> Iterator[None]:
    """End the process with one sentence where what it is given is of no use.

    For what each rank finds by itself, before the ranks have met: the main one says it,
    the others end without a word.

    Args:
        has_ranks: Whether this program runs on ranks; one that does not always says it,
            whatever ``RANK`` is.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}" if speaks() or not has_ranks else 2)


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """End the process with one sentence where the main rank refuses what it is given.

    The main rank says it, the others end without a word. For what comes before the
    work; what fails later is worth its traceback.
    """
    try:
        yield
    except MainRankError as error:
        if error.refusal is None:
            raise
        sys.exit(f"error: {error.refusal}" if speaks() else 1)


def gather_from_ranks(value: _T, world: World) -> list[_T]:
    """Give every rank the values of all ranks.

    Args:
        value: This rank's value; it can be pickled.
        world: The ranks.

    Returns:
        Copies of all values; entry ``i`` is rank ``i``'s.

    Example:
        >>> with process_group() as world:
        ...     gather_from_ranks("clip.mp4", world)
        ['clip.mp4']
    """
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value, group=world.group)
    return values


def check_same_on_ranks(values: Mapping[str, Any], world: World) -> None:
    """Refuse to go on where ranks disagree.

    Args:
        values: What has to be the same on all ranks, by name; it can be pickled.
        world: The ranks.

    Raises:
        MainRankError: On every rank, with the same words, if a value differs.

    Example:
        >>> with process_group() as world:
        ...     check_same_on_ranks({"seed": 0}, world)
    """
    ranks = gather_from_ranks(dict(values), world)
    broadcast_from_main(lambda: _refuse_differences(ranks), world)


def _refuse_differences(ranks: Sequence[Mapping[str, Any]]) -> None:
    """Refuse values that are not the same on all ranks."""
    for name, first in ranks[0].items():
        for rank, others in enumerate(ranks):
            if others.get(name) != first:
                raise ValueError(
                    f"{name} is {first!r} on rank 0 but {others.get(name)!r} on rank "
                    f"{rank}; all ranks of a run have the same"
                )


def _join(store: Store, rank: int, size: int) -> torch.device:
    """Join the process group; give the device of this rank."""
    device = choose_device()
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        device_id=device if on_gpu else None,
    )
    return device


def choose_device() -> torch.device:
    """Take this rank's GPU and make it the current one, or the CPU.

    Raises:
        ValueError: If there are fewer GPUs than ranks on this machine.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"LOCAL_RANK is {local_rank} but {torch.cuda.device_count()} GPUs are "
            "visible; every rank on a machine needs a GPU of its own"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
