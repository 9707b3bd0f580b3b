"""Losses, frame by frame and token by token."""

from collections.abc import Sequence
from math import sqrt

from fastslow.testing.reference.layouts import Span
from fastslow.testing.reference.pooling import tokens_per_frame, window_cells

Vector = Sequence[float]


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
