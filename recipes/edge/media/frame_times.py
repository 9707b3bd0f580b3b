"""How many frames decoding will give, and when each is shown, with little decoding."""

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from recipes.edge.media.containers import VideoError, blame, open_video, read_packets
from recipes.edge.media.media_file import MediaFile

MOST_FRAMES = 2**22
"""Frames of a clip at most, two days at 24 a second."""

EXACT_SECONDS = 0.02
"""How far times may be off that a rate tells: containers round times, to 10 ms at most.
Half a frame is less where there are more than 25 a second, and is the limit there."""


class _Shown(NamedTuple):
    """What is known of a packet: when it is shown, and whether decoding starts here."""

    pts: int | None
    is_keyframe: bool
    is_discard: bool


def frame_times(
    file: MediaFile, container: InputContainer, stream: VideoStream
) -> tuple[int, list[float]]:
    """Count the frames that decoding will give, and tell when each is shown.

    Containers with an index say so there, unless frames come unevenly: an index tells
    when frames are decoded. Then, as without an index, or with one that has more frames
    than the header, or fewer, packets are read one by one. Of a clip that was cut out
    of a longer one, what the decoder does not give any more is not counted, as far as
    its first frames tell.

    Args:
        file: Its name, for messages.
        container: The open file, not read yet.
        stream: Its video.

    Returns:
        The number of frames, and the seconds of each from the first one on; none where
        they are not known, or known to come at an even rate.

    Raises:
        VideoError: If there are more than ``MOST_FRAMES``, or the file breaks or takes
            too long.
        OSError: If the machine fails, see ``FAILING``.
    """
    if stream.frames > MOST_FRAMES:
        raise _too_many(file, stream.frames)
    base, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
    packets = read_packets(file, container, stream)
    try:
        if 0 < stream.frames == len(stream.index_entries):
            entries = [each for each in stream.index_entries if not each.is_discard]
            decoded = _from_first([base * each.timestamp for each in entries])
            first = list(itertools.islice(packets, 2))
            if _is_whole(_shown(first)) and not (rate and uneven(decoded, rate)):
                return len(entries), []
            packets = itertools.chain(first, packets)
        shown = _read_all(file, packets)
        times = _decodable(file, shown)
    except av.FFmpegError as error:
        blame(file, error)
        raise VideoError(
            f"{file} breaks while its frames are counted: {error.strerror}"
        ) from error
    known = [base * pts for pts in times if pts is not None]
    return len(times), _from_first(known) if len(known) == len(times) else []


def uneven(seconds: Sequence[float], fps: float) -> tuple[float, ...]:
    """Give the times of frames where they do not come at an even rate.

    Args:
        seconds: When each is shown, from 0 on.
        fps: Average frame rate.

    Returns:
        The times; nothing where the rate tells all of them, by ``EXACT_SECONDS``.
    """
    off = max((abs(t - i / fps) for i, t in enumerate(seconds)), default=0.0)
    is_even = off <= min(0.5 / fps, EXACT_SECONDS)
    return () if is_even else tuple(round(each, 9) for each in seconds)


def _from_first(seconds: list[float]) -> list[float]:
    """Count times from the first frame, in the order in which frames are shown."""
    ordered = sorted(seconds)
    return [each - ordered[0] for each in ordered]


def _too_many(file: MediaFile, count: int) -> VideoError:
    """Say that a clip has too many frames."""
    return VideoError(
        f"{file} has {count:,} frames or more; a clip may have {MOST_FRAMES:,}"
    )


def _read_all(
    file: MediaFile, packets: Iterator["Packet[VideoStream]"]
) -> list[_Shown]:
    """Read packets to the end."""
    shown = list[_Shown]()
    for packet in packets:
        shown += _shown([packet])
        if len(shown) > MOST_FRAMES:
            raise _too_many(file, len(shown))
    return shown


def _shown(packets: Sequence["Packet[VideoStream]"]) -> list[_Shown]:
    """Give what is known of packets; an empty one only says that all is read."""
    return [
        _Shown(packet.pts, packet.is_keyframe, packet.is_discard)
        for packet in packets
        if packet.size > 0
    ]


def _is_whole(shown: Sequence[_Shown]) -> bool:
    """Tell whether decoding can start with the first packet, and nothing is lost."""
    pts = shown[0].pts if shown else None
    return pts is None or (
        shown[0].is_keyframe
        and not any(
            not p.is_discard and p.pts is not None and p.pts < pts for p in shown
        )
    )


def _decodable(file: MediaFile, shown: Sequence[_Shown]) -> list[int | None]:
    """Give the times of the frames that will be decoded.

    Frames before the first keyframe, and some that are shown before it, need others
    that are not in the file. Decoders know which. Those of H.264 and HEVC are asked for
    their first frame: most often all that is shown later comes too, but not of streams
    without times or without keyframes proper. Others may give frames that they should
    not, so theirs are counted up to the first keyframe.
    """
    times = [each.pts for each in shown if not each.is_discard]
    if _is_whole(shown):
        return times
    with open_video(file) as (container, stream):
        stream.codec_context.thread_count = 1
        packets = read_packets(file, container, stream)
        decoded = (frame for packet in packets for frame in packet.decode())
        first = next(decoded, None)
        if first is None:
            return []
        start, key = first.pts, next((p.pts for p in shown if p.is_keyframe), None)
        known = [pts for pts in times if pts is not None]
        is_strict = stream.codec_context.codec.canonical_name in {"h264", "hevc"}
        if is_strict or key is None or len(known) < len(times):
            return [p for p in times if p is None or start is None or p >= start]
        frames = itertools.chain([first], decoded)
        early = itertools.takewhile(lambda f: f.pts is None or f.pts < key, frames)
        count = sum(1 for _ in early)
    known.sort()
    border = bisect_left(known, key)
    return [*known[max(border - count, 0) :]]
