"""Videos and pictures: what their container promises, and their frames."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import av
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from jaxtyping import UInt8
from torch import Tensor

from recipes.edge.media.containers import (
    MOST_PIXELS,
    DoubtfulError,
    VideoError,
    blame,
    open_video,
    read_packets,
)
from recipes.edge.media.frame_times import frame_times, uneven
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.orientation import may_turn, orientation_of
from recipes.edge.media.seeking import OddError, are_far_apart, seek_frames


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a container says about its video stream.

    Attributes:
        num_frames: Raw frames that the decoder will give, at least 1.
        fps: Average frame rate, in frames per second.
        height: Height of a frame as shown, in pixels.
        width: Width of a frame as shown, in pixels.
        seconds: When each frame is shown, from 0 on, where the frames do not come at an
            even rate; empty where they do.
    """

    num_frames: int
    fps: float
    height: int
    width: int
    seconds: tuple[float, ...] = ()

    @property
    def length(self) -> float:
        """Seconds until the last frame is over; it is shown as long as the one before.

        Where frames come at an even rate, all are.
        """
        if len(self.seconds) < 2:
            return self.num_frames / self.fps
        before, last = self.seconds[-2:]
        return last + (last - before)

    def seconds_at(self, indices: Sequence[int]) -> list[float]:
        """Tell when frames are shown, in seconds after the first."""
        if self.seconds:
            return [self.seconds[index] for index in indices]
        return [index / self.fps for index in indices]


def probe_video(file: MediaFile) -> VideoInfo:
    """Read the size and the frame count of a video from its header.

    Of the formats that can say that a video is shown turned, one frame is decoded.

    A container that states no count, such as Matroska, or that of its first fragment
    alone, is read once packet by packet. Frames that an edit list hides are not
    counted, because the decoder skips them, nor are those that need a keyframe from
    before the file begins. A picture is a video of one frame.

    Args:
        file: A video or a picture.

    Returns:
        What the container states about its video stream.

    Raises:
        VideoError: If the file is missing, empty, a folder or not a video, or if its
            video stream is missing, has no decoder, no frame or more than
            ``MOST_FRAMES``, no size or no rate, or takes too long to read.
    """
    with open_video(file) as (container, stream):
        num_frames, seconds = frame_times(file, container, stream)
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
        if _is_turned(file, container, stream):
            height, width = width, height
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise VideoError(f"{file} states no frame rate")
        return VideoInfo(
            num_frames=num_frames,
            fps=float(rate),
            height=height,
            width=width,
            seconds=uneven(seconds, float(rate)),
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

    The file is decoded on one thread, in order, and no further than the last wanted
    frame. Where wanted frames are far apart, and the container can be relied on, what
    lies before the last keyframe in between is passed over; the frames are the same,
    bit for bit. Only wanted frames are converted. A frame that the decoder had to
    conceal counts as an error, also where it lies between wanted ones, because the
    frames after it are predicted from it; what was passed over is not looked at.

    Args:
        file: A video or a picture.
        indices: Wanted frames, 0-based, strictly increasing, at least one.

    Returns:
        The frames in the order of ``indices``, values 0 to 255.

    Raises:
        ValueError: If ``indices`` is empty, negative or not strictly increasing.
        VideoError: If the file cannot be opened, breaks before the last wanted
            frame, ends before it, changes its frame size, or takes longer than
            ``CLIP_SECONDS``.
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
    started = time.monotonic()
    if are_far_apart(indices):
        with suppress(OddError):
            return _decode(file, indices, seek_frames, started)
    return _decode(file, indices, _frames_in_order, started)


def _decode(
    file: MediaFile,
    indices: Sequence[int],
    find: Callable[..., Iterator[VideoFrame]],
    started: float,
) -> UInt8[Tensor, "frames channels height width"]:
    """Decode the wanted frames, as one of two ways finds them."""
    with open_video(file) as (container, stream):
        stream.codec_context.thread_count = 1
        found = find(file, container, stream, indices, started)
        pixels = _as_shown(file, container, stream, zip(indices, found, strict=True))
        frames = _fill(file, pixels, len(indices))
    return frames.permute(0, 3, 1, 2)  # colours stay side by side: resized faster


def _fill(
    file: MediaFile,
    pixels: Iterator[UInt8[Tensor, "height width channels"]],
    num_frames: int,
) -> UInt8[Tensor, "frames height width channels"]:
    """Put frames behind one another; no frame is held twice, once one is known."""
    first = next(pixels)
    try:
        frames = first.new_empty((num_frames, *first.shape))
    except RuntimeError as error:
        raise DoubtfulError(
            f"{file} has frames of {first.shape[0]} x {first.shape[1]}; memory does "
            f"not hold {num_frames:,} of them"
        ) from error
    for frame, each in zip(frames, itertools.chain([first], pixels), strict=True):
        if each.shape != frame.shape:
            raise VideoError(
                f"{file} has frames that are turned, and some that are not"
            )
        frame.copy_(each)
    return frames


def _is_turned(file: MediaFile, container: InputContainer, stream: VideoStream) -> bool:
    """Tell whether height and width are shown swapped; frames alone say so here."""
    if not may_turn(container):
        return False
    try:
        container.seek(0)
        stream.codec_context.thread_count = 1
        for packet in read_packets(file, container, stream):
            frames = packet.decode()
            if not frames and packet.is_keyframe and not packet.is_discard:
                frames = stream.codec_context.decode(None)  # without those after it
            if frames:
                return orientation_of(file, container, frames[0]).turns % 2 == 1
    except av.FFmpegError as error:
        blame(file, error)  # where it is the clip, whoever decodes it will say so
    return False


def _frames_in_order(
    file: MediaFile,
    container: InputContainer,
    stream: VideoStream,
    indices: Sequence[int],
    started: float,
) -> Iterator[VideoFrame]:
    """Yield the frames at ``indices``, and decode all before them."""
    packets = read_packets(file, container, stream, started=started)
    frames, count = (frame for packet in packets for frame in packet.decode()), 0
    for index in indices:
        while count <= index:
            frame = _next_frame(file, frames, index, count)
            count += 1
        yield frame


def _as_shown(
    file: MediaFile,
    container: InputContainer,
    stream: VideoStream,
    frames: Iterable[tuple[int, VideoFrame]],
) -> Iterator[UInt8[Tensor, "height width channels"]]:
    """Yield the pixels of numbered frames as they are shown."""
    size = (stream.height, stream.width)
    for index, frame in frames:
        if (frame.height, frame.width) != size:
            raise VideoError(
                f"{file} has frame {index} of size {frame.height} x {frame.width}; "
                f"the container states {size[0]} x {size[1]}"
            )
        pixels = torch.from_numpy(_as_rgb(file, frame, index))
        yield orientation_of(file, container, frame).show(pixels)


def _as_rgb(file: MediaFile, frame: VideoFrame, index: int) -> Any:
    """Convert the pixels of a frame."""
    try:
        return frame.to_ndarray(format="rgb24", threads=1)
    except MemoryError as error:
        raise DoubtfulError(
            f"{file} has frame {index} of {frame.height} x {frame.width}; memory does "
            "not hold its pixels"
        ) from error
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, av.FFmpegError):
            blame(file, error)
        raise VideoError(
            f"{file} has frame {index} in pixels of {frame.format.name}, which cannot "
            f"be converted: {error}"
        ) from error


def _next_frame(
    file: MediaFile, frames: Iterator[VideoFrame], index: int, count: int
) -> VideoFrame:
    """Take one frame off the decoder, on the way from ``count`` to ``index``."""
    try:
        frame = next(frames, None)
    except av.FFmpegError as error:
        blame(file, error)
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
