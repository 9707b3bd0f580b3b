"""Clips inside tar archives, read in place."""

import fcntl
import gzip
import hashlib
import io
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TypeVar

from huggingface_hub.constants import HF_HOME

from recipes.edge.data.data_files import fetch
from recipes.edge.files.publishing import written_aside
from recipes.edge.media.containers import FAILING, VideoError
from recipes.edge.media.media_file import MediaFile, is_still

CACHE = Path(HF_HOME) / "fastslow"
"""Where archives are unzipped and what is in them is written down, for all runs."""

HEADER_BYTES = 2**20
"""Bytes of a member's header at most, long names and attributes included."""

UNZIPPED_BYTES = 2**24
"""Bytes that any archive may be unzipped to, however small it is."""

UNZIPPED_RATIO = 10
"""How many times as large a larger one may become; clips hardly grow at all."""

_T = TypeVar("_T")


class ArchiveError(ValueError):
    """An archive cannot be used; the message names it and the reason."""


class ArchiveStore:
    """Archives that can be read at any place, which those of gzip cannot.

    A .tar is read where it lies. Any other is unzipped once, into the cache; clips are
    compressed already, so that takes as much room as the archive. Any number of
    processes and of runs may share the cache; none lets go of what another run has
    unzipped.

    Args:
        cache_dir: Where unzipped archives go.
        most: Archives to keep of those that the run unzipped; the one that was opened
            longest ago goes first. None keeps all.
        run: Name of the run, the same in all of its processes and after a restart: what
            it unzipped is written down under that name, beside the archives.
    """

    def __init__(
        self, cache_dir: Path, *, most: int | None = None, run: str = ""
    ) -> None:
        """Keep where archives go; nothing is written yet."""
        self.cache_dir = cache_dir
        self.most = most
        name = hashlib.sha256(run.encode()).hexdigest()[:32]
        self._unzipped_by_run = cache_dir / "unzipped" / name

    def open(self, archive: str) -> Path:
        """Give the .tar of an archive, fetched and unzipped if it is not there.

        Args:
            archive: A path, or the address of a file on the hub.

        Returns:
            Path of the .tar.

        Raises:
            ArchiveError: If the archive is missing or broken.
            OSError: If the cache cannot be written to or the machine fails; the archive
                may be good.
        """
        if archive.endswith(".tar") and Path(archive).exists():
            return Path(archive)
        plain = self.cache_dir / f"{archive_digest(archive)}.tar"
        while True:
            if not plain.exists():
                self.cache_dir.mkdir(parents=True, exist_ok=True)
                with locked(plain.with_suffix(".lock")):
                    if not plain.exists():
                        self._unzip(archive, plain)
            with suppress(FileNotFoundError):  # another run has unzipped it
                os.utime(self._unzipped_by_run / plain.name)
            if plain.exists():  # else let go by another process meanwhile
                return plain

    def _unzip(self, archive: str, plain: Path) -> None:
        """Write the .tar of an archive."""
        downloads = self.cache_dir / "downloads"
        source = fetch(archive, downloads)
        with written_aside(plain) as aside:
            with aside.open("wb") as file:
                file.writelines(_unzipped(archive, source))
            if self.most is not None:
                self._make_room_for(plain.name, self.most)
        if downloads in source.parents:
            source.unlink()

    def _make_room_for(self, newest: str, most: int) -> None:
        """Remove what was opened longest ago; who has it open still can read it."""
        self._unzipped_by_run.mkdir(parents=True, exist_ok=True)
        (self._unzipped_by_run / newest).touch()
        kept = list[tuple[float, str]]()
        for each in self._unzipped_by_run.iterdir():
            with suppress(FileNotFoundError):  # other processes make room as well
                kept.append((each.stat().st_mtime, each.name))
        kept = sorted(pair for pair in kept if pair[1] != newest)
        for _, name in kept[: max(len(kept) + 1 - most, 0)]:
            (self._unzipped_by_run / name).unlink(missing_ok=True)
            (self.cache_dir / name).unlink(missing_ok=True)


def read_media(find: Callable[[], MediaFile], read: Callable[[MediaFile], _T]) -> _T:
    """Read a file; where it lies in an archive that is let go meanwhile, read it again.

    Another process may make room at any time, and what fails then is no fault of the
    file.

    Args:
        find: Gives the file, fetching its archive if that is not there.
        read: What is done with it.

    Returns:
        What ``read`` gives.

    Raises:
        VideoError: If the file cannot be used.
        ArchiveError: If the archive is missing or broken.
        OSError: If the machine fails.
    """
    while True:
        file = find()
        if not file.archive:
            return read(file)
        with suppress(FileNotFoundError), file.path.open("rb") as held:
            try:
                return read(file)
            except VideoError:
                if is_still(held, file.path):
                    raise


def _unzipped(archive: str, source: Path) -> Iterator[bytes]:
    """Yield the .tar of an archive block by block."""
    opener = open if source.suffix == ".tar" else gzip.open
    size = 0
    try:
        most = max(UNZIPPED_BYTES, UNZIPPED_RATIO * source.stat().st_size)
        with opener(source, "rb") as packed:
            while block := packed.read(2**20):
                size += len(block)
                if size > most:
                    raise OSError(f"it would have more than {most:,} bytes")
                yield block
    except (OSError, EOFError, zlib.error) as error:
        if getattr(error, "errno", None) in FAILING:
            raise
        raise ArchiveError(f"{archive} cannot be unpacked: {error}") from error


def list_members(archive: str, plain: Path) -> Iterator[MediaFile]:
    """List the files in an archive; links, folders and devices are passed over.

    Nothing is ever written under a member's name, and of an archive only headers are
    read, one at a time.

    Args:
        archive: Its name, for messages.
        plain: Its .tar.

    Yields:
        Where each lies.

    Raises:
        ArchiveError: If the archive is broken, or stores a file in parts.
        OSError: If the machine fails.
    """
    try:
        with _Headers(plain) as file, tarfile.open(fileobj=file, mode="r:") as members:
            before = -1
            while (member := members.next()) is not None:
                members.members = []  # type: ignore[attr-defined]
                if member.offset <= before or member.size < 0:
                    raise tarfile.ReadError(f"member {member.name!r} has no end")
                before = member.offset
                if member.issparse():
                    raise tarfile.ReadError(f"member {member.name!r} is in parts")
                if member.isreg():
                    yield MediaFile(
                        path=plain,
                        archive=archive,
                        name=member.name,
                        offset=member.offset_data,
                        size=member.size,
                    )
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        if getattr(error, "errno", None) in FAILING:
            raise
        raise ArchiveError(f"{archive} is no readable tar archive: {error}") from error


class _Headers(io.FileIO):
    """A file of which only headers are read, each short and inside of the file."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header states {size} bytes")
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and not 0 <= offset <= os.fstat(self.fileno()).st_size:
            raise tarfile.ReadError(f"a member ends at byte {offset}")
        return super().seek(offset, whence)


def match_members(
    wanted: Iterable[str], members: Iterable[tuple[str, _T]]
) -> dict[str, _T]:
    """Find wanted files among the members of archives.

    Archives are packed from other folders than the rows were written for. So a member
    is the wanted one if the names are equal; else if one ends with the other, or the
    last parts are equal, and no other name and no other member ends so. Of what may be
    another's clip, nothing is found.

    Args:
        wanted: Names in rows.
        members: Name of each member, and what is known of it; of equal names the first
            counts.

    Returns:
        What is known of each wanted file that was found, by its name.

    Laws:
        one_each: no member is given for two names that differ
    """
    tree = dict[tuple[int, str], int]()
    names = {name: _grow(tree, name) for name in wanted}
    differing = {ends[-1:]: ends for ends in names.values()}
    names_with = Counter(chain.from_iterable(differing.values()))
    members_with, seen = Counter[int](), set[tuple[str, ...]]()
    whole, known_with = dict[int, _T](), dict[int, _T]()
    for member, known in members:
        parts = PurePosixPath(member).parts
        ends = _find_ends(tree, parts)
        if ends and parts not in seen:
            seen.add(parts)
            members_with.update(ends)
            known_with |= dict.fromkeys(ends, known)
            if len(ends) == len(parts):
                whole[ends[-1]] = known
    found = dict[str, _T]()
    for name, ends in names.items():
        for end in ends:
            is_alone = names_with[end] == members_with[end] == 1
            if is_alone and (end in {ends[0], ends[-1]} or end in whole):
                found[name] = known_with[end]
        if ends and ends[-1] in whole:
            found[name] = whole[ends[-1]]
    return found


def _grow(tree: dict[tuple[int, str], int], name: str) -> tuple[int, ...]:
    """Number the ends of a path, its last part first; equal ends have one number."""
    end, ends = 0, list[int]()
    for part in reversed(PurePosixPath(name).parts):
        end = tree.setdefault((end, part), len(tree) + 1)
        ends.append(end)
    return tuple(ends)


def _find_ends(
    tree: dict[tuple[int, str], int], parts: tuple[str, ...]
) -> tuple[int, ...]:
    """Give the numbers of those ends of a path that are known."""
    end, ends = 0, list[int]()
    for part in reversed(parts):
        if (end, part) not in tree:
            break
        end = tree[end, part]
        ends.append(end)
    return tuple(ends)


def archive_digest(archive: str) -> str:
    """Name an archive, a local one so that another file in its place has another name.

    Args:
        archive: A path, or the address of a file on the hub.

    Returns:
        Digits that change with the path, the size and the time of change of a file, and
        with an address alone: another file at the same address has the same ones.
    """
    path, identity = Path(archive), archive
    if path.exists():
        status = path.stat()
        identity = f"{path.absolute()} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time do what is inside.

    Args:
        path: A file that is there for this alone; made if it does not exist.
    """
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
