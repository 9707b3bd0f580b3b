"""Samples on disk: conversations joined to the headers of what they show."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from recipes.edge.archives import (
    ArchiveStore,
    archive_digest,
    list_members,
    locked,
    match_members,
)
from recipes.edge.containers import VideoError
from recipes.edge.conversations import (
    BadSample,
    Conversation,
    Kind,
    Media,
    RowError,
    Turn,
    parse_row,
    row_id,
)
from recipes.edge.data_files import Subset, fetch, find_beside, read_rows
from recipes.edge.media import MediaFile
from recipes.edge.video import VideoInfo, probe_video

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

THREADS = 8
"""Headers that are read at a time."""

AT_ONCE = 4096
"""Conversations that are held in memory while they are joined."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video or a picture of a sample, known by its header.

    Attributes:
        kind: Which of the two.
        source: Its file, or the archive that it is in.
        name: Its name in the archive; empty for a file.
        offset: Its first byte in the archive.
        size: Its bytes in the archive.
        info: What its header says.
    """

    kind: Kind
    source: str
    name: str = ""
    offset: int = 0
    size: int | None = None
    info: VideoInfo

    def file(self, store: ArchiveStore) -> MediaFile:
        """Give the bytes, fetching the archive if it is not there."""
        if not self.name:
            return MediaFile(path=Path(self.source))
        path = store.open(self.source)
        return MediaFile(
            path=path,
            archive=self.source,
            name=self.name,
            offset=self.offset,
            size=self.size,
        )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A conversation about clips that are there.

    Attributes:
        sample_id: The row's id.
        source: The file and the row.
        category: What kind of question it is, if the row says.
        turns: What is said; the user's texts hold a placeholder for each clip.
        clips: What is shown, in order.
    """

    sample_id: str
    source: str
    category: str = ""
    turns: tuple[Turn, ...]
    clips: tuple[Clip, ...] = ()


class SampleIndex:
    """Samples in a file that is mapped into memory; only what is asked for is read.

    Args:
        path: A file that ``write_index`` wrote.
    """

    def __init__(self, path: Path) -> None:
        """Map the file."""
        from datasets import (  # type: ignore[import-untyped]  # noqa: PLC0415
            Dataset,
        )

        self.path = path
        self._table: Any = Dataset.from_file(str(path))

    def __len__(self) -> int:
        """Count the samples."""
        return len(self._table)

    def __getitem__(self, number: int) -> Sample:
        """Read a sample."""
        return _from_json(self._table[number]["sample"])

    def __iter__(self) -> Iterator[Sample]:
        """Read all samples in order."""
        return (self[number] for number in range(len(self)))

    def sample_ids(self) -> list[str]:
        """Give the ids of all samples, in order."""
        return list(self._table["sample_id"])

    def digest(self) -> str:
        """Sum up all that the file says of its samples."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def write_index(path: Path, samples: Iterable[Sample]) -> SampleIndex:
    """Write samples one by one.

    Args:
        path: File to write; an existing one is replaced.
        samples: The samples.

    Returns:
        The same samples, on disk.
    """
    from datasets import Features, Value  # noqa: PLC0415
    from datasets.arrow_writer import (  # type: ignore[import-untyped]  # noqa: PLC0415
        ArrowWriter,
    )

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    text = Value("large_string")
    features = Features({"sample_id": text, "sample": text})
    with ArrowWriter(features=features, path=str(unfinished)) as writer:
        for sample in samples:
            row = json.dumps(dataclasses.asdict(sample))
            writer.write({"sample_id": sample.sample_id, "sample": row})
        writer.finalize()
    unfinished.replace(path)
    return SampleIndex(path)


def join_samples(
    subsets: Sequence[Subset],
    store: ArchiveStore,
    report_bad: Callable[[BadSample], None],
) -> Iterator[Sample]:
    """Read the rows of a dataset, and the headers of the clips that they name.

    A clip is a file, named relative to the data file, or else a member of an archive
    beside it. Archives are gone through once, see ``index_archive``; rows are joined
    some thousands at a time.

    Args:
        subsets: Where the rows are.
        store: Where archives are.
        report_bad: Takes the rows that cannot be used.

    Yields:
        The others, in the order of the files.

    Raises:
        ValueError: If a data file is broken as a whole.
    """
    for subset in subsets:
        members = _members_of(subset, store)
        for address in subset.files:
            file = fetch(address)
            join = partial(_join, folder=file.parent, members=members)
            for found in _map_in_threads(join, _conversations(file)):
                if isinstance(found, Sample):
                    yield found
                else:
                    report_bad(found)


def index_archive(archive: str, store: ArchiveStore) -> Iterator[Clip | BadSample]:
    """Read the headers of everything in an archive, once.

    What they say is written beside the store's archives, and read from there when the
    same archive is asked for again, by any number of processes.

    Args:
        archive: A path, or the address of a file on the hub.
        store: Where archives are.

    Yields:
        What is in it; a member that is neither video nor picture as a bad sample.

    Raises:
        ArchiveError: If the archive is missing or broken.
    """
    path = store.cache_dir / f"{archive_digest(archive)}.members.jsonl"
    if not path.exists():
        store.cache_dir.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                _write_members(path, archive, store)
    with path.open() as lines:
        for line in lines:
            entry = json.loads(line)
            yield BadSample(**entry) if "reason" in entry else _clip(entry)


def _write_members(path: Path, archive: str, store: ArchiveStore) -> None:
    """Write the headers in an archive aside, and show them by a rename."""
    members = list_members(archive, store.open(archive))
    unfinished = path.with_suffix(".partial")
    with unfinished.open("w") as file:
        for found in _map_in_threads(partial(_probe, archive), members):
            file.write(json.dumps(dataclasses.asdict(found)) + "\n")
    unfinished.replace(path)


def _probe(archive: str, member: MediaFile) -> Clip | BadSample:
    """Read the header of a member; refuse one whose name is none inside the archive."""
    try:
        if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
            raise VideoError(f"{member} has a name that leads out of the archive")
        info = probe_video(member)
    except VideoError as error:
        return BadSample(sample_id=member.name, source=archive, reason=str(error))
    return Clip(
        kind="video",
        source=archive,
        name=member.name,
        offset=member.offset,
        size=member.size,
        info=info,
    )


Members = dict[str, Clip | BadSample]


def _members_of(subset: Subset, store: ArchiveStore) -> Members:
    """Find what a subset's rows name in its archives."""
    if not subset.archives:
        return {}
    wanted = {
        media.name
        for address in subset.files
        for _, conversation in _conversations(fetch(address))
        if isinstance(conversation, Conversation)
        for media in conversation.media
    }
    return match_members(wanted, _entries(subset, store))


def _entries(subset: Subset, store: ArchiveStore) -> Iterator[tuple[str, Any]]:
    """Yield the name of every member of a subset's archives, and what it is."""
    for archive in subset.archives:
        for entry in index_archive(archive, store):
            yield (entry.name if isinstance(entry, Clip) else entry.sample_id), entry


def _conversations(file: Path) -> Iterator[tuple[str, Conversation | BadSample]]:
    """Read the rows of a file, each with its source."""
    for number, row in read_rows(file):
        source, default = f"{file}:{number}", f"{file.name}:{number}"
        try:
            yield source, parse_row(row, default)
        except RowError as error:
            try:
                sample_id = row_id(row, default)
            except RowError:
                sample_id = default
            yield (
                source,
                BadSample(sample_id=sample_id, source=source, reason=str(error)),
            )


def _join(
    read: tuple[str, Conversation | BadSample], folder: Path, members: Members
) -> Sample | BadSample:
    """Join a conversation to the headers of its clips."""
    source, conversation = read
    if isinstance(conversation, BadSample):
        return conversation
    try:
        clips = [_find(media, folder, members) for media in conversation.media]
    except (RowError, VideoError) as error:
        return BadSample(
            sample_id=conversation.sample_id, source=source, reason=str(error)
        )
    return Sample(
        sample_id=conversation.sample_id,
        source=source,
        category=conversation.category,
        turns=conversation.turns,
        clips=tuple(clips),
    )


def _map_in_threads(
    function: Callable[[_Item], _Result], items: Iterator[_Item]
) -> Iterator[_Result]:
    """Apply a function to items in order, some thousands of them at a time."""
    with ThreadPoolExecutor(THREADS) as threads:
        while some := list(islice(items, AT_ONCE)):
            yield from threads.map(function, some)


def _find(media: Media, folder: Path, members: Members) -> Clip:
    """Give the clip that a row names, with its header."""
    file = find_beside(folder, media.name)
    entry = members.get(media.name)
    if entry is None or file.is_file():
        info = probe_video(MediaFile(path=file))
        return Clip(kind=media.kind, source=str(file), info=info)
    if isinstance(entry, BadSample):
        raise VideoError(entry.reason)
    return dataclasses.replace(entry, kind=media.kind)


def _from_json(text: str) -> Sample:
    """Read a sample."""
    row = json.loads(text)
    return Sample(
        **row
        | {
            "turns": tuple(Turn(**turn) for turn in row["turns"]),
            "clips": tuple(_clip(clip) for clip in row["clips"]),
        }
    )


def _clip(row: dict[str, Any]) -> Clip:
    """Read a clip."""
    info = row["info"]
    seconds = tuple(info["seconds"])
    return Clip(**row | {"info": VideoInfo(**info | {"seconds": seconds})})
