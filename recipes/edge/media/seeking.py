"""Frames that lie far apart, each decoded from a keyframe close before it.

A clip is read once without decoding. What is shown when, and where decoding can start,
follows from its packets, and every frame that is decoded then is held against that.
Where anything is odd, frames are to be decoded in order; so they are the same, bit for
bit, either way.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from recipes.edge.media.containers import read_packets
from recipes.edge.media.media_file import MediaFile

NEAR = 12
"""Frames that are decoded faster than a keyframe behind them is looked for."""

_FORMATS = {"mov", "matroska"}
_CODECS = {"h264", "hevc", "vp9", "av1"}
"""What gives one frame for each packet, in formats that say when each is shown."""

_PIXELS = {"h264": range(1, 6), "hevc": range(32)}
_ANEW = {"h264": range(5, 6), "hevc": range(16, 22)}
_PARAMETERS = {"h264": {7, 8, 13, 15}, "hevc": {32, 33, 34}}
"""Kinds of units that hold pixels, those with which decoding can start, and those
that say how to decode what follows."""


class OddError(Exception):
    """A clip is not what seeking relies on: it has to be decoded in order."""


class _Start(NamedTuple):
    """A keyframe with which decoding can start: when it is shown, and as which."""

    pts: int
    rank: int


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What the packets of a clip say.

    Attributes:
        times: When each frame is shown, in order.
        starts: Where decoding can start, in order; the first packet is one.
    """

    times: list[int]
    starts: list[_Start]


def are_far_apart(indices: Sequence[int]) -> bool:
    """Tell whether a keyframe between wanted frames may be worth looking for.

    Args:
        indices: Wanted frames, strictly increasing.

    Returns:
        Whether one of them is far behind the one before it.
    """
    return any(b - a > NEAR for a, b in itertools.pairwise([-1, *indices]))


def seek_frames(
    file: MediaFile,
    container: InputContainer,
    stream: VideoStream,
    indices: Sequence[int],
    started: float,
) -> Iterator[VideoFrame]:
    """Decode wanted frames; where they are far apart, from the last keyframe before.

    Args:
        file: Its name, for messages.
        container: The open file, not read yet.
        stream: Its video.
        indices: Wanted frames, strictly increasing.
        started: When the time that the clip may take began.

    Yields:
        The wanted frames.

    Raises:
        OddError: If they have to be decoded in order; maybe after some of them.
        VideoError: If that takes too long.
    """
    try:
        order = _read_order(file, container, stream, started)
        if indices[-1] >= len(order.times):
            raise OddError
        for start, wanted, last in _runs(order, indices):
            container.seek(start.pts, stream=stream)
            packets = read_packets(file, container, stream, started=started)
            frames = _decode_from(start, packets, order)
            for rank in range(start.rank, last + 1):
                frame = next(frames)
                if rank in wanted:
                    yield frame
    except (av.FFmpegError, StopIteration) as error:
        raise OddError from error


def _read_order(
    file: MediaFile, container: InputContainer, stream: VideoStream, started: float
) -> _Order:
    """Read the packets of a clip without decoding them.

    With a keyframe all that comes before it is shown before it, and all that comes
    after it is shown after it. In HEVC some that comes after may be shown before; what
    is shown after does not need it.
    """
    extradata = stream.codec_context.extradata or b""
    codec = stream.codec_context.codec.canonical_name
    formats = container.format.name.split(",")
    if codec not in _CODECS or _FORMATS.isdisjoint(formats):
        raise OddError
    shown, hidden, keys = list[int](), set[int](), list[int]()
    latest = -(2**63)
    for packet in read_packets(file, container, stream, started=started):
        if packet.size == 0:
            continue
        if (pts := packet.pts) is None:
            raise OddError
        if _starts_anew(codec, extradata, packet):
            keys.append(pts)
            if pts <= latest:
                raise OddError
        elif codec != "hevc" and keys and pts < keys[-1]:
            raise OddError
        latest = max(latest, pts)
        shown.append(pts)
        if packet.is_discard:
            hidden.add(pts)
    times = sorted(set(shown) - hidden)
    starts = [_Start(pts, bisect_left(times, pts)) for pts in keys]
    if len(set(shown)) < len(shown) or not starts or starts[0] != (shown[0], 0):
        raise OddError
    return _Order(times=times, starts=starts)


def _starts_anew(codec: str, extradata: bytes, packet: "Packet[VideoStream]") -> bool:
    """Tell whether what follows a packet may need nothing that was before it.

    In H.264, what a container calls a keyframe may be one that later frames look past.
    Parameters that the header of the file does not have may be needed to the end, so
    the packet that brings them must not be passed over.
    """
    if codec not in _PIXELS:
        return packet.is_keyframe
    for kind, unit in _units(codec, extradata, memoryview(packet)):
        if kind in _PIXELS[codec]:
            return packet.is_keyframe and kind in _ANEW[codec]
        if kind in _PARAMETERS[codec]:
            stored = min(len(unit), 2**16 - 1).to_bytes(2) + unit
            if stored not in extradata:
                raise OddError
    return False


def _units(
    codec: str, extradata: bytes, data: memoryview
) -> Iterator[tuple[int, memoryview]]:
    """Give the units in a packet, each of which has its size before it, with kinds."""
    at = {"h264": 4, "hevc": 21}[codec]
    if extradata[:1] != b"\1" or len(extradata) <= at:
        raise OddError
    size_bytes = extradata[at] % 4 + 1
    while len(data) > size_bytes:
        end = size_bytes + int.from_bytes(data[:size_bytes])
        if not size_bytes < end <= len(data):
            raise OddError
        first = data[size_bytes]
        kind = first % 32 if codec == "h264" else first // 2 % 64
        yield kind, data[size_bytes:end]
        data = data[end:]


def _runs(
    order: _Order, indices: Sequence[int]
) -> Iterator[tuple[_Start, set[int], int]]:
    """Yield where decoding starts, what is wanted from there, and where it ends.

    The first frames are always decoded, to see whether they come as they should.
    """
    ranks = [start.rank for start in order.starts]
    start, wanted, last = order.starts[0], set[int](), min(NEAR, len(order.times) - 1)
    for index in indices:
        nearest = order.starts[bisect_right(ranks, index) - 1]
        if nearest.rank > last + NEAR:
            yield start, wanted, last
            start, wanted = nearest, set()
        wanted.add(index)
        last = max(last, index)
    yield start, wanted, last


def _decode_from(
    start: _Start, packets: Iterator["Packet[VideoStream]"], order: _Order
) -> Iterator[VideoFrame]:
    """Decode frames from a keyframe on, and hold each against what was read before."""
    rank, is_there = start.rank, False
    for packet in packets:
        is_there = is_there or packet.pts == start.pts
        for frame in packet.decode() if is_there else ():
            pts, expected = frame.pts, order.times[rank]
            if rank == start.rank and pts is not None and pts < expected:
                continue  # shown before the keyframe
            if frame.is_corrupt or pts != expected:
                raise OddError
            yield frame
            rank += 1
