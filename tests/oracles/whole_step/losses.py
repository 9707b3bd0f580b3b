"""The next-frame loss, window by window: what is compared, how far, in which mean."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.whole_step.clips import Clip, Seen, cells_of
from tests.oracles.whole_step.options import Options
from tests.oracles.whole_step.samples import Sample
from tests.oracles.whole_step.schedules import Bounds, Frame

Windows = list[tuple[Bounds, Bounds]]


def next_frame_losses(
    sample: Sample, predictions: Tensor, targets: Sequence[Seen], options: Options
) -> Tensor:
    """Compare all that is predicted in a sample.

    Args:
        sample: The sample.
        predictions: What is predicted at each of its tokens.
        targets: What the tower saw in each frame of its clips.
        options: Distance, pairing, reduction and weights.

    Returns:
        Sums of the losses of predicting and of copying, and the count of both.
    """
    losses = predictions.new_zeros(3)
    for number, clip in enumerate(sample.clips):
        compared = []
        for place, frame in enumerate(clip.frames):
            latest = max(earlier.stop for earlier in clip.frames[: place + 1])
            if frame.stop == latest < len(clip.scales):
                rows = [
                    row
                    for row, token in enumerate(sample.tokens)
                    if (token.clip, token.frame) == (number, place)
                ]
                compared.append(
                    _compare(frame, clip, predictions[rows], targets[number], options)
                )
        if compared:
            losses = losses + _reduce(compared, options.reduction)
    return losses


def _compare(
    frame: Frame, clip: Clip, predicted: Tensor, seen: Seen, options: Options
) -> Tensor:
    """Give both losses and the weight of each of the windows that are compared."""
    span = frame.stop - frame.start
    here = range(frame.start, frame.stop)
    ahead = range(frame.stop, min(frame.stop + span, len(seen)))
    windows = [frame.windows[number] for number in frame.kept]
    joined, goals, copies = [], [], []
    for group in _groups(frame, clip, options.pairing):
        scale = clip.scales[frame.start]
        held = [len(cells_of(seen[frame.start], windows[n], scale)) for n in group]
        shares = predicted.new_tensor(held) / sum(held)
        joined.append((predicted[group] * shares[:, None]).sum(0))
        inside = [windows[number] for number in group]
        goals.append(_mean_of(seen, ahead, inside, clip))
        copies.append(_mean_of(seen, here, inside, clip))
    goal, copy = torch.stack(goals), torch.stack(copies)
    weights = goal.new_ones(len(goal))
    if options.change_weights:
        weights = 1 - F.cosine_similarity(copy, goal, dim=-1)
        weights = torch.where(weights < 1e-12, 0, weights)
    if options.normalize_targets:
        goal = F.layer_norm(goal, goal.shape[-1:])
    kind = options.next_frame_distance
    ahead_loss = distance(torch.stack(joined), goal, kind)
    copy_loss = distance(copy, goal, kind)
    return torch.stack([ahead_loss * weights, copy_loss * weights, weights])


def _groups(frame: Frame, clip: Clip, pairing: str) -> list[list[int]]:
    """Number the kept windows of a frame that are compared as one."""
    windows = [frame.windows[number] for number in frame.kept]
    if pairing == "source_grid":
        return [[number] for number in range(len(windows))]
    if pairing == "frame_mean":
        return [list(range(len(windows)))]
    begins = (other for other in clip.frames if other.start == frame.stop)
    after = next(begins, frame)
    groups = dict[tuple[Bounds, Bounds], list[int]]()
    rows = _coarser(frame.rows, after.rows)
    columns = _coarser(frame.columns, after.columns)
    for number, (row, column) in enumerate(windows):
        whole = _holders(row, rows)[0], _holders(column, columns)[0]
        groups.setdefault(whole, []).append(number)
    return list(groups.values())


def _coarser(own: list[Bounds], after: list[Bounds]) -> list[Bounds]:
    """Choose those windows of one side in which the others lie."""
    return after if all(len(_holders(each, after)) == 1 for each in own) else own


def _holders(window: Bounds, windows: list[Bounds]) -> list[Bounds]:
    return [w for w in windows if w[0] <= window[0] and window[1] <= w[1]]


def _mean_of(seen: Seen, times: range, windows: Windows, clip: Clip) -> Tensor:
    """Take the mean over all cells of some windows, then over frames."""
    each = [
        torch.cat([cells_of(seen[t], window, clip.scales[t]) for window in windows])
        for t in times
    ]
    return torch.stack([cells.mean(0) for cells in each]).mean(0)


def distance(predicted: Tensor, goal: Tensor, kind: str) -> Tensor:
    off = (predicted - goal).abs()
    if kind == "mse+cosine":
        return distance(predicted, goal, "mse") + distance(predicted, goal, "cosine")
    if kind == "cosine":
        lengths = [each.norm(dim=-1).clamp_min(1e-8) for each in (predicted, goal)]
        return 1 - (predicted * goal).sum(-1) / (lengths[0] * lengths[1])
    by_channel = {
        "mse": off.square(),
        "l1": off,
        "smooth_l1": torch.where(off < 1, off.square() / 2, off - 0.5),
    }
    return by_channel[kind].mean(-1)


def _reduce(frames: Sequence[Tensor], reduction: str) -> Tensor:
    """Sum over the tokens of a clip, or the means of its frames, or take their mean."""
    if reduction == "token":
        return torch.cat(frames, 1).sum(1)
    means = torch.stack([frame.mean(1) for frame in frames])
    return means.mean(0) if reduction == "video" else means.sum(0)
