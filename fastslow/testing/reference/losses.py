"""Losses, frame by frame and token by token."""

from collections.abc import Sequence
from math import sqrt

from fastslow.testing.reference.frames import tokens_per_frame, window_cells
from fastslow.testing.reference.layouts import Span

Vector = Sequence[float]
NextFramePair = tuple[int, list[int], list[list[int]], list[list[int]]]
"""Clip, rows, and the cells of what comes next and of the frame itself, by row."""


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
                case (grid, schedule):
                    row += sum(tokens_per_frame(grid, schedule))
    return pairs


def next_frame_pairs(samples: Sequence[Sequence[Span]]) -> list[NextFramePair]:
    """Pair every pooled frame that has something unseen to predict with that.

    Returns:
        For each such frame: its clip, its rows, and for each row the cells of what
        comes next and of what the frame reads itself, those in the row's window.
    """
    pairs = []
    row = first_cell = clip = 0
    for sample in samples:
        for span in sample:
            match span:
                case (token_ids, bool()):
                    row += len(token_ids)
                case ((height, width), (num_frames, frames, edge)):
                    seen: set[int] = set()
                    for frame in frames:
                        start, stop = frame[:2]
                        windows = window_cells((height, width), frame, edge)
                        rows = list(range(row, row + len(windows)))
                        row += len(windows)
                        seen |= set(range(start, stop))
                        after = [
                            time
                            for time in range(stop, 2 * stop - start)
                            if time < num_frames
                        ]
                        if not after or any(time >= stop for time in seen):
                            continue
                        later, own = (
                            [
                                [
                                    first_cell + (time * height + r) * width + c
                                    for time in times
                                    for r, c in cells
                                ]
                                for cells in windows
                            ]
                            for times in (after, range(start, stop))
                        )
                        pairs.append((clip, rows, later, own))
                    first_cell += num_frames * height * width
                    clip += 1
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
