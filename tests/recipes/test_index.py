"""Rows joined to the headers of what they show, in files and in archives."""

import dataclasses
import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.edge.data.archives import ArchiveStore
from recipes.edge.data.clips import write_clip
from recipes.edge.data.conversations import BadSample, Turn
from recipes.edge.data.data_files import find_beside, list_subsets
from recipes.edge.data.headers import Clip, index_archive
from recipes.edge.data.index import (
    Sample,
    _Headers,
    _probe,
    join_samples,
    write_index,
)
from recipes.edge.data.quarantine import as_lines
from recipes.edge.media.containers import (
    DoubtfulError,
    VideoError,
    open_video,
    read_packets,
)
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.video import VideoInfo, probe_video
from tests.recipes.processes import in_two_processes
from tests.recipes.test_archives import pack

ASKED = {"from": "human", "value": "<image>\nWhat?"}
ANSWERED = {"from": "gpt", "value": "This."}


def clip_bytes(folder: Path, count: int) -> bytes:
    """Write a clip of so many frames, which tells it from others."""
    frames = torch.full((count, 3, 48, 64), 90, dtype=torch.uint8)
    path = folder / f"{count}.mp4"
    write_clip(path, frames)
    return path.read_bytes()


def row(name: str, **changes: Any) -> dict[str, Any]:
    return {"id": name, "video": name, "conversations": [ASKED, ANSWERED]} | changes


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Lay out a dataset as LLaVA-Video-178K is."""
    clips = {count: clip_bytes(tmp_path, count) for count in (3, 4, 5)}
    folder = tmp_path / "data"
    nextqa = folder / "0_30_s_nextqa"
    write_rows(
        nextqa / "0_30_s_nextqa_mc.json",
        [row("NextQA/1.mp4"), row("NextQA/2.mp4"), row("NextQA/lost.mp4")],
    )
    write_rows(nextqa / "0_30_s_nextqa_oe.json", [row("NextQA/1.mp4", id="again")])
    first = {"NextQA/1.mp4": clips[3], "NextQA/unasked.mp4": clips[5]}
    pack(nextqa / "0_30_s_nextqa_videos_1.tar.gz", first)
    second = {"videos/NextQA/2.mp4": clips[4], "broken.mp4": b"no video"}
    pack(nextqa / "0_30_s_nextqa_videos_2.tar.gz", second)
    youtube = folder / "1_2_m_youtube"
    write_rows(youtube / "cap.json", [row("y/1.mp4"), row("x/broken.mp4")])
    pack(youtube / "videos.tar", {"y/1.mp4": clips[5], "x/broken.mp4": b"no video"})
    (youtube / "y").mkdir()
    (youtube / "y" / "1.mp4").write_bytes(clips[4])
    return folder


def joined(dataset: Path, cache: Path) -> tuple[list[Sample], list[BadSample]]:
    bad = list[BadSample]()
    subsets = list_subsets(str(dataset))
    return list(join_samples(subsets, ArchiveStore(cache), bad.append)), bad


def test_the_page_says_how_to_read_what_was_used(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[2] / "docs" / "howto" / "own_data.md"
    (code,) = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.S | re.M)
    run = tmp_path / "runs" / "mine"
    samples, bad = joined(dataset, tmp_path / "cache")
    write_index(run / "train.arrow", samples)
    later = BadSample(
        sample_id=samples[1].sample_id, source=samples[1].source, reason="it breaks"
    )
    (run / "quarantine.jsonl").write_text(as_lines([*bad, later]))
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(code, found)
    assert found["table"].column_names == ["sample_id", "sample"]
    assert found["samples"] == [
        json.loads(json.dumps(dataclasses.asdict(sample))) for sample in samples
    ]
    used = [sample["source"] for sample in found["used"]]
    assert used == [sample.source for sample in samples if sample is not samples[1]]


def test_rows_are_joined_to_members_and_files(dataset: Path, tmp_path: Path) -> None:
    samples, bad = joined(dataset, tmp_path / "cache")
    assert [each.sample_id for each in samples] == [
        "NextQA/1.mp4",
        "NextQA/2.mp4",
        "again",
        "y/1.mp4",
    ]
    assert [each.clips[0].info.num_frames for each in samples] == [3, 4, 3, 4]
    assert [Path(each.clips[0].source).name for each in samples] == [
        "0_30_s_nextqa_videos_1.tar.gz",
        "0_30_s_nextqa_videos_2.tar.gz",
        "0_30_s_nextqa_videos_1.tar.gz",
        "1.mp4",
    ]
    store = ArchiveStore(tmp_path / "cache")
    for sample in samples:
        (clip,) = sample.clips
        assert probe_video(clip.file(store)) == clip.info
    assert [each.sample_id for each in bad] == ["NextQA/lost.mp4", "x/broken.mp4"]
    assert "lost.mp4 cannot be opened: No such file" in bad[0].reason
    assert "videos.tar:x/broken.mp4 cannot be opened as a video" in bad[1].reason
    mc = dataset / "0_30_s_nextqa" / "0_30_s_nextqa_mc.json"
    assert bad[0].source == f"{mc}:3"


def test_a_name_that_no_file_can_have_is_a_bad_row(
    dataset: Path, tmp_path: Path
) -> None:
    youtube = dataset / "1_2_m_youtube"
    write_rows(youtube / "cap.json", [row("y/1.mp4"), row("a" * 300 + ".mp4")])
    _, bad = joined(dataset, tmp_path / "cache")
    assert bad[-1].source == f"{youtube / 'cap.json'}:2"
    assert "File name too long" in bad[-1].reason


def test_headers_in_an_archive_are_read_once(dataset: Path, tmp_path: Path) -> None:
    store = ArchiveStore(tmp_path / "cache")
    archive = str(dataset / "0_30_s_nextqa" / "0_30_s_nextqa_videos_2.tar.gz")
    before = list(index_archive(archive, store))
    for plain in store.cache_dir.glob("*.tar"):
        plain.unlink()
    assert list(index_archive(archive, store)) == before
    good, broken = before
    assert isinstance(good, Clip)
    assert good.file(store).path.exists()
    assert isinstance(broken, BadSample)
    assert str(tmp_path / "cache") not in broken.reason


@pytest.mark.parametrize("comes_back", [False, True])
def test_an_archive_that_is_let_go_is_listed_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    archive = str(dataset / "0_30_s_nextqa" / "0_30_s_nextqa_videos_1.tar.gz")
    expected = list(index_archive(archive, ArchiveStore(tmp_path / "other")))
    store = ArchiveStore(tmp_path / "cache")
    probed = list[str]()

    def probe(file: MediaFile) -> VideoInfo:
        probed.append(file.name)
        if len(probed) == 1:
            file.path.unlink()
            with pytest.raises(VideoError, match="No such file"):
                probe_video(file)
            if comes_back:
                store.open(archive)
            raise VideoError(f"{file} cannot be opened: No such file or directory")
        return probe_video(file)

    monkeypatch.setattr("recipes.edge.data.headers.probe_video", probe)
    monkeypatch.setattr("recipes.edge.data.headers.THREADS", 1)
    assert list(index_archive(archive, store)) == expected
    assert len(probed) > 2


def test_a_clip_that_took_too_long_is_tried_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = str(dataset / "1_2_m_youtube" / "videos.tar")
    store = ArchiveStore(tmp_path / "cache")
    with monkeypatch.context() as slow:
        slow.setattr("recipes.edge.media.containers.CLIP_SECONDS", 0.0)
        slow.setattr("recipes.edge.data.headers.probe_video", read_packets_of)
        late, _ = index_archive(archive, store)
    assert isinstance(late, BadSample)
    assert late.reason == f"{archive}:y/1.mp4 takes longer than 0 s to read"
    found, broken = index_archive(archive, store)
    assert isinstance(found, Clip)
    assert found.info.num_frames == 5
    assert isinstance(broken, BadSample)


@pytest.mark.parametrize("comes_back", [False, True])
def test_an_archive_that_is_let_go_while_a_doubtful_clip_is_tried_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    archive = str(dataset / "0_30_s_nextqa" / "0_30_s_nextqa_videos_1.tar.gz")
    expected = list(index_archive(archive, ArchiveStore(tmp_path / "other")))
    store, probed = ArchiveStore(tmp_path / "cache"), list[str]()

    def doubt(file: MediaFile) -> None:
        raise DoubtfulError(f"{file} takes longer than 120 s to read")

    def probe(file: MediaFile) -> VideoInfo:
        probed.append(file.name)
        if len(probed) > 1:
            return probe_video(file)
        file.path.unlink()  # another process makes room
        try:
            return probe_video(file)
        finally:
            if comes_back:
                store.open(archive)

    with monkeypatch.context() as slow:
        slow.setattr("recipes.edge.data.headers.probe_video", doubt)
        assert {type(each) for each in index_archive(archive, store)} == {BadSample}
    monkeypatch.setattr("recipes.edge.data.headers.probe_video", probe)
    assert list(index_archive(archive, store)) == expected
    assert len(probed) == len(expected) + 1


def test_other_decoders_read_headers_anew(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = str(dataset / "1_2_m_youtube" / "videos.tar")
    store = ArchiveStore(tmp_path / "cache")
    _, refused = index_archive(archive, store)
    assert isinstance(refused, BadSample)

    def decode(_: MediaFile) -> VideoInfo:
        return VideoInfo(num_frames=2, fps=1.0, height=3, width=4)

    monkeypatch.setattr("recipes.edge.data.headers.probe_video", decode)
    assert list(index_archive(archive, store))[1] == refused
    newer = {"libavcodec": (99, 0, 0)}
    with monkeypatch.context() as installed:
        installed.setattr("recipes.edge.data.headers.av.library_versions", newer)
        assert isinstance(list(index_archive(archive, store))[1], Clip)
    with monkeypatch.context() as changed:
        changed.setattr("recipes.edge.data.headers.FORMAT", 0)
        assert isinstance(list(index_archive(archive, store))[1], Clip)
    assert list(index_archive(archive, store))[1] == refused


def read_packets_of(file: MediaFile) -> VideoInfo:
    """Read a clip to its end before its header."""
    with open_video(file) as (container, stream):
        for _ in read_packets(file, container, stream):
            pass
    return probe_video(file)


def test_processes_index_an_archive_together(tmp_path: Path) -> None:
    names = [f"{number}.mp4" for number in range(1000)]
    archive = pack(tmp_path / "clips.tar", dict.fromkeys(names, b"no video"))

    def index() -> list[str]:
        found = index_archive(str(archive), ArchiveStore(tmp_path / "cache"))
        return [each.sample_id for each in found]

    assert in_two_processes(index) == [names, names]


def test_samples_come_back_from_disk(tmp_path: Path) -> None:
    info = VideoInfo(num_frames=2, fps=1.5, height=3, width=4, seconds=(0.0, 0.9))
    clip = Clip(kind="image", source="s", name="n", offset=5, size=6, info=info)
    turns = (Turn(role="user", text="\u00e9\n<image>"), Turn(role="assistant", text=""))
    samples = [
        Sample(sample_id="a", source="f:1", category="c", turns=turns, clips=(clip,)),
        Sample(sample_id="b", source="f:2", turns=()),
    ]
    index = write_index(tmp_path / "index.arrow", samples)
    assert list(index) == samples
    assert (len(index), index[1], index.sample_ids()) == (2, samples[1], ["a", "b"])
    assert list(write_index(tmp_path / "index.arrow", ())) == []


def test_a_file_beside_the_rows_needs_no_archive(tmp_path: Path) -> None:
    clip_bytes(tmp_path, 3)
    write_rows(tmp_path / "rows.json", [row("3.mp4"), row("3.mp4", id="")])
    samples, bad = joined(tmp_path / "rows.json", tmp_path / "cache")
    assert [each.sample_id for each in samples] == ["3.mp4", "rows.json:2"]
    assert bad == []
    assert samples[0].clips[0].file(ArchiveStore(tmp_path / "cache")) == MediaFile(
        path=tmp_path / "3.mp4"
    )
    assert not (tmp_path / "cache").exists()


def test_archives_beside_their_files_are_not_opened(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for each in (tmp_path, folder):
        clip_bytes(each, 3)
    (folder / "up").symlink_to(tmp_path)
    write_rows(folder / "rows.json", [row("3.mp4"), row("up/3.mp4")])
    (folder / "clips.tar.gz").write_bytes(b"half of it")
    samples, bad = joined(folder, tmp_path / "cache")
    assert [each.clips[0].source for each in samples] == [str(folder / "3.mp4")]
    assert [each.sample_id for each in bad] == ["up/3.mp4"]
    assert not (tmp_path / "cache").exists()


def test_the_clip_of_a_file_does_not_take_the_place_of_a_missing_one(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    (folder / "A").mkdir(parents=True)
    (folder / "A" / "9.mp4").write_bytes(clip_bytes(tmp_path, 3))
    write_rows(folder / "rows.json", [row("A/9.mp4"), row("B/9.mp4")])
    pack(folder / "clips.tar", {"A/9.mp4": clip_bytes(tmp_path, 4)})
    samples, bad = joined(folder, tmp_path / "cache")
    assert [each.clips[0].info.num_frames for each in samples] == [3]
    assert [each.sample_id for each in bad] == ["B/9.mp4"]


def test_rows_about_one_file_share_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_bytes(tmp_path, 3)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows = [row(name) for name in ("3.mp4", "broken.mp4")] * 100
    write_rows(tmp_path / "rows.json", rows)
    probed = list[str]()

    def probe(file: MediaFile) -> VideoInfo:
        probed.append(file.path.name)
        return probe_video(file)

    monkeypatch.setattr("recipes.edge.data.index.probe_video", probe)
    samples, bad = joined(tmp_path / "rows.json", tmp_path / "cache")
    assert (len(samples), len(bad)) == (100, 100)
    assert {each.clips[0].info.num_frames for each in samples} == {3}
    assert len({each.reason for each in bad}) == 1
    assert sorted(probed) == ["3.mp4", "broken.mp4"]


def test_rows_about_one_file_share_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_bytes(tmp_path, 3)
    folder = tmp_path / "data"
    folder.mkdir()
    clip_bytes(folder, 4)
    (folder / "away.mp4").symlink_to(tmp_path / "3.mp4")
    write_rows(folder / "rows.json", [row(n) for n in ("4.mp4", "away.mp4")] * 100)
    looked = list[str]()

    def look(folder: Path, name: str) -> Path:
        looked.append(name)
        return find_beside(folder, name)

    monkeypatch.setattr("recipes.edge.data.index.find_beside", look)
    samples, bad = joined(folder / "rows.json", tmp_path / "cache")
    assert {each.clips[0].source for each in samples} == {str(folder / "4.mp4")}
    assert (len(samples), len(bad)) == (100, 100)
    (reason,) = {each.reason for each in bad}
    assert "clips lie in the folder of their data file" in reason
    assert sorted(looked) == ["4.mp4", "away.mp4"]


def test_a_machine_that_fails_is_no_fault_of_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_bytes(tmp_path, 3)
    write_rows(tmp_path / "rows.json", [row("3.mp4")])

    def fail(_: MediaFile) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("recipes.edge.data.index.probe_video", fail)
    with pytest.raises(OSError, match="Too many open files"):
        joined(tmp_path / "rows.json", tmp_path / "cache")


def test_what_is_remembered_of_a_failure_is_its_words(tmp_path: Path) -> None:
    """What led to it is ten times as large."""
    found = _probe((tmp_path, "none.mp4"))
    assert isinstance(found, VideoError)
    assert found.__traceback__ is found.__cause__ is found.__context__ is None


def test_headers_are_remembered_by_their_size_and_the_oldest_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = list[str]()

    def probe(file: MediaFile) -> VideoInfo:
        """Read a header with as many times as the name says, 16 to the next size."""
        probed.append(file.path.name)
        times = (0.0,) * 16 * (int(file.path.name) - 1)
        return VideoInfo(num_frames=2, fps=1.0, height=3, width=4, seconds=times)

    monkeypatch.setattr("recipes.edge.data.index.probe_video", probe)
    monkeypatch.setattr("recipes.edge.data.index.REMEMBERED", 10)
    headers = _Headers()
    for name in ("4", "6", "4", "5", "4", "11", "4"):
        (tmp_path / name).touch()
        (found,) = headers.read(tmp_path, [name]).values()
        assert isinstance(found, Clip)
        assert found.source == str(tmp_path / name)
    assert probed == ["4", "6", "5", "11", "4"]
    found = headers.read(tmp_path, ["4", "5", "6"])  # more than is remembered
    assert [Path(each.source).name for each in found.values()] == ["4", "5", "6"]
    assert sorted(probed[5:]) == ["5", "6"]


def test_a_machine_that_fails_while_headers_are_read_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: MediaFile) -> VideoInfo:
        raise OSError("lost")

    monkeypatch.setattr("recipes.edge.data.index.probe_video", fail)
    (tmp_path / "a").touch()
    with pytest.raises(OSError, match="lost"):
        _Headers().read(tmp_path, ["a"])


def test_a_file_is_read_once_though_its_rows_lie_in_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_bytes(tmp_path, 3)
    names = [f"{number}.mp4" for number in range(40)]
    for name in names:
        if name != "3.mp4":
            (tmp_path / name).symlink_to("3.mp4")
    for kind in ("cap", "mc", "oe"):
        write_rows(tmp_path / f"{kind}.json", [row(name) for name in names])
    probed = list[str]()

    def probe(file: MediaFile) -> VideoInfo:
        probed.append(file.path.name)
        return dataclasses.replace(probe_video(file), seconds=(0.0,) * 32)

    monkeypatch.setattr("recipes.edge.data.index.probe_video", probe)
    monkeypatch.setattr("recipes.edge.data.index.ROWS_AT_ONCE", 8)
    samples, _ = joined(tmp_path, tmp_path / "cache")
    assert (len(samples), len(probed)) == (120, 40)
    monkeypatch.setattr("recipes.edge.data.index.REMEMBERED", 60)  # of 3 for each
    again, _ = joined(tmp_path, tmp_path / "cache")
    assert again == samples
    assert len(probed) == 40 + 120


def test_a_clip_is_named_by_its_archive_and_not_by_the_unzipped_copy(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    write_rows(folder / "rows.json", [row("3.mp4")])
    pack(folder / "clips.tar.gz", {"3.mp4": clip_bytes(tmp_path, 3)})
    samples, bad = joined(folder, tmp_path / "cache")
    assert bad == []
    file = samples[0].clips[0].file(ArchiveStore(tmp_path / "cache"))
    assert str(file) == f"{folder / 'clips.tar.gz'}:3.mp4"
    assert tmp_path / "cache" in file.path.parents


@pytest.mark.parametrize("name", ["../3.mp4", "a/../../3.mp4", "/3.mp4"])
def test_a_member_whose_name_climbs_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    write_rows(folder / "rows.json", [row("3.mp4")])
    pack(folder / "clips.tar", {name: clip_bytes(tmp_path, 3)})
    samples, bad = joined(folder, tmp_path / "cache")
    assert samples == []
    assert [each.reason for each in bad] == [
        f"{folder / 'clips.tar'}:{name} has a name that leads out of the archive"
    ]


def test_a_file_outside_is_a_bad_row(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    clip_bytes(tmp_path, 3)
    names = ["up.mp4", str(tmp_path / "3.mp4")]
    write_rows(folder / "rows.json", [row(name) for name in names])
    (folder / "up.mp4").symlink_to(tmp_path / "3.mp4")
    samples, bad = joined(folder, tmp_path / "cache")
    assert samples == []
    assert [each.reason for each in bad] == [
        f"{folder / name} is outside of {folder}; clips lie in the folder of their "
        "data file"
        for name in names
    ]
