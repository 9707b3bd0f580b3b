"""Counts and times of frames, of whole clips and of parts of longer ones."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest

from recipes.edge.data.headers import Clip
from recipes.edge.data.samples import choose_frames
from recipes.edge.media.containers import VideoError
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.video import decode_frames, probe_video
from tests.recipes.test_loader import SETTINGS
from tests.recipes.test_video import cut_by_edit_list

HEIGHT, WIDTH, FPS = 96, 128, 30
X264 = {"x264-params": "scenecut=0:b-adapt=0:bframes=4:keyint=12:min-keyint=12"}
OPEN = {"x264-params": f"{X264['x264-params']}:open-gop=1"}
X265 = "scenecut=0:b-adapt=0:bframes=4:keyint=12:min-keyint=12:log-level=none"


def picture(index: int) -> np.ndarray:
    """Draw a frame that is like no other, with edges that move."""
    drawn = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    drawn[..., 0] = index * 7 % 256
    drawn[:, : index * 3 % WIDTH, 1] = 200
    return drawn


def write_moving(
    path: Path,
    *,
    codec: str = "libx264",
    options: dict[str, str] = X264,
    num_frames: int = 60,
    ticks: Callable[[int], int] = lambda index: index,
    muxing: dict[str, str] | None = None,
) -> Path:
    """Write frames that tell one another apart, each at its tick, without our code."""
    with av.open(str(path), "w", options=muxing or {}) as output:
        stream = cast(Any, output.add_stream(codec, rate=FPS, options=dict(options)))
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(index), "rgb24")
            frame.pts, frame.time_base = ticks(index), Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def cut_out(source: Path, target: Path, skip: int) -> Path:
    """Copy the packets of a clip but for the first ``skip``, from time zero on."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = given.streams.video[0]
        copy = output.add_stream_from_template(stream)
        packets = [packet for packet in given.demux(stream) if packet.size][skip:]
        start = cast(int, packets[0].dts)
        for packet in packets:
            packet.pts = cast(int, packet.pts) - start
            packet.dts = cast(int, packet.dts) - start
            packet.stream = copy
            output.mux(packet)
    return target


def count_decoded(path: Path) -> int:
    """Count the frames that decoding in order gives; none where it fails."""
    try:
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))
    except av.InvalidDataError:
        return 0


@pytest.mark.parametrize("flags", ["frag_keyframe", "frag_keyframe+empty_moov", "dash"])
def test_all_fragments_are_counted(tmp_path: Path, flags: str) -> None:
    path = write_moving(tmp_path / "clip.mp4", muxing={"movflags": flags})
    info = probe_video(MediaFile(path=path))
    assert (info.num_frames, info.seconds) == (60, ())
    assert len(decode_frames(MediaFile(path=path), [0, 59])) == 2


X265_OPEN = {"x265-params": f"{X265}:open-gop=1"}
X265_RADL = {"x265-params": f"{X265}:open-gop=0:radl=2"}


@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".mp4"])
@pytest.mark.parametrize("skip", [12, 19])
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", X264),
        ("libx264", OPEN),
        ("libx265", X265_OPEN),
        ("libx265", X265_RADL),
    ],
)
def test_what_a_part_cannot_show_is_not_counted(
    tmp_path: Path, codec: str, options: dict[str, str], skip: int, suffix: str
) -> None:
    whole = write_moving(tmp_path / "whole.mp4", codec=codec, options=options)
    path = cut_out(whole, tmp_path / f"part{suffix}", skip)
    expected = count_decoded(path)
    if not expected:
        with pytest.raises(VideoError, match=rf"part{suffix} "):
            probe_video(MediaFile(path=path))
        return
    info = probe_video(MediaFile(path=path))
    assert info.num_frames == expected <= 60 - skip
    assert len(decode_frames(MediaFile(path=path), [0, expected - 1])) == 2


@pytest.mark.parametrize("skip", [1, 12, 17])
@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("mpeg4", ".mp4"), ("mpeg4", ".avi"), ("mpeg2video", ".mkv")],
)
def test_what_other_decoders_give_of_a_part_is_counted(
    tmp_path: Path, codec: str, suffix: str, skip: int
) -> None:
    """One of MPEG-4 gives frames that others are missing for, and not in order."""
    options = {"g": "12", "bf": "2"}
    whole = write_moving(tmp_path / "whole.mkv", codec=codec, options=options)
    file = MediaFile(path=cut_out(whole, tmp_path / f"part{suffix}", skip))
    count = probe_video(file).num_frames
    assert count == count_decoded(file.path)
    assert len(decode_frames(file, [0, count - 1])) == 2


def test_a_part_without_a_keyframe_has_no_frame(tmp_path: Path) -> None:
    path = write_moving(tmp_path / "whole.mp4", num_frames=12)
    part = cut_out(path, tmp_path / "part.mkv", 1)
    with pytest.raises(VideoError, match=r"part\.mkv has a video stream with zero fra"):
        probe_video(MediaFile(path=part))


def test_frames_that_an_edit_list_cuts_off_are_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "trimmed.mp4"
    cut_by_edit_list(write_moving(tmp_path / "clip.mp4"), path, hidden=5)
    assert probe_video(MediaFile(path=path)).num_frames == 60 - 5 * FPS // 6


@pytest.mark.parametrize("rate", [30, 15, 10, 6])
def test_times_are_exact_enough_for_the_clips_own_rate(
    tmp_path: Path, rate: int
) -> None:
    path = write_moving(
        tmp_path / "clip.mp4", ticks=lambda index: index + 5 * FPS * (index >= 30)
    )
    info = probe_video(MediaFile(path=path))
    assert len(info.seconds) == 60
    clip = Clip(kind="video", source=str(path), info=info)
    chosen = choose_frames(clip, replace(SETTINGS, max_frames=60, video_fps=rate))
    assert chosen == tuple(range(0, 60, FPS // rate))
