"""Videos and pictures: what their container promises, and their frames."""

import itertools
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import av
import torch
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8
from torch import Tensor

from recipes.edge.media import MediaFile

MOST_PIXELS = 2**26
"""Pixels of a frame at most, 8192 x 8192; more are refused before they are decoded."""

DECODE_SECONDS = 120.0
"""Time that the frames of one clip may take to decode."""


class VideoError(Exception):
    """A video file cannot be used; the message names the path and the reason."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a container says about its video stream.

    Attributes:
        num_frames: Raw frames that the decoder will give, at least 1.
        fps: Average frame rate, in frames per second.
        height: Height of a frame as stored, in pixels; rotation flags are not applied.
        width: Width of a frame as stored, in pixels.
        seconds: When each frame is shown, from 0 on, where the frames do not come at an
            even rate; empty where they do.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    seconds: tuple[float, ...] = ()

    def seconds_at(self, indices: Sequence[int]) -> list[float]:
        """Tell when frames are shown, in seconds after the first."""
        if self.seconds:
            return [self.seconds[index] for index in indices]
        return [index / self.fps for index in indices]


def probe_video(file: MediaFile) -> VideoInfo:
    """Read the size and the frame count of a video without decoding its frames.

    A container that states no count, such as Matroska, is read once packet by packet.
    Frames that an edit list hides are not counted, because the decoder skips them. A
    picture is a video of one frame.

    Args:
        file: A video or a picture.

    Returns:
        What the container states about its video stream.

    Raises:
        VideoError: If the file is missing, empty, a folder or not a video, or if its
            video stream is missing, has no decoder, no frame, no size or no rate.
    """
    with _open_video(file) as (container, stream):
        num_frames, seconds = _frame_times(file, container, stream)
        if num_frames < 1:
            raise VideoError(f"{file} has a video stream with zero frames")
        height, width = stream.height, stream.width
        if min(height, width) < 1:
            raise VideoError(
                f"{file} states a frame size of {height} x {width}; both sides must "
                "be at least 1"
            )
        if height * width > MOST_PIXELS:
            raise VideoError(
                f"{file} states a frame size of {height} x {width}; a frame may have "
                f"{MOST_PIXELS:,} pixels"
            )
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError(f"{file} states no frame rate")
        return VideoInfo(
            num_frames=num_frames,
            fps=float(rate),
            height=height,
            width=width,
            seconds=_uneven(seconds, float(rate)),
        )


def sample_frame_indices(num_frames: int, max_frames: int) -> tuple[int, ...]:
    """Choose at most ``max_frames`` frames, spread uniformly over a clip.

    All frames are taken when they fit. Otherwise index ``i`` is
    ``i (num_frames - 1) / (max_frames - 1)``, rounded with halves up, so the first
    and the last frame are included; a single frame is the first one.

    Args:
        num_frames: Frames of the clip, at least 1.
        max_frames: Most frames to take, at least 1.

    Returns:
        Strictly increasing indices, ``min(num_frames, max_frames)`` of them.

    Raises:
        ValueError: If an argument is below 1.

    Laws:
        identity: a clip that fits keeps every frame
        both_ends: two frames or more begin with the first and end with the last
        even_gaps: gaps between neighbours differ by at most one

    Example:
        >>> sample_frame_indices(10, 4)
        (0, 3, 6, 9)
        >>> sample_frame_indices(3, 8)
        (0, 1, 2)
    """
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; it must be at least 1")
    if max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}; it must be at least 1")
    if num_frames <= max_frames:
        return tuple(range(num_frames))
    gaps, last = max(max_frames - 1, 1), num_frames - 1
    return tuple((2 * i * last + gaps) // (2 * gaps) for i in range(max_frames))


def decode_frames(
    file: MediaFile, indices: Sequence[int]
) -> UInt8[Tensor, "frames channels height width"]:
    """Decode the wanted frames of a video as RGB.

    The file is decoded once, in order, on one thread, and no further than the last
    wanted frame; only wanted frames are converted. A frame that the decoder had to
    conceal counts as an error, also where it lies between wanted ones, because the
    frames after it are predicted from it.

    Args:
        file: A video or a picture.
        indices: Wanted frames, 0-based, strictly increasing, at least one.

    Returns:
        The frames in the order of ``indices``, values 0 to 255.

    Raises:
        ValueError: If ``indices`` is empty, negative or not strictly increasing.
        VideoError: If the file cannot be opened, breaks before the last wanted
            frame, ends before it, changes its frame size, or takes longer than
            ``DECODE_SECONDS``.
    """
    if not indices:
        raise ValueError("indices is empty; it must name at least one frame")
    if indices[0] < 0:
        raise ValueError(f"indices begins with {indices[0]}; it must be at least 0")
    for before, after in itertools.pairwise(indices):
        if after <= before:
            raise ValueError(
                f"indices has {after} after {before}; it must be strictly increasing"
            )
    with _open_video(file) as (container, stream):
        stream.codec_context.thread_count = 1
        return torch.stack(list(_wanted_frames(file, container, stream, indices)))


@contextmanager
def _open_video(file: MediaFile) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file at its best video stream and close it in every case."""
    _check_file(file)
    try:
        source = file.open()
        container = av.open(source, "r")
    except av.FFmpegError as error:
        raise VideoError(
            f"{file} cannot be opened as a video: {error.strerror}"
        ) from error
    with container:
        yield container, _video_stream(file, container)


def _check_file(file: MediaFile) -> None:
    """Refuse what is no file, or has no bytes."""
    try:
        status = file.path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{file} cannot be opened: {reason}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise VideoError(f"{file} is {kind}; it must be a video file")
    size = status.st_size if file.size is None else file.size
    if size == 0:
        raise VideoError(f"{file} is an empty file; it must be a video file")


def _video_stream(file: MediaFile, container: InputContainer) -> VideoStream:
    """Give the main video stream; a cover picture is none."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or (
        stream.disposition & Disposition.attached_pic
    ):
        raise VideoError(f"{file} has no video stream")
    if stream.codec_context is None:
        raise VideoError(f"{file} has a video stream that no decoder here can read")
    return stream


def _frame_times(
    file: MediaFile, container: InputContainer, stream: VideoStream
) -> tuple[int, list[float]]:
    """Count the frames that decoding will give, and tell when each is shown.

    Containers with an index say so there, unless frames come unevenly: an index tells
    when frames are decoded. Then, as without an index, packets are read one by one.
    """
    base, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
    if stream.frames:
        entries = [each for each in stream.index_entries if not each.is_discard]
        count = stream.frames - len(stream.index_entries) + len(entries)
        decoded = _from_first([base * each.timestamp for each in entries])
        if not rate or not _uneven(decoded, rate):
            return count, []
    try:
        packets = [
            packet.pts
            for packet in container.demux(stream)
            if packet.size > 0 and not packet.is_discard
        ]
    except av.FFmpegError as error:
        raise VideoError(
            f"{file} breaks while its frames are counted: {error.strerror}"
        ) from error
    known = [base * pts for pts in packets if pts is not None]
    return len(packets), _from_first(known) if len(known) == len(packets) else []


def _from_first(seconds: list[float]) -> list[float]:
    """Count times from the first frame, in the order in which frames are shown."""
    ordered = sorted(seconds)
    return [each - ordered[0] for each in ordered]


def _uneven(seconds: list[float], fps: float) -> tuple[float, ...]:
    """Give the times of frames where they do not come at an even rate."""
    off = max((abs(t - i / fps) for i, t in enumerate(seconds)), default=0.0)
    return tuple(round(each, 4) for each in seconds) if off > 0.5 / fps else ()


def _wanted_frames(
    file: MediaFile,
    container: InputContainer,
    stream: VideoStream,
    indices: Sequence[int],
) -> Iterator[UInt8[Tensor, "channels height width"]]:
    """Yield the frames at ``indices``, in order."""
    size = (stream.height, stream.width)
    frames = container.decode(stream)
    count, started = 0, time.monotonic()
    for index in indices:
        while count <= index:
            frame = _next_frame(file, frames, index, count)
            count += 1
            if time.monotonic() - started > DECODE_SECONDS:
                raise VideoError(
                    f"{file} takes longer than {DECODE_SECONDS:.0f} s to decode; it "
                    f"was stopped before frame {index}, after {count} decoded frames"
                )
        if (frame.height, frame.width) != size:
            raise VideoError(
                f"{file} has frame {index} of size {frame.height} x {frame.width}; "
                f"the container states {size[0]} x {size[1]}"
            )
        pixels = frame.to_ndarray(format="rgb24", threads=1)
        yield torch.from_numpy(pixels).permute(2, 0, 1)


def _next_frame(
    file: MediaFile, frames: Iterator[VideoFrame], index: int, count: int
) -> VideoFrame:
    """Take one frame off the decoder, on the way from ``count`` to ``index``."""
    try:
        frame = next(frames, None)
    except av.FFmpegError as error:
        raise VideoError(
            f"{file} breaks before frame {index}, after {count} decoded frames: "
            f"{error.strerror}"
        ) from error
    if frame is None:
        raise VideoError(
            f"{file} has no frame {index}; it ends after {count} decoded frames"
        )
    if frame.is_corrupt:
        raise VideoError(
            f"{file} breaks before frame {index}, after {count} decoded frames: the "
            "next one is corrupt"
        )
    return frame
