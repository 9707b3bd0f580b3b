"""Losses as (sum, count): divided once, by the count over the whole optimizer step."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fastslow.ragged import (
    Ragged,
    lengths_from_cu_seqlens,
    segment_ids_from_cu_seqlens,
)

Distance = Literal["cosine", "mse", "smooth_l1"]
Reduction = Literal["frame", "token"]


def next_frame_loss(
    predictions: Float[Tensor, "tokens dim"],
    targets: Ragged,
    *,
    distance: Distance = "cosine",
    reduction: Reduction = "frame",
) -> tuple[Float[Tensor, ""], int]:
    """Measure how far predicted features are from the next frame's.

    With ``d`` the distance of one token, the sum is over frames of the mean of ``d``
    over the frame's tokens (``frame``), or over all tokens of ``d`` (``token``).
    No gradient reaches the targets. Computed in float32 or wider.

    The loss of copying, ``next_frame_loss(copies.values, targets)``, gives the skill
    ``1 - loss / copy_loss``: 0 is no better than repeating the frame.

    Args:
        predictions: Predicted features at the tokens of ``NextFramePlan.rows``.
        targets: Features pooled by ``NextFramePlan.targets``, ragged by frame.
        distance: ``cosine`` is 1 - cos; ``mse`` and ``smooth_l1`` are means over the
            channels.
        reduction: ``frame`` weighs every frame alike; ``token`` gives a slow frame
            the weight of its many tokens.

    Returns:
        The sum, and the count to divide it by: frames or tokens. The count is known
        on the host.

    Raises:
        ValueError: If predictions and targets differ in shape, or the distance or the
            reduction is unknown.

    Laws:
        zero_at_target: predicting the target exactly costs nothing, but under
            ``cosine`` a target of zeros, which has no direction, costs 1
        target_detached: the gradient with respect to the targets is zero
        additive: sums and counts of packed clips are those of the clips added up
        cosine_scale_free: a positive factor on predictions changes no cosine loss
        frame_weight: under ``frame`` repeating a frame's tokens changes nothing
        matches_reference: equals the loop-written reference

    Example:
        >>> from fastslow import pack_ragged
        >>> goal = pack_ragged([torch.tensor([[1.0, 0.0]]), torch.eye(2)])
        >>> next_frame_loss(torch.tensor([[0.0, 2.0], [1.0, 0.0], [1.0, 0.0]]), goal)
        (tensor(1.5000), 2)
    """
    goal = targets.values.detach()
    if predictions.shape != goal.shape:
        raise ValueError(
            f"predictions has shape {tuple(predictions.shape)} but targets has "
            f"{tuple(goal.shape)}; each predicted token needs its target"
        )
    wide = torch.promote_types(predictions.dtype, torch.float32)
    distances = _token_distances(predictions.to(wide), goal.to(wide), distance)
    if reduction == "token":
        return distances.sum(), len(distances)
    if reduction != "frame":
        raise ValueError(f"reduction is {reduction!r}; it must be 'frame' or 'token'")
    frame = segment_ids_from_cu_seqlens(targets.cu_seqlens, len(distances))
    weights = lengths_from_cu_seqlens(targets.cu_seqlens).to(wide).reciprocal()
    return (distances * weights[frame]).sum(), len(targets.cu_seqlens) - 1


def _token_distances(predictions: Tensor, goal: Tensor, distance: Distance) -> Tensor:
    """Give the distance of every token to its target."""
    if distance == "cosine":
        return 1 - F.cosine_similarity(predictions, goal, dim=-1)
    if distance == "mse":
        return F.mse_loss(predictions, goal, reduction="none").mean(-1)
    if distance == "smooth_l1":
        return F.smooth_l1_loss(predictions, goal, reduction="none").mean(-1)
    raise ValueError(
        f"distance is {distance!r}; it must be 'cosine', 'mse' or 'smooth_l1'"
    )
