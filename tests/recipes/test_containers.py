"""Whose fault it is that a clip cannot be read: its own, or the machine's."""

import ctypes
import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import av
import numpy as np
import pytest
import torch
from av.container import InputContainer
from av.video.stream import VideoStream

from recipes.edge.data.archives import ArchiveStore, list_members
from recipes.edge.data.clips import write_clip
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.headers import Clip, index_archive
from recipes.edge.media.containers import (
    FAILING,
    DoubtfulError,
    VideoError,
    blame,
    open_video,
    read_packets,
)
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.video import decode_frames, probe_video
from tests.recipes.test_archives import pack

OPEN = "recipes.edge.media.containers.av.open"


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_clip(tmp_path / "clip.mp4", torch.zeros(5, 3, 48, 64, dtype=torch.uint8))
    return tmp_path / "clip.mp4"


def fail_with(number: int) -> av.FFmpegError:
    """Say what FFmpeg does of an error of the machine."""
    kind = av.error.classes.get(number, av.FFmpegError)
    error = kind(number, os.strerror(number), "clip")
    assert isinstance(error, av.FFmpegError)
    return error


class BrokenContainer:
    """A file that breaks while it is read."""

    def __init__(self, number: int) -> None:
        self.number = number

    def demux(self) -> Iterator[None]:
        yield from ()
        raise fail_with(self.number)


def read(file: MediaFile, number: int) -> None:
    with open_video(file) as (_, stream):
        list(read_packets(file, BrokenContainer(number), stream))  # type: ignore[arg-type]


@dataclass
class KeptContainer:
    """A file whose packets are kept, so that no one but their reader closes them."""

    container: InputContainer
    packets: Any = None

    def demux(self) -> Any:
        self.packets = self.container.demux()
        return self.packets


def test_packets_that_are_left_are_closed(clip: Path) -> None:
    """PyAV frees the buffers of a demuxer that ends or is closed, and no other's."""
    file = MediaFile(path=clip)
    with open_video(file) as (container, stream):
        kept = KeptContainer(container)
        packets = read_packets(file, kept, stream)  # type: ignore[arg-type]
        next(packets)
        del packets
        assert list(kept.packets) == []
    with open_video(file) as (container, _):
        assert len(list(container.demux())) == 6


def test_a_title_may_be_in_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as output:
        output.metadata["title"] = "cafe by night"
        stream = output.add_stream("libx264", rate=4)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        grey = np.zeros((48, 64, 3), dtype=np.uint8)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
        output.mux(stream.encode())
    content = path.read_bytes()
    assert content.count(b"cafe by night") == 1
    path.write_bytes(content.replace(b"cafe", "caf\u00e9".encode("latin-1")))
    assert probe_video(MediaFile(path=path)).num_frames == 1


@pytest.mark.parametrize("number", sorted(FAILING - {errno.EIO, errno.ENOMEM}))
def test_a_machine_that_fails_is_no_fault_of_a_clip(
    clip: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    said = rf"{os.strerror(number)}: '.*clip\.mp4'$"
    with pytest.raises(OSError, match=said) as found:
        read(MediaFile(path=clip), number)
    assert found.value.errno == number
    assert not isinstance(found.value, av.FFmpegError)

    def fail(*_: object, **__: object) -> None:
        raise fail_with(number)

    monkeypatch.setattr(OPEN, fail)
    with pytest.raises(OSError, match=said):
        probe_video(MediaFile(path=clip))


@dataclass(frozen=True)
class BrokenPacket:
    """A packet in the middle of a clip that breaks while it is decoded."""

    number: int
    pts: int = 5
    size: int = 1
    is_keyframe: bool = False
    is_discard: bool = False

    def decode(self) -> None:
        raise fail_with(self.number)


def decode_one(file: MediaFile) -> object:
    return decode_frames(file, [0])


@pytest.mark.parametrize(
    ("module", "read"),
    [("video", decode_one), ("video", probe_video), ("frame_times", probe_video)],
)
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EMFILE])
def test_a_machine_that_fails_while_a_clip_is_decoded(
    clip: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    read: Callable[[MediaFile], object],
    number: int,
) -> None:
    packets = [BrokenPacket(number), BrokenPacket(number)]
    monkeypatch.setattr(
        f"recipes.edge.media.{module}.read_packets", lambda *_, **__: iter(packets)
    )
    kind = OSError if number == errno.EMFILE else DoubtfulError
    with pytest.raises(kind, match=os.strerror(number)) as found:
        read(MediaFile(path=clip))
    assert not isinstance(found.value, av.FFmpegError)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EIO, "cannot be read: Input/output error"),
        (int.from_bytes(b"EXIT", "little"), "takes longer than 120 s to read"),
    ],
)
def test_a_machine_that_fails_while_a_clip_is_wound_back(
    clip: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str
) -> None:
    """Else a clip that is shown turned would be known by a wrong size for good."""

    @contextmanager
    def open_broken(file: MediaFile) -> Iterator[tuple[InputContainer, VideoStream]]:
        with open_video(file) as (container, stream):
            broken = MagicMock(wraps=container, spec=container)
            broken.format, broken.seek.side_effect = container.format, fail_with(number)
            yield broken, stream

    monkeypatch.setattr("recipes.edge.media.video.open_video", open_broken)
    with pytest.raises(DoubtfulError, match=rf"clip\.mp4 {said}$"):
        probe_video(MediaFile(path=clip))


def test_too_few_handles_are_no_fault_of_a_clip(clip: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            probe_video(MediaFile(path=clip))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("stretch", [{}, {"offset": 7, "size": 100, "name": "a"}])
def test_who_is_at_fault_is_seen_where_the_bytes_are_read_again(
    clip: Path, monkeypatch: pytest.MonkeyPatch, stretch: dict[str, int]
) -> None:
    file = MediaFile(path=clip)
    for number in (errno.EIO, errno.ENOMEM):
        said = rf"mp4 cannot be read: {os.strerror(number)}"
        with pytest.raises(DoubtfulError, match=said):
            read(file, number)
    opened = list[str]()
    part = MediaFile(path=clip, **stretch)  # type: ignore[arg-type]

    def fail(*_: object, **__: object) -> None:
        raise fail_with(errno.EIO)

    def fail_too(path: Path, mode: str) -> None:
        opened.append(mode)
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(OPEN, fail)
    with pytest.raises(DoubtfulError, match="cannot be read: Input/output error"):
        probe_video(part)
    monkeypatch.setattr(Path, "open", fail_too)
    with pytest.raises(OSError, match=r"Input/output error: '.*clip\.mp4'$"):
        probe_video(part)
    assert opened == ["rb"]


def test_of_an_archive_the_bytes_of_the_clip_alone_are_read_again() -> None:
    """The memory of this process stands for a disk: byte 0 of it cannot be read."""
    there = ctypes.create_string_buffer(100)
    memory = MediaFile(path=Path("/proc/self/mem"), name="a", size=100)
    with pytest.raises(OSError, match="Input/output error"):
        blame(memory, fail_with(errno.EIO))
    with pytest.raises(DoubtfulError, match="cannot be read"):
        blame(replace(memory, offset=ctypes.addressof(there)), fail_with(errno.EIO))


def test_a_clip_that_is_gone_is_a_bad_one(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        clip.unlink()
        raise fail_with(errno.EIO)

    monkeypatch.setattr(OPEN, fail)
    with pytest.raises(VideoError, match="cannot be read"):
        probe_video(MediaFile(path=clip))


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_nothing_of_a_failing_machine_is_written_down(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    files = {f"{each}.mp4": clip.read_bytes() for each in range(3)}
    archive = str(pack(tmp_path / "clips.tar", files))
    store, calls, whole = ArchiveStore(tmp_path / "cache"), list[object](), av.open

    def fail_once(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise fail_with(number)
        return whole(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(OPEN, fail_once)
    if number != errno.EIO:
        with pytest.raises(OSError, match="Too many open files"):
            list(index_archive(archive, store))
    assert [type(each) for each in index_archive(archive, store)] == [Clip] * 3


def test_a_machine_that_fails_at_the_second_try_is_no_fault_of_a_clip(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = str(pack(tmp_path / "clips.tar", {"a.mp4": clip.read_bytes()}))
    store, numbers = ArchiveStore(tmp_path / "cache"), [errno.EIO, errno.EMFILE]

    def fail(*_: object, **__: object) -> None:
        raise fail_with(numbers[0])

    monkeypatch.setattr(OPEN, fail)
    assert [type(each) for each in index_archive(archive, store)] == [BadSample]
    del numbers[0]
    with pytest.raises(OSError, match="Too many open files"):
        list(index_archive(archive, store))


def test_an_archive_on_a_failing_machine_is_not_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = str(pack(tmp_path / "clips.tar.gz", {"a": b"1"}))
    store = ArchiveStore(tmp_path / "cache")
    plain = store.open(archive)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr("recipes.edge.data.archives.tarfile.open", fail)
    monkeypatch.setattr("recipes.edge.data.archives.gzip.open", fail)
    with pytest.raises(OSError, match="Stale file handle"):
        list(list_members(archive, plain))
    plain.unlink()
    with pytest.raises(OSError, match="Stale file handle"):
        store.open(archive)
