"""Digests of a folder's files, so that a damaged one is known."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from recipes.edge.ranks.distributed import World, broadcast_from_main, gather_from_ranks

MANIFEST = "manifest.json"
"""Name of the file that lists all others of a folder, with their sizes and digests."""

_OF_RANK = re.compile(r"__([0-9]{1,9})_")
"""Begins the name of a file that DCP writes on a rank."""

Entry = dict[str, Any]
"""Size and digest of a file: ``bytes`` and ``sha256``."""


def digest_files(folder: Path, world: World) -> dict[str, Entry]:
    """Compute size and digest of every file, each rank those of ``share_of``.

    All ranks call this together.

    Args:
        folder: A folder of files that nobody changes any more.
        world: The ranks.

    Returns:
        The entries by name, the same on every rank.
    """
    names = broadcast_from_main(
        lambda: sorted(file.name for file in folder.iterdir()), world
    )
    share = share_of(names, world)
    parts = gather_from_ranks({name: entry_of(folder / name) for name in share}, world)
    return {name: entry for part in parts for name, entry in part.items()}


def share_of(names: Iterable[str], world: World) -> list[str]:
    """Choose the files that this rank reads: those that it wrote, as DCP names them.

    Its machine may still hold them in memory. Those of ranks that are not there go to
    the others in turn, and what no name says anything of is the main rank's.

    Args:
        names: All files of a folder.
        world: The ranks.

    Returns:
        The names of this rank's; each file is one rank's.
    """
    writers = {name: _OF_RANK.match(name) for name in names}
    return [
        name
        for name, writer in writers.items()
        if (int(writer[1]) if writer else 0) % world.size == world.rank
    ]


def entry_of(file: Path) -> Entry:
    """Give size and digest of a file."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def write_manifest(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Write a folder's manifest.

    Args:
        folder: The folder.
        entries: Size and digest of every other file in it.
    """
    text = json.dumps({"files": dict(sorted(entries.items()))}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def find_damage(folder: Path, world: World) -> str | None:
    """Compare a folder with its manifest.

    All ranks call this together; each reads the files of ``share_of``.

    Args:
        folder: The folder.
        world: The ranks.

    Returns:
        What is wrong, the same on every rank; None if nothing is.
    """
    expected = broadcast_from_main(lambda: _read_manifest(folder), world)
    if expected is None:
        return f"it has no readable {MANIFEST}"
    share = share_of(expected, world)
    mine = [_compare(folder / name, expected[name]) for name in share]
    found = [words for part in gather_from_ranks(mine, world) for words in part]
    return min(filter(None, found), default=None)


def _read_manifest(folder: Path) -> dict[str, Entry] | None:
    """Read a manifest; None if it is missing or broken."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        is_whole = all(
            name == Path(name).name and {"bytes", "sha256"} == set(entry)
            for name, entry in files.items()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return files if is_whole and files else None


def _compare(file: Path, expected: Entry) -> str | None:
    """Say how a file differs from what its manifest says."""
    try:
        found = entry_of(file)
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
    if found["bytes"] != expected["bytes"]:
        return f"{file.name} has {found['bytes']} bytes, not {expected['bytes']}"
    if found != expected:
        return f"{file.name} has other bytes than were written"
    return None
