"""Building blocks for training video language models on fast/slow frames."""

from fastslow._plans import pin_memory, to_device
from fastslow._typing import Grid, MaskMod
from fastslow.accounting import (
    CostModel,
    attention_flops,
    frame_causal_pairs,
    live_tiles,
    sample_cost,
    tile_efficiency,
    transformer_cost,
    visible_pairs,
)
from fastslow.attention import interval_attention
from fastslow.balancing import (
    Balanced,
    balance,
    deal_rounds,
    imbalance,
    imbalance_bound,
)
from fastslow.block_masks import frame_causal_block_mask, interval_block_mask
from fastslow.buckets import bucket_length
from fastslow.budgets import schedule_for_budget, slow_frames_for_budget
from fastslow.content import (
    keep_by_score,
    slow_by_score,
    slow_by_similarity,
    slow_by_top_k,
)
from fastslow.cross_entropy import labelled_cross_entropy
from fastslow.diagnostics import copy_skill, direction_spread, effective_rank
from fastslow.frames import (
    FrameSchedule,
    PooledFrame,
    describe_schedule,
    encoded_grids,
    frame_windows,
    tokens_per_frame,
)
from fastslow.grids import (
    merged_grid,
    merged_stride,
    pooled_grid,
    temporal_patches,
    window_bounds,
)
from fastslow.layouts import (
    IGNORED_LABEL,
    FrameWindow,
    TokenLayout,
    build_layout,
    count_tokens,
    visible_keys,
)
from fastslow.loss_plans import LabelPlan, NextFramePlan, plan_labels, plan_next_frame
from fastslow.losses import change_weights, next_frame_loss
from fastslow.masks import (
    KeptKeys,
    KeyIntervals,
    dense_mask,
    frame_causal_mask,
    interval_mask,
    visible_intervals,
)
from fastslow.online_packing import StreamState, next_bin, stream_order, take_bin
from fastslow.packing import (
    best_fit_decreasing,
    fewest_bins_bound,
    fill,
    first_fit_decreasing,
)
from fastslow.pool_plans import PoolPlan, plan_bags, plan_pooling
from fastslow.pooling import pool_frames, pool_tokens
from fastslow.positions import after_video, video_positions
from fastslow.ragged import (
    Ragged,
    cu_seqlens_from_lengths,
    lengths_from_cu_seqlens,
    lengths_from_segment_ids,
    pack_ragged,
    position_ids_from_cu_seqlens,
    segment_ids_from_cu_seqlens,
    select_ragged,
    unpack_ragged,
)
from fastslow.schedule_edits import (
    keep_tokens,
    merge_streams,
    scale_fast_frames,
    select_frames,
)
from fastslow.schedule_json import schedule_from_json, schedule_to_json
from fastslow.schedules import (
    build_schedule,
    kernel_schedule,
    repeat_strides,
    schedule_from_grids,
    schedule_from_strides,
    two_level_schedule,
)
from fastslow.spans import Span, TextSpan, VideoSpan
from fastslow.varlen import SliceRanges, VarlenPlan, slice_ranges, varlen_plan

__version__ = "0.1.0"

__all__ = [
    "IGNORED_LABEL",
    "Balanced",
    "CostModel",
    "FrameSchedule",
    "FrameWindow",
    "Grid",
    "KeptKeys",
    "KeyIntervals",
    "LabelPlan",
    "MaskMod",
    "NextFramePlan",
    "PoolPlan",
    "PooledFrame",
    "Ragged",
    "SliceRanges",
    "Span",
    "StreamState",
    "TextSpan",
    "TokenLayout",
    "VarlenPlan",
    "VideoSpan",
    "after_video",
    "attention_flops",
    "balance",
    "best_fit_decreasing",
    "bucket_length",
    "build_layout",
    "build_schedule",
    "change_weights",
    "copy_skill",
    "count_tokens",
    "cu_seqlens_from_lengths",
    "deal_rounds",
    "dense_mask",
    "describe_schedule",
    "direction_spread",
    "effective_rank",
    "encoded_grids",
    "fewest_bins_bound",
    "fill",
    "first_fit_decreasing",
    "frame_causal_block_mask",
    "frame_causal_mask",
    "frame_causal_pairs",
    "frame_windows",
    "imbalance",
    "imbalance_bound",
    "interval_attention",
    "interval_block_mask",
    "interval_mask",
    "keep_by_score",
    "keep_tokens",
    "kernel_schedule",
    "labelled_cross_entropy",
    "lengths_from_cu_seqlens",
    "lengths_from_segment_ids",
    "live_tiles",
    "merge_streams",
    "merged_grid",
    "merged_stride",
    "next_bin",
    "next_frame_loss",
    "pack_ragged",
    "pin_memory",
    "plan_bags",
    "plan_labels",
    "plan_next_frame",
    "plan_pooling",
    "pool_frames",
    "pool_tokens",
    "pooled_grid",
    "position_ids_from_cu_seqlens",
    "repeat_strides",
    "sample_cost",
    "scale_fast_frames",
    "schedule_for_budget",
    "schedule_from_grids",
    "schedule_from_json",
    "schedule_from_strides",
    "schedule_to_json",
    "segment_ids_from_cu_seqlens",
    "select_frames",
    "select_ragged",
    "slice_ranges",
    "slow_by_score",
    "slow_by_similarity",
    "slow_by_top_k",
    "slow_frames_for_budget",
    "stream_order",
    "take_bin",
    "temporal_patches",
    "tile_efficiency",
    "to_device",
    "tokens_per_frame",
    "transformer_cost",
    "two_level_schedule",
    "unpack_ragged",
    "varlen_plan",
    "video_positions",
    "visible_intervals",
    "visible_keys",
    "visible_pairs",
    "window_bounds",
]
