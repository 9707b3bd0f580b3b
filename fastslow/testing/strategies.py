"""Hypothesis strategies for everything that the library takes, for your own tests too.

Integers and lists are drawn, tensors are built from them, and values come from a
generator that is seeded with a drawn integer, so failures shrink and replay.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor

from fastslow._typing import Grid
from fastslow.frames import FrameSchedule, PooledFrame, frame_windows
from fastslow.grids import Edge
from fastslow.layouts import Attention, TokenLayout, build_layout, count_tokens
from fastslow.masks import KeptKeys, KeyIntervals
from fastslow.positions import AfterVideo
from fastslow.schedules import (
    Strategy,
    build_schedule,
    kernel_schedule,
    schedule_from_grids,
    schedule_from_strides,
)
from fastslow.spans import Span, TextSpan, VideoSpan

Row = tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"]]
"""``causal_ranks`` and ``segment_ids`` of one packed row."""

FramedRow = tuple[
    Int[Tensor, " tokens"], Int[Tensor, " tokens"], Int[Tensor, " tokens"]
]
"""``causal_ranks``, ``segment_ids`` and ``frame_ids`` of one packed row."""

VIDEO_TOKEN_ID = 9
"""Id of a video token in drawn layouts; drawn text may hold it too."""


def grids(*, min_side: int = 1, max_side: int = 6) -> st.SearchStrategy[Grid]:
    """Draw the height and width of a frame, in tokens."""
    sides = st.integers(min_side, max_side)
    return st.tuples(sides, sides)


def strides(*, max_stride: int = 5) -> st.SearchStrategy[int]:
    """Draw a pooling stride, in tokens; it may be larger than the grid."""
    return st.integers(1, max_stride)


def stride_lists(
    *, min_size: int = 1, max_size: int = 5, max_stride: int = 5
) -> st.SearchStrategy[list[int]]:
    """Draw one stride for each frame of a clip."""
    return st.lists(
        strides(max_stride=max_stride), min_size=min_size, max_size=max_size
    )


def slow_ratios(*, max_denominator: int = 12) -> st.SearchStrategy[Fraction]:
    """Draw an exact share of slow frames, 0 and 1 included."""
    return st.fractions(0, 1, max_denominator=max_denominator)


def frame_strategies() -> st.SearchStrategy[Strategy]:
    """Draw the name of a way to choose slow frames."""
    return st.sampled_from(("interleave", "first_slow", "last_slow", "uniform"))


def ratio_schedules(
    *, max_frames: int = 12, max_stride: int = 5
) -> st.SearchStrategy[FrameSchedule]:
    """Draw a schedule that ``build_schedule`` makes."""
    stride_pairs = st.tuples(
        strides(max_stride=max_stride), strides(max_stride=max_stride)
    )
    return st.builds(
        lambda num_frames, strategy, ratio, pair: build_schedule(
            num_frames,
            strategy=strategy,
            slow_ratio=ratio,
            slow_stride=min(pair),
            fast_stride=max(pair),
        ),
        st.integers(1, max_frames),
        frame_strategies(),
        slow_ratios(),
        stride_pairs,
    )


def kernel_schedules(
    *, max_frames: int = 8, max_stride: int = 4
) -> st.SearchStrategy[FrameSchedule]:
    """Draw a schedule of one kernel of frames, rows and columns, edges kept."""
    kernels = st.tuples(*[st.integers(1, max_stride)] * 3)
    return st.builds(
        kernel_schedule, st.integers(1, max_frames), kernels, is_slow=st.booleans()
    )


def schedules(
    *, max_frames: int = 6, max_stride: int = 5
) -> st.SearchStrategy[FrameSchedule]:
    """Draw any schedule that suits every grid, see ``grid_schedules`` for one grid.

    Ratios, strides, target grids and kernels, and pooled frames that overlap, repeat
    and stand in any order; edges are kept, and so are all tokens.
    """
    sizes = {"max_frames": max_frames, "max_stride": max_stride}
    targets = st.lists(grids(max_side=max_stride), min_size=1, max_size=max_frames)
    return st.one_of(
        ratio_schedules(**sizes),
        plain_schedules(**sizes),
        kernel_schedules(**sizes),
        targets.map(schedule_from_grids),
        st.integers(1, max_frames).flatmap(
            lambda num_frames: st.builds(
                FrameSchedule,
                num_frames=st.just(num_frames),
                frames=st.lists(
                    _pooled_frames(num_frames, max_stride), min_size=1, max_size=4
                ).map(tuple),
            )
        ),
    )


def lengths(
    *, min_size: int = 0, max_size: int = 6, min_value: int = 0, max_value: int = 5
) -> st.SearchStrategy[list[int]]:
    """Draw the lengths of sequences, empty ones among them by default."""
    values = st.integers(min_value, max_value)
    return st.lists(values, min_size=min_size, max_size=max_size)


def packing_problems(
    *, min_items: int = 1, max_items: int = 12, max_capacity: int = 20
) -> st.SearchStrategy[tuple[list[int], int]]:
    """Draw the lengths of items and a capacity that holds each of them."""
    return st.integers(1, max_capacity).flatmap(
        lambda capacity: st.tuples(
            lengths(
                min_size=min_items, max_size=max_items, min_value=1, max_value=capacity
            ),
            st.just(capacity),
        )
    )


def balancing_problems(
    *, max_items: int = 10, max_ranks: int = 4, max_cost: int = 12, max_length: int = 6
) -> st.SearchStrategy[tuple[list[int], list[int], int, int]]:
    """Draw costs and lengths of items, a number of ranks and the room of each.

    The room may be too small for all the items, and for any one of them.

    Args:
        max_items: Items at most.
        max_ranks: Ranks at most.
        max_cost: Largest cost of an item; the least is 0.
        max_length: Largest length of an item; the least is 0.
    """
    items = st.tuples(st.integers(0, max_cost), st.integers(0, max_length))
    return st.builds(
        lambda drawn, num_ranks, capacity: (
            [cost for cost, _ in drawn],
            [length for _, length in drawn],
            num_ranks,
            capacity,
        ),
        st.lists(items, max_size=max_items),
        st.integers(1, max_ranks),
        st.integers(0, 3 * max_length),
    )


def text_spans(
    *, min_tokens: int = 0, max_tokens: int = 4, max_token_id: int = 20
) -> st.SearchStrategy[TextSpan]:
    """Draw a run of text, trained or not."""
    ids = st.lists(
        st.integers(0, max_token_id), min_size=min_tokens, max_size=max_tokens
    )
    return st.builds(TextSpan, token_ids=ids.map(tuple), trained=st.booleans())


def plain_schedules(
    *, max_frames: int = 5, max_stride: int = 5
) -> st.SearchStrategy[FrameSchedule]:
    """Draw one stride for each frame, edges kept."""
    return stride_lists(max_size=max_frames, max_stride=max_stride).map(
        schedule_from_strides
    )


@st.composite
def grid_schedules(
    draw: Callable[..., Any], grid: Grid, *, max_frames: int = 4, max_stride: int = 5
) -> FrameSchedule:
    """Draw any schedule of clips of one grid, the empty one included.

    Its pooled frames may overlap, repeat, stand in any order and read several frames;
    windows are given by stride or by count, edges are kept, dropped or not there, and
    some tokens may be dropped. Frames may be encoded on coarser grids.
    """
    num_frames = draw(st.integers(1, max_frames))
    divisors = [s for s in range(1, min(grid) + 1) if not grid[0] % s + grid[1] % s]
    scales = st.tuples(*[st.sampled_from(divisors)] * num_frames)
    edge: Edge = draw(st.sampled_from(("ceil", "floor", "error")))
    fits: Callable[[int, int], bool] = {
        "ceil": lambda side, stride: True,
        "floor": lambda side, stride: stride <= side,
        "error": lambda side, stride: side % stride == 0,
    }[edge]
    heights, widths = (
        st.sampled_from([s for s in range(1, max_stride + 1) if fits(side, s)])
        for side in grid
    )
    pooled = _pooled_frames(num_frames, max_stride, st.tuples(heights, widths))
    drawn = draw(st.lists(pooled, max_size=4))
    frames = tuple(_drop_some(draw, grid, frame, edge) for frame in drawn)
    return FrameSchedule(
        num_frames=num_frames,
        frames=frames,
        edge=edge,
        scales=draw(st.none() | scales),
    )


def scheduled_clips(
    *, max_clips: int = 3, max_side: int = 4, max_frames: int = 3
) -> st.SearchStrategy[list[tuple[Grid, FrameSchedule]]]:
    """Draw clips, each a grid and any schedule of it."""
    clips = grids(max_side=max_side).flatmap(
        lambda grid: st.tuples(
            st.just(grid), grid_schedules(grid, max_frames=max_frames)
        )
    )
    return st.lists(clips, max_size=max_clips)


def plain_clips(
    *, max_clips: int = 3, max_side: int = 5
) -> st.SearchStrategy[list[tuple[Grid, FrameSchedule]]]:
    """Draw clips whose frames are pooled once each, edges kept; at least one clip."""
    clip = st.tuples(grids(max_side=max_side), plain_schedules())
    return st.lists(clip, min_size=1, max_size=max_clips)


def _pooled_frames(
    num_frames: int,
    max_side: int,
    stride_pairs: st.SearchStrategy[tuple[int, int]] | None = None,
) -> st.SearchStrategy[PooledFrame]:
    """Draw a pooled frame of a clip, with windows by stride or by count."""
    pairs = grids(max_side=max_side) if stride_pairs is None else stride_pairs
    by_stride = st.tuples(pairs, st.none())
    by_count = st.tuples(st.none(), grids(max_side=max_side))
    return st.builds(
        lambda first, last, sizes, slow: PooledFrame(
            start=min(first, last),
            stop=max(first, last) + 1,
            stride=sizes[0],
            grid=sizes[1],
            is_slow=slow,
        ),
        st.integers(0, num_frames - 1),
        st.integers(0, num_frames - 1),
        st.one_of(by_stride, by_count),
        st.booleans(),
    )


def _drop_some(
    draw: Callable[..., Any], grid: Grid, frame: PooledFrame, edge: Edge
) -> PooledFrame:
    """Give the frame with a drawn mask of its tokens, or with all of them."""
    height, width = frame_windows(grid, frame, edge)
    windows = len(height) * len(width)
    masks = st.lists(st.booleans(), min_size=windows, max_size=windows)
    return replace(frame, keep=draw(st.none() | masks.filter(any).map(tuple)))


def video_spans(
    *,
    max_side: int = 4,
    max_frames: int = 4,
    max_stride: int = 5,
    plain: bool = False,
    placed: bool = False,
) -> st.SearchStrategy[VideoSpan]:
    """Draw a clip.

    Args:
        max_side: Longest side of its grid.
        max_frames: Frames at most.
        max_stride: Largest stride.
        plain: Whether its schedule is one stride per frame, or any schedule.
        placed: Whether it may have times of its own and text between its frames.
    """
    sizes = {"max_frames": max_frames, "max_stride": max_stride}
    spans = grids(max_side=max_side).flatmap(
        lambda grid: st.builds(
            VideoSpan,
            grid=st.just(grid),
            schedule=(
                plain_schedules(**sizes)
                if plain
                else grid_schedules(grid, **sizes).filter(lambda s: bool(s.frames))
            ),
        )
    )
    return spans.flatmap(_placed) if placed else spans


@st.composite
def _placed(draw: Callable[..., Any], span: VideoSpan) -> VideoSpan:
    """Give some clips times, and some text between their frames."""
    frames, gaps = span.schedule.num_frames, len(span.schedule.frames) - 1
    times = st.lists(st.integers(0, 9), min_size=frames, max_size=frames).map(sorted)
    text = st.lists(st.integers(1, 50), max_size=3).map(tuple)
    between = st.lists(text, min_size=gaps, max_size=gaps)
    return replace(
        span,
        times=tuple(draw(st.just([]) | times)),
        between=tuple(draw(st.just([]) | between)),
    )


def samples(
    *,
    max_spans: int = 4,
    texts: st.SearchStrategy[TextSpan] | None = None,
    videos: st.SearchStrategy[VideoSpan] | None = None,
) -> st.SearchStrategy[list[Span]]:
    """Draw the spans of a sample, with at least one token.

    Args:
        max_spans: Spans at most.
        texts: Strategy of the runs of text; ``text_spans()`` by default.
        videos: Strategy of the clips; ``video_spans()`` by default.
    """
    texts = text_spans() if texts is None else texts
    videos = video_spans() if videos is None else videos
    spans = st.lists(st.one_of(texts, videos), min_size=1, max_size=max_spans)
    return spans.filter(_holds_token)


def packed_samples(
    *, max_samples: int = 3, sample: st.SearchStrategy[list[Span]] | None = None
) -> st.SearchStrategy[list[list[Span]]]:
    """Draw the samples of one packed row.

    Args:
        max_samples: Samples at most.
        sample: Strategy of one sample; ``samples()`` by default.
    """
    sample = samples() if sample is None else sample
    return st.lists(sample, min_size=1, max_size=max_samples)


def layouts(
    *,
    rows: st.SearchStrategy[list[list[Span]]] | None = None,
    attention: Attention = "frame_causal",
    max_padding: int = 7,
) -> st.SearchStrategy[TokenLayout]:
    """Draw the layout of a packed row, padded or not.

    Args:
        rows: Strategy of the packed samples; ``packed_samples()`` by default.
        attention: As for ``build_layout``.
        max_padding: Tokens of padding at most.
    """
    return st.builds(
        lambda row, padding, rule: build_layout(
            row,
            video_token_id=VIDEO_TOKEN_ID,
            attention=attention,
            after_video_rule=rule,
            length=sum(map(count_tokens, row)) + padding,
        ),
        packed_samples() if rows is None else rows,
        st.integers(0, max_padding),
        after_video_rules(),
    )


def after_video_rules() -> st.SearchStrategy[AfterVideo]:
    """Draw the name of a rule for the text that follows a clip."""
    return st.sampled_from(("all_axes", "spatial_axes"))


def ranked_rows(
    *,
    padding: bool = True,
    max_segments: int = 3,
    max_runs: int = 4,
    max_run: int = 4,
) -> st.SearchStrategy[Row]:
    """Draw a row with sorted ranks in contiguous segments: all that intervals need.

    Segments may carry any distinct ids and ranks any sorted integers; with padding
    they may be parted by it, and the row may be padding alone.

    Args:
        padding: Whether there may be padding before, between and after segments.
        max_segments: Segments at most.
        max_runs: Runs of equal rank in a segment at most.
        max_run: Tokens in such a run at most.
    """
    runs = st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, max_run)),
        min_size=1,
        max_size=max_runs,
    )
    gaps = st.lists(st.integers(-3, 3), max_size=3 if padding else 0)
    segments = st.lists(
        st.tuples(st.integers(0, 9), st.integers(-3, 3), runs, gaps),
        min_size=0 if padding else 1,
        max_size=max_segments,
        unique_by=lambda segment: segment[0],
    )
    return st.builds(_build_row, gaps, segments).filter(lambda row: len(row[0]) > 0)


def framed_rows(
    *, rows: st.SearchStrategy[Row] | None = None, max_step: int = 2
) -> st.SearchStrategy[FramedRow]:
    """Draw a row whose runs of equal rank are frames or text: all that windows need.

    The frames of a segment never fall; neighbouring runs may share one, with text in
    between or not, and some frames may be left out.

    Args:
        rows: Strategy of ranks and segments, sorted; ``ranked_rows()`` by default.
        max_step: Frames from one run to the next at most.
    """
    steps = st.none() | st.integers(0, max_step)
    return st.builds(
        _number_frames,
        ranked_rows() if rows is None else rows,
        st.lists(steps, min_size=1, max_size=16),
    )


def key_intervals(*, max_tokens: int = 30) -> st.SearchStrategy[KeyIntervals]:
    """Draw intervals of any width in the order that ``KeyIntervals`` states.

    There is no padding in them; those of ``visible_intervals`` may have some.

    Args:
        max_tokens: Tokens at most.
    """
    reach = st.integers(0, 12)
    tokens = st.tuples(reach, reach, reach, st.booleans())
    return st.builds(
        _build_intervals,
        st.lists(tokens, min_size=1, max_size=max_tokens),
        st.booleans(),
    )


def unordered_rows(
    *, max_tokens: int = 12, max_segments: int = 3
) -> st.SearchStrategy[Row]:
    """Draw a row with ranks, segments and padding in any order."""
    tokens = st.tuples(st.integers(-3, 3), st.integers(-1, max_segments - 1))
    return st.lists(tokens, min_size=1, max_size=max_tokens).map(_columns)


def seeds() -> st.SearchStrategy[int]:
    """Draw a seed for a ``torch.Generator``."""
    return st.integers(0, 2**32 - 1)


def float_tensors(
    shape: Sequence[int], *, dtype: torch.dtype = torch.float32
) -> st.SearchStrategy[Float[Tensor, "..."]]:
    """Draw a tensor of normal values; only its seed is drawn.

    Args:
        shape: Shape of the tensor.
        dtype: Floating type; values are drawn in float32 and float64 alone.
    """
    return seeds().map(lambda seed: random_values(shape, seed=seed, dtype=dtype))


def clips(
    *,
    max_side: int = 5,
    max_frames: int = 4,
    dim: int = 3,
    dtype: torch.dtype = torch.float64,
) -> st.SearchStrategy[tuple[Float[Tensor, "frames height width dim"], list[int]]]:
    """Draw the tokens of a clip and one stride per frame."""
    return st.builds(
        lambda grid, frames, seed: (
            random_values((len(frames), *grid, dim), seed=seed, dtype=dtype),
            frames,
        ),
        grids(max_side=max_side),
        stride_lists(max_size=max_frames),
        seeds(),
    )


def random_values(
    shape: Sequence[int], *, seed: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "..."]:
    """Give normal values that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    return torch.randn(tuple(shape), generator=generator, dtype=wide).to(dtype)


def _holds_token(sample: list[Span]) -> bool:
    """Tell whether a sample has a token."""
    return any(isinstance(span, VideoSpan) or span.token_ids for span in sample)


_Segment = tuple[int, int, list[tuple[int, int]], list[int]]


def _build_row(first_gap: list[int], segments: list[_Segment]) -> Row:
    """Write segments out token by token; a gap lists the ranks of padding."""
    tokens = [(rank, -1) for rank in first_gap]
    for segment, first_rank, runs, gap in segments:
        rank = first_rank
        for step, length in runs:
            rank += step
            tokens.extend([(rank, segment)] * length)
        tokens.extend((rank, -1) for rank in gap)
    return _columns(tokens)


def _number_frames(row: Row, steps: Sequence[int | None]) -> FramedRow:
    """Go through the runs of equal rank: a step is a frame, no step is text."""
    frames: list[int] = []
    runs, last, previous = -1, 0, (0, -1)
    for token in zip(row[0].tolist(), row[1].tolist(), strict=True):
        if token != previous or not frames:
            runs += 1
            last = last if token[1] == previous[1] else 0
            step = steps[runs % len(steps)]
            last += step or 0
        previous = token
        frames.append(-1 if step is None or token[1] < 0 else last)
    return *row, torch.tensor(frames, dtype=torch.long)


def _build_intervals(
    tokens: Sequence[tuple[int, int, int, bool]], keeps: bool
) -> KeyIntervals:
    """Let each query read so many keys back and ahead, and kept ones further back."""
    back, ahead, kept_back, is_kept = (
        torch.tensor(column) for column in zip(*tokens, strict=True)
    )
    index = torch.arange(len(tokens))
    start = (index - back).clamp(min=0).cummax(0).values
    stop = (index + 1 + ahead).clamp(max=len(tokens)).cummax(0).values
    kept_start = torch.minimum(start, (index - back - kept_back).clamp(min=0))
    return KeyIntervals(
        start=start.int(),
        stop=stop.int(),
        kept=KeptKeys(is_kept=is_kept, start=kept_start.cummax(0).values.int())
        if keeps
        else None,
    )


def _columns(tokens: list[tuple[int, int]]) -> Row:
    """Turn (rank, segment) pairs into two tensors."""
    ranks, segments = torch.tensor(tokens, dtype=torch.long).reshape(-1, 2).T
    return ranks.clone(), segments.clone()
