"""From samples to rows: planned without pixels, dealt without gaps."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from fastslow import StreamState, VideoSpan
from fastslow.qwen2_vl import Family, VisionGeometry
from recipes.edge.clips import write_clip
from recipes.edge.dataset import Sample, Turn
from recipes.edge.loader import PackedRows, count_rows, stream_rows
from recipes.edge.samples import ClipSettings, PlannedSample, fingerprint, plan_samples

SETTINGS = ClipSettings(
    family=Family(geometry=VisionGeometry(min_pixels=28 * 28, max_pixels=196 * 196)),
    max_frames=6,
    strategy="interleave",
    slow_ratio=0.5,
    slow_stride=4,
    fast_scale=1,
    attention="frame_causal",
    capacity=700,
    row_buckets=0,
)
SIZES = [(56, 56), (140, 196), (84, 56), (28, 140), (112, 84)]
"""Height and width of the clips; 140 x 196 has 5 x 7 merged tokens."""
VIDEO_TOKEN_ID = 300


def encode(text: str) -> list[int]:
    return list(text.encode())


def turns(answer: str) -> tuple[Turn, ...]:
    return (
        Turn(role="user", text="<video>\nWhat?"),
        Turn(role="assistant", text=answer),
    )


def make_samples(folder: Path, count: int = 5) -> list[Sample]:
    samples = []
    for number in range(count):
        height, width = SIZES[number % len(SIZES)]
        generator = torch.Generator().manual_seed(number)
        frames = torch.randint(
            256, (3 + number % 5, 3, height, width), generator=generator
        )
        path = folder / f"{number}.mp4"
        write_clip(path, frames.to(torch.uint8))
        sample = Sample(sample_id=str(number), video=path, turns=turns("yes" * number))
        samples.append(sample)
    return samples


@pytest.fixture
def planned(tmp_path: Path) -> list[PlannedSample]:
    found, bad = plan_samples(make_samples(tmp_path), SETTINGS, encode)
    assert bad == []
    return found


def break_pixels(path: Path) -> None:
    """Overwrite the pixels of a clip and keep its header."""
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    path.write_bytes(content[:start] + bytes(end - start) + content[end:])


def rows_of(planned: list[PlannedSample]) -> PackedRows:
    return PackedRows(planned, SETTINGS, VIDEO_TOKEN_ID)


def test_the_plan_is_what_decoding_gives(planned: list[PlannedSample]) -> None:
    row = rows_of(planned)[(0, 1, 2, 3, 4), StreamState()]
    assert row.num_tokens == sum(each.num_tokens for each in planned)
    assert row.num_tokens == len(row.plan.layout.input_ids)
    assert row.num_frames == 3 + 4 + 5 + 6 + 6
    assert len(row.patches) == int(row.plan.grid_thw.prod(1).sum())
    assert [clip.grid for clip in row.plan.layout.clips] == [
        (height // 28, width // 28) for height, width in SIZES
    ]
    assert [len(clip.schedule.strides) for clip in row.plan.layout.clips] == [
        2,
        2,
        3,
        3,
        3,
    ]
    assert {clip.schedule.strides[:2] for clip in row.plan.layout.clips} == {(2, 4)}
    placeholders = row.plan.layout.input_ids == VIDEO_TOKEN_ID
    assert int(placeholders.sum()) == int(row.plan.pool.cu_seqlens[-1])


def test_planning_reads_no_pixel(tmp_path: Path, planned: list[PlannedSample]) -> None:
    for each in planned:
        break_pixels(each.sample.video)
    again, bad = plan_samples([each.sample for each in planned], SETTINGS, encode)
    assert (again, bad) == (planned, [])


def test_a_clip_that_breaks_is_left_out(planned: list[PlannedSample]) -> None:
    rows = rows_of(planned)
    expected = rows[(0, 2), StreamState()]
    break_pixels(planned[1].sample.video)
    row = rows[(0, 1, 2), StreamState(position=3)]
    assert [each.sample_id for each in row.bad] == ["1"]
    assert str(planned[1].sample.video) in row.bad[0].reason
    assert row.sample_ids == ("0", "2")
    assert row.state == StreamState(position=3)
    assert torch.equal(row.patches, expected.patches)
    assert torch.equal(row.plan.layout.input_ids, expected.plan.layout.input_ids)
    assert torch.equal(row.plan.visible.stop, expected.plan.visible.stop)
    assert count_rows([row]) == count_rows([expected]) | {"skipped": 1}


def test_an_empty_row_is_one_black_token(planned: list[PlannedSample]) -> None:
    row = rows_of(planned)[(), StreamState()]
    assert row.plan.layout.input_ids.tolist() == [VIDEO_TOKEN_ID]
    assert row.patches.shape == (4, 1176)
    assert not row.patches.any()
    counts = count_rows([row])
    assert counts == {
        "labels": 0,
        "pairs": 0,
        "tokens": 0,
        "frames": 0,
        "rows": 1,
        "skipped": 0,
    }


def test_rows_have_few_lengths(planned: list[PlannedSample]) -> None:
    settings = replace(SETTINGS, row_buckets=2)
    rows = PackedRows(planned, settings, VIDEO_TOKEN_ID)
    bare = rows_of(planned)
    for chosen in ((), (0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)):
        row, plain = (each[chosen, StreamState()] for each in (rows, bare))
        tokens = len(plain.plan.layout.input_ids)
        padded = row.plan.layout.input_ids
        assert len(padded) == (384 if tokens <= 384 else 768)
        assert torch.equal(padded[:tokens], plain.plan.layout.input_ids)
        assert row.num_tokens == plain.num_tokens


def test_what_cannot_be_planned_says_why(tmp_path: Path) -> None:
    good, long = make_samples(tmp_path, 2)
    missing = Sample(
        sample_id="lost", video=tmp_path / "lost.mp4", turns=turns("where")
    )
    long = Sample(sample_id="long", video=long.video, turns=turns("a" * 800))
    planned, bad = plan_samples([good, missing, long], SETTINGS, encode)
    assert [each.sample for each in planned] == [good]
    assert [each.sample_id for each in bad] == ["lost", "long"]
    assert "No such file" in bad[0].reason
    assert "tokens; a row holds 700" in bad[1].reason
    assert [each.source for each in bad] == [str(missing.video), str(long.video)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_every_pass(planned: list[PlannedSample], world_size: int) -> None:
    streams = [
        stream_rows(
            rows_of(planned),
            StreamState(),
            rank=rank,
            world_size=world_size,
            window=3,
            seed=5,
            num_workers=0,
        )
        for rank in range(world_size)
    ]
    seen: Counter[str] = Counter()
    for _ in range(12):
        rows = [next(stream) for stream in streams]
        assert len({row.state for row in rows}) == 1
        seen.update(name for row in rows for name in row.sample_ids)
    state = rows[0].state
    waiting = Counter(str(number) for number in state.waiting)
    passes = {seen[name] + waiting[name] for name in "01234"}
    assert passes <= {state.epoch, state.epoch + 1}
    assert sum(seen.values()) + len(state.waiting) == 5 * state.epoch + state.position


@pytest.mark.parametrize("num_workers", [0, 2])
def test_any_state_resumes_the_stream(
    planned: list[PlannedSample], num_workers: int
) -> None:
    def stream(state: StreamState, workers: int) -> list[tuple[str, ...]]:
        rows = stream_rows(
            rows_of(planned),
            state,
            rank=1,
            world_size=2,
            window=4,
            seed=0,
            num_workers=workers,
        )
        taken = list(islice(rows, 6))
        states.append(taken[2].state)
        return [row.sample_ids for row in taken]

    states: list[StreamState] = []
    whole = stream(StreamState(), 0)
    assert stream(states[0], num_workers)[:3] == whole[3:]


def test_options_reach_torch(planned: list[PlannedSample]) -> None:
    """torch refuses processes that persist where there are none."""
    with pytest.raises(ValueError, match="persistent_workers option needs num_workers"):
        next(
            stream_rows(
                rows_of(planned),
                StreamState(),
                rank=0,
                world_size=1,
                window=3,
                seed=5,
                num_workers=0,
                persistent_workers=True,
            )
        )


def test_the_fingerprint_tells_data_apart(planned: list[PlannedSample]) -> None:
    assert fingerprint(planned) == fingerprint(list(planned))
    assert fingerprint(planned) != fingerprint(planned[::-1])
    assert fingerprint(planned) != fingerprint(planned[:-1])


def test_a_header_that_lies_is_found_out(planned: list[PlannedSample]) -> None:
    (other,) = [span for span in planned[1].spans if isinstance(span, VideoSpan)]
    wrong = PlannedSample(
        sample=planned[0].sample,
        frame_indices=planned[0].frame_indices,
        schedule=planned[0].schedule,
        spans=(other,),
        num_tokens=10,
    )
    row = rows_of([wrong])[(0,), StreamState()]
    assert "decodes to 32 patches but its header promised 280" in row.bad[0].reason
