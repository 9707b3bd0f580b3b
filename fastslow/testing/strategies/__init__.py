"""Hypothesis strategies for everything that the library takes, for your own tests too.

Integers and lists are drawn, tensors are built from them, and values come from a
generator that is seeded with a drawn integer, so failures shrink and replay.
"""

from fastslow.testing.strategies.masks import (
    FramedRow,
    Row,
    framed_rows,
    key_intervals,
    ranked_rows,
    unordered_framed_rows,
    unordered_rows,
)
from fastslow.testing.strategies.packing import (
    balancing_problems,
    lengths,
    packing_problems,
)
from fastslow.testing.strategies.rows import (
    VIDEO_TOKEN_ID,
    after_video_rules,
    layouts,
    packed_samples,
    samples,
    text_spans,
    video_spans,
)
from fastslow.testing.strategies.schedules import (
    frame_strategies,
    grid_schedules,
    grids,
    kernel_schedules,
    plain_clips,
    plain_schedules,
    ratio_schedules,
    scheduled_clips,
    schedules,
    slow_ratios,
    stride_lists,
    strides,
)
from fastslow.testing.strategies.tensors import (
    clips,
    float_tensors,
    random_values,
    seeds,
)

__all__ = [
    "VIDEO_TOKEN_ID",
    "FramedRow",
    "Row",
    "after_video_rules",
    "balancing_problems",
    "clips",
    "float_tensors",
    "frame_strategies",
    "framed_rows",
    "grid_schedules",
    "grids",
    "kernel_schedules",
    "key_intervals",
    "layouts",
    "lengths",
    "packed_samples",
    "packing_problems",
    "plain_clips",
    "plain_schedules",
    "random_values",
    "ranked_rows",
    "ratio_schedules",
    "samples",
    "scheduled_clips",
    "schedules",
    "seeds",
    "slow_ratios",
    "stride_lists",
    "strides",
    "text_spans",
    "unordered_framed_rows",
    "unordered_rows",
    "video_spans",
]
