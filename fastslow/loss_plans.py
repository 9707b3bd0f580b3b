"""Where predictions are read, and what they are held against: integers alone."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from fastslow.layouts import IGNORED_LABEL, TokenLayout
from fastslow.pooling import PoolPlan, plan_pooling
from fastslow.ragged import segment_ids_from_cu_seqlens


@dataclass(frozen=True, kw_only=True)
class NextFramePlan:
    """Where the prediction of each next frame is read, and what it is held against.

    One entry per frame that has a successor in its own clip, in row order.

    Attributes:
        rows: Tokens of those frames in the packed row, where predictions are read.
        targets: Pools each successor to the grid that the frame itself was pooled to.
        copies: Pools the frame itself to that grid: what copying would predict.
    """

    rows: Int[Tensor, " pooled"]
    targets: PoolPlan
    copies: PoolPlan


def plan_next_frame(layout: TokenLayout) -> NextFramePlan:
    """Pair every frame with its successor.

    The prediction of frame ``t + 1`` is read at the tokens of frame ``t``, which under
    the frame-causal mask have seen frames up to ``t`` and nothing later. The target is
    frame ``t + 1``'s features pooled with frame ``t``'s stride: exact for any pair of
    strides. The last frame of a clip has no target; no pair crosses a clip.

    Args:
        layout: The packed row.

    Returns:
        The plan, on the CPU. Its pooling plans read the features of all frames of the
        row's clips in order, in raster order on the merged grid.

    Laws:
        rows_are_sources: the rows are the tokens of every frame but each clip's last
        same_shape: targets, copies and rows agree frame by frame
        never_own_frame: no target reads a cell of the frame that predicts it
        matches_reference: equals the loop-written reference

    Example:
        >>> from fastslow import VideoSpan, build_layout
        >>> clip = VideoSpan(grid=(2, 2), strides=(1, 2, 1))
        >>> plan = plan_next_frame(build_layout([[clip]], video_token_id=9))
        >>> plan.rows.tolist(), plan.targets.cells.tolist()
        ([0, 1, 2, 3, 4], [4, 5, 6, 7, 8, 9, 10, 11])
    """
    grids = [clip.grid for clip in layout.clips for _ in clip.strides]
    strides = [stride for clip in layout.clips for stride in clip.strides]
    has_next = [
        t + 1 < len(clip.strides)
        for clip in layout.clips
        for t in range(len(clip.strides))
    ]
    sources = [frame for frame, paired in enumerate(has_next) if paired]
    source_strides = [strides[frame] for frame in sources]
    pooled = plan_pooling(grids, strides).cu_seqlens
    video_rows = (layout.frame_ids >= 0).nonzero()[:, 0]
    frame = segment_ids_from_cu_seqlens(pooled, len(video_rows))
    return NextFramePlan(
        rows=video_rows[torch.tensor(has_next, dtype=torch.bool)[frame]],
        targets=plan_pooling(
            grids, source_strides, frames=[frame + 1 for frame in sources]
        ),
        copies=plan_pooling(grids, source_strides, frames=sources),
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
        next_token: each target is the labelled token right after its row
        within_segment: row and target lie in one sample
        matches_reference: equals the loop-written reference

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
