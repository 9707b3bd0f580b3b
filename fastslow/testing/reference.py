"""What the library computes, once more, in plain loops that are easy to check by eye.

Nothing here comes from the code that it judges, and nothing is fast. Integers come as
Python integers and lists. A span is a plain tuple: ``(token_ids, trained)`` for text
and ``(grid, strides)`` for a clip, as ``dataclasses.astuple`` gives them; a row is a
list of samples, a sample a list of spans. Cells count in raster order through all
frames of a row.
"""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import floor, sqrt

from torch import Tensor

Grid = tuple[int, int]
Text = tuple[tuple[int, ...], bool]
Clip = tuple[Grid, tuple[int, ...]]
Span = Text | Clip
Vector = Sequence[float]


def slow_frames(num_frames: int, strategy: str, ratio: Fraction) -> list[bool]:
    """Tell which frames of a clip are slow.

    Args:
        num_frames: Frames of the clip.
        strategy: ``interleave``, ``first_slow`` or ``uniform``.
        ratio: Exact share of slow frames.

    Returns:
        One flag per frame.
    """
    slow = [False] * num_frames
    if strategy == "uniform":
        count = floor(num_frames * ratio + Fraction(1, 2))
        for i in range(count):
            place = Fraction(i * (num_frames - 1), max(count - 1, 1))
            nearest = min(range(num_frames), key=lambda t: (abs(t - place), -t))
            slow[nearest] = True
        return slow
    for frame in range(num_frames):
        owed = (frame + 1 if strategy == "interleave" else num_frames) * ratio
        slow[frame] = sum(slow) < owed
    return slow


def window_cells(grid: Grid, stride: int) -> list[list[Grid]]:
    """List the cells of every window of one frame.

    Args:
        grid: Height and width.
        stride: Side of a window.

    Returns:
        Windows in raster order, each with the (row, column) of the cells that it holds.
    """
    height, width = grid
    windows = []
    for top in range(0, height, stride):
        for left in range(0, width, stride):
            cells = []
            for row in range(top, top + stride):
                for column in range(left, left + stride):
                    if row < height and column < width:
                        cells.append((row, column))
            windows.append(cells)
    return windows


def window_centres(grid: Grid, stride: int) -> list[Grid]:
    """Give the middle of each window of a frame, halves rounded down."""
    centres = []
    for cells in window_cells(grid, stride):
        (top, left), (bottom, right) = min(cells), max(cells)
        centres.append((floor((top + bottom) / 2), floor((left + right) / 2)))
    return centres


def tokens_per_frame(grid: Grid, strides: Sequence[int]) -> list[int]:
    """Count the windows of every frame of a clip."""
    return [len(window_cells(grid, stride)) for stride in strides]


def pooling_windows(
    grids: Sequence[Grid], strides: Sequence[int], frames: Sequence[int]
) -> list[list[list[int]]]:
    """List the cells of every window of every output frame.

    Args:
        grids: Height and width of every input frame.
        strides: Window side of every output frame.
        frames: Input frame of every output frame.

    Returns:
        Cells by output frame and window.
    """
    output = []
    for frame, stride in zip(frames, strides, strict=True):
        first = sum(height * width for height, width in grids[:frame])
        windows = []
        for cells in window_cells(grids[frame], stride):
            windows.append([first + r * grids[frame][1] + c for r, c in cells])
        output.append(windows)
    return output


def pool_plan(
    grids: Sequence[Grid], strides: Sequence[int], frames: Sequence[int]
) -> dict[str, list[int]]:
    """Give every field of a pooling plan, by name; arguments as ``pooling_windows``."""
    by_frame = pooling_windows(grids, strides, frames)
    windows = [window for frame in by_frame for window in frame]
    num_cells = sum(height * width for height, width in grids)
    readers: list[list[int]] = [[] for _ in range(num_cells)]
    for number, window in enumerate(windows):
        for cell in window:
            readers[cell].append(number)
    return {
        "cells": [cell for window in windows for cell in window],
        "window_starts": bounds(map(len, windows))[:-1],
        "window_sizes": [len(window) for window in windows],
        "windows": [number for numbers in readers for number in numbers],
        "cell_starts": bounds(map(len, readers))[:-1],
        "cu_seqlens": bounds(map(len, by_frame)),
    }


def pool(tokens: Tensor, windows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Average the rows of ``tokens`` that each window lists."""
    pooled = []
    for window in windows:
        total = tokens[window[0]].clone()
        for cell in window[1:]:
            total += tokens[cell]
        pooled.append(total / len(window))
    return pooled


def layout(
    samples: Sequence[Sequence[Span]],
    *,
    video_token_id: int,
    attention: str = "frame_causal",
    after_video_rule: str = "all_axes",
    multiple_of: int = 1,
) -> dict[str, list[int] | list[list[int]]]:
    """Lay samples end to end, token by token.

    Args:
        samples: Spans of each sample.
        video_token_id: Id of a video token.
        attention: ``frame_causal`` or ``causal``.
        after_video_rule: ``all_axes`` or ``spatial_axes``.
        multiple_of: The row is padded to a multiple of this.

    Returns:
        The fields of a layout by name, but for the clips.
    """
    rows: list[dict[str, int]] = []
    for segment, sample in enumerate(samples):
        tokens = _sample_tokens(sample, video_token_id, after_video_rule)
        for place, token in enumerate(tokens):
            rank = token["run"] if attention == "frame_causal" else place
            rows.append(token | {"segment": segment, "rank": rank, "place": place})
    padding = dict.fromkeys(("id", "rank", "place", "time", "height", "width"), 0)
    padding |= {"label": -100, "segment": -1, "frame": -1}
    while len(rows) % multiple_of:
        rows.append(padding)
    axes = ("place", "time", "height", "width")
    return {
        "input_ids": [row["id"] for row in rows],
        "labels": [row["label"] for row in rows],
        "segment_ids": [row["segment"] for row in rows],
        "frame_ids": [row["frame"] for row in rows],
        "causal_ranks": [row["rank"] for row in rows],
        "position_ids": [[row[axis] for row in rows] for axis in axes],
    }


def _sample_tokens(
    sample: Sequence[Span], video_token_id: int, after_video_rule: str
) -> list[dict[str, int]]:
    """Describe each token of a sample; ``run`` numbers its text tokens and frames."""
    tokens: list[dict[str, int]] = []
    start = frame = run = 0
    for span in sample:
        match span:
            case (token_ids, bool() as trained):
                for number in token_ids:
                    what = {"id": number, "label": number if trained else -100}
                    where = {"time": start, "height": start, "width": start}
                    tokens.append(what | where | {"frame": -1, "run": run})
                    start, run = start + 1, run + 1
            case (grid, strides):
                what = {"id": video_token_id, "label": -100}
                for time, stride in enumerate(strides):
                    for row, column in window_centres(grid, stride):
                        where = {"height": start + row, "width": start + column}
                        where["time"] = start + time
                        tokens.append(what | where | {"frame": frame, "run": run})
                    frame, run = frame + 1, run + 1
                frames = len(strides) if after_video_rule == "all_axes" else 0
                start += max(*grid, frames)
    return tokens


def visible_pairs(
    causal_ranks: Sequence[int], segment_ids: Sequence[int]
) -> list[list[bool]]:
    """Tell for every query (row) and key (column) whether the query may read the key.

    Args:
        causal_ranks: Order of each token in its segment.
        segment_ids: Segment of each token; -1 is padding.

    Returns:
        One row of flags per query.
    """
    pairs = []
    for query_rank, query_segment in zip(causal_ranks, segment_ids, strict=True):
        row = []
        for key_rank, key_segment in zip(causal_ranks, segment_ids, strict=True):
            together = query_segment != -1 and query_segment == key_segment
            row.append(together and not key_rank > query_rank)
        pairs.append(row)
    return pairs


def labelled_rows(samples: Sequence[Sequence[Span]]) -> list[tuple[int, int]]:
    """Pair each row that predicts a trained token with that token's id."""
    pairs = []
    row = 0
    for sample in samples:
        first_row = row
        for span in sample:
            match span:
                case (token_ids, bool() as trained):
                    for number in token_ids:
                        if trained and row > first_row:
                            pairs.append((row - 1, number))
                        row += 1
                case (grid, strides):
                    row += sum(tokens_per_frame(grid, strides))
    return pairs


def next_frame_pairs(
    samples: Sequence[Sequence[Span]],
) -> list[tuple[list[int], list[list[int]], list[list[int]]]]:
    """Pair every frame that has a successor in its clip with that successor.

    Returns:
        For each such frame: its rows, and for each row the cells of the successor and
        of the frame itself that lie in the row's window.
    """
    pairs = []
    row = first_cell = 0
    for sample in samples:
        for span in sample:
            match span:
                case (token_ids, bool()):
                    row += len(token_ids)
                case ((height, width), strides):
                    for time, stride in enumerate(strides):
                        windows = [
                            [first_cell + r * width + c for r, c in cells]
                            for cells in window_cells((height, width), stride)
                        ]
                        rows = list(range(row, row + len(windows)))
                        row += len(windows)
                        first_cell += height * width
                        if time + 1 < len(strides):
                            later = [[c + height * width for c in w] for w in windows]
                            pairs.append((rows, later, windows))
    return pairs


def next_frame_loss(
    predictions: Sequence[Sequence[Vector]],
    targets: Sequence[Sequence[Vector]],
    distance: str,
    reduction: str,
) -> tuple[float, int]:
    """Add up the distances of all predicted tokens.

    Args:
        predictions: Vectors by frame and token.
        targets: The same for the goal.
        distance: ``cosine``, ``mse`` or ``smooth_l1``.
        reduction: ``frame`` or ``token``.

    Returns:
        The sum, and the number of frames or tokens.
    """
    total, tokens = 0.0, 0
    for predicted_frame, goal_frame in zip(predictions, targets, strict=True):
        frame_total = 0.0
        for predicted, goal in zip(predicted_frame, goal_frame, strict=True):
            frame_total += token_distance(predicted, goal, distance)
            tokens += 1
        total += frame_total / len(goal_frame) if reduction == "frame" else frame_total
    return total, len(targets) if reduction == "frame" else tokens


def token_distance(predicted: Vector, goal: Vector, distance: str) -> float:
    """Give the distance of two vectors: cosine, mean square or mean smooth L1."""
    pairs = list(zip(predicted, goal, strict=True))
    if distance == "cosine":
        dot = sum(p * g for p, g in pairs)
        return 1 - dot / sqrt(sum(p * p for p in predicted) * sum(g * g for g in goal))
    total = 0.0
    for p, g in pairs:
        gap = abs(p - g)
        if distance == "mse":
            total += gap * gap
        else:
            total += gap * gap / 2 if gap < 1 else gap - 0.5
    return total / len(pairs)


def fewest_bins(lengths: Sequence[int], capacity: int) -> int:
    """Find the fewest bins by trying every packing; for about 8 items at most."""

    def place(item: int, spaces: list[int]) -> int:
        if item == len(lengths):
            return len(spaces)
        answers = [place(item + 1, [*spaces, capacity - lengths[item]])]
        for i, space in enumerate(spaces):
            if lengths[item] <= space:
                left = [*spaces[:i], space - lengths[item], *spaces[i + 1 :]]
                answers.append(place(item + 1, left))
        return min(answers)

    return place(0, [])


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items, longest first, each into the fullest bin that still holds it.

    Items of equal length go in the order given; equally full bins in that of opening.
    """
    bins: list[list[int]] = []
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        loads = [sum(lengths[i] for i in chosen) for chosen in bins]
        fitting = [
            b for b, load in enumerate(loads) if load + lengths[item] <= capacity
        ]
        if fitting:
            bins[max(fitting, key=lambda b: (loads[b], -b))].append(item)
        else:
            bins.append([item])
    return [sorted(chosen) for chosen in bins]


def bounds(lengths: Iterable[int]) -> list[int]:
    """Add lengths up, beginning with 0."""
    totals = [0]
    for length in lengths:
        totals.append(totals[-1] + length)
    return totals


def segments_and_places(
    lengths: Sequence[int], num_items: int
) -> list[tuple[int, int]]:
    """Give sequence and place of every item; items left over are padding, -1."""
    pairs = []
    for sequence, length in enumerate(lengths):
        for place in range(length):
            pairs.append((sequence, place))
    for place in range(num_items - len(pairs)):
        pairs.append((-1, place))
    return pairs
