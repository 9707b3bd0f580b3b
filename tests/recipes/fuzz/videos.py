"""Hostile videos: every one is the clip of a row, in a folder beside it."""

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import av
import numpy as np

from tests.recipes.fuzz.cases import (
    HARMLESS,
    SKIPPED,
    Case,
    Verdict,
    cuts,
    flips,
    row,
    write_rows,
)

HEIGHT, WIDTH, FRAMES = 56, 84, 8

CONTAINERS = {
    "mp4": ("mp4", "libx264", "yuv420p"),
    "mkv": ("matroska", "libx264", "yuv420p"),
    "ts": ("mpegts", "mpeg2video", "yuv420p"),
    "avi": ("avi", "mpeg4", "yuv420p"),
    "flv": ("flv", "flv1", "yuv420p"),
    "gif": ("gif", "gif", "rgb8"),
    "png": ("image2pipe", "png", "rgb24"),
    "jpg": ("image2pipe", "mjpeg", "yuvj420p"),
    "bmp": ("image2pipe", "bmp", "bgr24"),
}
"""Suffix, container, codec and pixels of every seed."""

CLIP = {"video": "clip.mp4"}


@cache
def seed(suffix: str, *, num_frames: int = FRAMES, ticks: int = 1) -> bytes:
    """Make a small file, without the code under test."""
    container, codec, pixels = CONTAINERS[suffix]
    num_frames = 1 if container == "image2pipe" else num_frames
    rng, file = np.random.default_rng(0), BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, pixels
        stream.codec_context.time_base = Fraction(1, 25)
        for number in range(num_frames):
            picture = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number * ticks, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def video_cases() -> Iterator[Case]:
    """Give all hostile videos."""
    yield from _damaged()
    yield from _misnamed()
    yield from _enormous()
    yield from _never_ending()
    yield from _odd_times()
    yield from _playlists()


def video_case(
    family: str,
    name: str,
    content: bytes | Callable[[Path], object],
    may: tuple[Verdict, ...] = SKIPPED,
    *,
    clip: str = "clip.mp4",
    others: Mapping[str, bytes] | None = None,
) -> Case:
    """Give the case of a row about one file."""

    def make(folder: Path) -> None:
        kind = "image" if clip.endswith((".png", ".jpg", ".bmp")) else "video"
        data = write_rows(folder, [row(**{"video": None, kind: clip})])
        for other, other_content in (others or {}).items():
            (data / other).write_bytes(other_content)
        if isinstance(content, bytes):
            (data / clip).write_bytes(content)
        else:
            content(data / clip)

    return Case(kind="data", family=f"video: {family}", name=name, make=make, may=may)


def _damaged() -> Iterator[Case]:
    for suffix in CONTAINERS:
        content, clip = seed(suffix), f"clip.{suffix}"
        yield video_case("zero bytes", suffix, b"", clip=clip)
        for name, cut in cuts(content, 14):
            yield video_case("truncated", f"{suffix}, {name}", cut, HARMLESS, clip=clip)
        places = {
            "anywhere": (slice(None), 24),
            "at its start": (slice(0, 400), 14),
            "at its end": (slice(-900, None), 14),
        }
        for number, (place, (within, count)) in enumerate(places.items()):
            for name, damaged in flips(content, count, seed=number, within=within):
                yield video_case(
                    f"flipped {place}",
                    f"{suffix}, {name}",
                    damaged,
                    HARMLESS,
                    clip=clip,
                )


def _misnamed() -> Iterator[Case]:
    suffixes = list(CONTAINERS)
    for number, suffix in enumerate(suffixes):
        for distance in (1, 2, 4):
            other = suffixes[(number + distance) % len(suffixes)]
            yield video_case(
                "wrong extension",
                f"{suffix} named {other}",
                seed(suffix),
                HARMLESS,
                clip=f"clip.{other}",
            )
    texts = {
        "text": b"no video\n" * 99,
        "html": b"<!doctype html><title>404</title>" * 20,
        "json": b'{"error": "gone"}',
        "zip": b"PK\x03\x04" + bytes(400),
        "elf": b"\x7fELF" + bytes(400),
        "pickle": b"\x80\x04\x95" + bytes(400),
        "zeros": bytes(100_000),
        "subtitles": b"1\n00:00:00,000 --> 00:00:09,000\nHello\n\n" * 9,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "pipe": b"",
    }
    for name, content in texts.items():
        for clip in ("clip.mp4", "clip.avi", "clip.png"):
            yield video_case("no video", f"{name} as {clip}", content, clip=clip)


def patched(content: bytes, marker: bytes, at: int, value: bytes) -> bytes:
    """Overwrite bytes at a distance from the end of a marker's first place."""
    start = content.index(marker) + len(marker) + at
    assert start + len(value) <= len(content)
    return content[:start] + value + content[start + len(value) :]


SIDES = (0, 1, 8193, 16_384, 32_767, 65_535)


def _enormous() -> Iterator[Case]:
    for side in SIDES:
        both = struct.pack(">HH", side, side)
        mp4 = patched(seed("mp4"), b"avc1", 24, both)
        yield video_case("enormous", f"mp4 of {side}", mp4, HARMLESS)
        gif = patched(seed("gif"), b"GIF89a", 0, struct.pack("<HH", side, side))
        yield video_case("enormous", f"gif of {side}", gif, HARMLESS, clip="clip.gif")
        jpg = patched(seed("jpg"), b"\xff\xc0", 3, both)
        yield video_case("enormous", f"jpg of {side}", jpg, HARMLESS, clip="clip.jpg")
    for side in (*SIDES, 2**20, 2**28, 2**31 - 1, 2**31, 2**32 - 1):
        png = patched(seed("png"), b"IHDR", 0, struct.pack(">II", side, side))
        bmp = patched(seed("bmp"), b"\x28\0\0\0", 0, struct.pack("<II", side, side))
        avi = patched(seed("avi"), b"strf\x28\0\0\0", 4, struct.pack("<II", side, side))
        avi = patched(avi, b"avih", 36, struct.pack("<II", side, side))
        for suffix, content in (("png", png), ("bmp", bmp), ("avi", avi)):
            yield video_case(
                "enormous",
                f"{suffix} of {side}",
                content,
                HARMLESS,
                clip=f"clip.{suffix}",
            )
        # Two numbers of one byte, width and height, become a width of four.
        sizes = bytes([0xB0, 0x81, WIDTH, 0xBA, 0x81, HEIGHT])
        assert seed("mkv").count(sizes) == 1
        wide = b"\xb0\x84" + struct.pack(">I", side)
        mkv = seed("mkv").replace(sizes, wide)
        yield video_case("enormous", f"mkv of {side}", mkv, HARMLESS, clip="clip.mkv")


def _never_ending() -> Iterator[Case]:
    def link_to(target: str) -> Callable[[Path], None]:
        return lambda path: path.symlink_to(target)

    family = "never ending"
    yield video_case(family, "fifo", os.mkfifo)
    yield video_case(family, "folder", Path.mkdir)
    yield video_case(family, "link to itself", link_to("clip.mp4"))
    for device in ("/dev/zero", "/dev/urandom", "/dev/tty", "/dev/stdin"):
        yield video_case(family, f"link to {device}", link_to(device))
    for count in (2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1):
        avi = patched(seed("avi"), b"avih", 20, struct.pack("<I", count))
        avi = patched(avi, b"strh", 36, struct.pack("<I", count))
        yield video_case(family, f"avi of {count} frames", avi, HARMLESS)
        mp4 = patched(seed("mp4"), b"stsz", 4, struct.pack(">II", 9, count))
        yield video_case(family, f"mp4 of {count} equal frames", mp4, HARMLESS)
        both = patched(mp4, b"stts", 8, struct.pack(">I", count))
        both = patched(both, b"stsc", 12, struct.pack(">I", count))
        yield video_case(family, f"mp4 of {count} frames in a chunk", both, HARMLESS)
        listed = patched(seed("mp4"), b"stsz", 8, struct.pack(">I", count))
        yield video_case(family, f"mp4 that lists {count} frames", listed, HARMLESS)
    for suffix in CONTAINERS:
        longer = partial(_with_holes, content=seed(suffix))
        yield video_case(
            family,
            f"{suffix} and 1 TiB of holes",
            longer,
            HARMLESS,
            clip=f"clip.{suffix}",
        )
    for hours in (10, 1000):
        ticks = hours * 3600 * 25 // FRAMES
        content = seed("mkv", ticks=ticks)
        yield video_case(family, f"mkv of {hours} hours", content, HARMLESS)
    for end in (8, 200, 2000):
        content = seed("mkv")
        endless = content + content[-end:] * 3000
        yield video_case(family, f"mkv whose end repeats, {end}", endless, HARMLESS)
    ts = seed("ts")
    without = ts + (b"\x47\x1f\xff\x10" + bytes(184)) * 20_000
    yield video_case(family, "ts and empty packets", without, HARMLESS, clip="clip.ts")


def _with_holes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.truncate(path, 2**40)


NUMBERS = {
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "1e300": 1e300,
    "-1": -1.0,
    "0": 0.0,
    "1e-300": 1e-300,
}


def _odd_times() -> Iterator[Case]:
    family = "times"
    for name, number in NUMBERS.items():
        value = struct.pack(">d", number)
        for key in (b"duration", b"framerate", b"filesize", b"width"):
            flv = patched(seed("flv"), key + b"\0", 0, value)
            yield video_case(
                family, f"flv, {key.decode()} {name}", flv, HARMLESS, clip="clip.flv"
            )
        mkv = patched(seed("mkv"), b"\x44\x89\x88", 0, value)
        yield video_case(family, f"mkv, duration {name}", mkv, HARMLESS, clip="a.mkv")
    for value in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
        word = struct.pack(">I", value)
        for marker, at in (
            (b"mvhd", 12),
            (b"mvhd", 16),
            (b"mdhd", 12),
            (b"mdhd", 16),
            (b"tkhd", 20),
            (b"stts", 12),
            (b"ctts", 8),
            (b"ctts", 12),
            (b"elst", 8),
            (b"elst", 12),
            (b"elst", 16),
        ):
            content = patched(seed("mp4"), marker, at, word)
            name = f"mp4, {marker.decode()} + {at} is {value}"
            yield video_case(family, name, content, HARMLESS)
        little = struct.pack("<I", value)
        for at in (20, 24):
            content = patched(seed("avi"), b"strh", at + 4, little)
            name = f"avi, strh + {at} is {value}"
            yield video_case(family, name, content, HARMLESS, clip="clip.avi")
    named = patched(seed("mp4"), b"Lavf", 0, b"\xff\xfe\x80\x81")
    yield video_case(family, "mp4 with a name that is no text", named, HARMLESS)


def _playlists() -> Iterator[Case]:
    """Files that name other files, which would be read without anyone's asking."""
    hls = (
        b"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:5.0,\n%s\n"
        b"#EXT-X-ENDLIST\n"
    )
    live = hls.replace(b"#EXT-X-ENDLIST\n", b"")
    texts = {
        "hls": hls % b"other.ts",
        "hls of itself": hls % b"clip.mp4",
        "hls of a file outside": hls % b"../outside.ts",
        "hls of the network": hls % b"http://127.0.0.1:9/a.ts",
        "hls that is not over": live % b"other.ts",
        "concat": b"ffconcat version 1.0\nfile other.ts\n",
        "concat of itself": b"ffconcat version 1.0\nfile clip.mp4\n",
        "concat of a file outside": b"ffconcat version 1.0\nfile ../outside.ts\n",
        "concat of many": b"ffconcat version 1.0\n" + b"file other.ts\n" * 50_000,
        "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" '
        b'profiles="urn:mpeg:dash:profile:isoff-live:2011" type="static">'
        b"<Period><AdaptationSet><Representation><BaseURL>other.ts</BaseURL>"
        b"</Representation></AdaptationSet></Period></MPD>",
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        b"m=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    }
    for name, text in texts.items():
        for clip in ("clip.mp4", "clip.m3u8"):
            yield video_case(
                "playlist",
                f"{name}, {clip}",
                text,
                clip=clip,
                others={"other.ts": seed("ts")},
            )
    numbered = {f"a{number}.png": seed("png") for number in range(4)}
    yield video_case(
        "playlist",
        "a name that is a pattern",
        seed("png"),
        HARMLESS,
        clip="a%d.png",
        others=numbered,
    )
