"""Hostile archives: names that climb, headers that lie, bombs."""

import gzip
import struct
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.recipes.fuzz.cases import (
    ANY,
    HARMLESS,
    REFUSED,
    SKIPPED,
    SKIPPED_OR_REFUSED,
    Case,
    Verdict,
    cuts,
    flips,
    row,
    write_rows,
)
from tests.recipes.fuzz.videos import seed

BLOCK = 512


def archive_cases() -> Iterator[Case]:
    """Give all hostile archives."""
    yield from _names()
    yield from _kinds()
    yield from _damaged()
    yield from _bombs()


def archive_case(
    family: str,
    name: str,
    content: bytes | Callable[[Path], object],
    may: tuple[Verdict, ...],
    *,
    file: str = "clips.tar",
    video: str = "clip.mp4",
) -> Case:
    """Give the case of a row about a clip in an archive."""

    def make(folder: Path) -> None:
        data = write_rows(folder, [row(video=video)])
        if isinstance(content, bytes):
            (data / file).write_bytes(content)
        else:
            content(data / file)

    return Case(kind="data", family=f"archive: {family}", name=name, make=make, may=may)


def header(
    name: str, size: int, *, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> bytes:
    """Write the header of a member."""
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, link
    return member.tobuf(tarfile.GNU_FORMAT)


def with_size(block: bytes, field: bytes) -> bytes:
    """Write other bytes for the size in a header, and its sum anew."""
    block = (
        block[:124] + field.ljust(12, b"\0") + block[136:148] + b" " * 8 + block[156:]
    )
    return block[:148] + b"%06o\0 " % sum(block[:BLOCK]) + block[156:]


def padded(content: bytes) -> bytes:
    """Fill up to whole blocks."""
    return content + bytes(-len(content) % BLOCK)


def member(name: str = "clip.mp4", content: bytes | None = None) -> bytes:
    """Write a member whole."""
    content = seed("mp4") if content is None else content
    return header(name, len(content)) + padded(content)


END = bytes(2 * BLOCK)


def _names() -> Iterator[Case]:
    hostile = (
        "../clip.mp4",
        "a/../../clip.mp4",
        "/clip.mp4",
        "/etc/clip.mp4",
        "a/../clip.mp4",
    )
    for name in (*hostile, "./../clip.mp4", "..//clip.mp4"):
        content = member(name) + END
        yield archive_case("name", name, content, SKIPPED)
        yield archive_case(
            "name",
            f"{name}, zipped",
            gzip.compress(content),
            SKIPPED,
            file="clips.tar.gz",
        )
    for name in ("clip.mp4", "./clip.mp4", "deep/clip.mp4"):
        yield archive_case("name", name, member(name) + END, ("used",))
    odd = {
        "no name": "",
        "a folder": "clip.mp4/",
        "surrogates": "\udcff/clip.mp4",
        "controls": "\x1b[2J/clip.mp4",
        "long": "x/" * 3000 + "clip.mp4",
    }
    for name, text in odd.items():
        yield archive_case("name", name, member(text) + END, HARMLESS)
    twice = member("a/clip.mp4") + member("b/clip.mp4") + END
    yield archive_case("name", "two of one name", twice, SKIPPED)
    yield archive_case(
        "name",
        "bytes that are no text",
        member("\udcff.mp4") + END,
        SKIPPED,
        video="\ufffd.mp4",
    )


def _kinds() -> Iterator[Case]:
    kinds = {
        "symlink": tarfile.SYMTYPE,
        "hard link": tarfile.LNKTYPE,
        "fifo": tarfile.FIFOTYPE,
        "character device": tarfile.CHRTYPE,
        "block device": tarfile.BLKTYPE,
        "folder": tarfile.DIRTYPE,
        "unknown": b"Z",
        "sparse": tarfile.GNUTYPE_SPARSE,
        "volume": b"V",
        "multivolume": b"M",
    }
    for name, kind in kinds.items():
        for target in ("/etc/passwd", "../outside.mp4", "clip.mp4"):
            block = header("clip.mp4", 0, kind=kind, link=target)
            yield archive_case(
                "kind", f"{name} to {target}", block + END, SKIPPED_OR_REFUSED
            )
    sparse = tarfile.TarInfo("clip.mp4")
    sparse.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "clip.mp4",
        "GNU.sparse.realsize": str(2**62),
    }
    sparse.size = len(seed("mp4"))
    content = sparse.tobuf(tarfile.PAX_FORMAT) + padded(seed("mp4")) + END
    yield archive_case("kind", "sparse, 4 EiB", content, SKIPPED_OR_REFUSED)


def _damaged() -> Iterator[Case]:
    whole = member("other.mp4", b"x" * 700) + member() + END
    zipped = gzip.compress(whole, mtime=0)
    for name, cut in cuts(whole, 12):
        yield archive_case("truncated", name, cut, ANY)
    for name, cut in cuts(zipped, 8):
        yield archive_case(
            "truncated", f"{name}, zipped", cut, REFUSED, file="clips.tgz"
        )
    for name, damaged in flips(whole, 30, seed=7, within=slice(0, 512)):
        yield archive_case("flipped", name, damaged, ANY)
    for name, damaged in flips(whole, 20, seed=8, within=slice(1536, 2048)):
        yield archive_case("flipped", name, damaged, ANY)
    for name, damaged in flips(zipped, 20, seed=9):
        yield archive_case("flipped", f"{name}, zipped", damaged, ANY, file="clips.tgz")
    fields = {
        "negative": b"\xff" * 12,
        "minus a block": b"\xff" * 10 + struct.pack(">h", -1024),
        "2^63": b"\x80\0\0\0" + struct.pack(">Q", 2**63),
        "2^88": b"\x80" + b"\xff" * 11,
        "8 GiB": b"77777777777\0",
        "no number": b"size?",
        "empty": b"",
    }
    for kind in (
        tarfile.REGTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
    ):
        for name, field in fields.items():
            block = with_size(header("clip.mp4", 0, kind=kind), field)
            content = block + padded(seed("mp4")) + END
            yield archive_case(
                "size", f"{name}, type {kind!r}", content, SKIPPED_OR_REFUSED
            )
            behind = member("a.mp4") + content
            yield archive_case(
                "size", f"{name}, type {kind!r}, second", behind, SKIPPED_OR_REFUSED
            )
    for name, content in {
        "empty": b"",
        "text": b"no archive\n" * 200,
        "zeros": END * 5,
    }.items():
        for file in ("clips.tar", "clips.tar.gz", "clips.tgz"):
            yield archive_case(
                "no archive", f"{name}, {file}", content, SKIPPED_OR_REFUSED, file=file
            )
    yield archive_case("no archive", "1 TiB of holes", _holes, SKIPPED_OR_REFUSED)
    yield archive_case(
        "no archive",
        "link",
        lambda path: path.symlink_to("/dev/zero"),
        SKIPPED_OR_REFUSED,
    )


def _holes(path: Path) -> None:
    with path.open("wb") as file:
        file.write(header("clip.mp4", 2**40))
        file.truncate(2**40 + BLOCK)


def _bombs() -> Iterator[Case]:
    for name, first, length in (
        ("a member of 256 MiB", header("clip.mp4", 2**28), 2**28),
        ("zeros of 256 MiB", END, 2**28),
        (
            "a name of 256 MiB",
            header("clip.mp4", 2**28, kind=tarfile.GNUTYPE_LONGNAME),
            2**28,
        ),
        (
            "attributes of 256 MiB",
            header("clip.mp4", 2**28, kind=tarfile.XHDTYPE),
            2**28,
        ),
    ):
        write = partial(_write_zipped, first=first, length=length)
        yield archive_case("bomb", name, write, SKIPPED_OR_REFUSED, file="clips.tar.gz")
    many = partial(_write_zipped, first=b"", length=20_000, what=header("a", 0))
    yield archive_case("bomb", "many members", many, SKIPPED, file="clips.tar.gz")
    names = header("x", 10, kind=tarfile.GNUTYPE_LONGNAME) + padded(b"longername")
    yield archive_case(
        "bomb", "names of names", names * 5000 + member() + END, SKIPPED_OR_REFUSED
    )
    text = b"30 path=clip.mp4 and some more\n"
    attributes = header("x", len(text), kind=tarfile.XHDTYPE) + padded(text)
    yield archive_case(
        "bomb",
        "attributes of attributes",
        attributes * 5000 + member() + END,
        SKIPPED_OR_REFUSED,
    )
    records = b"".join(b"14 k%07d=v\n" % n for n in range(200_000))
    pax = header("x", len(records), kind=tarfile.XGLTYPE) + padded(records)
    yield archive_case("bomb", "a million attributes", pax + member() + END, ANY)


def _write_zipped(path: Path, first: bytes, length: int, what: bytes = b"") -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(first)
        if what:
            file.write(what * length)
        else:
            block = bytes(2**20)
            for _ in range(length // len(block)):
                file.write(block)
        file.write(END)
