"""Clips in archives, read in place."""

import errno
import io
import itertools
import os
import pickle
import resource
import tarfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipes.edge.data.archives import (
    ArchiveError,
    ArchiveStore,
    list_members,
    match_members,
)
from recipes.edge.data.clips import write_clip
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.video import decode_frames, probe_video
from tests.recipes.processes import in_two_processes

MODES = {".tar": "w", ".tar.gz": "w:gz", ".tgz": "w:gz"}

LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = torch.arange(5 * 3 * 48 * 64).reshape(5, 3, 48, 64) % 255
    write_clip(tmp_path / "clip.mp4", frames.to(torch.uint8))
    return tmp_path / "clip.mp4"


def pack(path: Path, files: dict[str, bytes]) -> Path:
    suffix = "".join(path.suffixes)
    with tarfile.open(path, MODES[suffix]) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", MODES)
def test_a_clip_is_read_in_place(tmp_path: Path, clip: Path, suffix: str) -> None:
    content = clip.read_bytes()
    files = {"a.txt": b"text", "deep/b.mp4": content, "c.mp4": content[::-1]}
    archive = pack(tmp_path / f"clips{suffix}", files)
    plain = ArchiveStore(tmp_path / "cache").open(str(archive))
    assert (plain == archive) == (suffix == ".tar")
    members = list(list_members(str(archive), plain))
    assert [member.name for member in members] == list(files)
    whole = MediaFile(path=clip)
    assert probe_video(members[1]) == probe_video(whole)
    indices = [0, 2, 4]
    found = decode_frames(members[1], indices)
    assert torch.equal(found, decode_frames(whole, indices))
    assert str(members[1]) == f"{archive}:deep/b.mp4"


def test_an_archive_is_unzipped_once(tmp_path: Path) -> None:
    store = ArchiveStore(tmp_path / "cache")
    archive = pack(tmp_path / "clips.tar.gz", {"a": b"1"})
    plain = store.open(str(archive))
    written = plain.stat().st_ino
    assert store.open(str(archive)) == plain
    assert plain.stat().st_ino == written
    pack(archive, {"a": b"22"})
    os.utime(archive, (1, 1))
    assert store.open(str(archive)) != plain


def test_what_was_opened_longest_ago_goes_first(tmp_path: Path) -> None:
    store = ArchiveStore(tmp_path / "cache", most=2)
    archives = [
        str(pack(tmp_path / f"{name}.tar.gz", {"a": name.encode()})) for name in "abc"
    ]
    first, second = (store.open(archive) for archive in archives[:2])
    time.sleep(0.02)
    assert store.open(archives[0]) == first
    reader = second.open("rb")
    third = store.open(archives[2])
    assert (first.exists(), second.exists(), third.exists()) == (True, False, True)
    with reader:
        assert len(reader.read()) > 0
    assert store.open(archives[1]).exists()


def test_a_run_lets_go_of_what_it_unzipped_and_of_nothing_else(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    archives = [
        str(pack(tmp_path / f"{name}.tar.gz", {"a": name.encode()}))
        for name in "abcdefgh"
    ]
    others = [ArchiveStore(cache).open(archive) for archive in archives[:3]]
    streamed = ArchiveStore(cache, most=2, run="streamed")
    others.append(streamed.open(archives[3]))
    mine = ArchiveStore(cache, most=2, run="mine")
    opened = [mine.open(archive) for archive in archives]
    assert [plain.exists() for plain in others] == [True] * 4
    assert [plain.exists() for plain in opened[4:]] == [False, False, True, True]


def test_the_processes_of_a_run_share_its_limit(tmp_path: Path) -> None:
    archives = [
        str(pack(tmp_path / f"{name}.tar.gz", {"a": name.encode()})) for name in "abcd"
    ]
    store = ArchiveStore(tmp_path / "cache", most=2, run="mine")
    again = ArchiveStore(tmp_path / "cache", most=2, run="mine")
    opened = []
    for each, archive in zip(
        (store, pickle.loads(pickle.dumps(store))) * 2, archives, strict=True
    ):
        opened.append(each.open(archive))
        time.sleep(0.02)
    assert [plain.exists() for plain in opened] == [False, False, True, True]
    opened.append(again.open(archives[0]))
    assert [plain.exists() for plain in opened[1:4]] == [False, False, True]


def test_processes_share_a_cache(tmp_path: Path) -> None:
    archive = pack(tmp_path / "clips.tar.gz", {"a": bytes(10_000_000)})

    def unpack() -> int:
        plain = ArchiveStore(tmp_path / "cache").open(str(archive))
        return plain.stat().st_ino

    first, second = in_two_processes(unpack)
    assert first == second


def test_a_full_disk_is_not_the_fault_of_an_archive(tmp_path: Path) -> None:
    archive = pack(tmp_path / "clips.tar.gz", {"a": b"1" * 10_000})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            ArchiveStore(tmp_path / "cache").open(str(archive))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]


def test_links_and_folders_are_passed_over(tmp_path: Path) -> None:
    path = pack(tmp_path / "clips.tar", {"a": b"1"})
    with tarfile.open(path, "a") as archive:
        for kind in (
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.DIRTYPE,
            tarfile.FIFOTYPE,
        ):
            member = tarfile.TarInfo("../../etc/passwd")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert [each.name for each in list_members("clips", path)] == ["a"]


@pytest.mark.parametrize("suffix", MODES)
def test_broken_archives_say_so(tmp_path: Path, suffix: str) -> None:
    whole = pack(tmp_path / f"whole{suffix}", {"a": os.urandom(50_000)}).read_bytes()
    store = ArchiveStore(tmp_path / "cache")
    for number, content in enumerate((whole[:20_000], b"no archive" * 100)):
        archive = tmp_path / f"{number}{suffix}"
        archive.write_bytes(content)
        with pytest.raises(ArchiveError, match=rf"{number}{suffix} (cannot be|is no)"):
            list(list_members(str(archive), store.open(str(archive))))
    with pytest.raises(ArchiveError, match="lost"):
        store.open(str(tmp_path / f"lost{suffix}"))


def test_a_member_is_known_by_its_name_or_by_an_end_of_it() -> None:
    members = [
        ("source/NExT/1.mp4", "next"),
        ("./source/b/2.mp4", "exact"),
        ("other/2.mp4", "worse"),
        ("x/3.mp4", "three"),
        ("y/3.mp4", "again"),
        ("z/4.mp4", "four"),
        ("5.mp4", "shorter"),
    ]
    wanted = [
        "NExT/1.mp4",
        "source/b/2.mp4",
        "./source/b/2.mp4",
        "a/3.mp4",
        "a/4.mp4",
        "deep/5.mp4",
        "6.mp4",
        "xt/1.mp4",
        ".",
    ]
    assert match_members(wanted, members) == {
        "NExT/1.mp4": "next",
        "source/b/2.mp4": "exact",
        "./source/b/2.mp4": "exact",
        "a/4.mp4": "four",
        "deep/5.mp4": "shorter",
    }


@pytest.mark.parametrize(
    ("wanted", "members", "found"),
    [
        (["A/9.mp4", "B/9.mp4", "C/9.mp4"], ["A/9.mp4"], {"A/9.mp4": "A/9.mp4"}),
        (["A/9.mp4", "B/9.mp4"], ["9.mp4"], {}),
        (["A/9.mp4", "B/9.mp4"], ["9.mp4", "A/9.mp4"], {"A/9.mp4": "A/9.mp4"}),
        (["B/9.mp4"], ["A/9.mp4", "C/9.mp4"], {}),
        (["9.mp4"], ["A/9.mp4", "C/9.mp4"], {}),
        (["9.mp4", "B/9.mp4"], ["x/B/9.mp4"], {"B/9.mp4": "x/B/9.mp4"}),
        (["A/9.mp4", "x/A/9.mp4"], ["x/A/9.mp4"], {"x/A/9.mp4": "x/A/9.mp4"}),
        (["A/x/9.mp4", "B/y/9.mp4"], ["C/x/9.mp4"], {}),
    ],
)
def test_no_clip_of_another_sample_takes_the_place_of_a_missing_one(
    wanted: list[str], members: list[str], found: dict[str, str]
) -> None:
    for order in (1, -1):
        known = [(name, name) for name in members[::order]]
        assert match_members(wanted[::order], known) == found


paths = st.lists(
    st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map("/".join),
    max_size=6,
    unique=True,
)


@given(wanted=paths, members=paths)
def test_names_are_matched_as_when_they_are_compared_two_by_two(
    wanted: list[str], members: list[str]
) -> None:
    def alone(end: str) -> bool:
        ending = [
            [path for path in each if f"/{path}".endswith(f"/{end}")]
            for each in (wanted, members)
        ]
        return list(map(len, ending)) == [1, 1]

    expected = {}
    for name, member in itertools.product(wanted, members):
        shorter, longer = sorted((name, member), key=len)
        ends = [name.split("/")[-1]]
        ends += [shorter] if longer.endswith(f"/{shorter}") else []
        alike = ends[0] == member.split("/")[-1] and any(map(alone, ends))
        if name == member or alike:
            assert name not in expected
            expected[name] = member
    found = match_members(wanted, [(name, name) for name in members])
    assert found == expected
    assert len(set(found.values())) == len(found)


def test_of_equal_names_the_first_counts() -> None:
    members = [("a/1.mp4", "a"), ("b/1.mp4", "b"), ("c/2.mp4", "c"), ("c/2.mp4", "d")]
    assert match_members(["1.mp4", "2.mp4"], members) == {"2.mp4": "c"}


def test_clips_that_share_a_last_part_are_matched_in_a_moment() -> None:
    """Compared two by two, they would take minutes."""
    wanted = [f"clips/{number}/video.mp4" for number in range(20_000)]
    members = [(f"{number}/video.mp4", number) for number in range(20_000)]
    started = time.monotonic()
    found = match_members(wanted, members)
    assert list(found.values()) == list(range(20_000))
    assert time.monotonic() - started < 20


def header(kind: bytes, size: bytes) -> bytes:
    """Write the header of a member that states any size."""
    member = tarfile.TarInfo("a")
    member.type = kind
    block = member.tobuf(tarfile.GNU_FORMAT)
    block = (
        block[:124] + size.ljust(12, b"\0") + block[136:148] + b" " * 8 + block[156:]
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


HOSTILE = {
    "a name of 8 GiB": header(tarfile.GNUTYPE_LONGNAME, b"77777777777"),
    "attributes of 8 GiB": header(tarfile.XHDTYPE, b"77777777777"),
    "a member that begins before itself": header(b"0", b"\xff" * 10 + b"\xfc\x00"),
    "2^63 bytes": header(b"0", b"\x80\0\0\0\x80\0\0\0\0\0\0\0"),
    "names of names": (header(b"L", b"1") + b"b".ljust(512, b"\0")) * 3000,
    "a file in parts": header(tarfile.GNUTYPE_SPARSE, b"0"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_lies_ends_the_archive(tmp_path: Path, name: str) -> None:
    path = tmp_path / "clips.tar"
    path.write_bytes(HOSTILE[name] + bytes(4096))
    with pytest.raises(ArchiveError, match=r"clips\.tar is no readable tar archive: "):
        list(list_members(str(path), path))


def test_a_bomb_is_not_unzipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.edge.data.archives.UNZIPPED_BYTES", 2**20)
    store = ArchiveStore(tmp_path / "cache")
    archive = pack(tmp_path / "clips.tar.gz", {"a": bytes(10_000_000)})
    with pytest.raises(ArchiveError, match=r"it would have more than 1,048,576 bytes"):
        store.open(str(archive))
    assert list(store.cache_dir.glob("*.partial")) == []


def test_a_cache_of_another_user_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = str(pack(tmp_path / "clips.tgz", {"a": b"1"}))
    plain = ArchiveStore(tmp_path / "cache").open(archive)

    def refuse(path: Path, *_: object, **__: object) -> None:
        if path.exists():
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)
        raise FileNotFoundError(path)

    for name in ("utime", "open", "mkdir", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    store = ArchiveStore(tmp_path / "cache", most=3)
    assert store.open(archive) == plain


def test_an_archive_that_is_let_go_while_it_is_opened_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process makes room between the look and the touch."""
    source = tmp_path / "clips.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        archive.add(__file__, "a.py")
    store, touch, touched = ArchiveStore(tmp_path / "cache", most=3), os.utime, []
    plain = store.open(str(source))

    def let_go_first(path: Path, *arguments: object) -> None:
        touched.append(path)
        if len(touched) == 1:
            path.unlink()
            plain.unlink()
        touch(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "utime", let_go_first)
    assert store.open(str(source)) == plain
    assert len(touched) > 1
    assert plain.exists()
