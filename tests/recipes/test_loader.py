"""From samples to rows: planned without pixels, dealt without gaps."""

import os
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, islice
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastslow import CostModel, StreamState, TextSpan, visible_pairs
from fastslow.layouts import Attention
from fastslow.qwen2_vl import VIDEO_TOKEN, Family, VisionGeometry
from fastslow.testing import reference
from recipes.edge.data.archives import ArchiveStore
from recipes.edge.data.clips import write_clip
from recipes.edge.data.conversations import Turn
from recipes.edge.data.headers import Clip
from recipes.edge.data.index import Sample, write_index
from recipes.edge.data.loader import (
    Dealing,
    PackedRows,
    Row,
    count_rows,
    read_rows,
    stream_rows,
)
from recipes.edge.data.sample_set import PlannedSamples, plan_samples
from recipes.edge.data.samples import (
    ClipSettings,
    choose_frames,
    plan_sample,
    time_instruction,
)
from recipes.edge.evaluation.held_out import pack_questions
from recipes.edge.media.media_file import MediaFile
from recipes.edge.media.video import VideoInfo, probe_video, sample_frame_indices
from recipes.edge.ranks.stopping import STOPPING
from recipes.edge.weights.tiny import SPECIAL_TOKENS, train_tokenizer
from tests.media import write_picture
from tests.plan_tensors import assert_equal, tensors
from tests.recipes.broken import without_pixels

SETTINGS = ClipSettings(
    family=Family(geometry=VisionGeometry(min_pixels=28 * 28, max_pixels=196 * 196)),
    max_frames=6,
    strategy="interleave",
    slow_ratio=0.5,
    patch_stride=4,
    fast_scale=1,
    attention="frame_causal",
    capacity=700,
    row_buckets=0,
)
SIZES = [(56, 56), (140, 196), (84, 56), (28, 140), (112, 84)]
"""Height and width of the clips; 140 x 196 has 5 x 7 merged tokens."""
VIDEO_TOKEN_ID = SPECIAL_TOKENS.index(VIDEO_TOKEN)
TOKENIZER = train_tokenizer((), vocabulary_size=300)
STORE = ArchiveStore(Path("unused"))


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
        samples.append(
            Sample(
                sample_id=str(number),
                source=f"rows:{number}",
                turns=turns("yes" * number),
                clips=(clip_of(path),),
            )
        )
    return samples


def clip_of(path: Path) -> Clip:
    info = probe_video(MediaFile(path=path))
    return Clip(kind="video", source=str(path), info=info)


def path_of(planned: PlannedSamples, number: int) -> Path:
    return Path(planned[number].sample.clips[0].source)


@pytest.fixture
def planned(tmp_path: Path) -> PlannedSamples:
    index = write_index(tmp_path / "index.arrow", make_samples(tmp_path))
    found, bad = plan_samples(index, SETTINGS, TOKENIZER, STORE)
    assert bad == []
    return found


def rows_of(planned: PlannedSamples) -> PackedRows:
    return PackedRows(planned)


def dealing(**changes: Any) -> Dealing:
    cost = CostModel(per_token=100, per_pair=1, per_patch=50)
    one = Dealing(rank=0, world_size=1, rows=1, window=3, seed=5, cost=cost)
    return replace(one, **changes)


def test_the_plan_is_what_decoding_gives(planned: PlannedSamples) -> None:
    row = rows_of(planned)[(0, 1, 2, 3, 4), StreamState()]
    assert row.num_tokens == sum(planned.lengths)
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


def test_fast_frames_may_be_encoded_smaller(tmp_path: Path) -> None:
    family = Family(geometry=replace(SETTINGS.family.geometry, grid_multiple=2))
    settings = replace(SETTINGS, family=family, fast_scale=2)
    index = write_index(tmp_path / "index.arrow", make_samples(tmp_path))
    planned, bad = plan_samples(index, settings, TOKENIZER, STORE)
    assert bad == []
    row = rows_of(planned)[(0, 1, 2, 3, 4), StreamState()]
    assert {clip.schedule.scales[:2] for clip in row.plan.layout.clips} == {(1, 2)}
    assert len(row.patches) == int(row.plan.grid_thw.prod(1).sum())


def test_planning_reads_no_pixel(planned: PlannedSamples) -> None:
    for number in range(len(planned)):
        path_of(planned, number).unlink()
    again, bad = plan_samples(planned.index, SETTINGS, TOKENIZER, STORE)
    assert (again.lengths, bad) == (planned.lengths, [])


def test_processes_plan_the_same(
    planned: PlannedSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.edge.data.sample_set.FEW", 0)
    monkeypatch.setattr("recipes.edge.data.sample_set.AT_ONCE", 2)
    settings = replace(SETTINGS, capacity=min(planned.lengths[1:]))
    alone, bad = plan_samples(planned.index, settings, TOKENIZER, STORE)
    assert 0 < len(alone) < len(planned)
    wide, others = plan_samples(
        planned.index, settings, TOKENIZER, STORE, num_workers=2
    )
    assert (wide.numbers, wide.lengths) == (alone.numbers, alone.lengths)
    assert (wide.digests, wide.texts) == (alone.digests, alone.texts)
    assert others == bad


def test_a_clip_that_breaks_is_left_out(planned: PlannedSamples) -> None:
    rows = rows_of(planned)
    expected = rows[(0, 2), StreamState()]
    path = path_of(planned, 1)
    path.write_bytes(without_pixels(path))
    row = rows[(0, 1, 2), StreamState(position=3)]
    assert [each.sample_id for each in row.bad] == ["1"]
    assert str(path_of(planned, 1)) in row.bad[0].reason
    assert row.sample_ids == ("0", "2")
    assert row.state == StreamState(position=3)
    assert torch.equal(row.patches, expected.patches)
    assert torch.equal(row.plan.layout.input_ids, expected.plan.layout.input_ids)
    assert torch.equal(row.plan.visible.stop, expected.plan.visible.stop)
    assert count_rows([row]) == count_rows([expected]) | {"bad_samples": 1}


def test_a_clip_that_failed_is_tried_again(planned: PlannedSamples) -> None:
    path, rows = path_of(planned, 1), rows_of(planned)
    content = path.read_bytes()
    path.write_bytes(without_pixels(path))
    assert rows[(0, 1, 2), StreamState()].sample_ids == ("0", "2")
    path.write_bytes(content)
    assert rows[(0, 1, 2), StreamState()].sample_ids == ("0", "1", "2")


def test_a_clip_that_vanishes_is_left_out(planned: PlannedSamples) -> None:
    path_of(planned, 1).unlink()
    row = rows_of(planned)[(0, 1, 2), StreamState()]
    assert row.sample_ids == ("0", "2")
    assert str(path_of(planned, 1)) in row.bad[0].reason


def test_an_empty_row_is_one_black_token(planned: PlannedSamples) -> None:
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
        "clips": 0,
        "clip_tokens": 0,
        "rows": 1,
        "bad_samples": 0,
    }


def test_rows_have_few_lengths(planned: PlannedSamples) -> None:
    settings = replace(SETTINGS, row_buckets=2)
    rows = PackedRows(replace(planned, settings=settings))
    bare = rows_of(planned)
    for chosen in ((), (0,), (0, 1), (0, 1, 2), (0, 1, 2, 3)):
        row, plain = (each[chosen, StreamState()] for each in (rows, bare))
        tokens = len(plain.plan.layout.input_ids)
        padded = row.plan.layout.input_ids
        assert len(padded) == (384 if tokens <= 384 else 768)
        assert torch.equal(padded[:tokens], plain.plan.layout.input_ids)
        assert row.num_tokens == plain.num_tokens


def test_text_may_fill_a_row_to_its_last_token(tmp_path: Path) -> None:
    (one,) = make_samples(tmp_path, 1)
    words = (Turn(role="user", text="Hi " * 90), one.turns[1])
    text = replace(one, clips=(), turns=words)
    index = write_index(tmp_path / "index.arrow", [text])
    planned, bad = plan_samples(index, SETTINGS, TOKENIZER, STORE)
    assert bad == []
    (tokens,) = planned.lengths
    settings = replace(SETTINGS, capacity=tokens, row_buckets=4)
    rows = rows_of(replace(planned, settings=settings))
    row = rows[(0,), StreamState()]
    assert row.num_tokens == tokens
    assert (row.plan.layout.segment_ids >= 0).sum() == tokens + 1
    assert len(row.plan.layout.input_ids) == -(-(tokens + 1) // 128) * 128


def test_what_cannot_be_planned_says_why(tmp_path: Path) -> None:
    good, long, odd = make_samples(tmp_path, 3)
    long = replace(long, turns=turns("a" * 800))
    odd = replace(odd, turns=turns("<|im_end|>"))
    index = write_index(tmp_path / "index.arrow", [good, long, odd])
    planned, bad = plan_samples(index, SETTINGS, TOKENIZER, STORE)
    assert planned.numbers == (0,)
    assert [each.sample_id for each in bad] == ["1", "2"]
    assert "tokens; a row holds 700" in bad[0].reason
    assert "'<|im_end|>', which the chat format reserves" in bad[1].reason
    assert [each.source for each in bad] == ["rows:1", "rows:2"]


def test_a_template_that_refuses_a_sample_is_its_reason(tmp_path: Path) -> None:
    tokenizer = train_tokenizer((), vocabulary_size=300)
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    index = write_index(tmp_path / "index.arrow", make_samples(tmp_path, 1))
    _, (bad,) = plan_samples(index, SETTINGS, tokenizer, STORE)
    assert bad.reason == "the chat template refuses the turns: no system turn"


def test_text_pictures_and_several_clips_share_a_row(tmp_path: Path) -> None:
    one, two = make_samples(tmp_path, 2)
    picture = tmp_path / "picture.png"
    write_picture(picture, height=70, width=99)
    text = replace(one, clips=(), turns=(Turn(role="user", text="Hi"), one.turns[1]))
    shown = Clip(
        kind="image", source=str(picture), info=probe_video(MediaFile(path=picture))
    )
    asked = Turn(role="user", text="<video>, <image> and <video>?")
    mixed = replace(
        two, clips=(one.clips[0], shown, two.clips[0]), turns=(asked, two.turns[1])
    )
    index = write_index(tmp_path / "index.arrow", [text, mixed])
    planned, bad = plan_samples(index, SETTINGS, TOKENIZER, STORE)
    assert bad == []
    assert [len(each.clips) for each in (planned[0], planned[1])] == [0, 3]
    row = rows_of(planned)[(0, 1), StreamState()]
    clips = row.plan.layout.clips
    assert [clip.grid for clip in clips] == [(2, 2), (2, 4), (5, 7)]
    assert clips[1].schedule.strides == (1,)
    assert len(row.patches) == int(row.plan.grid_thw.prod(1).sum())
    assert row.num_frames == 3 + 1 + 4
    alone = rows_of(planned)[(0,), StreamState()]
    counts = count_rows([row, alone, alone, alone])
    assert counts["clips"] == 3
    assert counts["clip_tokens"] == (1 + 1) + 2 * 4 + (12 + 4)
    assert count_rows([alone, alone])["clip_tokens"] == 0
    assert not alone.patches.any()
    assert len(alone.plan.labels.rows) == len(TOKENIZER.encode("<|im_end|>"))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("fps", [0.0, 2.0])
def test_a_picture_that_moves_is_its_first(
    tmp_path: Path, count: int, fps: float
) -> None:
    path = tmp_path / "moving.gif"
    with av.open(str(path), "w", format="gif") as container:
        stream = container.add_stream("gif", rate=10)
        stream.height, stream.width, stream.pix_fmt = 56, 84, "rgb8"
        for number in range(count):
            grey = np.full((56, 84, 3), 60 * number, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="rgb8")))
        container.mux(stream.encode())
    info = probe_video(MediaFile(path=path))
    assert info.num_frames == count
    clip = Clip(kind="image", source=str(path), info=info)
    asked = Turn(role="user", text="<image>\nWhat?")
    said = Turn(role="assistant", text="Black.")
    sample = Sample(sample_id="a", source="a", turns=(asked, said), clips=(clip,))
    index = write_index(tmp_path / "index.arrow", [sample])
    settings = replace(SETTINGS, video_fps=fps)
    planned, bad = plan_samples(index, settings, TOKENIZER, STORE)
    assert bad == []
    assert planned[0].clips[0].frame_indices == (0,)
    row = rows_of(planned)[(0,), StreamState()]
    assert (row.bad, row.sample_ids, row.num_frames) == ((), ("a",), 1)
    assert len(row.patches) == 4 * 6
    assert len(row.patches.unique()) == 1


@pytest.mark.parametrize(
    ("fps", "most", "expected"),
    [
        (0.0, 4, (0, 8, 15, 23)),
        (2.0, 16, (0, 4, 8, 12, 16, 20)),
        (2.0, 3, (0, 12, 20)),
        (8.0, 99, tuple(range(24))),
        (100.0, 99, tuple(range(24))),
        (0.1, 5, (0,)),
    ],
)
def test_frames_by_rate(fps: float, most: int, expected: tuple[int, ...]) -> None:
    info = VideoInfo(num_frames=24, fps=8.0, height=56, width=56)
    clip = Clip(kind="video", source="a.mp4", info=info)
    settings = replace(SETTINGS, video_fps=fps, max_frames=most)
    assert choose_frames(clip, settings) == expected


RATES = st.one_of(
    st.floats(1e-3, 1e3),
    st.sampled_from([0.5, 1.0, 2.0, 24.0, 25.0, 29.97, 30000 / 1001, 50.0, 60.0]),
)


@given(st.integers(1, 2000), RATES, RATES, st.integers(1, 64), st.data())
def test_frames_by_rate_are_the_first_of_their_part(
    count: int, fps: float, rate: float, most: int, data: st.DataObject
) -> None:
    gap = st.floats(0, 10).map(lambda gap: round(gap, 4))
    gaps = data.draw(st.lists(gap, min_size=1, max_size=40) | st.none())
    seconds = tuple(accumulate(gaps, initial=0.0)) if gaps else ()
    info = VideoInfo(
        num_frames=len(seconds) or count, fps=fps, height=56, width=56, seconds=seconds
    )
    clip = Clip(kind="video", source="a.mp4", info=info)
    first = dict[int, int]()
    for number, shown in enumerate(info.seconds_at(range(info.num_frames))):
        first.setdefault(int(shown * rate + 1e-6), number)
    wanted = list(first.values())
    chosen = sample_frame_indices(len(wanted), most)
    settings = replace(SETTINGS, video_fps=rate, max_frames=most)
    assert choose_frames(clip, settings) == tuple(wanted[number] for number in chosen)


def test_frames_by_rate_need_no_walk_through_the_clip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    info = VideoInfo(num_frames=216_000, fps=30.0, height=56, width=56)
    clip = Clip(kind="video", source="a.mp4", info=info)
    settings = replace(SETTINGS, video_fps=1.0, max_frames=3)
    monkeypatch.setattr(VideoInfo, "seconds_at", None)
    assert choose_frames(clip, settings) == (0, 108_000, 215_970)


def test_frames_by_rate_of_an_uneven_clip() -> None:
    shown = (0.0, 0.1, 0.2, 3.0, 3.4, 3.6)
    info = VideoInfo(num_frames=6, fps=2.0, height=56, width=56, seconds=shown)
    clip = Clip(kind="video", source="a.mp4", info=info)
    settings = replace(SETTINGS, video_fps=2.0)
    assert choose_frames(clip, settings) == (0, 3, 5)


def test_times_are_said_after_the_clip(tmp_path: Path) -> None:
    (sample,) = make_samples(tmp_path, 1)
    settings = replace(SETTINGS, add_time_instruction=True)
    planned = plan_sample(sample, settings, TOKENIZER)
    said = "".join(
        TOKENIZER.decode(span.token_ids)
        for span in planned.spans
        if isinstance(span, TextSpan)
    )
    assert (
        "<|vision_start|><|vision_end|>\nThe video is 0.38 seconds long. You see 3 of "
        "its frames, taken at these seconds: 0.00, 0.12, 0.25.\nWhat?<|im_end|>" in said
    )


def test_the_length_that_is_said_of_an_uneven_clip() -> None:
    shown = (0.0, 0.1, 0.2, 20.0, 20.033)
    info = VideoInfo(num_frames=5, fps=0.25, height=56, width=56, seconds=shown)
    clip = Clip(kind="video", source="a.mp4", info=info)
    assert "The video is 20.07 seconds long." in time_instruction(clip, shown)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_every_pass(planned: PlannedSamples, world_size: int) -> None:
    streams = [
        stream_rows(
            rows_of(planned),
            StreamState(),
            dealing(rank=rank, world_size=world_size),
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


@pytest.mark.parametrize("groups", [None, (1, 0, 1, 2, 0)])
def test_questions_of_one_archive_come_one_after_another(
    planned: PlannedSamples, groups: tuple[int, ...] | None
) -> None:
    questions = replace(planned, groups=groups)
    bins = pack_questions(questions)
    asked = [number for each in bins for number in each]
    assert sorted(asked) == list(range(5))
    if groups is None:
        assert len(bins) == 1
    else:
        assert [groups[number] for number in asked] == [1, 1, 0, 0, 2]
    tight = replace(questions, settings=replace(SETTINGS, capacity=100))
    for each in pack_questions(tight):
        assert sum(planned.lengths[number] for number in each) <= 100


@pytest.mark.parametrize("attention", ["frame_causal", "causal"])
def test_ranks_compute_rows_of_like_cost_at_the_same_time(
    planned: PlannedSamples, attention: Attention
) -> None:
    planned, _ = plan_samples(
        planned.index, replace(SETTINGS, attention=attention), TOKENIZER, STORE
    )
    streams = [
        stream_rows(
            rows_of(planned),
            StreamState(),
            dealing(rank=rank, world_size=2, rows=3, window=1),
            num_workers=0,
        )
        for rank in (0, 1)
    ]
    rounds = list(islice(zip(*streams, strict=True), 3))
    costs = [
        [
            100 * int((row.plan.layout.segment_ids >= 0).sum())
            + visible_pairs(row.plan.visible)
            + 50 * len(row.patches)
            for row in rows
        ]
        for rows in rounds
    ]
    every = [cost for row in costs for cost in row]
    assert len(set(every)) > 2
    assert sum(map(max, costs)) == reference.least_rounds(every, 2)


@pytest.mark.parametrize("attention", ["frame_causal", "causal"])
def test_the_pairs_of_a_sample_are_those_that_its_row_reads(
    planned: PlannedSamples, attention: Attention
) -> None:
    planned, _ = plan_samples(
        planned.index, replace(SETTINGS, attention=attention), TOKENIZER, STORE
    )
    rows = [rows_of(planned)[(number,), StreamState()] for number in range(5)]
    read = [visible_pairs(row.plan.visible) for row in rows]
    assert list(planned.pairs) == read


@pytest.mark.parametrize("num_workers", [0, 2])
def test_any_state_resumes_the_stream(
    planned: PlannedSamples, num_workers: int
) -> None:
    def stream(state: StreamState, workers: int) -> list[tuple[str, ...]]:
        rows = stream_rows(
            rows_of(planned),
            state,
            dealing(rank=1, world_size=2, window=4, seed=0),
            num_workers=workers,
        )
        taken = list(islice(rows, 6))
        states.append(taken[2].state)
        return [row.sample_ids for row in taken]

    states: list[StreamState] = []
    whole = stream(StreamState(), 0)
    assert stream(states[0], num_workers)[:3] == whole[3:]


def test_rows_are_decoded_ahead_in_their_order(planned: PlannedSamples) -> None:
    bins = [((number % 5,), StreamState(epoch=number)) for number in range(7)]
    alone, ahead = (
        list(read_rows(rows_of(planned), bins, num_workers=workers))
        for workers in (0, 2)
    )
    assert [row.sample_ids for row in ahead] == [row.sample_ids for row in alone]
    assert [row.state.epoch for row in ahead] == list(range(7))
    for one, other in zip(alone, ahead, strict=True):
        assert torch.equal(one.patches, other.patches)


def test_more_ranks_or_fewer_take_the_same_rows_in_the_same_steps(
    planned: PlannedSamples,
) -> None:
    rows_per_step = 4

    def steps(world_sizes: tuple[int, ...]) -> list[set[tuple[str, ...]]]:
        """Take a step with each number of ranks, each from the state before."""
        state, taken = StreamState(), list[set[tuple[str, ...]]]()
        for world_size in world_sizes:
            rows = [
                row
                for rank in range(world_size)
                for row in islice(
                    stream_rows(
                        rows_of(planned),
                        state,
                        dealing(
                            rank=rank,
                            world_size=world_size,
                            rows=rows_per_step // world_size,
                        ),
                        num_workers=0,
                    ),
                    rows_per_step // world_size,
                )
            ]
            taken.append({row.sample_ids for row in rows})
            state = rows[-1].state
        return taken

    expected = steps((4,) * 8)
    assert len({frozenset(step) for step in expected}) > 1
    assert steps((4, 2, 1, 4, 1, 2, 2, 4)) == expected
    assert steps((1,) * 8) == expected


def test_the_fingerprint_tells_data_apart(planned: PlannedSamples) -> None:
    assert planned.fingerprint == replace(planned).fingerprint
    fewer = replace(planned, digests=planned.digests[1:], lengths=planned.lengths[1:])
    longer = replace(planned, lengths=(9, *planned.lengths[1:]))
    other = replace(planned, digests=("other", *planned.digests[1:]))
    prints = {each.fingerprint for each in (planned, fewer, longer, other)}
    assert len(prints) == 4


def test_the_fingerprint_knows_names_and_texts_and_no_places(tmp_path: Path) -> None:
    def print_of(name: str, **changes: Any) -> str:
        samples = [replace(each, **changes) for each in made]
        index = write_index(tmp_path / f"{name}.arrow", samples)
        return plan_samples(index, SETTINGS, TOKENIZER, STORE)[0].fingerprint

    made = make_samples(tmp_path, 1)
    said = print_of("said", turns=turns("yes"))
    assert print_of("elsewhere", turns=turns("yes"), source="there:0") == said
    assert print_of("renamed", turns=turns("yes"), sample_id="other") != said
    assert print_of("reworded", turns=turns("yet"), sample_id="0") != said


def test_rows_of_a_worker_may_be_many(planned: PlannedSamples) -> None:
    """Each of their tensors is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        bins = [((0,), StreamState())] * 12
        rows = list(read_rows(rows_of(planned), bins, num_workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [row.sample_ids for row in rows] == [("0",)] * 12


def test_rows_that_are_closed_end_their_workers(planned: PlannedSamples) -> None:
    """Somebody may keep them for longer, as an error's traceback does."""
    rows = stream_rows(
        rows_of(planned), StreamState(), dealing(), num_workers=2, pin_memory=False
    )
    next(rows)
    workers = active_children()
    assert len(workers) == 2
    rows.close()
    assert not any(worker.is_alive() for worker in workers)


def descendants() -> set[int]:
    """Find the processes that this one has started, and those that they have."""
    parents = dict[int, int]()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            said = status.read_text().rpartition(")")[2].split()
            parents[int(status.parent.name)] = int(said[1])
    found = {os.getpid()}
    while more := {one for one in parents if parents[one] in found} - found:
        found |= more
    return found - {os.getpid()}


def test_workers_go_on_when_all_processes_of_a_rank_are_asked_to_stop(
    planned: PlannedSamples,
) -> None:
    """A scheduler signals them all, and the rank needs rows to save."""
    before = descendants()
    rows = stream_rows(rows_of(planned), StreamState(), dealing(), num_workers=2)
    next(rows)
    workers, started = active_children(), descendants() - before
    for process in started:
        for number in STOPPING:
            os.kill(process, number)
    assert len(list(islice(rows, 9))) == 9
    assert all(worker.is_alive() for worker in workers)
    rows.close()


def test_workers_that_are_just_being_started_go_on_as_well(
    planned: PlannedSamples,
) -> None:
    """torch draws its first bins as soon as it has forked them."""

    def bins() -> Iterator[tuple[tuple[int, ...], StreamState]]:
        for worker in active_children():
            for number in STOPPING:
                os.kill(worker.pid or 0, number)
        yield from [((0,), StreamState())] * 4

    for _ in range(5):
        assert len(list(read_rows(rows_of(planned), bins(), num_workers=2))) == 4


def test_a_process_ends_though_it_keeps_rows(planned: PlannedSamples) -> None:
    """Their workers hear no signal to stop, and a forked process has no ``atexit``."""
    kept = list[Iterator[Row]]()

    def keep_rows() -> None:
        bins = [((0,), StreamState())] * 4
        kept.append(read_rows(rows_of(planned), bins, num_workers=1))
        next(kept[0])

    process = get_context("fork").Process(target=keep_rows)
    process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    assert code == 0


def test_all_of_a_row_is_pinned(
    planned: PlannedSamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU a copy stands for pinned memory."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    row = rows_of(planned)[(0, 1), StreamState()]
    pinned = row.pin_memory()
    assert_equal(pinned.plan, row.plan)
    assert torch.equal(pinned.patches, row.patches)
    for part in ("plan", "patches"):
        before = dict(tensors(getattr(row, part)))
        after = dict(tensors(getattr(pinned, part)))
        assert not any(after[name] is tensor for name, tensor in before.items())


@pytest.mark.parametrize("pinned", [False, True])
def test_options_reach_torch(
    planned: PlannedSamples, pinned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[bool]()

    def load(*_: object, pin_memory: bool, **__: object) -> list[Row]:
        asked.append(pin_memory)
        return []

    monkeypatch.setattr("recipes.edge.data.loader.DataLoader", load)
    rows = rows_of(planned)
    stream = stream_rows(
        rows, StreamState(), dealing(), num_workers=0, pin_memory=pinned
    )
    assert list(stream) == []
    assert asked == [pinned]


def test_a_header_that_lies_is_found_out(
    tmp_path: Path, planned: PlannedSamples
) -> None:
    first, second = (planned[number].sample for number in (0, 1))
    info = second.clips[0].info
    wrong = replace(first, clips=(replace(first.clips[0], info=info),))
    index = write_index(tmp_path / "wrong.arrow", [wrong])
    lied, _ = plan_samples(index, SETTINGS, TOKENIZER, STORE)
    (bad,) = rows_of(lied)[(0,), StreamState()].bad
    assert "has no frame 3; it ends after 3 decoded frames" in bad.reason
    wrong = replace(
        first, clips=(replace(wrong.clips[0], info=replace(info, num_frames=3)),)
    )
    index = write_index(tmp_path / "wrong2.arrow", [wrong])
    lied, _ = plan_samples(index, SETTINGS, TOKENIZER, STORE)
    (bad,) = rows_of(lied)[(0,), StreamState()].bad
    assert "decodes to 32 patches but its header promised 280" in bad.reason
