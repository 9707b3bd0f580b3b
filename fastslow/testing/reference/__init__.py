"""What the library computes, once more, in plain loops that are easy to check by eye.

Nothing here comes from the code that it judges, and nothing is fast. Integers come as
Python integers and lists. A span is a plain tuple: ``(token_ids, trained)`` for text
and ``(grid, strides)`` for a clip, as ``dataclasses.astuple`` gives them; a row is a
list of samples, a sample a list of spans. Cells count in raster order through all
frames of a row.
"""

from fastslow.testing.reference.layouts import Span, layout
from fastslow.testing.reference.losses import (
    labelled_rows,
    next_frame_loss,
    next_frame_pairs,
    token_distance,
)
from fastslow.testing.reference.masks import (
    frame_clocks,
    visible_pairs,
    window_pairs,
)
from fastslow.testing.reference.packing import best_fit_decreasing, fewest_bins
from fastslow.testing.reference.pooling import (
    pool,
    pool_plan,
    pooling_windows,
    tokens_per_frame,
    window_cells,
    window_centres,
)
from fastslow.testing.reference.ragged import bounds, segments_and_places
from fastslow.testing.reference.schedules import slow_frames

__all__ = [
    "Span",
    "best_fit_decreasing",
    "bounds",
    "fewest_bins",
    "frame_clocks",
    "labelled_rows",
    "layout",
    "next_frame_loss",
    "next_frame_pairs",
    "pool",
    "pool_plan",
    "pooling_windows",
    "segments_and_places",
    "slow_frames",
    "token_distance",
    "tokens_per_frame",
    "visible_pairs",
    "window_cells",
    "window_centres",
    "window_pairs",
]
