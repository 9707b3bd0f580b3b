"""Ranks, segments and frames of rows, and intervals of keys."""

from collections import Counter
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from jaxtyping import Int
from torch import Tensor

from fastslow.masks import KeptKeys, KeyIntervals

Row = tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"]]
"""``causal_ranks`` and ``segment_ids`` of one packed row."""


FramedRow = tuple[
    Int[Tensor, " tokens"], Int[Tensor, " tokens"], Int[Tensor, " tokens"]
]
"""``causal_ranks``, ``segment_ids`` and ``frame_ids`` of one packed row."""


_Segment = tuple[int, int, list[tuple[int, int]], list[int]]


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


def unordered_framed_rows(
    *, max_tokens: int = 12, max_runs: int = 6, max_segments: int = 3
) -> st.SearchStrategy[FramedRow]:
    """Draw a row of frames and text whose tokens stand in any order.

    The tokens of a frame share a segment and a rank, a token of text has a rank of its
    own, and the frames of a segment are numbered by rank. There may be padding.

    Args:
        max_tokens: Tokens at most.
        max_runs: Frames and tokens of text at most, of all segments together.
        max_segments: Segments at most.
    """
    run = st.tuples(st.integers(-1, max_segments - 1), st.booleans())
    return st.builds(
        _scatter_runs,
        st.lists(st.integers(0, max_runs - 1), min_size=1, max_size=max_tokens),
        st.lists(run, min_size=max_runs, max_size=max_runs),
        st.permutations(range(max_runs)),
    )


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


def _scatter_runs(
    tokens: Sequence[int], runs: Sequence[tuple[int, bool]], ranks: Sequence[int]
) -> FramedRow:
    """Give each token what its run has; a run of one token may be text."""
    counts = Counter(tokens)
    frames, following = dict.fromkeys(counts, -1), Counter[int]()
    for run in sorted(counts, key=lambda run: ranks[run]):
        segment, may_be_text = runs[run]
        if segment >= 0 and (counts[run] > 1 or not may_be_text):
            frames[run] = following[segment]
            following[segment] += 1
    row = [(ranks[run], runs[run][0], frames[run]) for run in tokens]
    causal_ranks, segment_ids, frame_ids = torch.tensor(row).T
    return causal_ranks.clone(), segment_ids.clone(), frame_ids.clone()


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
