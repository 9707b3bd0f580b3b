"""What the library computes, once more, in plain loops that are easy to check by eye.

Nothing here comes from the code that it judges, and nothing is fast. Integers come as
Python integers and lists. A span is a plain tuple: ``(token_ids, trained)`` for text
and ``(grid, schedule, times, between)`` for a clip, as ``dataclasses.astuple`` gives
them, or ``(grid, schedule)`` for a plain clip; a row is a list of samples, a sample a
list of spans. Cells count in raster order through all frames of a row.
"""

from fastslow.testing.reference.accounting import (
    count_live_tiles,
    count_pairs,
    count_run_pairs,
)
from fastslow.testing.reference.balancing import (
    greedy_ranks,
    least_peak,
    least_rounds,
)
from fastslow.testing.reference.buckets import bucket_lengths
from fastslow.testing.reference.frames import (
    Schedule,
    plain_frame,
    side_windows,
    tokens_per_frame,
    window_cells,
    window_centres,
)
from fastslow.testing.reference.layouts import Span, kept_tokens, layout
from fastslow.testing.reference.losses import (
    labelled_cross_entropy,
    labelled_rows,
    next_frame_loss,
    next_frame_pairs,
    token_distance,
)
from fastslow.testing.reference.masks import (
    Slice,
    frame_clocks,
    slice_reads,
    slices,
    varlen_reads,
    visible_pairs,
    window_pairs,
)
from fastslow.testing.reference.packing import (
    best_fit_decreasing,
    fewest_bins,
    fewest_bins_bound,
    first_fit_decreasing,
    take_bin,
)
from fastslow.testing.reference.pooling import (
    pool,
    pool_plan,
    pooling_shares,
    pooling_windows,
)
from fastslow.testing.reference.ragged import bounds, segments_and_places
from fastslow.testing.reference.schedules import (
    keep_by_score,
    schedule_for_budget,
    slow_by_score,
    slow_by_similarity,
    slow_by_top_k,
    slow_frames,
)

__all__ = [
    "Schedule",
    "Slice",
    "Span",
    "best_fit_decreasing",
    "bounds",
    "bucket_lengths",
    "count_live_tiles",
    "count_pairs",
    "count_run_pairs",
    "fewest_bins",
    "fewest_bins_bound",
    "first_fit_decreasing",
    "frame_clocks",
    "greedy_ranks",
    "keep_by_score",
    "kept_tokens",
    "labelled_cross_entropy",
    "labelled_rows",
    "layout",
    "least_peak",
    "least_rounds",
    "next_frame_loss",
    "next_frame_pairs",
    "plain_frame",
    "pool",
    "pool_plan",
    "pooling_shares",
    "pooling_windows",
    "schedule_for_budget",
    "segments_and_places",
    "side_windows",
    "slice_reads",
    "slices",
    "slow_by_score",
    "slow_by_similarity",
    "slow_by_top_k",
    "slow_frames",
    "take_bin",
    "token_distance",
    "tokens_per_frame",
    "varlen_reads",
    "visible_pairs",
    "window_cells",
    "window_centres",
    "window_pairs",
]
