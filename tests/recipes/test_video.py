"""Probing and decoding of real video files, whole and broken."""

import errno
import itertools
import os
import struct
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from hypothesis import example, given
from hypothesis import strategies as st

from recipes.edge.media.containers import DoubtfulError, VideoError
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.orientation import Orientation
from recipes.edge.media.video import (
    VideoInfo,
    decode_frames,
    probe_video,
    sample_frame_indices,
)

HEIGHT, WIDTH, FRAMES, FPS = 48, 64, 12, 6


def grey_level(index: int) -> int:
    """Give the grey that frame ``index`` of every test file shows."""
    return 20 + 18 * index


def write_video(
    path: Path,
    *,
    num_frames: int = FRAMES,
    container: str = "mp4",
    noise: bool = False,
    options: dict[str, str] | None = None,
) -> None:
    """Write frames of one grey each (or of noise), without the code under test."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", format=container, options=options or {}) as output:
        stream = output.add_stream("libx264", rate=FPS, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for index in range(num_frames):
            picture = np.full((HEIGHT, WIDTH, 3), grey_level(index), dtype=np.uint8)
            if noise:
                picture = rng.integers(0, 256, picture.shape, dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        output.mux(stream.encode())


def cut_by_edit_list(source: Path, target: Path, hidden: int) -> None:
    """Copy packets so that an edit list hides the first ``hidden`` frames."""
    with av.open(str(source)) as given_, av.open(str(target), "w") as output:
        stream = given_.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for packet in given_.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                shift = int(hidden / FPS / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = copy
                output.mux(packet)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_video(path)
    return path


@pytest.fixture
def cut_video(tmp_path: Path) -> Path:
    """Make a file whose header promises every frame but whose end is missing."""
    path = tmp_path / "cut.mp4"
    write_video(path, noise=True, options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    return path


@pytest.mark.parametrize(
    ("container", "options"),
    [
        ("mp4", {}),
        ("mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("matroska", {}),
        ("mpegts", {}),
    ],
)
def test_probe_equals_what_was_written(
    tmp_path: Path, container: str, options: dict[str, str]
) -> None:
    path = tmp_path / "clip"
    write_video(path, container=container, options=options)
    expected = VideoInfo(num_frames=FRAMES, fps=float(FPS), height=HEIGHT, width=WIDTH)
    assert probe_video(MediaFile(path=path)) == expected
    assert len(decode_frames(MediaFile(path=path), range(FRAMES))) == FRAMES


def test_probe_of_a_single_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", num_frames=1)
    assert probe_video(MediaFile(path=tmp_path / "one.mp4")).num_frames == 1


def test_probe_reads_only_the_header(cut_video: Path) -> None:
    assert probe_video(MediaFile(path=cut_video)).num_frames == FRAMES


def test_frames_hidden_by_an_edit_list_are_not_promised(
    video: Path, tmp_path: Path
) -> None:
    trimmed = tmp_path / "trimmed.mp4"
    cut_by_edit_list(video, trimmed, hidden=5)
    assert probe_video(MediaFile(path=trimmed)).num_frames == FRAMES - 5
    frames = decode_frames(MediaFile(path=trimmed), [0, FRAMES - 6])
    assert abs(frames[0].float().mean() - grey_level(5)) < 3
    assert abs(frames[1].float().mean() - grey_level(FRAMES - 1)) < 3


def test_a_name_with_a_colon_is_a_file_and_no_protocol(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(video.parent)
    renamed = video.rename("pipe:clip.mp4")
    assert probe_video(MediaFile(path=renamed)).num_frames == FRAMES


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"none\.mp4 cannot be opened: No such file"):
        probe_video(MediaFile(path=tmp_path / "none.mp4"))


def test_a_disk_that_fails_is_no_fault_of_a_sample(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, **_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(OSError, match="Input/output error"):
        probe_video(MediaFile(path=video))


@pytest.mark.parametrize("name", ["a\0b.mp4", "\ud800.mp4", "x" * 300 + ".mp4"])
def test_impossible_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(VideoError, match="cannot be opened"):
        probe_video(MediaFile(path=tmp_path / name))


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="is a folder; it must be a video file"):
        probe_video(MediaFile(path=tmp_path))


@pytest.mark.parametrize("read", [probe_video, lambda file: decode_frames(file, [0])])
def test_empty_file(tmp_path: Path, read: Callable[[MediaFile], object]) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match=r"empty\.mp4 is an empty file"):
        read(MediaFile(path=tmp_path / "empty.mp4"))


def test_text_file(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 50)
    with pytest.raises(
        VideoError, match=r"text\.mp4 cannot be opened as a video: Invalid data"
    ) as caught:
        probe_video(MediaFile(path=tmp_path / "text.mp4"))
    assert isinstance(caught.value.__cause__, av.FFmpegError)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_file_cut_before_its_index(video: Path, share: float) -> None:
    data = video.read_bytes()
    video.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoError, match=r"clip\.mp4 cannot be opened as a video"):
        probe_video(MediaFile(path=video))


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("aac", rate=16000)
        samples = np.zeros((1, 1024), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with pytest.raises(VideoError, match=r"sound\.mp4 has no video stream"):
        probe_video(MediaFile(path=path))


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as output:
        cover = output.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame(WIDTH, HEIGHT, "yuvj420p")))
        output.mux(cover.encode())
    with av.open(str(path)) as check:
        assert check.streams.video[0].disposition == Disposition.attached_pic
    with pytest.raises(VideoError, match=r"song\.mp4 has no video stream"):
        probe_video(MediaFile(path=path))


def test_unknown_codec(video: Path) -> None:
    video.write_bytes(video.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(VideoError, match="no decoder here can read"):
        probe_video(MediaFile(path=video))


def test_zero_frames(tmp_path: Path) -> None:
    path = tmp_path / "header.mp4"
    write_video(path, options={"movflags": "frag_keyframe+empty_moov"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moof") - 4])
    with pytest.raises(VideoError, match=r"header\.mp4 has .* with zero frames"):
        probe_video(MediaFile(path=path))


def test_zero_size(tmp_path: Path) -> None:
    path = tmp_path / "flat.avi"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("rawvideo", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        output.mux(stream.encode(av.VideoFrame(WIDTH, HEIGHT, "yuv420p")))
        output.mux(stream.encode())
    data = path.read_bytes()
    stored = struct.pack("<Iii", 40, WIDTH, HEIGHT)
    assert data.count(stored) == 1
    path.write_bytes(data.replace(stored, struct.pack("<Iii", 40, WIDTH, 0)))
    with pytest.raises(VideoError, match=r"frame size of 0 x 0; both sides must be"):
        probe_video(MediaFile(path=path))


@given(st.integers(1, 300), st.integers(1, 80))
@example(17, 16)
@example(2, 1)
@example(1000, 2)
def test_sampled_indices(num_frames: int, max_frames: int) -> None:
    indices = sample_frame_indices(num_frames, max_frames)
    assert len(indices) == min(num_frames, max_frames)
    gaps = {after - before for before, after in itertools.pairwise(indices)}
    assert all(gap >= 1 for gap in gaps)
    assert indices[0] == 0
    assert len(indices) < 2 or indices[-1] == num_frames - 1
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("num_frames", "max_frames", "message"),
    [
        (0, 4, "num_frames is 0; it must be at least 1"),
        (4, 0, "max_frames is 0; it must be at least 1"),
    ],
)
def test_sampling_needs_frames(num_frames: int, max_frames: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_frame_indices(num_frames, max_frames)


def test_decoded_frames_are_the_wanted_ones(video: Path) -> None:
    indices = [0, 3, 4, 9, 11]
    frames = decode_frames(MediaFile(path=video), indices)
    assert frames.shape == (len(indices), 3, HEIGHT, WIDTH)
    assert frames.dtype == torch.uint8
    assert frames.is_contiguous(memory_format=torch.channels_last)
    for frame, index in zip(frames, indices, strict=True):
        assert (frame.float() - grey_level(index)).abs().max() < 4


def test_any_choice_equals_the_same_frames_of_all(tmp_path: Path) -> None:
    path = tmp_path / "noise.mp4"
    write_video(path, noise=True)
    every = decode_frames(MediaFile(path=path), range(FRAMES))
    for indices in ([0], [11], [2, 5], [1, 2, 3, 10]):
        assert torch.equal(decode_frames(MediaFile(path=path), indices), every[indices])


def test_decoding_stops_after_the_last_wanted_frame(cut_video: Path) -> None:
    assert len(decode_frames(MediaFile(path=cut_video), [0, 1])) == 2
    with pytest.raises(
        VideoError, match=r"cut\.mp4 breaks before frame 11, after \d+ decoded frames"
    ) as caught:
        decode_frames(MediaFile(path=cut_video), [0, 11])
    assert isinstance(caught.value.__cause__, av.FFmpegError)


def test_fewer_frames_than_wanted(video: Path) -> None:
    with pytest.raises(
        VideoError,
        match=rf"clip\.mp4 has no frame {FRAMES}; it ends after {FRAMES} decoded",
    ):
        decode_frames(MediaFile(path=video), [0, FRAMES])


def test_frames_that_memory_does_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    with av.open(str(path), "w", format="image2pipe") as output:
        stream = output.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = 2**13, 2**13, "gray"
        output.mux(stream.encode(av.VideoFrame(2**13, 2**13, "gray")))
        output.mux(stream.encode())
    said = r"wide\.png has frames of 8192 x 8192; memory does not hold 1,048,576 of"
    with pytest.raises(DoubtfulError, match=said):
        decode_frames(MediaFile(path=path), range(2**20))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "has frame 5 of 48 x 64; memory does not hold its pixels"),
        (av.MemoryError(errno.ENOMEM, "-"), "has frame 5 of 48 x 64; memory does not "),
        (av.OSError(errno.EIO, "Input/output error"), "cannot be read: Input/output"),
    ],
)
def test_a_frame_that_memory_does_not_hold(
    video: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    frame = MagicMock(spec=av.VideoFrame, height=HEIGHT, width=WIDTH)
    frame.to_ndarray.side_effect = error
    frames = iter([frame])
    monkeypatch.setattr("recipes.edge.media.video._frames_in_order", lambda *_: frames)
    with pytest.raises(DoubtfulError, match=rf"clip\.mp4 {said}"):
        decode_frames(MediaFile(path=video), [5])


def test_no_frame_is_held_twice(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, most = list[Any](), list[int]()

    def watch(_: MediaFile, frame: av.VideoFrame, __: int) -> Any:
        pixels = frame.to_ndarray(format="rgb24")
        made.append(weakref.ref(pixels))
        most.append(sum(each() is not None for each in made))
        return pixels

    monkeypatch.setattr("recipes.edge.media.video._as_rgb", watch)
    assert len(decode_frames(MediaFile(path=video), range(FRAMES))) == FRAMES
    assert len(most) == FRAMES
    assert max(most) <= 3


def test_frames_that_are_turned_one_by_one_are_refused(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turned = (Orientation(turns=turns) for turns in (0, 0, 1))
    monkeypatch.setattr(
        "recipes.edge.media.video.orientation_of", lambda *_: next(turned)
    )
    said = r"clip\.mp4 has frames that are turned, and some that are not$"
    with pytest.raises(VideoError, match=said):
        decode_frames(MediaFile(path=video), [0, 5, 7])


def test_concealed_damage_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "damaged.mp4"
    write_video(path, noise=True)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\x55" * 2000
    path.write_bytes(data)
    assert probe_video(MediaFile(path=path)).num_frames == FRAMES
    with pytest.raises(VideoError, match=r"damaged\.mp4 breaks before frame 11"):
        decode_frames(MediaFile(path=path), [0, 11])


def test_a_frame_size_that_changes(tmp_path: Path) -> None:
    path = tmp_path / "two_sizes.ts"
    with path.open("wb") as joined:
        for width in (64, 96):
            part = tmp_path / f"{width}.ts"
            with av.open(str(part), "w", format="mpegts") as output:
                stream = output.add_stream("mpeg2video", rate=25)
                stream.height, stream.width, stream.pix_fmt = 64, width, "yuv420p"
                for _ in range(5):
                    output.mux(stream.encode(av.VideoFrame(width, 64, "yuv420p")))
                output.mux(stream.encode())
            joined.write(part.read_bytes())
    assert probe_video(MediaFile(path=path)).width == 64
    assert decode_frames(MediaFile(path=path), [0]).shape == (1, 3, 64, 64)
    with pytest.raises(VideoError, match=r"frame \d of size 64 x 96; the container"):
        decode_frames(MediaFile(path=path), range(8))


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([], "indices is empty; it must name at least one frame"),
        ([-1, 2], "indices begins with -1; it must be at least 0"),
        ([1, 1], "indices has 1 after 1; it must be strictly increasing"),
        ([0, 4, 3], "indices has 3 after 4; it must be strictly increasing"),
    ],
)
def test_indices_must_increase(video: Path, indices: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_frames(MediaFile(path=video), indices)


def write_at(path: Path, ticks: Sequence[int], *, rate: int = 100) -> Path:
    """Write a frame at each of these times, in parts of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for tick in ticks:
            grey = np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "ticks",
    [
        (0, 4, 8, 12, 150, 154, 400, 404),
        (0, 36, 60),  # less than half a frame off an even rate
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_uneven_times_are_the_frames_own(
    tmp_path: Path, suffix: str, ticks: tuple[int, ...]
) -> None:
    info = probe_video(MediaFile(path=write_at(tmp_path / f"clip{suffix}", ticks)))
    expected = [tick / 100 for tick in ticks]
    assert info.num_frames == len(ticks)
    assert info.seconds_at(range(len(ticks))) == pytest.approx(expected, abs=0.01)


def turn(path: Path, matrix: Sequence[int]) -> None:
    """Write into the header of an mp4 how its video is shown."""
    data = path.read_bytes()
    at = data.index(b"tkhd") + 4 + 40
    stored = struct.pack(">9i", *matrix)
    path.write_bytes(data[:at] + stored + data[at + len(stored) :])


ONE, W = 2**16, 2**30
TURNS = {
    0: (ONE, 0, 0, 0, ONE, 0, 0, 0, W),
    1: (0, -ONE, 0, ONE, 0, 0, 0, 0, W),
    2: (-ONE, 0, 0, 0, -ONE, 0, 0, 0, W),
    3: (0, ONE, 0, -ONE, 0, 0, 0, 0, W),
}
"""Quarter turns, counterclockwise, as a matrix of the header."""


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("uneven", [False, True])
def test_a_turned_video_is_turned(tmp_path: Path, turns: int, uneven: bool) -> None:
    path = tmp_path / "clip.mp4"
    if uneven:
        write_at(path, (0, 4, 8, 12, 150, 154, 400, 404))
    else:
        write_video(path, noise=True)
    stored = decode_frames(MediaFile(path=path), [0, 7])
    before = probe_video(MediaFile(path=path))
    turn(path, TURNS[turns])
    size = (HEIGHT, WIDTH) if turns % 2 == 0 else (WIDTH, HEIGHT)
    expected = replace(before, height=size[0], width=size[1])
    assert probe_video(MediaFile(path=path)) == expected
    shown = decode_frames(MediaFile(path=path), [0, 7])
    assert torch.equal(shown, torch.rot90(stored, turns, (2, 3)))


@pytest.mark.parametrize("turned", [(1, 0), (0, 1), (-1, 0), (0, -1)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_pixels_are_shown_where_the_matrix_takes_them(
    video: Path, turned: tuple[int, int], mirrored: bool
) -> None:
    write_video(video, noise=True)
    (stored,) = decode_frames(MediaFile(path=video), [5])
    a, b = turned
    c, d = (b, -a) if mirrored else (-b, a)
    turn(video, (a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, W))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    shown_x, shown_y = a * x + c * y, b * x + d * y
    info = probe_video(MediaFile(path=video))
    expected = torch.zeros((3, info.height, info.width), dtype=torch.uint8)
    expected[:, shown_y - shown_y.min(), shown_x - shown_x.min()] = stored[:, y, x]
    assert torch.equal(decode_frames(MediaFile(path=video), [5])[0], expected)


def test_a_video_that_is_turned_by_an_eighth_is_refused(video: Path) -> None:
    eighth = 46341
    turn(video, (eighth, eighth, 0, -eighth, eighth, 0, 0, 0, W))
    said = r"clip\.mp4 is shown turned by -45 degrees; only mp4, mov and mkv may be"
    with pytest.raises(VideoError, match=said):
        probe_video(MediaFile(path=video))
    with pytest.raises(VideoError, match=said):
        decode_frames(MediaFile(path=video), [0])


def test_an_uneven_clip_is_over_after_its_last_gap(tmp_path: Path) -> None:
    path = write_at(tmp_path / "clip.mp4", (0, 4, 8, 12, 1000, 1996, 2000))
    info = probe_video(MediaFile(path=path))
    assert info.fps < 1
    assert info.length == pytest.approx(20.04, abs=0.01)
    assert replace(info, seconds=()).length == 7 / info.fps


def test_even_times_follow_from_the_rate(video: Path) -> None:
    info = probe_video(MediaFile(path=video))
    assert info.length == FRAMES / FPS
    assert info.seconds == ()
    assert info.seconds_at([0, 6]) == [0, 1]


def test_a_frame_of_more_pixels_is_refused(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.edge.media.video.MOST_PIXELS", HEIGHT * WIDTH - 1)
    said = r"states a frame size of 48 x 64; a frame may have 3,071 pixels$"
    with pytest.raises(VideoError, match=said):
        probe_video(MediaFile(path=video))


def test_a_slow_clip_is_stopped(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipes.edge.media.containers.CLIP_SECONDS", 0.0)
    said = r"takes longer than 0 s to read$"
    with pytest.raises(VideoError, match=said):
        decode_frames(MediaFile(path=video), [5])


def test_a_clip_that_does_not_end_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.edge.media.containers.CLIP_SECONDS", 1.0)
    path = tmp_path / "endless.mkv"
    write_video(path, container="matroska")
    os.truncate(path, 2**40)  # all but its beginning are holes
    with pytest.raises(VideoError, match=r"endless.mkv takes longer than 1 s to read$"):
        probe_video(MediaFile(path=path))


@pytest.mark.parametrize("count", [2**22 + 1, 2**31, 2**32 - 1])
def test_more_frames_than_a_clip_may_have(tmp_path: Path, count: int) -> None:
    path = tmp_path / "long.avi"
    write_video(path, container="avi")
    data = path.read_bytes()
    at = data.index(b"strh") + 4 + 36
    path.write_bytes(data[:at] + struct.pack("<I", count) + data[at + 4 :])
    with pytest.raises(VideoError, match=rf"has {count:,} frames or more; a clip may"):
        probe_video(MediaFile(path=path))


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8"])
def test_a_playlist_opens_no_other_file(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / "other.ts", container="mpegts")
    path = tmp_path / f"list{suffix}"
    path.write_text("ffconcat version 1.0\nfile other.ts\n")
    with pytest.raises(
        VideoError, match=r"list\.\w+ is in no format that is read here$"
    ):
        probe_video(MediaFile(path=path))


def test_names_in_a_container_need_be_no_text(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"Lavf", b"\xff\xfe\x80\x81"))
    assert probe_video(MediaFile(path=path)).num_frames == FRAMES


def test_a_frame_of_more_pixels_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "clip.png"
    with av.open(str(path), "w", format="image2pipe") as output:
        stream = output.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "rgb24"
        output.mux(stream.encode(av.VideoFrame(WIDTH, HEIGHT, "rgb24")))
        output.mux(stream.encode())
    data = path.read_bytes()
    at = data.index(b"IHDR") + 4
    path.write_bytes(data[:at] + struct.pack(">II", 60_000, 60_000) + data[at + 8 :])
    with pytest.raises(VideoError, match=r"clip\.png "):
        probe_video(MediaFile(path=path))


def test_a_percent_sign_in_a_name_is_no_pattern(tmp_path: Path) -> None:
    grey = np.full((HEIGHT, WIDTH, 3), 90, dtype=np.uint8)
    for name in ("a%d.jpg", "a0.jpg", "a1.jpg"):
        with av.open(str(tmp_path / "one"), "w", format="image2pipe") as output:
            stream = output.add_stream("mjpeg", rate=1)
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuvj420p"
            frame = av.VideoFrame.from_ndarray(grey, "rgb24")
            output.mux(stream.encode(frame.reformat(format="yuvj420p")))
            output.mux(stream.encode())
        (tmp_path / "one").rename(tmp_path / name)
    assert probe_video(MediaFile(path=tmp_path / "a%d.jpg")).num_frames == 1
