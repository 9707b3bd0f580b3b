"""What the headers of clips say, read once for a whole archive."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import av

from recipes.edge.data.archives import (
    ArchiveError,
    ArchiveStore,
    archive_digest,
    list_members,
    locked,
    read_media,
)
from recipes.edge.data.conversations import BadSample, Kind
from recipes.edge.files.publishing import written_aside
from recipes.edge.media.containers import DoubtfulError, VideoError
from recipes.edge.media.media_file import MediaFile, is_still
from recipes.edge.media.video import VideoInfo, probe_video

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

THREADS = 8
"""Headers that are read at a time."""

FORMAT = 2
"""What is written of a member; another number where the words mean something else."""

AT_ONCE = 4096
"""Items that are held in memory while they are gone through."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video or a picture of a sample, known by its header.

    Attributes:
        kind: Which of the two.
        source: Its file, or the archive that it is in.
        name: Its name in the archive; empty for a file.
        offset: Its first byte in the archive.
        size: Its bytes; None for a file of which they are not known.
        info: What its header says.
    """

    kind: Kind
    source: str
    name: str = ""
    offset: int = 0
    size: int | None = None
    info: VideoInfo

    def file(self, store: ArchiveStore) -> MediaFile:
        """Give the bytes, fetching the archive if it is not there.

        Raises:
            VideoError: If a file has another size than when its header was read.
        """
        if not self.name:
            file = Path(self.source)
            if self.size is not None and file.is_file():
                found = file.stat().st_size
                if found != self.size:
                    raise VideoError(
                        f"{file} has {found:,} bytes but had {self.size:,} when its "
                        "header was read"
                    )
            return MediaFile(path=file)
        path = store.open(self.source)
        return MediaFile(
            path=path,
            archive=self.source,
            name=self.name,
            offset=self.offset,
            size=self.size,
        )


def index_archive(archive: str, store: ArchiveStore) -> Iterator[Clip | BadSample]:
    """Read the headers of everything in an archive, once.

    What they say is written beside the store's archives, and read from there when the
    same archive is asked for again, by any number of processes with the same decoders.
    A member that took too long, or may have met a disk that failed, is tried again each
    time.

    Args:
        archive: A path, or the address of a file on the hub.
        store: Where archives are.

    Yields:
        What is in it; a member that is neither video nor picture as a bad sample.

    Raises:
        ArchiveError: If the archive is missing or broken.
        OSError: If the machine fails; nothing is written down then.
    """
    path = store.cache_dir / f"{archive_digest(archive)}.{reader()}.headers.jsonl"
    if not path.exists():
        store.cache_dir.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                with written_aside(path) as aside:
                    _write_members(aside, archive, store)
    with path.open() as lines:
        for line in lines:
            entry = json.loads(line)
            yield _read(entry, archive, store)


def map_in_threads(
    function: Callable[[_Item], _Result], items: Iterator[_Item]
) -> Iterator[_Result]:
    """Apply a function to items in order, some thousands of them at a time.

    Args:
        function: What is done with each.
        items: The items.

    Yields:
        What it gives for each.
    """
    with ThreadPoolExecutor(THREADS) as threads:
        while some := list(islice(items, AT_ONCE)):
            yield from threads.map(function, some)


def read_clip(row: dict[str, Any]) -> Clip:
    """Read a clip from what ``dataclasses.asdict`` gave, as JSON has it."""
    info = row["info"]
    seconds = tuple(info["seconds"])
    return Clip(**row | {"info": VideoInfo(**info | {"seconds": seconds})})


def reader() -> str:
    """Name what is written of members, and the decoders that it was read with."""
    fields = [field.name for field in dataclasses.fields(VideoInfo)]
    known = repr((FORMAT, fields, sorted(av.library_versions.items())))
    return hashlib.sha256(known.encode()).hexdigest()[:8]


def _write_members(path: Path, archive: str, store: ArchiveStore) -> None:
    """Write the headers in an archive to a file.

    Another process may make room while they are read. What failed then is no fault of
    the members: the archive is fetched again, and all of it is read anew.
    """
    is_done = False
    while not is_done:
        plain = store.open(archive)
        try:
            held = plain.open("rb")
        except FileNotFoundError:
            continue
        with held, path.open("w") as file:
            try:
                members = list_members(archive, plain)
                for entry in map_in_threads(partial(_entry, archive), members):
                    file.write(json.dumps(entry) + "\n")
                is_done = is_still(held, plain)
            except ArchiveError:
                if is_still(held, plain):
                    raise


def _entry(archive: str, member: MediaFile) -> dict[str, Any]:
    """Give what is written of a member; of a doubtful one, only where it lies."""
    try:
        return dataclasses.asdict(_probe(archive, member))
    except DoubtfulError:
        return {"name": member.name, "offset": member.offset, "size": member.size}
    except VideoError as error:
        return dataclasses.asdict(_unusable(archive, member.name, error))


def _read(entry: dict[str, Any], archive: str, store: ArchiveStore) -> Clip | BadSample:
    """Read what is written of a member, and try a doubtful one again."""
    if "reason" in entry:
        return BadSample(**entry)
    if "info" in entry:
        return read_clip(entry)
    try:
        return read_media(
            lambda: MediaFile(path=store.open(archive), archive=archive, **entry),
            partial(_probe, archive),
        )
    except VideoError as error:
        return _unusable(archive, entry["name"], error)


def _probe(archive: str, member: MediaFile) -> Clip:
    """Read the header of a member; refuse one whose name is none inside the archive."""
    if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
        raise VideoError(f"{member} has a name that leads out of the archive")
    info = probe_video(member)
    return Clip(
        kind="video",
        source=archive,
        name=member.name,
        offset=member.offset,
        size=member.size,
        info=info,
    )


def _unusable(archive: str, name: str, error: VideoError) -> BadSample:
    """Name a member that cannot be used, and why."""
    return BadSample(sample_id=name, source=archive, reason=str(error))
