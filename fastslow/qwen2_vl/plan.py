"""Every integer that a training step of one packed row needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor

from fastslow._plans import pin_memory
from fastslow._typing import Grid
from fastslow.frames import encoded_grids
from fastslow.grids import Mode
from fastslow.layouts import (
    Attention,
    FrameWindow,
    TokenLayout,
    build_layout,
    visible_keys,
)
from fastslow.loss_plans import (
    LabelPlan,
    NextFramePlan,
    plan_labels,
    plan_next_frame,
)
from fastslow.masks import KeyIntervals
from fastslow.pool_plans import PoolPlan, plan_pooling
from fastslow.positions import AfterVideo
from fastslow.qwen2_vl.families import Family
from fastslow.qwen2_vl.tower_plans import TowerPlan, plan_tower
from fastslow.spans import Span, VideoSpan


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """What is known about a packed row before its pixels are decoded.

    Attributes:
        layout: What each token is.
        visible: The keys that each token may read.
        grid_thw: Patch grid of each clip, before merging; a clip whose frames are
            encoded on several grids has a row for each run of equal ones.
        tower: What else the tower needs to know of them.
        pool: From the tower's merged tokens to the row's video tokens.
        video_rows: Where in the row those tokens go.
        labels: Which tokens predict a trained token.
        next_frame: Where the next frame is predicted, and what from.
    """

    layout: TokenLayout
    visible: KeyIntervals
    grid_thw: Int[Tensor, "runs 3"]
    tower: TowerPlan
    pool: PoolPlan
    video_rows: Int[Tensor, " pooled"]
    labels: LabelPlan
    next_frame: NextFramePlan

    def pin_memory(self) -> "RowPlan":
        """Lie in page-locked memory, as a ``DataLoader`` that pins asks for."""
        return pin_memory(self)


def encoded_runs(clip: VideoSpan) -> list[tuple[int, Grid]]:
    """Give the runs of a clip's frames that are encoded on one grid.

    Args:
        clip: The clip.

    Returns:
        Frames and merged grid of each run, in order.
    """
    grids = encoded_grids(clip.grid, clip.schedule)
    return [(len(list(run)), grid) for grid, run in groupby(grids)]


def plan_row(
    samples: Sequence[Sequence[Span]],
    *,
    video_token_id: int,
    family: Family = Family(),  # noqa: B008, frozen
    attention: Attention = "frame_causal",
    window: FrameWindow | None = None,
    pool_mode: Mode = "average",
    after_video_rule: AfterVideo = "all_axes",
    length: int | None = None,
) -> RowPlan:
    """Plan one packed row.

    A part that should be planned otherwise, such as ``next_frame`` in another pairing,
    is put in its place with ``dataclasses.replace``.

    Args:
        samples: The spans of each sample; their grids and strides count merged tokens.
        video_token_id: Id that stands for a video token.
        family: What kind of model it is for, as ``model.family`` says.
        attention: Whether the tokens of a frame share one rank, see ``build_layout``.
        window: How far back a token sees, see ``visible_keys``.
        pool_mode: How the tokens of a window become one, see ``plan_pooling``.
        after_video_rule: Where text goes on after a clip, see ``after_video``.
        length: Tokens that the row is padded to, see ``bucket_length``; None adds no
            padding.

    Returns:
        The plan, on the CPU; ``to_device`` moves it.

    Raises:
        ValueError: As ``build_layout`` does, or if a clip does not tell the time as
            the family's do, see ``place_clip``.

    Laws:
        counts_agree: pooled tokens, placeholders and video rows are equally many:
            ``len(pool.window_sizes) == #placeholders == len(video_rows)``

    Example:
        >>> from fastslow import TextSpan, schedule_from_strides
        >>> clip = VideoSpan(grid=(4, 4), schedule=schedule_from_strides([2, 4]))
        >>> answer = TextSpan(token_ids=(7,), trained=True)
        >>> plan = plan_row([[clip, answer]], video_token_id=9)
        >>> plan.grid_thw.tolist(), plan.video_rows.tolist(), plan.labels.rows.tolist()
        ([[2, 8, 8]], [0, 1, 2, 3, 4], [4])
    """
    layout = build_layout(
        samples,
        video_token_id=video_token_id,
        attention=attention,
        after_video_rule=after_video_rule,
        length=length,
    )
    for clip in layout.clips:
        _check_time(clip, family)
    runs = [run for clip in layout.clips for run in encoded_runs(clip)]
    merge_size = family.geometry.merge_size
    return RowPlan(
        layout=layout,
        visible=visible_keys(layout, window),
        grid_thw=torch.tensor(
            [(frames, *(side * merge_size for side in grid)) for frames, grid in runs],
            dtype=torch.long,
            device="cpu",
        ).reshape(-1, 3),
        tower=plan_tower(
            runs,
            merge_size=merge_size,
            window=family.window,
            table_side=family.table_side,
        ),
        pool=plan_pooling(
            [(clip.grid, clip.schedule) for clip in layout.clips], mode=pool_mode
        ),
        video_rows=(layout.frame_ids >= 0).nonzero()[:, 0],
        labels=plan_labels(layout),
        next_frame=plan_next_frame(layout),
    )


def _check_time(clip: VideoSpan, family: Family) -> None:
    """Raise unless a clip of several frames tells the time as its family does."""
    frames, pooled = clip.schedule.num_frames, len(clip.schedule.frames)
    if frames < 2:
        return
    if family.tells_time and (
        any(clip.frame_positions) or (pooled > 1 and not clip.between)
    ):
        raise ValueError(
            f"a clip of {frames} frames, {pooled} when pooled, does not have them at "
            "time 0 with text between, where this family reads the time; place_clip "
            "lays it out so"
        )
    if family.tokens_per_second is not None and (clip.between or not clip.times):
        raise ValueError(
            f"a clip of {frames} frames has no times, by which this family places "
            "them, or has text between them; place_clip lays it out with times alone"
        )
