"""Samples on disk: conversations joined to the headers of what they show."""

import dataclasses
import hashlib
import json
from collections import ChainMap, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from recipes.edge.data.archives import ArchiveStore, match_members
from recipes.edge.data.conversations import (
    BadSample,
    Conversation,
    Media,
    RowError,
    Turn,
    parse_row,
    row_id,
)
from recipes.edge.data.data_files import Subset, fetch, find_beside, read_rows
from recipes.edge.data.headers import (
    Clip,
    index_archive,
    map_in_threads,
    read_clip,
)
from recipes.edge.data.meanwhile import say_how_many
from recipes.edge.files.publishing import written_aside
from recipes.edge.media.containers import VideoError
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.video import probe_video

ROWS_AT_ONCE = 512
"""Rows that are joined at a time; their headers are held, whatever is remembered."""

REMEMBERED = 2**18
"""Headers of files that are remembered, most of a kilobyte each; one with the times of
its frames counts as more. Captions, questions and choices about a clip lie in files of
their own, so that its rows are up to a million apart."""

TIMES_OF_ONE = 16
"""Times of frames that count as one more header."""


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
        return digest_of(self.path)


def digest_of(path: Path) -> str:
    """Sum up a file of samples."""
    with path.open("rb") as file:
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
    text = Value("large_string")
    features = Features({"sample_id": text, "sample": text})
    with (
        written_aside(path) as aside,
        ArrowWriter(features=features, path=str(aside)) as writer,
    ):
        for sample in say_how_many(samples, "samples are read"):
            row = json.dumps(sample, default=vars)  # asdict copies all times
            writer.write({"sample_id": sample.sample_id, "sample": row})
        writer.finalize()
    return SampleIndex(path)


def join_samples(
    subsets: Sequence[Subset],
    store: ArchiveStore,
    report_bad: Callable[[BadSample], None],
) -> Iterator[Sample]:
    """Read the rows of a dataset, and the headers of the clips that they name.

    A clip is a file, named relative to the data file, or else a member of an archive
    beside it. Archives are gone through once, see ``index_archive``, unless all clips
    are files; rows are joined some hundreds at a time, and rows about one file share
    its header as long as it is remembered. All clips of a row are looked at, also where
    the first makes it a bad one.

    Args:
        subsets: Where the rows are.
        store: Where archives are.
        report_bad: Takes the rows that cannot be used.

    Yields:
        The others, in the order of the files.

    Raises:
        ValueError: If a data file is broken as a whole.
    """
    headers = _Headers()
    for subset in subsets:
        members = _members_of(subset, store)
        for file in map(fetch, subset.files):
            for found in _joined(file, members, headers):
                if isinstance(found, Sample):
                    yield found
                else:
                    report_bad(found)


_Row = tuple[str, Conversation | BadSample]
"""Where a row is, and what it says."""

_Header = Clip | RowError | VideoError
"""A file with its header, or why it has none."""


class _Headers:
    """Headers of files, of which those that were asked for last are remembered."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._known = OrderedDict[tuple[Path, str], _Header]()
        self._held = 0

    def read(self, folder: Path, names: Sequence[str]) -> dict[str, _Header]:
        """Give the headers of files; those that are not remembered are read now.

        Args:
            folder: Where the data file is.
            names: Names of the files, as rows have them; each once.

        Returns:
            What each name is.
        """
        named = [(folder, name) for name in names]
        new = [each for each in named if each not in self._known]
        self._known.update(zip(new, map_in_threads(_probe, iter(new)), strict=True))
        self._held += sum(_size(self._known[each]) for each in new)
        for each in named:
            self._known.move_to_end(each)
        found = {name: self._known[folder, name] for name in names}
        while self._held > REMEMBERED:
            self._held -= _size(self._known.popitem(last=False)[1])
        return found


def _joined(
    file: Path, members: dict[str, Clip | BadSample], headers: _Headers
) -> Iterator[Sample | BadSample]:
    """Join the rows of a file, some hundreds at a time."""
    rows = _conversations(file)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        names = [name for name in _names(some) if name not in members]
        entries = ChainMap[str, Any](headers.read(file.parent, names), members)
        yield from (_join(row, entries) for row in some)


def _names(rows: Iterable[_Row]) -> list[str]:
    """Name what rows show, each once."""
    conversations = (row for _, row in rows if isinstance(row, Conversation))
    shown = (media.name for each in conversations for media in each.media)
    return list(dict.fromkeys(shown))


def _members_of(subset: Subset, store: ArchiveStore) -> dict[str, Clip | BadSample]:
    """Find in a subset's archives what its rows name, where that is no file."""
    if not subset.archives:
        return {}
    wanted = {
        name: file.parent
        for file in map(fetch, subset.files)
        for name in _names(_conversations(file))
    }
    missing = {name for name, folder in wanted.items() if _is_missing(folder, name)}
    if not missing:
        return {}
    found = match_members(wanted, _entries(subset, store))
    return {name: entry for name, entry in found.items() if name in missing}


def _is_missing(folder: Path, name: str) -> bool:
    """Tell whether a name is of no file; what no file can be called is a bad row."""
    with suppress(RowError, OSError):
        return not find_beside(folder, name).is_file()
    return False


def _entries(subset: Subset, store: ArchiveStore) -> Iterator[tuple[str, Any]]:
    """Yield the name of every member of a subset's archives, and what it is."""
    for archive in subset.archives:
        for entry in index_archive(archive, store):
            yield (entry.name if isinstance(entry, Clip) else entry.sample_id), entry


def _conversations(file: Path) -> Iterator[_Row]:
    """Read the rows of a file."""
    for number, row in read_rows(file):
        source, default = f"{file}:{number}", f"{file.name}:{number}"
        try:
            yield source, parse_row(row, default)
        except RowError as error:
            sample_id = _id_or(row, default)
            bad = BadSample(sample_id=sample_id, source=source, reason=str(error))
            yield source, bad


def _id_or(row: object, default: str) -> str:
    """Give the id of a row that cannot be used; the default where the id is why."""
    with suppress(RowError):
        return row_id(row, default)
    return default


def _join(row: _Row, entries: Mapping[str, _Header | BadSample]) -> Sample | BadSample:
    """Join a conversation to the headers of its clips."""
    source, conversation = row
    if isinstance(conversation, BadSample):
        return conversation
    try:
        clips = [_clip(media, entries[media.name]) for media in conversation.media]
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


def _clip(media: Media, entry: _Header | BadSample) -> Clip:
    """Give the clip that a row names, with its header."""
    if isinstance(entry, RowError | VideoError):
        raise type(entry)(str(entry))  # a new one: raised again, one grows
    if isinstance(entry, BadSample):
        raise VideoError(entry.reason)
    return dataclasses.replace(entry, kind=media.kind)


def _probe(named: tuple[Path, str]) -> _Header:
    """Look for a file in a folder, and read its header.

    To find out where links lead takes a look at every folder on the way, which adds up
    over a million rows: rows about one file share that too.
    """
    try:
        file = find_beside(*named)
        info = probe_video(MediaFile(path=file))
    except (RowError, VideoError) as error:
        return type(error)(str(error))  # without what led to it, which is larger
    size = file.stat().st_size
    return Clip(kind="video", source=str(file), size=size, info=info)


def _size(found: _Header) -> int:
    """Tell how many headers one takes the room of."""
    times = found.info.seconds if isinstance(found, Clip) else ()
    return 1 + len(times) // TIMES_OF_ONE


def _from_json(text: str) -> Sample:
    """Read a sample."""
    row = json.loads(text)
    return Sample(
        **row
        | {
            "turns": tuple(Turn(**turn) for turn in row["turns"]),
            "clips": tuple(read_clip(clip) for clip in row["clips"]),
        }
    )
