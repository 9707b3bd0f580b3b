"""A failure of one rank ends all of them, soon and with one message.

Ranks meet in collectives, and a rank that fails meets nobody: the others would wait for
it until the timeout, which is ten minutes under NCCL, thirty under gloo and a day for
objects. So the first rank that fails says so in the store through which the ranks found
each other, and every rank looks there once a second.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

LOOK_SECONDS = 1.0
"""Time from one look for a failure to the next."""

GRACE_SECONDS = 10.0
"""Time in which a rank may end in its own way after another has failed: a broken
connection raises where it waits, and what it wrote is closed in order."""

_FIRST = "first"


@contextmanager
def shared_failures(store: Store, rank: int) -> Iterator[Callable[[Exception], None]]:
    """End this rank when another one fails.

    A rank that the failure of another one reaches as an error of its own, such as a
    broken connection, raises that failure instead. One that it does not reach, because
    it waits in a collective of NCCL or is at work on something else, writes the same
    message and exits with status 1 after ``GRACE_SECONDS``.

    Args:
        store: The store that all ranks share.
        rank: This rank.

    Yields:
        What tells the others that this rank fails; call it before connections close.

    Raises:
        RuntimeError: In place of an error that another rank's failure came before.
    """
    board = PrefixStore("failures", store)
    of_thread = cast(Any, store).clone()  # typed from torch 2.14 on
    looking = PrefixStore("failures", of_thread)
    left = Event()
    watcher = Thread(target=_watch, args=(looking, left), daemon=True)
    watcher.start()
    found: list[dict[str, object]] = []

    def tell(error: Exception) -> None:
        mine = {"rank": rank, "error": f"{type(error).__name__}: {error}"}
        with suppress(dist.DistError):  # who keeps the store may be gone
            first = json.loads(board.compare_set(_FIRST, "", json.dumps(mine)))
            if first["error"] != mine["error"]:
                found.append(first)

    try:
        yield tell
    except Exception as error:
        if found:
            raise RuntimeError(_message(found[0])) from error
        raise
    finally:
        left.set()
        watcher.join()


def _watch(board: Store, left: Event) -> None:
    """Wait until this rank has left, or end it after another one has failed."""
    while not left.wait(LOOK_SECONDS):
        try:
            found = board.get(_FIRST) if board.check([_FIRST]) else None
        except dist.DistError:  # who keeps the store has left: all is done, or lost
            return
        if found is not None:
            if not left.wait(GRACE_SECONDS):
                sys.stderr.write(f"{_message(json.loads(found))}\n")
                sys.stderr.flush()
                os._exit(1)
            return


def _message(failure: dict[str, object]) -> str:
    """Say why the run ends."""
    return (
        f"rank {failure['rank']} failed with {failure['error']}; "
        "all ranks of the run end with it"
    )
