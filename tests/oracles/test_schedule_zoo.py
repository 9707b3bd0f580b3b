"""Published fast/slow rules, each built from the public constructors.

The counts are those of the papers and of their code. SigLIP's grid is 27 x 27 tokens a
frame, that of CLIP 24 x 24.
"""

from bisect import bisect_right
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastslow import (
    FrameSchedule,
    Grid,
    build_schedule,
    describe_schedule,
    keep_by_score,
    keep_tokens,
    kernel_schedule,
    merge_streams,
    repeat_strides,
    schedule_from_grids,
    schedule_from_strides,
    select_frames,
    slow_by_score,
    slow_by_similarity,
    slow_by_top_k,
    slow_frames_for_budget,
    tokens_per_frame,
    two_level_schedule,
)
from fastslow.grids import Edge
from fastslow.schedule_edits import Order

SIGLIP, CLIP = (27, 27), (24, 24)


def count(grid: Grid, schedule: FrameSchedule) -> int:
    return sum(tokens_per_frame(grid, schedule))


@pytest.mark.parametrize(("edge", "tokens"), [("ceil", 196), ("floor", 169)])
def test_llava_next_video_pools_every_frame_alike(edge: Edge, tokens: int) -> None:
    schedule = schedule_from_strides([2] * 32, edge=edge)
    assert tokens_per_frame(SIGLIP, schedule) == (tokens,) * 32


def test_perception_lm_halves_the_sides_by_adaptive_pooling() -> None:
    schedule = schedule_from_grids([(27 // 2, 27 // 2)] * 16)
    assert count(SIGLIP, schedule) == 16 * 169


@pytest.mark.parametrize(
    ("period", "with_edges", "without"),
    [(1, 12544, 10816), (2, 7840, 6560), (3, 6370, 5230)],
)
def test_llava_video_makes_every_third_frame_slow(
    period: int, with_edges: int, without: int
) -> None:
    schedule = repeat_strides(64, (2,) + (4,) * (period - 1))
    assert count(SIGLIP, schedule) == with_edges
    assert count(SIGLIP, replace(schedule, edge="floor")) == without


def test_llava_video_has_as_many_slow_frames_as_its_code_makes() -> None:
    schedule = repeat_strides(64, (2, 4, 4))
    assert sum(schedule.is_slow) == 22
    assert describe_schedule(SIGLIP, repeat_strides(7, (2, 4, 4))) == (
        "S..S..S  7 frames, 784 tokens"
    )


@pytest.mark.parametrize("period", range(1, 12))
def test_a_ratio_of_one_in_s_is_a_period(period: int) -> None:
    by_period = repeat_strides(64, (2,) + (4,) * (period - 1))
    by_ratio = build_schedule(
        64, slow_ratio=Fraction(1, period), slow_stride=2, fast_stride=4
    )
    assert by_ratio == by_period


def test_a_prefix_is_slow() -> None:
    schedule = build_schedule(10, strategy="first_slow", slow_ratio=0.25)
    assert str(schedule) == "SSS.......  10 frames"


def test_far_keeps_the_last_16_frames_fine() -> None:
    schedule = build_schedule(
        64,
        strategy="last_slow",
        slow_ratio=Fraction(16, 64),
        slow_stride=1,
        fast_stride=4,
    )
    assert schedule.strides == (4,) * 48 + (1,) * 16
    assert count((16, 16), schedule) == 48 * 16 + 16 * 256


def two_streams(num_frames: int, num_slow: int, order: Order) -> FrameSchedule:
    """Read a clip as SlowFast-LLaVA does: few frames finely, and all of them to 4 x 4.

    The slow kernel of two columns takes each pair of neighbours of a row.
    """
    fine = kernel_schedule(num_frames, (1, 1, 2), is_slow=True)
    slow = select_frames(fine, [i * num_frames // num_slow for i in range(num_slow)])
    fast = schedule_from_grids([(4, 4)] * num_frames, is_slow=[False] * num_frames)
    return merge_streams([slow, fast], order=order)


def test_slowfast_llava_reads_one_clip_in_two_streams() -> None:
    schedule = two_streams(50, 10, "stream")
    assert tokens_per_frame(CLIP, schedule) == (288,) * 10 + (16,) * 50
    assert count(CLIP, schedule) == 3680
    slow = schedule.frames[:10]
    assert [frame.start for frame in slow] == list(range(0, 50, 5))
    assert schedule.is_slow == (True,) * 10 + (False,) * 50


def test_slowfast_llava_repeats_slow_frames_of_short_clips() -> None:
    starts = [frame.start for frame in two_streams(4, 10, "stream").frames]
    assert starts == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 0, 1, 2, 3]


def test_slowfast_llava_1_5_may_sort_its_two_streams_by_time() -> None:
    grouped, interleaved = (two_streams(128, 32, o) for o in ("stream", "time"))
    assert str(interleaved) == "S...." * 32 + "  160 frames"
    assert sorted(map(repr, interleaved.frames)) == sorted(map(repr, grouped.frames))
    assert count(CLIP, grouped) == count(CLIP, interleaved) == 32 * 288 + 128 * 16


@pytest.mark.parametrize(("num_frames", "kernel"), [(64, 4), (96, 6)])
def test_slow_fast_mllm_pools_its_fast_frames_in_time(
    num_frames: int, kernel: int
) -> None:
    fast = kernel_schedule(num_frames, (kernel, 2, 2))
    slow = repeat_strides(num_frames, (2,))
    assert tokens_per_frame(CLIP, fast) == (144,) * 16
    assert count(CLIP, slow) == num_frames * 144


def test_nvila_pools_in_time_and_refuses_what_is_left_over() -> None:
    kernels = [(8, 1, 1), (4, 2, 2)]
    schedule = merge_streams([kernel_schedule(64, k, edge="error") for k in kernels])
    assert count((16, 16), schedule) == 8 * 256 + 16 * 64
    with pytest.raises(ValueError, match="no multiple of stride 8"):
        kernel_schedule(60, (8, 1, 1), edge="error")


def test_ernie_merges_pairs_of_frames() -> None:
    schedule = kernel_schedule(9, (2, 1, 1))
    assert [frame.stop - frame.start for frame in schedule.frames] == [2, 2, 2, 2, 1]
    assert count((8, 8), schedule) == 5 * 64


def test_keye_vl_compares_with_the_last_slow_frame() -> None:
    places = torch.tensor([0.0, 0.04, 0.08, 0.12, 0.16, 0.6, 0.62])
    similarity = 1 - (places[:, None] - places).abs()
    schedule = two_level_schedule(slow_by_similarity(similarity, 0.9))
    assert str(schedule) == "S..S.S.  7 frames"


@given(st.lists(st.booleans(), min_size=90, max_size=150))
def test_keye_vl_spends_its_budget_and_no_more(is_slow: list[bool]) -> None:
    def plan(n: int) -> FrameSchedule:
        sizes = {True: (n, 1), False: (max(int(0.3 * n), 48), 1)}
        return schedule_from_grids([sizes[slow] for slow in is_slow], is_slow=is_slow)

    def tokens(n: int) -> int:
        return count((32, 32), plan(n))

    budget, sizes = 65536, range(48, 769)
    most = sizes[bisect_right(sizes, budget, key=tokens) - 1]
    assert tokens(most) <= budget
    published = most + 1  # its search ends at the first size that does not fit
    assert most == sizes[-1] or tokens(published) > budget


def test_longvu_keeps_the_frames_that_match_the_question() -> None:
    frames, budget = 100, 8000
    num_slow = slow_frames_for_budget(
        frames, CLIP, budget, slow_stride=2, fast_stride=3
    )
    assert num_slow == (budget - frames * 64) // (144 - 64) == 20
    scores = torch.arange(frames) * 37 % frames / frames
    is_slow = slow_by_top_k(scores, num_slow)
    schedule = two_level_schedule(is_slow, slow_stride=2, fast_stride=3)
    assert count(CLIP, schedule) == 20 * 144 + 80 * 64 == budget
    assert min(scores[list(is_slow)]) == 0.8


def test_longvu_drops_tokens_that_its_chunk_has_shown() -> None:
    likeness = torch.full((20, 64), 0.9)
    likeness[:, :5] = 0.6
    keep = [
        frame
        for chunk in likeness.split(8)
        for frame in keep_by_score(1 - chunk, 1 - 0.7)
    ]
    schedule = keep_tokens(repeat_strides(20, (3,)), keep)
    counts = tokens_per_frame(CLIP, schedule)
    assert counts == ((64,) + (5,) * 7) * 2 + (64,) + (5,) * 3


def test_cambrian_s_compresses_what_does_not_surprise() -> None:
    surprise = torch.tensor([1.0, 0.1, 0.3, 0.39, 0.4, 0.2])
    is_slow = slow_by_score(surprise, 0.39)
    schedule = two_level_schedule(is_slow, slow_stride=1, fast_stride=2)
    assert tokens_per_frame((8, 8), schedule) == (64, 16, 16, 64, 64, 16)


def test_videollama_3_drops_tokens_that_did_not_change() -> None:
    frames = torch.zeros(3, 4, 6)
    frames[1, 2] = 0.5
    difference = torch.zeros(3, 4)
    difference[1:] = frames.diff(dim=0).abs().mean(dim=-1) * 255
    schedule = keep_tokens(repeat_strides(3, (1,)), keep_by_score(difference, 0.1))
    assert tokens_per_frame((2, 2), schedule) == (4, 1, 1)
    still = keep_by_score(torch.zeros(3, 4), 0.1)
    assert [sum(frame) for frame in still] == [4, 1, 1]


def test_llava_onevision_2_spreads_6_dense_frames_over_18() -> None:
    moving = [[place < 2 for place in range(9)], [place < 1 for place in range(9)]]
    group = [None, *[moving[0]] * 4, moving[1]]
    schedule = keep_tokens(repeat_strides(18, (1,)), group * 3)
    assert tokens_per_frame((3, 3), schedule) == (9, 2, 2, 2, 2, 1) * 3
    assert count((3, 3), schedule) == count((3, 3), repeat_strides(6, (1,))) == 54


def test_videochat_flash_merges_to_a_count_of_its_own() -> None:
    schedule = schedule_from_grids([(1, 16)] * 8)
    assert count(CLIP, schedule) == 8 * 16


def test_vilamp_leaves_one_token_of_a_frame_that_is_no_keyframe() -> None:
    is_slow = slow_by_top_k(torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3]), 2)
    schedule = schedule_from_grids([SIGLIP if slow else (1, 1) for slow in is_slow])
    assert tokens_per_frame(SIGLIP, schedule) == (1, 729, 1, 729, 1)
    assert schedule.is_slow == is_slow


def test_a_learned_scale_of_each_frame_is_a_list_of_grids() -> None:
    scales = [1.0, 0.25, 0.5, 0.7]
    grids = [(round(24 * scale), round(24 * scale)) for scale in scales]
    assert tokens_per_frame(CLIP, schedule_from_grids(grids)) == (576, 36, 144, 289)
