"""Files and folders that are complete as soon as they are there: shown by a rename."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(file: Path) -> Iterator[Path]:
    """Let a file be written under another name, and put it in its place at the end.

    Args:
        file: Where to; an existing file is replaced.

    Yields:
        The path to write to. Nothing is left there after an error.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(file: Path, text: str) -> None:
    """Write a text aside, wait for the disk, and put it in its place.

    Args:
        file: Where to; an existing file is replaced.
        text: What it will hold.
    """
    with written_aside(file) as partial:
        partial.write_text(text, encoding="utf-8")
        _sync(partial)


def make_partial(final: Path) -> Path:
    """Make an empty folder beside the one that it will be renamed to.

    A leftover of an earlier attempt is removed first.

    Args:
        final: Where the folder will be; its parent is there.

    Returns:
        The folder.

    Raises:
        FileExistsError: If ``final`` is there already.
    """
    if final.exists():
        raise FileExistsError(f"{final} exists; it is written once")
    partial = final.with_name(f".{final.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    return partial


def publish(partial: Path, final: Path) -> None:
    """Wait until all files of a folder are on disk, and rename it.

    Args:
        partial: A folder of files.
        final: Its name from now on.
    """
    for path in (*partial.iterdir(), partial):
        _sync(path)
    partial.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
