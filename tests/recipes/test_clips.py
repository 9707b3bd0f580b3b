"""The demonstration clips: what they show, how they are written and balanced."""

import collections
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recipes.edge.data import clips
from recipes.edge.data.archives import ArchiveStore
from recipes.edge.data.clips import (
    COLOURS,
    DIRECTIONS,
    make_clips,
    render_clip,
    write_clip,
)
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.data_files import list_subsets
from recipes.edge.data.index import join_samples
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.video import VideoInfo, decode_frames, probe_video

BACKGROUND = torch.tensor([16, 16, 20])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shows(frames: Tensor, name: str) -> Tensor:
    """Mark the pixels of one colour."""
    colour = torch.tensor(COLOURS[name], dtype=torch.uint8)[:, None, None]
    return (frames == colour).all(dim=1)


def centres(mask: Tensor) -> Tensor:
    """Give the middle of the marked pixels' bounding box, per frame, (down, right)."""
    spots = []
    for frame in mask:
        pixels = frame.nonzero().float()
        spots.append((pixels.amin(dim=0) + pixels.amax(dim=0)) / 2)
    return torch.stack(spots)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("size", [(112, 112), (32, 32), (64, 160)])
def test_travel(colour: str, direction: str, size: tuple[int, int]) -> None:
    frames = render_clip(colour, direction, generator=generator(), size=size)
    assert frames.shape == (16, 3, *size)
    assert frames.dtype == torch.uint8
    path = centres(shows(frames, colour))
    step = torch.tensor(DIRECTIONS[direction])
    along = path @ step.float()
    assert (along.diff() >= 0).all()
    assert (path[:, step == 0] - path[0, step == 0]).abs().max() <= 1
    side = float((torch.tensor(size) * step).abs().sum())
    assert 0.28 * side < along[-1] - along[0] < 0.45 * side


@pytest.mark.parametrize("seed", range(20))
def test_shape_stays_whole(seed: int) -> None:
    frames = render_clip("blue", "left", generator=generator(seed), size=(64, 64))
    shape = shows(frames, "blue")
    areas = shape.sum(dim=(1, 2)).float()
    assert areas.mean() > 250
    assert areas.std() < 0.15 * areas.mean()
    assert (frames.permute(0, 2, 3, 1)[~shape] == BACKGROUND).all()


def test_squares_and_discs_are_drawn() -> None:
    corners = []
    for seed in range(20):
        frame = shows(render_clip("red", "up", generator=generator(seed)), "red")[0]
        rows, columns = frame.nonzero().T
        corners.append(bool(frame[rows.min(), columns.min()]))
    assert 3 <= sum(corners) <= 17


def test_one_frame_leaves_two_directions_open() -> None:
    """First frames: every place is open to shapes that move along either axis.

    The room of a centre is halved along each axis; a shape that goes to the right
    starts in the left half and so on, so each quarter of the frame must hold, in
    equal shares, starts of exactly two directions.
    """
    starts: collections.Counter[tuple[str, bool, bool]] = collections.Counter()
    source = generator(1)
    for direction in DIRECTIONS:
        for _ in range(100):
            frames = render_clip(
                "red", direction, generator=source, num_frames=2, size=(32, 32)
            )
            down, right = (centres(shows(frames, "red"))[0] > 15.5).tolist()
            starts[direction, down, right] += 1
    for down, right in itertools.product((False, True), repeat=2):
        horizontal = starts["left" if right else "right", down, right]
        vertical = starts["up" if down else "down", down, right]
        assert 30 <= horizontal <= 70
        assert 30 <= vertical <= 70


def test_drawing_is_deterministic() -> None:
    first = render_clip("green", "down", generator=generator(3))
    assert torch.equal(first, render_clip("green", "down", generator=generator(3)))
    assert not torch.equal(first, render_clip("green", "down", generator=generator(4)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "pink"}, "colour is 'pink'; it must be one of red, green, blue"),
        ({"direction": "north"}, "direction is 'north'; it must be one of left"),
        ({"num_frames": 1}, "num_frames is 1; it must be at least 2"),
        ({"size": (30, 64)}, r"size is \(30, 64\); both sides must be even"),
        ({"size": (64, 65)}, r"size is \(64, 65\); both sides must be even"),
    ],
)
def test_bad_clips(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "colour": "red",
        "direction": "up",
        "generator": generator(),
    }
    with pytest.raises(ValueError, match=message):
        render_clip(**(arguments | changes))


def test_written_frames_come_back(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    for colour, direction in itertools.product(COLOURS, DIRECTIONS):
        frames = render_clip(colour, direction, generator=generator(5))
        write_clip(path, frames)
        assert probe_video(MediaFile(path=path)) == VideoInfo(
            num_frames=16, fps=8.0, height=112, width=112
        )
        error = (
            decode_frames(MediaFile(path=path), range(16)).float() - frames.float()
        ).abs()
        assert error.mean() < 2
        core = shows(frames, colour).float()
        core = -torch.nn.functional.max_pool2d(-core, 5, stride=1, padding=2)
        assert core.any()
        assert error.amax(dim=1)[core > 0].max() < 16


def test_frame_rate_is_kept(tmp_path: Path) -> None:
    frames = torch.zeros(5, 3, 32, 48, dtype=torch.uint8)
    write_clip(tmp_path / "clip.mp4", frames, fps=3)
    assert probe_video(MediaFile(path=tmp_path / "clip.mp4")) == VideoInfo(
        num_frames=5, fps=3.0, height=32, width=48
    )


def test_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    frames = render_clip("yellow", "right", generator=generator(6))
    write_clip(tmp_path / "a.mp4", frames)
    write_clip(tmp_path / "b.mp4", frames)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (2, 1, 32, 32), (2, 3, 33, 32)])
def test_frames_that_cannot_be_written(
    tmp_path: Path, shape: tuple[int, int, int, int]
) -> None:
    with pytest.raises(ValueError, match=r"it must be \(frames, 3, height, width\)"):
        write_clip(tmp_path / "clip.mp4", torch.zeros(shape, dtype=torch.uint8))


def test_frame_rate_below_one(tmp_path: Path) -> None:
    frames = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="fps is 0; it must be at least 1"):
        write_clip(tmp_path / "clip.mp4", frames, fps=0)


def small_clips(folder: Path, *, seed: int = 0, num_clips: int = 22) -> None:
    make_clips(
        folder,
        num_clips=num_clips,
        held_out=16,
        seed=seed,
        num_frames=4,
        size=(32, 32),
    )


def answers(file: Path) -> list[tuple[str, str]]:
    rows = map(json.loads, file.read_text().splitlines())
    pairs = (row["conversations"][1]["value"].split() for row in rows)
    return [(colour, direction) for colour, direction in pairs]


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_made_rows_are_balanced_and_readable(tmp_path: Path) -> None:
    folder = tmp_path / "parent" / "clips"
    small_clips(folder)
    for name, count in (("train.jsonl", 22), ("held_out.jsonl", 16)):
        pairs = answers(folder / name)
        assert len(pairs) == count
        every = itertools.product(COLOURS, DIRECTIONS)
        assert {pairs.count(pair) - count // 16 for pair in every} <= {0, 1}
        for column, names in ((0, COLOURS), (1, DIRECTIONS)):
            parts = [pair[column] for pair in pairs]
            assert {parts.count(part) - count // 4 for part in names} <= {0, 1}
        bad = list[BadSample]()
        store = ArchiveStore(tmp_path / "cache")
        subsets = list_subsets(str(folder / name))
        samples = list(join_samples(subsets, store, bad.append))
        assert (len(samples), bad) == (count, [])
        shown = [clip.info.num_frames for sample in samples for clip in sample.clips]
        assert shown == [4] * count
    first = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    assert first["id"] == "00000"
    assert first["video"] == "videos/00000.mp4"
    assert first["conversations"][0] == {
        "from": "human",
        "value": "<image>\nWhich colour is the shape, and which way does it move?",
    }


def test_answers_are_shuffled_and_true(tmp_path: Path) -> None:
    small_clips(tmp_path / "clips", num_clips=16)
    pairs = answers(tmp_path / "clips" / "train.jsonl")
    assert [colour for colour, _ in pairs] != list(COLOURS) * 4
    assert pairs != answers(tmp_path / "clips" / "held_out.jsonl")
    for number, (colour, direction) in enumerate(pairs):
        video = tmp_path / "clips" / "videos" / f"{number:05d}.mp4"
        frames = decode_frames(MediaFile(path=video), range(4)).float()
        rgb = torch.tensor(COLOURS[colour])[:, None, None]
        mask = (frames - rgb).abs().amax(dim=1) < 40
        path = centres(mask)
        moved = (path[-1] - path[0]).tolist()
        step = DIRECTIONS[direction]
        assert moved[0] * step[0] + moved[1] * step[1] > 8


def test_no_clip_is_a_copy(tmp_path: Path) -> None:
    small_clips(tmp_path / "clips")
    videos = [file.read_bytes() for file in (tmp_path / "clips/videos").iterdir()]
    assert len(set(videos)) == len(videos) == 38


def test_equal_settings_give_equal_files(tmp_path: Path) -> None:
    small_clips(tmp_path / "a")
    small_clips(tmp_path / "b")
    small_clips(tmp_path / "c", seed=1)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_a_complete_folder_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    small_clips(folder)
    stamps = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    small_clips(folder)
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == stamps


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    small_clips(tmp_path / "clips")
    before = contents(tmp_path / "clips")
    with pytest.raises(ValueError, match=r'made with .*"seed": 0.* but .*"seed": 1'):
        small_clips(tmp_path / "clips", seed=1)
    assert contents(tmp_path / "clips") == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"has no made_with\.txt; it must be absent"):
        small_clips(tmp_path)
    with pytest.raises(ValueError, match=r"has no made_with\.txt; it must be absent"):
        small_clips(tmp_path / "note.txt")
    assert contents(tmp_path) == {"note.txt": b"mine"}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    small_clips(tmp_path / "clips")
    assert len(answers(tmp_path / "clips" / "train.jsonl")) == 22


def test_an_interrupted_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_clip

    def interrupted(path: Path, frames: Tensor) -> None:
        if path.stem == "00007":
            raise KeyboardInterrupt
        whole(path, frames)

    with monkeypatch.context() as patch:
        patch.setattr(clips, "write_clip", interrupted)
        with pytest.raises(KeyboardInterrupt):
            small_clips(tmp_path / "clips")
    assert list(tmp_path.iterdir()) == []
    small_clips(tmp_path / "clips")
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


def test_losing_a_race_keeps_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finishes the same folder while this one writes aside."""
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        small_clips(target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    small_clips(tmp_path / "clips")
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


@pytest.mark.parametrize(
    ("num_clips", "held_out", "message"),
    [
        (0, 4, "num_clips is 0; it must be at least 1"),
        (4, -1, "held_out is -1; it must be at least 0"),
    ],
)
def test_counts(tmp_path: Path, num_clips: int, held_out: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_clips(tmp_path / "c", num_clips=num_clips, held_out=held_out, seed=0)
