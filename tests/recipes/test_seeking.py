"""Frames far apart are those of decoding in order, bit for bit, in every container."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch
from torch import Tensor

from recipes.edge.media.containers import DoubtfulError, VideoError, open_video
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.seeking import OddError, are_far_apart, seek_frames
from recipes.edge.media.video import decode_frames, probe_video, sample_frame_indices
from tests.recipes.test_frame_times import (
    FPS,
    OPEN,
    X264,
    X265_OPEN,
    X265_RADL,
    cut_out,
    write_moving,
)
from tests.recipes.test_video import cut_by_edit_list

FRAMES = 130
VP9 = {"g": "12", "lag-in-frames": "16", "auto-alt-ref": "1", "cpu-used": "8"}
AV1 = {"svtav1-params": "keyint=12:scd=0", "preset": "13"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A clip to write, and whether it can be sought in."""

    suffix: str = ".mp4"
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: X264)
    ticks: Callable[[int], int] = lambda index: index
    muxing: dict[str, str] = field(default_factory=dict)
    is_sought: bool = True

    def write(self, folder: Path) -> Path:
        return write_moving(
            folder / f"clip{self.suffix}",
            codec=self.codec,
            options=self.options,
            num_frames=FRAMES,
            ticks=self.ticks,
            muxing=self.muxing,
        )


def uneven(index: int) -> int:
    """Give a tick that is sometimes late, and once a minute."""
    return 3 * index + index % 3 + 60 * FPS * (index > 70)


CASES = {
    "mp4": Case(),
    "mov": Case(suffix=".mov"),
    "mkv": Case(suffix=".mkv"),
    "live mkv": Case(suffix=".mkv", muxing={"live": "1"}),
    "no B-frames": Case(options={"bf": "0", "g": "12", "sc_threshold": "0"}),
    "pyramid": Case(options={"bf": "8", "g": "40", "refs": "8"}),
    "uneven mp4": Case(ticks=uneven),
    "uneven mkv": Case(ticks=uneven, suffix=".mkv"),
    "fragments": Case(muxing={"movflags": "frag_keyframe"}),
    "empty header": Case(muxing={"movflags": "frag_keyframe+empty_moov"}),
    "dash": Case(muxing={"movflags": "dash"}),
    "no edit list": Case(muxing={"use_editlist": "0"}),
    "one keyframe": Case(options={"g": "999", "sc_threshold": "0"}),
    "all keyframes": Case(options={"g": "1", "bf": "0"}),
    "hevc": Case(codec="libx265", options=X265_RADL),
    "open hevc": Case(codec="libx265", options=X265_OPEN),
    "open hevc in mkv": Case(codec="libx265", options=X265_OPEN, suffix=".mkv"),
    "vp9": Case(codec="libvpx-vp9", options=VP9, suffix=".webm"),
    "vp9 in mp4": Case(codec="libvpx-vp9", options=VP9),
    "av1": Case(codec="libsvtav1", options=AV1),
    "av1 in mkv": Case(codec="libsvtav1", options=AV1, suffix=".mkv"),
    "open": Case(options=OPEN),
    "gradual": Case(options={"x264-params": "intra-refresh=1:keyint=12"}),
    "ts": Case(suffix=".ts", is_sought=False),
    "flv": Case(suffix=".flv", is_sought=False),
    "avi": Case(suffix=".avi", options={"bf": "0", "g": "12"}, is_sought=False),
    "mpeg4": Case(codec="mpeg4", options={"g": "12", "bf": "2"}, is_sought=False),
    "mpeg4 in avi": Case(
        codec="mpeg4", options={"g": "12"}, suffix=".avi", is_sought=False
    ),
}


def in_order(file: MediaFile, indices: Sequence[int]) -> Tensor:
    """Decode every frame up to the last that is wanted, and keep these."""
    frames = list[Tensor]()
    with av.open(file.address()) as container:
        container.streams.video[0].thread_count = 1
        for frame in container.decode(video=0):
            frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
            if len(frames) > indices[-1]:
                break
    return torch.stack(frames)[list(indices)].permute(0, 3, 1, 2)


def sought(file: MediaFile, indices: Sequence[int]) -> int:
    """Count the frames that seeking finds."""
    with open_video(file) as (container, stream):
        found = seek_frames(file, container, stream, indices, time.monotonic())
        return sum(1 for _ in found)


def check(file: MediaFile, count: int) -> None:
    """Compare several choices of frames with decoding in order."""
    every = in_order(file, range(count))
    choices = [sample_frame_indices(count, most) for most in range(2, 9)]
    choices += [(count - 1,), (0, 40, 41, 42, 80), (13, 26, 27, count - 1)]
    choices += [(0, 60, 100), (0, 61, 100), (0, 62, 100)]
    for indices in choices:
        if indices[-1] >= count:
            continue
        assert torch.equal(decode_frames(file, indices), every[list(indices)])


@pytest.mark.parametrize("name", CASES)
def test_frames_far_apart_are_those_of_decoding_in_order(
    tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    file = MediaFile(path=case.write(tmp_path))
    assert probe_video(file).num_frames == FRAMES
    if case.is_sought:
        assert sought(file, [0, 64, FRAMES - 1]) == 3
    else:
        with pytest.raises(OddError):
            sought(file, [0, 64, FRAMES - 1])
    check(file, FRAMES)


def test_frames_far_apart_in_an_archive(tmp_path: Path) -> None:
    data = Case().write(tmp_path).read_bytes()
    (tmp_path / "all.tar").write_bytes(bytes(512) + data + bytes(512))
    file = MediaFile(
        path=tmp_path / "all.tar", archive="all", name="x", offset=512, size=len(data)
    )
    check(file, FRAMES)


@pytest.mark.parametrize("hidden", [1, 5, 12, 15])
def test_frames_far_apart_behind_an_edit_list(tmp_path: Path, hidden: int) -> None:
    path = tmp_path / "trimmed.mp4"
    cut_by_edit_list(Case().write(tmp_path), path, hidden)
    count = FRAMES - 5 * hidden
    assert sought(MediaFile(path=path), [0, 30, count - 1]) == 3
    check(MediaFile(path=path), count)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("skip", [12, 19])
@pytest.mark.parametrize("name", ["open", "open hevc", "hevc", "mp4"])
def test_frames_far_apart_of_a_part(
    tmp_path: Path, name: str, skip: int, suffix: str
) -> None:
    path = cut_out(CASES[name].write(tmp_path), tmp_path / f"part{suffix}", skip)
    check(MediaFile(path=path), probe_video(MediaFile(path=path)).num_frames)


def rewrite(
    source: Path, target: Path, times: Sequence[int], data: dict[int, bytes]
) -> MediaFile:
    """Copy an mkv with packets at other times, and with others' bytes in some."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = given.streams.video[0]
        copy = output.add_stream_from_template(stream)
        packets = iter([packet for packet in given.demux(stream) if packet.size])
        for number, pts in enumerate(times):
            packet = av.Packet(data[number]) if number in data else next(packets)
            packet.pts = (pts + 9) * 1000 // FPS
            packet.dts = number * 1000 // FPS
            packet.time_base, packet.stream = Fraction(1, 1000), copy
            output.mux(packet)
    return MediaFile(path=target)


@pytest.mark.parametrize("others", [(61, 60), (60, 60), (62, 60)])
@pytest.mark.parametrize("name", ["all keyframes", "no B-frames"])
def test_frames_in_no_order(tmp_path: Path, name: str, others: tuple[int, int]) -> None:
    """What is shown later may come first, and two frames may be shown at once."""
    times = list(range(FRAMES))
    times[60:62] = others
    source = CASES[name].write(tmp_path)
    check(rewrite(source, tmp_path / "clip.mkv", times, {}), FRAMES)


def test_a_packet_without_a_frame(tmp_path: Path) -> None:
    options = {"x265-params": "bframes=0:keyint=12:min-keyint=12:log-level=none"}
    source = Case(codec="libx265", options=options).write(tmp_path)
    delimiter = bytes((0, 0, 0, 3, 35 << 1, 1, 0x50))
    file = rewrite(source, tmp_path / "clip.mkv", range(FRAMES + 1), {5: delimiter})
    check(file, FRAMES)


def header_units(extradata: bytes) -> list[bytes]:
    """Give the units in the header of a file, H.264 or HEVC."""
    found, is_hevc = list[bytes](), len(extradata) > 100
    at = 23 if is_hevc else 5
    for _ in range(extradata[22] if is_hevc else 2):
        count_bytes = 2 if is_hevc else 1
        at += is_hevc + count_bytes
        for _ in range(int.from_bytes(extradata[at - count_bytes : at]) % 32):
            size = int.from_bytes(extradata[at : at + 2])
            found.append(extradata[at + 2 : at + 2 + size])
            at += 2 + size
    return found


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Packets of a clip, and the parameters in its header, as they stand in packets."""

    packets: list[bytes]
    sets: bytes

    @classmethod
    def of(cls, path: Path) -> "Encoded":
        with av.open(str(path)) as container:
            extradata = container.streams.video[0].codec_context.extradata or b""
            units = header_units(extradata)
            sets = [each for each in units if each[0] // 2 != 39]  # no words of x265's
            return cls(
                packets=[bytes(each) for each in container.demux(video=0) if each.size],
                sets=b"".join(len(each).to_bytes(4) + each for each in sets),
            )


def splice(source: Path, target: Path, packets: Sequence[bytes]) -> MediaFile:
    """Write packets behind one another, with the header of another clip."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        copy = output.add_stream_from_template(given.streams.video[0])
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, FPS), copy
            packet.is_keyframe = number % 12 == 0
            output.mux(packet)
    return MediaFile(path=target)


ALIKE = "scenecut=0:b-adapt=0:bframes=0:keyint=12:min-keyint=12"
CHANGED = {
    "libx264": ("x264-params", ALIKE, "chroma-qp-offset=8"),
    "libx265": ("x265-params", f"{ALIKE}:log-level=none", "cbqpoffs=8:crqpoffs=8"),
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("at", [48, 41])
@pytest.mark.parametrize("codec", CHANGED)
def test_parameters_that_come_in_between_are_not_passed_over(
    tmp_path: Path, codec: str, at: int, suffix: str
) -> None:
    """They hold for all that follows, whether a keyframe brings them or not."""
    name, alike, changed = CHANGED[codec]
    one, two = tmp_path / "one.mp4", tmp_path / "two.mp4"
    for path, options in ((one, alike), (two, f"{alike}:{changed}")):
        Case(codec=codec, options={name: options}).write(tmp_path).rename(path)
    first, second = Encoded.of(one), Encoded.of(two)
    packets = [*first.packets[:48], *second.packets[48:]]
    packets[at] = second.sets + packets[at]
    file = splice(one, tmp_path / f"clip{suffix}", packets)
    with pytest.raises(OddError):
        sought(file, [0, 64])
    check(file, len(packets))


@pytest.mark.parametrize("codec", CHANGED)
def test_parameters_of_the_header_may_come_again(tmp_path: Path, codec: str) -> None:
    name, alike, _ = CHANGED[codec]
    path = Case(codec=codec, options={name: alike}).write(tmp_path)
    encoded = Encoded.of(path)
    packets = [encoded.sets + each for each in encoded.packets]
    file = splice(path, tmp_path / "again.mp4", packets)
    assert sought(file, [0, 64, FRAMES - 1]) == 3
    check(file, FRAMES)


@pytest.mark.parametrize("size", [0, 2**20])
@pytest.mark.parametrize("codec", CHANGED)
def test_what_is_in_a_packet_has_to_be_known(
    tmp_path: Path, codec: str, size: int
) -> None:
    name, alike, _ = CHANGED[codec]
    path = Case(codec=codec, options={name: alike}).write(tmp_path)
    packets = Encoded.of(path).packets
    packets[50] = size.to_bytes(4) + packets[50]
    with pytest.raises(OddError):
        sought(splice(path, tmp_path / "odd.mp4", packets), [0, 64, FRAMES - 1])


def damage(path: Path, number: int) -> None:
    """Overwrite what a packet of an mp4 holds."""
    with av.open(str(path)) as container:
        packet = list(container.demux(video=0))[number]
    assert packet.pos is not None
    data = bytearray(path.read_bytes())
    data[packet.pos + 5 : packet.pos + packet.size] = b"\x55" * (packet.size - 5)
    path.write_bytes(data)


def test_what_is_passed_over_is_not_looked_at(tmp_path: Path) -> None:
    file = MediaFile(path=Case().write(tmp_path))
    expected = decode_frames(file, [0, 64, 128])
    damage(file.path, 37)
    assert torch.equal(decode_frames(file, [0, 64, 128]), expected)
    said = r"clip\.mp4 breaks before frame 40, after 3\d decoded frames"
    with pytest.raises(VideoError, match=said):
        decode_frames(file, [0, 40, 80, 120])


@pytest.mark.parametrize(
    ("indices", "expected"),
    [
        (range(40), False),
        ((0, 12, 24), False),
        ((0, 13), True),
        ((11,), False),
        ((12,), True),
    ],
)
def test_seeking_pays_behind_many_frames(
    indices: Sequence[int], expected: bool
) -> None:
    assert are_far_apart(indices) == expected


def test_a_clip_has_one_time_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = MediaFile(path=CASES["one keyframe"].write(tmp_path))
    clock = itertools.count()  # ticks once a packet
    ticking = SimpleNamespace(monotonic=lambda: next(clock))
    for module in ("containers", "video"):
        monkeypatch.setattr(f"recipes.edge.media.{module}.time", ticking)
    monkeypatch.setattr("recipes.edge.media.containers.CLIP_SECONDS", 2 * FRAMES + 10)
    assert len(decode_frames(file, [0, 120])) == 2
    monkeypatch.setattr("recipes.edge.media.containers.CLIP_SECONDS", 2 * FRAMES - 20)
    with pytest.raises(
        DoubtfulError, match=r"clip\.mp4 takes longer than 240 s to read$"
    ):
        decode_frames(file, [0, 120])
    times = [*range(61), 60, *range(62, FRAMES)]  # odd, so decoded in order at last
    source = CASES["no B-frames"].write(tmp_path)
    odd = rewrite(source, tmp_path / "odd.mkv", times, {})
    with pytest.raises(DoubtfulError, match=r"odd\.mkv takes longer than 240 s"):
        decode_frames(odd, [0, 120])


@pytest.mark.parametrize("name", ["open", "gradual"])
def test_no_keyframe_is_trusted_that_frames_look_past(
    tmp_path: Path, name: str
) -> None:
    file = MediaFile(path=CASES[name].write(tmp_path))
    with open_video(file) as (container, stream):
        keys = [p.is_keyframe for p in container.demux(stream)]
    assert sum(keys) > 5
    damage(file.path, keys.index(True, 20))
    with pytest.raises(VideoError, match=r"clip\.mp4 breaks before frame 120"):
        decode_frames(file, [0, 120])
