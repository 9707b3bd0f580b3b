"""Where predictions are read, and what they are held against: integers alone."""

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

import torch
from jaxtyping import Int, Int32
from torch import Tensor

from fastslow._plans import booleans, integers
from fastslow._shapes import check_word
from fastslow.frames import (
    Bounds,
    FrameSchedule,
    PooledFrame,
    frame_kinds,
    frame_windows,
    tokens_per_frame,
)
from fastslow.layouts import IGNORED_LABEL, TokenLayout
from fastslow.pool_plans import (
    PlacedFrames,
    PoolPlan,
    place_frames,
    plan_bags,
    plan_placed_frames,
)
from fastslow.ragged import (
    cu_seqlens_from_lengths,
    lengths_from_cu_seqlens,
    pack_ragged,
    select_ragged,
)
from fastslow.spans import VideoSpan

Pairing = Literal["source_grid", "common_grid", "frame_mean"]


@dataclass(frozen=True, kw_only=True)
class NextFramePlan:
    """Where the prediction of each next frame is read, and what it is held against.

    One entry per pooled frame that has a next frame to predict, in row order.

    Attributes:
        rows: Tokens of those frames in the packed row, where predictions are read.
        predictions: Pools what is predicted at ``rows`` to the grid of the targets.
        targets: Pools the next frame's features to that grid.
        copies: Pools the frame's own features to it: what copying would predict.
        cu_videos: Cumulative number of those frames, clip by clip; clips without one
            are left out.
    """

    rows: Int[Tensor, " tokens"]
    predictions: PoolPlan
    targets: PoolPlan
    copies: PoolPlan
    cu_videos: Int32[Tensor, " clip_bounds"]

    @property
    def num_frames(self) -> int:
        """How many frames predict, as ``next_frame_loss`` counts them by frame."""
        return len(self.targets.cu_seqlens) - 1


def plan_next_frame(
    layout: TokenLayout, *, pairing: Pairing = "source_grid"
) -> NextFramePlan:
    """Pair every pooled frame with what comes next.

    A pooled frame that reads the clip up to frame ``t`` predicts frame ``t + 1``, or as
    many frames from there as it reads itself. Its tokens have seen the pooled frames
    before it too: where one of those reads beyond ``t``, as when a stream of all slow
    frames goes first, the answer has been seen and there is no pair. The last frame of
    a clip has nothing to predict. No pair crosses a clip.

    Frames of unequal grids are compared on

    - ``source_grid``: the windows of the frame that predicts, exact for any strides;
    - ``common_grid``: along each side the coarser of its windows and those of the
      pooled frame that begins next, its own where none begins there. Each of the finer
      windows has to lie in one of the coarser ones, and in no other;
    - ``frame_mean``: a single vector, the mean over all its windows.

    Where windows are joined, each counts as many times as it holds cells, of the grid
    on which the frame is encoded, in predictions, targets and copies alike. Only the
    frame's own windows are joined: cells of tokens that it drops, and those beyond a
    ``floor`` edge, are in no target.

    Args:
        layout: The packed row.
        pairing: ``source_grid``, ``common_grid`` or ``frame_mean``.

    Returns:
        The plan, on the CPU. ``targets`` and ``copies`` read the features of all frames
        of the row's clips in order, in raster order on the merged grid.

    Raises:
        ValueError: If the pairing is unknown, or windows do not nest under
            ``common_grid``.

    Laws:
        rows_are_sources: under plain strides the rows are the tokens of every frame but
            each clip's last
        same_shape: predictions, targets and copies agree frame by frame:
            ``lengths(predictions) == lengths(targets) == lengths(copies)``
        unseen: no target reads a frame that a token visible to its rows has read:
            ``frame(target) > frame(k) if reads(row, k)``
        pairings_agree: where all strides are equal, ``common_grid`` is ``source_grid``
        matches_reference: equals the loop-written reference,
            ``reference.next_frame_pairs``

    Example:
        >>> from fastslow import VideoSpan, build_layout, schedule_from_strides
        >>> clip = VideoSpan(grid=(2, 2), schedule=schedule_from_strides([1, 2, 1]))
        >>> plan = plan_next_frame(build_layout([[clip]], video_token_id=9))
        >>> plan.rows.tolist(), plan.targets.cells.tolist()
        ([0, 1, 2, 3, 4], [4, 5, 6, 7, 8, 9, 10, 11])
    """
    check_word("pairing", pairing, Pairing)
    sources = [(clip, _frames_with_next(clip.schedule)) for clip in layout.clips]
    here = [place_frames(clip.grid, clip.schedule, read) for clip, read in sources]
    own = plan_placed_frames(here, "average")
    ahead = plan_placed_frames([_moved_on(frames) for frames in here], "average")
    groups, cu_groups = _group_windows(sources, pairing)
    return NextFramePlan(
        rows=_rows_of(layout, sources),
        predictions=_pool_predictions(own.window_sizes, groups, cu_groups),
        targets=_join_windows(ahead, groups, cu_groups),
        copies=_join_windows(own, groups, cu_groups),
        cu_videos=cu_seqlens_from_lengths(
            integers([len(read) for _, read in sources if read])
        ),
    )


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """Which tokens predict a trained token.

    Attributes:
        rows: Tokens of the packed row whose output predicts the token after them.
        targets: Id of that next token.
    """

    rows: Int[Tensor, " labelled"]
    targets: Int[Tensor, " labelled"]


def plan_labels(layout: TokenLayout) -> LabelPlan:
    """List the rows whose next token is trained, so that only they meet the vocabulary.

    Args:
        layout: The packed row, its labels not shifted.

    Returns:
        The plan, on the CPU. A trained token that begins its sample has no token that
        could predict it and is left out.

    Laws:
        next_token: each target is the labelled token right after its row: ``targets[i]
            == labels[rows[i] + 1] != -100``
        within_segment: row and target lie in one sample: ``segment[rows[i]] ==
            segment[rows[i] + 1]``
        matches_reference: equals the loop-written reference: ``rows ==
            reference.labelled_rows(...)``

    Example:
        >>> from fastslow import TextSpan, build_layout
        >>> spans = [TextSpan(token_ids=(5, 6)), TextSpan(token_ids=(7,), trained=True)]
        >>> plan = plan_labels(build_layout([spans], video_token_id=9))
        >>> plan.rows.tolist(), plan.targets.tolist()
        ([1], [7])
    """
    same_segment = layout.segment_ids[1:] == layout.segment_ids[:-1]
    rows = (same_segment & (layout.labels[1:] != IGNORED_LABEL)).nonzero()[:, 0]
    return LabelPlan(rows=rows, targets=layout.labels[rows + 1])


_Sources = list[tuple[VideoSpan, list[int]]]
"""Clips, and the numbers of their pooled frames that have a next frame."""


def _frames_with_next(schedule: FrameSchedule) -> list[int]:
    """Find the pooled frames whose next frame exists and has not been seen."""
    latest = accumulate((frame.stop for frame in schedule.frames), max)
    return [
        number
        for number, (frame, stop) in enumerate(
            zip(schedule.frames, latest, strict=True)
        )
        if frame.stop == stop < schedule.num_frames
    ]


def _moved_on(here: PlacedFrames) -> PlacedFrames:
    """Move each pooled frame to what comes right after it, as far as the clip goes."""
    spans = [here.kinds[number].stop for number in here.kind_of]
    starts = [start + span for start, span in zip(here.starts, spans, strict=True)]
    return replace(here, starts=starts)


def _rows_of(layout: TokenLayout, sources: _Sources) -> Tensor:
    """Give the rows of the tokens of the frames that predict."""
    is_read, lengths = list[int](), list[int]()
    for clip, numbers in sources:
        reading = set(numbers)
        is_read += [n in reading for n in range(len(clip.schedule.frames))]
        lengths += tokens_per_frame(clip.grid, clip.schedule)
    of_tokens = integers(is_read).repeat_interleave(integers(lengths))
    return (layout.frame_ids >= 0).nonzero()[:, 0][of_tokens > 0]


def _group_windows(sources: _Sources, pairing: Pairing) -> tuple[Tensor, Tensor]:
    """Number the windows that each predicting token's window is compared on.

    Returns:
        One number per token, counted through all frames; and the cumulative number of
        such windows, frame by frame.
    """
    known = dict[tuple[object, ...], int]()
    parts, number_of = [integers([])], list[int]()
    for clip, numbers in sources:
        frames, edge = clip.schedule.frames, clip.schedule.edge
        kinds, kind_of = frame_kinds(clip.schedule)
        starts = {f.start: n for n, f in reversed(list(enumerate(frames)))}
        for number in numbers:
            following = starts.get(frames[number].stop, number)
            pair = kinds[kind_of[number]], kinds[kind_of[following]]
            key = (*clip.grid, edge, *pair)
            if key not in known:
                known[key] = len(parts)
                parts.append(_frame_groups(clip, *pair, pairing))
            number_of.append(known[key])
    of_frames = integers(number_of)
    groups = select_ragged(pack_ragged(parts), of_frames)
    counts = integers([int(part.max()) + 1 if len(part) else 0 for part in parts])
    cu_groups = cu_seqlens_from_lengths(counts[of_frames])
    lengths = lengths_from_cu_seqlens(groups.cu_seqlens)
    return groups.values + cu_groups[:-1].repeat_interleave(lengths), cu_groups


def _frame_groups(
    clip: VideoSpan, frame: PooledFrame, following: PooledFrame, pairing: Pairing
) -> Tensor:
    """Number the windows that one frame is compared on, for each of its tokens."""
    own = frame_windows(clip.grid, frame, edge=clip.schedule.edge)
    after = frame_windows(clip.grid, following, edge=clip.schedule.edge)
    height, width = (
        _side_groups(*sides, pairing) for sides in zip(own, after, strict=True)
    )
    groups = (height[:, None] * len(own[1]) + width).flatten()
    if frame.keep is not None:
        groups = groups[booleans(frame.keep)]
    numbers: Tensor = groups.unique(return_inverse=True)[1]
    return numbers


def _side_groups(own: Bounds, after: Bounds, pairing: Pairing) -> Tensor:
    """Number what the windows of one side are compared on."""
    if pairing == "frame_mean":
        return torch.zeros(len(own), dtype=torch.long, device="cpu")
    if pairing == "source_grid" or own == after:
        return torch.arange(len(own), device="cpu")
    coarse = _coarser(own, after)
    return integers([_holders(window, coarse)[0] for window in own])


def _coarser(own: Bounds, after: Bounds) -> Bounds:
    """Choose those windows of one side in which the others lie, each in one of them."""
    for coarse, fine in ((after, own), (own, after)):
        if all(len(_holders(window, coarse)) == 1 for window in fine):
            return coarse
    raise ValueError(
        f"windows {own} and {after} do not nest; pairing 'source_grid' and "
        "'frame_mean' take any"
    )


def _holders(window: tuple[int, int], windows: Bounds) -> list[int]:
    """Find the windows that hold another."""
    return [
        number
        for number, (start, stop) in enumerate(windows)
        if start <= window[0] and window[1] <= stop
    ]


def _join_windows(plan: PoolPlan, groups: Tensor, cu_groups: Tensor) -> PoolPlan:
    """Take the mean of the windows of a group, each weighted by its cells."""
    if len(groups) == cu_groups[-1]:  # every window is a group of its own
        return plan
    assert plan.weights is not None
    entries = groups.repeat_interleave(plan.window_sizes)
    order = entries.argsort(stable=True)
    shares = _shares_of_groups(plan.window_sizes, groups, cu_groups)
    weights = plan.weights * shares.repeat_interleave(plan.window_sizes)
    return plan_bags(
        plan.cells[order],
        torch.bincount(entries),
        cu_groups,
        weights[order],
        num_cells=len(plan.cell_starts),
    )


def _pool_predictions(sizes: Tensor, groups: Tensor, cu_groups: Tensor) -> PoolPlan:
    """Take the mean over the tokens of a group, each weighted by its cells."""
    order = groups.argsort(stable=True)
    return plan_bags(
        order,
        torch.bincount(groups),
        cu_groups,
        _shares_of_groups(sizes, groups, cu_groups)[order],
        num_cells=len(groups),
    )


def _shares_of_groups(sizes: Tensor, groups: Tensor, cu_groups: Tensor) -> Tensor:
    """Give each window's share of the cells of its group."""
    sizes = sizes.double()
    cells = sizes.new_zeros(int(cu_groups[-1])).index_add(0, groups, sizes)
    return sizes / cells[groups]
