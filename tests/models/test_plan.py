"""The plan of a packed row: every count agrees before a pixel is decoded."""

from collections.abc import Callable, Sequence
from dataclasses import astuple
from itertools import groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data._utils import pin_memory

from fastslow import Span, TextSpan, VideoSpan, build_schedule, count_tokens
from fastslow.qwen2_vl import (
    Family,
    RowPlan,
    VisionGeometry,
    blank_clip,
    frame_times,
    patchify_clip,
    plan_row,
)
from fastslow.testing import reference
from fastslow.testing import strategies as fst
from tests.plan_tensors import assert_equal, tensors

rows = fst.packed_samples()


def videos(samples: Sequence[Sequence[Span]]) -> list[VideoSpan]:
    return [s for sample in samples for s in sample if isinstance(s, VideoSpan)]


def plan(
    samples: Sequence[Sequence[Span]], padding: int = 0, merge_size: int = 2
) -> RowPlan:
    return plan_row(
        samples,
        video_token_id=fst.VIDEO_TOKEN_ID,
        length=sum(map(count_tokens, samples)) + padding,
        family=Family(geometry=VisionGeometry(merge_size=merge_size)),
    )


@given(rows, st.integers(0, 8))
@settings(deadline=None)
def test_plan_row__counts_agree(samples: list[list[Span]], padding: int) -> None:
    row = plan(samples, padding)
    kept = [
        count
        for video in videos(samples)
        for count in reference.tokens_per_frame(video.grid, astuple(video.schedule))
    ]
    typed = sum(
        span.token_ids.count(fst.VIDEO_TOKEN_ID)
        for sample in samples
        for span in sample
        if isinstance(span, TextSpan)
    )
    placeholders = (row.layout.input_ids == fst.VIDEO_TOKEN_ID).sum()
    assert placeholders - typed == len(row.video_rows) == sum(kept)
    assert len(row.pool.window_sizes) == row.pool.cu_seqlens[-1] == sum(kept)
    assert row.pool.cu_seqlens.tolist() == reference.bounds(kept)
    assert (row.layout.input_ids[row.video_rows] == fst.VIDEO_TOKEN_ID).all()


@given(rows, st.integers(1, 4))
@settings(deadline=None)
def test_the_tower_gives_as_many_tokens_as_are_pooled(
    samples: list[list[Span]], merge_size: int
) -> None:
    row = plan(samples, merge_size=merge_size)
    frames = [
        (clip, v.grid[0] // scale * merge_size, v.grid[1] // scale * merge_size)
        for clip, v in enumerate(videos(samples))
        for scale in v.schedule.scales or (1,) * v.schedule.num_frames
    ]
    expected = [[len(list(run)), *key[1:]] for key, run in groupby(frames)]
    assert row.grid_thw.tolist() == expected
    assert row.grid_thw.shape == (len(expected), 3)
    merged = row.grid_thw.prod(1).sum() // merge_size**2
    assert len(row.pool.cell_starts) == merged
    assert len(row.next_frame.targets.cell_starts) == merged
    assert len(row.next_frame.copies.cell_starts) == merged


@given(rows, st.integers(0, 8))
@settings(deadline=None)
def test_video_rows_stand_in_the_order_of_the_pooled_tokens(
    samples: list[list[Span]], padding: int
) -> None:
    row = plan(samples, padding)
    expected, place = [], 0
    for sample in samples:
        for span in sample:
            if isinstance(span, TextSpan):
                place += len(span.token_ids)
            else:
                count = sum(
                    reference.tokens_per_frame(span.grid, astuple(span.schedule))
                )
                expected.extend(range(place, place + count))
                place += count
    assert row.video_rows.tolist() == expected


@given(rows, st.integers(0, 8))
@settings(deadline=None)
def test_every_token_reads_what_the_rule_says(
    samples: list[list[Span]], padding: int
) -> None:
    row = plan(samples, padding)
    expected = reference.visible_pairs(
        row.layout.causal_ranks.tolist(), row.layout.segment_ids.tolist()
    )
    found = [
        [start <= key < stop for key in range(len(row.visible.start))]
        for start, stop in zip(
            row.visible.start.tolist(), row.visible.stop.tolist(), strict=True
        )
    ]
    assert found == expected


@given(rows)
@settings(deadline=None)
def test_labels_are_those_of_the_reference(samples: list[list[Span]]) -> None:
    row = plan(samples)
    plain = [[astuple(span) for span in sample] for sample in samples]
    pairs = zip(row.labels.rows.tolist(), row.labels.targets.tolist(), strict=True)
    assert list(pairs) == reference.labelled_rows(plain)


def test_a_row_of_text_has_no_clip(lay: Callable[..., RowPlan]) -> None:
    row = lay([[TextSpan(token_ids=(1, 2))]])
    assert row.grid_thw.shape == (0, 3)
    assert row.grid_thw.dtype == torch.long
    assert len(row.video_rows) == len(row.pool.cells) == len(row.next_frame.rows) == 0


def test_a_row_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="samples has 0 samples and no token"):
        plan([])
    with pytest.raises(ValueError, match="length is 0 but the samples have 1 tokens"):
        plan([[TextSpan(token_ids=(1,))]], padding=-1)


def test_the_default_device_decides_nothing() -> None:
    clip = VideoSpan(
        grid=(2, 3), schedule=build_schedule(3, slow_stride=1, fast_stride=2)
    )
    sample = [TextSpan(token_ids=(5,)), clip, TextSpan(token_ids=(5,), trained=True)]
    frames = torch.zeros(6, 3, 112, 168, dtype=torch.uint8)

    def work() -> list[object]:
        geometry = VisionGeometry()
        return [
            plan_row([sample], video_token_id=9, family=Family(window=2)),
            frame_times(3, seconds_per_frame=0.5, tokens_per_second=4),
            patchify_clip(frames, geometry),
            blank_clip(geometry),
        ]

    with torch.device("meta"):
        found = work()
    assert_equal(found, work())


def test_a_loader_that_pins_pins_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader of torch; without a GPU a copy stands for pinned memory."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    row = plan([[TextSpan(token_ids=(1, 2)), blank_clip(VisionGeometry())[0]]])
    pinned = pin_memory.pin_memory({"plan": row})["plan"]
    assert_equal(pinned, row)
    there = dict(tensors(row))
    assert not any(tensor is there[name] for name, tensor in tensors(pinned))
