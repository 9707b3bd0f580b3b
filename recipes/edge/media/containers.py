"""Files of videos and pictures, opened so that none of them can do harm.

Whatever a file claims, it opens no other file, no frame is larger than ``MOST_PIXELS``,
and reading it ends.
"""

import errno
import os
import stat
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from recipes.edge.media.media_file import MediaFile

MOST_PIXELS = 2**26
"""Pixels of a frame at most, 8192 x 8192; more are refused before they are decoded."""

CLIP_SECONDS = 120.0
"""Time that a clip may take to be probed, and again to be decoded."""

FORMATS = (
    *("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg"),
    *("mxf", "rm", "ivf", "nut", "h264", "hevc", "obu", "m4v", "mpegvideo", "mjpeg"),
    *("gif", "gif_pipe", "apng", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe"),
    *("tiff_pipe", "image2"),
)
"""Formats that hold their own frames. A playlist would have other files opened."""

WORDS: dict[str, Any] = (
    {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}
)
"""Lets a title be in any encoding. PyAV 19 does so unasked, and takes no such word."""

FAILING = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
"""What a machine says of itself: no fault of a sample, which is not left out."""


class VideoError(ValueError):
    """A video file cannot be used; the message names the path and the reason."""


class DoubtfulError(VideoError):
    """A video file cannot be used this time; that may be the disk's fault."""


@contextmanager
def open_video(file: MediaFile) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file at its best video stream and close it in every case.

    Args:
        file: A video or a picture.

    Yields:
        The container and its stream, which has a decoder.

    Raises:
        VideoError: If the file is missing, empty, a folder or not a video, or if its
            video stream is missing or has no decoder.
        OSError: If the machine fails, see ``FAILING``.
    """
    _check_file(file)
    options = {
        "format_whitelist": ",".join(FORMATS),
        "pattern_type": "none",  # a % in the name of a picture is a %
        "max_pixels": str(MOST_PIXELS),
    }
    try:
        container = av.open(
            file.address(),
            "r",
            options=options,
            timeout=CLIP_SECONDS,
            **WORDS,
        )
    except av.ArgumentError as error:
        raise VideoError(f"{file} is in no format that is read here") from error
    except av.FFmpegError as error:
        blame(file, error)
        raise VideoError(
            f"{file} cannot be opened as a video: {error.strerror}"
        ) from error
    with container:
        stream = _video_stream(file, container)
        stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
        yield container, stream


def read_packets(
    file: MediaFile,
    container: InputContainer,
    stream: VideoStream,
    *,
    started: float | None = None,
) -> Iterator["Packet[VideoStream]"]:
    """Read the packets of a stream, an empty one last, for ``CLIP_SECONDS`` at most.

    Args:
        file: Its name, for messages.
        container: The open file.
        stream: Its video.
        started: When the time that this may take began; None for now.

    Yields:
        The packets in the order of the file.

    Raises:
        VideoError: If that takes longer, whoever takes the time.
        OSError: If the machine fails, see ``FAILING``.
        av.FFmpegError: If the file breaks.
    """
    since = time.monotonic() if started is None else started
    try:
        # PyAV frees the buffers of one that ends or is closed, not of one that is left.
        demuxed = cast("Generator[Packet[Stream], None, None]", container.demux())
        with closing(demuxed) as packets:
            for packet in packets:
                if time.monotonic() - since > CLIP_SECONDS:
                    raise _too_slow(file)
                if packet.stream.index == stream.index:
                    yield cast("Packet[VideoStream]", packet)
    except av.FFmpegError as error:
        blame(file, error)
        raise


def blame(file: MediaFile, error: av.FFmpegError) -> None:
    """Refuse to blame a clip for what the machine did.

    FFmpeg says EIO of a file that is cut off too, and ENOMEM of one that claims more
    than there is. Who is at fault is seen where all of its bytes are read once more;
    where that goes well, it stays open. Lack of memory has other names as well, among
    them that of a broken file, and cannot be told from one then.

    Args:
        file: Its name, for messages, and its bytes.
        error: What FFmpeg says; this returns where the clip is to blame.

    Raises:
        DoubtfulError: If the machine may be to blame, or the time is up.
        OSError: If the machine fails, see ``FAILING``.
    """
    if isinstance(error, av.ExitError):
        raise _too_slow(file) from error
    if error.errno in {errno.EIO, errno.ENOMEM}:
        _read_through(file)
        raise DoubtfulError(f"{file} cannot be read: {error.strerror}") from error
    if error.errno in FAILING:
        raise OSError(error.errno, error.strerror, str(file)) from error


def _too_slow(file: MediaFile) -> DoubtfulError:
    """Say that a clip takes too long."""
    return DoubtfulError(f"{file} takes longer than {CLIP_SECONDS:.0f} s to read")


def _read_through(file: MediaFile) -> None:
    """Read all bytes of a clip, in its time; one that is gone by now has none."""
    until = time.monotonic() + CLIP_SECONDS
    with suppress(FileNotFoundError), file.path.open("rb") as opened:
        opened.seek(file.offset)
        left = os.fstat(opened.fileno()).st_size if file.size is None else file.size
        while time.monotonic() < until and (block := opened.read(min(left, 2**20))):
            left -= len(block)


def _check_file(file: MediaFile) -> None:
    """Refuse what is no file, or has no bytes."""
    try:
        status = file.path.stat()
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in FAILING:
            raise
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
