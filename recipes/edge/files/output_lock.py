"""One run at a time writes to a folder."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from recipes.edge.ranks.distributed import World, broadcast_from_main

LOCK = ".lock"
"""Name of the file that the main rank of a run holds locked."""

PATIENCE = 60.0
"""Seconds to wait for a run that is about to end, such as one without its launcher."""


@contextmanager
def only_run(output_dir: Path, world: World) -> Iterator[None]:
    """Keep other runs out of a folder.

    All ranks call this together. The main rank holds a lock of the operating system,
    which is gone as soon as its process is, however it ends.

    Args:
        output_dir: Folder of the run; made if it does not exist.
        world: The ranks.

    Raises:
        MainRankError: On every rank, if another run still writes there after
            ``PATIENCE`` seconds, or if the folder cannot be written to.
    """
    held: list[TextIO] = []
    broadcast_from_main(lambda: held.append(_lock(output_dir)), world)
    try:
        yield
    finally:
        for file in held:
            file.close()


def _lock(output_dir: Path) -> TextIO:
    """Open the lock and wait for it; it holds the process that has it."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        file = (output_dir / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"output_dir is {output_dir}, where no file can be written "
            f"({error.strerror})"
        ) from error
    until = time.monotonic() + PATIENCE
    while not _try_to_lock(file):
        if time.monotonic() > until:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            raise BlockingIOError(
                f"{output_dir} is in use by {holder}; one run at a time writes there"
            )
        time.sleep(0.2)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _try_to_lock(file: TextIO) -> bool:
    """Take the lock unless another process has it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
