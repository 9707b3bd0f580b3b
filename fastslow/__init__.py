"""Building blocks for training video language models on fast/slow frames."""

from importlib.metadata import version

from fastslow._plans import to_device
from fastslow._typing import Grid, MaskMod
from fastslow.block_masks import frame_causal_block_mask, interval_block_mask
from fastslow.grids import (
    merged_grid,
    merged_stride,
    pooled_grid,
    temporal_patches,
    tokens_per_frame,
)
from fastslow.layouts import (
    IGNORED_LABEL,
    Span,
    TextSpan,
    TokenLayout,
    VideoSpan,
    build_layout,
    count_tokens,
)
from fastslow.loss_plans import LabelPlan, NextFramePlan, plan_labels, plan_next_frame
from fastslow.losses import next_frame_loss
from fastslow.masks import (
    KeyIntervals,
    dense_mask,
    frame_causal_mask,
    interval_mask,
    visible_intervals,
)
from fastslow.packing import StreamState, best_fit_decreasing, next_bin, take_bin
from fastslow.pooling import PoolPlan, plan_pooling, pool_frames, pool_tokens
from fastslow.positions import after_video, video_positions
from fastslow.ragged import (
    Ragged,
    cu_seqlens_from_lengths,
    lengths_from_cu_seqlens,
    lengths_from_segment_ids,
    pack_ragged,
    position_ids_from_cu_seqlens,
    segment_ids_from_cu_seqlens,
    unpack_ragged,
)
from fastslow.schedules import FrameSchedule, build_schedule

__version__ = version("fastslow")

__all__ = [
    "IGNORED_LABEL",
    "FrameSchedule",
    "Grid",
    "KeyIntervals",
    "LabelPlan",
    "MaskMod",
    "NextFramePlan",
    "PoolPlan",
    "Ragged",
    "Span",
    "StreamState",
    "TextSpan",
    "TokenLayout",
    "VideoSpan",
    "after_video",
    "best_fit_decreasing",
    "build_layout",
    "build_schedule",
    "count_tokens",
    "cu_seqlens_from_lengths",
    "dense_mask",
    "frame_causal_block_mask",
    "frame_causal_mask",
    "interval_block_mask",
    "interval_mask",
    "lengths_from_cu_seqlens",
    "lengths_from_segment_ids",
    "merged_grid",
    "merged_stride",
    "next_bin",
    "next_frame_loss",
    "pack_ragged",
    "plan_labels",
    "plan_next_frame",
    "plan_pooling",
    "pool_frames",
    "pool_tokens",
    "pooled_grid",
    "position_ids_from_cu_seqlens",
    "segment_ids_from_cu_seqlens",
    "take_bin",
    "temporal_patches",
    "to_device",
    "tokens_per_frame",
    "unpack_ragged",
    "video_positions",
    "visible_intervals",
]
