"""Losses, frame by frame and token by token."""

from collections.abc import Sequence
from math import exp, log, sqrt

from fastslow.testing.reference.frames import (
    count_cells,
    encoded_cells,
    tokens_per_frame,
    window_cells,
)
from fastslow.testing.reference.layouts import Span, placement

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
                case (grid, schedule, *_):
                    row += sum(tokens_per_frame(grid, schedule))
                    row += sum(len(text) for text in placement(span)[1])
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
                case (grid, (num_frames, frames, edge, _) as schedule, *_):
                    between = placement(span)[1]
                    seen: set[int] = set()
                    for number, frame in enumerate(frames):
                        row += len(between[number - 1]) if number and between else 0
                        start, stop = frame[:2]
                        windows = window_cells(grid, frame, edge)
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
                                    first_cell + cell
                                    for cell in encoded_cells(grid, schedule, t, cells)
                                ]
                                for cells in windows
                            ]
                            for t in (after, range(start, stop))
                        )
                        pairs.append((clip, rows, later, own))
                    first_cell += count_cells(grid, schedule)
                    clip += 1
    return pairs


def next_frame_loss(
    predictions: Sequence[Sequence[Vector]],
    targets: Sequence[Sequence[Vector]],
    weights: Sequence[Sequence[float]],
    frames_of_videos: Sequence[int],
    distance: str,
    reduction: str,
) -> tuple[float, float]:
    """Add up the weighted distances of all predicted tokens, and their weights.

    Args:
        predictions: Vectors by frame and token.
        targets: The same for the goal.
        weights: Weight of each token by frame.
        frames_of_videos: Frames of each video.
        distance: ``cosine``, ``mse``, ``smooth_l1``, ``l1`` or ``mse+cosine``.
        reduction: ``frame``, ``token`` or ``video``.

    Returns:
        The sum, and the sum of the same without the distances.
    """
    total = count = 0.0
    frame = 0
    for num_frames in frames_of_videos:
        for _ in range(num_frames):
            tokens = zip(
                predictions[frame], targets[frame], weights[frame], strict=True
            )
            for predicted, goal, weight in tokens:
                share = weight
                if reduction in {"frame", "video"}:
                    share /= len(weights[frame])
                if reduction == "video":
                    share /= num_frames
                total += share * token_distance(predicted, goal, distance)
                count += share
            frame += 1
    return total, count


def token_distance(predicted: Vector, goal: Vector, distance: str) -> float:
    """Give the distance of two vectors."""
    pairs = list(zip(predicted, goal, strict=True))
    if distance == "mse+cosine":
        return sum(token_distance(predicted, goal, d) for d in ("mse", "cosine"))
    if distance == "cosine":
        dot = sum(p * g for p, g in pairs)
        return 1 - dot / sqrt(sum(p * p for p in predicted) * sum(g * g for g in goal))
    total = 0.0
    for p, g in pairs:
        gap = abs(p - g)
        if distance == "mse":
            total += gap * gap
        elif distance == "l1":
            total += gap
        else:
            total += gap * gap / 2 if gap < 1 else gap - 0.5
    return total / len(pairs)


def labelled_cross_entropy(
    hidden: Sequence[Vector],
    weight: Sequence[Vector],
    labels: Sequence[tuple[int, int]],
) -> tuple[float, int]:
    """Add up ``log(sum(exp(scores))) - score of the target`` over labelled rows.

    Args:
        hidden: One vector per row.
        weight: One vector per word.
        labels: Pairs of a row and its target.

    Returns:
        The sum, and the number of labelled rows.
    """
    total = 0.0
    for row, target in labels:
        scores = [
            sum(h * w for h, w in zip(hidden[row], word, strict=True))
            for word in weight
        ]
        total += log(sum(exp(score) for score in scores)) - scores[target]
    return total, len(labels)
