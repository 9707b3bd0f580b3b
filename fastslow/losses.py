"""Losses as (sum, count): divided once, by the count over the whole optimizer step."""

from collections.abc import Callable
from functools import cache
from inspect import unwrap
from types import FunctionType
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor

from fastslow._once import once_differentiable
from fastslow._shapes import check_axes, check_type, check_word
from fastslow.ragged import (
    Ragged,
    lengths_from_cu_seqlens,
    segment_ids_from_cu_seqlens,
)

Distance = Literal["cosine", "mse", "smooth_l1", "l1", "mse+cosine"]
Reduction = Literal["frame", "token", "video"]

LEAST_NORM = 1e-8
"""Norm that a vector has at least when its cosine is taken, as torch's own has."""

ROUNDING = 16
"""Units in the last place of 1 by which the cosine of what stands still may be off."""


def next_frame_loss(
    predictions: Float[Tensor, "tokens dim"],
    targets: Ragged,
    *,
    distance: Distance = "cosine",
    reduction: Reduction = "frame",
    normalize_targets: bool = False,
    weights: Float[Tensor, " tokens"] | None = None,
    cu_videos: Int32[Tensor, " video_bounds"] | None = None,
) -> tuple[Float[Tensor, ""], int | Float[Tensor, ""]]:
    """Measure how far predicted features are from the next frame's.

    Let ``d`` be the distance of a token and ``w`` its weight. The sum is a reduction of
    ``w d`` and the count the same reduction of ``w``: over all tokens (``token``), over
    frames of the mean over their tokens (``frame``), or over videos of the mean over
    their frames of that mean (``video``). So sums and counts of clips, ranks and
    micro-batches add up, and the quotient is a weighted mean.

    No gradient reaches targets or weights. Computed in float32 or wider, some rows at
    a time; on a GPU each pass is one graph, which the first call compiles. So beside
    the gradient, little of the predictions' size is held. It is differentiable once,
    not by ``torch.func``.

    Near zero a cosine is as steep as its vector is short, here as in torch: a head that
    begins with weights of zero gives gradients of 1e8.

    The loss of copying, ``next_frame_loss(copies.values, targets)``, gives the skill
    ``1 - loss / copy_loss``, see ``copy_skill``.

    Args:
        predictions: Predicted features, pooled by ``NextFramePlan.predictions``.
        targets: Features pooled by ``NextFramePlan.targets``, ragged by frame.
        distance: ``cosine`` is 1 - cos; ``mse``, ``l1`` and ``smooth_l1``, which is
            quadratic up to 1, are means over the channels; ``mse+cosine`` adds the two.
        reduction: ``frame`` weighs every frame alike, ``token`` gives a slow frame the
            weight of its many tokens, ``video`` weighs every video alike.
        normalize_targets: Whether each target is first brought to mean 0 and variance
            1 over its channels, as ``layer_norm`` does: it adds 1e-5 to the variance.
        weights: Weight of each token, at least 0, such as ``change_weights`` gives; 1
            by default.
        cu_videos: Cumulative number of frames of each video, as in ``NextFramePlan``;
            ``video`` needs it. That it ends with the number of frames is not checked,
            since that would wait for a GPU.

    Returns:
        The sum, and the count to divide it by. Without weights the count is a number of
        tokens, frames or videos, known on the host; with weights it is a tensor.

    Raises:
        ValueError: If targets are no ``Ragged``, predictions have other axes, the
            shapes of predictions, targets and weights do not agree, the distance or
            the reduction is unknown, or ``video`` comes without ``cu_videos``.
        NotImplementedError: If the backward pass is to have a graph.

    Laws:
        zero_at_target: predicting the target exactly costs nothing, but where a cosine
            is taken of a target of zeros, which has no direction, it costs 1: ``loss(y,
            y) == 0``
        target_detached: the gradient with respect to targets and weights is zero:
            ``dL/dtargets == dL/dweights == 0``
        additive: sums and counts of packed clips are those of the clips added up:
            ``loss(a ++ b) == loss(a) + loss(b)``
        cosine_scale_free: a positive factor on predictions changes no cosine loss:
            ``loss(c * x, y) == loss(x, y) if c > 0``
        normalized: under ``normalize_targets`` scale and offset of a target are free,
            as long as its variance is far above 1e-5: ``loss(x, a * y + b) == loss(x,
            y) if a > 0``
        frame_weight: under ``frame`` repeating a frame's tokens changes nothing
        constant_weights: equal weights do not change the quotient, where every frame
            and video holds a token: ``sum(weights=c) / count(weights=c) == sum() /
            count()``
        weight_zero: finite tokens of weight 0 might as well not be there under
            ``token``: ``loss(x, y, w) == loss(x[w > 0], y[w > 0], w[w > 0])``
        matches_reference: equals the loop-written reference: ``loss(x, y) ==
            reference.next_frame_loss(x, y)``

    Example:
        >>> from fastslow import pack_ragged
        >>> goal = pack_ragged([torch.tensor([[1.0, 0.0]]), torch.eye(2)])
        >>> next_frame_loss(torch.tensor([[0.0, 2.0], [1.0, 0.0], [1.0, 0.0]]), goal)
        (tensor(1.5000), 2)

    References:
        Assran et al., "V-JEPA 2" (arXiv:2506.09985), section 3: ``l1`` on normalised
        targets. Yang et al., "Cambrian-S" (arXiv:2511.04670): ``mse+cosine``.
    """
    check_type("targets", targets, Ragged, "a Ragged, as pool_tokens gives")
    check_axes("predictions", predictions, "tokens", "dim")
    goal = targets.values.detach()
    if predictions.shape != goal.shape:
        raise ValueError(
            f"predictions has shape {tuple(predictions.shape)} but targets has "
            f"{tuple(goal.shape)}; each predicted token needs its target"
        )
    check_word("distance", distance, Distance)
    wide = torch.promote_types(predictions.dtype, torch.float32)
    factors, count = _token_factors(targets, reduction, cu_videos, wide)
    if weights is not None:
        if weights.shape != factors.shape:
            raise ValueError(
                f"weights has shape {tuple(weights.shape)} but there are "
                f"{len(factors)} tokens; each token has one weight"
            )
        factors = factors * weights.detach()
        count = factors.sum()
    if torch.compiler.is_compiling():
        total = _weighted_sum(predictions, goal, factors, distance, normalize_targets)
    else:
        total = _SummedDistance.apply(
            predictions, goal, factors, distance, normalize_targets
        )
    return total, count


def change_weights(
    copies: Float[Tensor, "tokens dim"], targets: Float[Tensor, "tokens dim"]
) -> Float[Tensor, " tokens"]:
    """Weigh each token by how much it changes from its frame to the next.

    ``1 - cos`` of what the frame itself and the next one show in the token's window:
    what stands still weighs nothing, so that copying it is not rewarded. Where all
    stands still, the sum and the count of ``next_frame_loss`` are both 0.

    Args:
        copies: Features pooled by ``NextFramePlan.copies``: the ``values`` alone.
        targets: Features pooled by ``NextFramePlan.targets``: the ``values`` alone.

    Returns:
        A weight between 0 and 2 for each token, without gradient, in float32 or wider;
        0 where the change is one of rounding.

    Raises:
        ValueError: If the two differ in shape, or have other axes.

    Laws:
        still: features that only change in scale weigh nothing, not even what rounding
            leaves, where they are 0 or longer than 1e-8: ``change_weights(x, c * x) ==
            0 if c > 0``
        symmetric: both directions of time weigh the same: ``change_weights(x, y) ==
            change_weights(y, x)``
        bounds: between 0 and 2; opposite features weigh 2: ``0 <= 1 - cos(x, y) <= 2``

    Example:
        >>> change_weights(torch.eye(2), torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
        tensor([0., 1.])
    """
    check_axes("copies", copies, "tokens", "dim")
    check_axes("targets", targets, "tokens", "dim")
    if copies.shape != targets.shape:
        raise ValueError(
            f"copies has shape {tuple(copies.shape)} but targets has "
            f"{tuple(targets.shape)}; each token has both"
        )
    weigh = _for_device(_changes, copies)
    return weigh(copies.detach(), targets.detach())


def _token_factors(
    targets: Ragged, reduction: str, cu_videos: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, int | Tensor]:
    """Give the share of each token in the reduction, and the sum of all shares."""
    tokens = len(targets.values)
    ones = torch.ones(tokens, dtype=dtype, device=targets.values.device)
    if reduction == "token":
        return ones, tokens
    check_word("reduction", reduction, Reduction)
    frames = len(targets.cu_seqlens) - 1
    shares = lengths_from_cu_seqlens(targets.cu_seqlens).to(dtype).reciprocal()
    count = frames
    if reduction == "video":
        if cu_videos is None:
            raise ValueError("reduction 'video' needs cu_videos, the frames per video")
        video = segment_ids_from_cu_seqlens(cu_videos, frames)
        shares = shares / lengths_from_cu_seqlens(cu_videos).to(dtype)[video]
        count = len(cu_videos) - 1
    return shares[segment_ids_from_cu_seqlens(targets.cu_seqlens, tokens)], count


def _distances(predictions: Tensor, goal: Tensor, distance: str) -> Tensor:
    """Give the distance of every token to its target."""
    if distance == "cosine":
        # Graphs of F.cosine_similarity write normalised targets out, in float32.
        products = (predictions * goal).sum(-1)
        return 1 - products / (_norms(predictions) * _norms(goal))
    if distance == "mse+cosine":
        squares = _distances(predictions, goal, "mse")
        return squares + _distances(predictions, goal, "cosine")
    measure = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}
    return measure[distance](predictions, goal, reduction="none").mean(-1)


def _norms(vectors: Tensor) -> Tensor:
    """Give the norm of each vector, not so small that it could not divide."""
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return norms.clamp_min(LEAST_NORM)


def _slopes(predictions: Tensor, goal: Tensor, distance: str) -> Tensor:
    """Give the gradient of every token's distance with respect to its prediction."""
    if distance == "mse+cosine":
        squares = _slopes(predictions, goal, "mse")
        return squares + _slopes(predictions, goal, "cosine")
    if distance == "cosine":
        norms = _norms(predictions).unsqueeze(-1)
        ahead, goal = predictions / norms, goal / _norms(goal).unsqueeze(-1)
        # The least norm is a constant.
        along = (ahead * goal).sum(-1, keepdim=True) * (norms > LEAST_NORM)
        return (along * ahead - goal) / norms
    apart = predictions - goal
    if distance == "mse":
        return apart * (2 / apart.shape[-1])
    steps = apart.sign() if distance == "l1" else apart.clamp(-1, 1)
    return steps / apart.shape[-1]


def _widened(
    predictions: Tensor, goal: Tensor, dtype: torch.dtype, normalize: bool
) -> tuple[Tensor, Tensor]:
    """Bring both to the dtype that computes, and targets to what is predicted."""
    predictions, goal = predictions.to(dtype), goal.to(dtype)
    return predictions, F.layer_norm(goal, goal.shape[-1:]) if normalize else goal


def _weighted_sum(
    predictions: Tensor, goal: Tensor, factors: Tensor, distance: str, normalize: bool
) -> Tensor:
    """Add up the weighted distances of all tokens, in the dtype of their factors."""
    total = factors.new_zeros(())
    for rows in _runs(len(predictions)):
        wide = _widened(predictions[rows], goal[rows], factors.dtype, normalize)
        # No matrix product: autocast would take it in half precision.
        total += (_distances(*wide, distance) * factors[rows]).sum()
    return total


def _gradient(
    predictions: Tensor,
    goal: Tensor,
    factors: Tensor,
    upstream: Tensor,
    distance: str,
    normalize: bool,
) -> Tensor:
    """Give the gradient of the sum, times the one that comes from above."""
    gradient = torch.empty_like(predictions)
    for rows in _runs(len(predictions)):
        wide = _widened(predictions[rows], goal[rows], factors.dtype, normalize)
        share = (factors[rows] * upstream).unsqueeze(-1)
        gradient[rows] = _slopes(*wide, distance) * share
    return gradient


def _changes(copies: Tensor, targets: Tensor) -> Tensor:
    """Give the cosine distance of every token, from 0 to 2."""
    wide = torch.promote_types(copies.dtype, torch.float32)
    changes = [copies.new_empty(0, dtype=wide)]
    for rows in _runs(len(copies)):
        before, after = copies[rows].to(wide), targets[rows].to(wide)
        change = _distances(before, after, "cosine")
        is_rounding = change < ROUNDING * torch.finfo(wide).eps
        is_dark = ~(before.any(-1) | after.any(-1))  # zeros have no direction
        changes.append(change.masked_fill(is_rounding | is_dark, 0))
    return torch.cat(changes).clamp(max=2)


def _runs(tokens: int) -> list[slice]:
    """Cut the rows into at most 36 runs of at least 64; what is compiled needs one.

    From 2,304 rows on, what a run widens is then at most half as large as predictions
    in half precision, whatever the distance.
    """
    if torch.compiler.is_compiling():
        return [slice(0, tokens)]
    size = max(64, -(-tokens // 36))
    return [slice(first, first + size) for first in range(0, tokens, size)]


@cache
def _compiled(function: Callable[..., Tensor], *settings: Any) -> Callable[..., Tensor]:
    """Compile a pass, once for its settings and any number of rows.

    torch makes eight graphs of one code object and compiles nothing after those, so
    other settings get a copy of it: eight for each, by dtype and device.
    """
    given: Any = unwrap(function)
    own = FunctionType(given.__code__.replace(), given.__globals__)
    compiled = torch.compile(own, dynamic=True)
    return lambda *tensors: compiled(*tensors, *settings)


def _for_device(
    function: Callable[..., Tensor], rows: Tensor, *settings: Any
) -> Callable[..., Tensor]:
    """Compile a pass for a GPU; no row, and one, would each be compiled anew."""
    if rows.is_cuda and len(rows) > 1 and not torch.compiler.is_compiling():
        return _compiled(function, *settings)
    return lambda *tensors: function(*tensors, *settings)


class _SummedDistance(torch.autograd.Function):
    """Weighted sum of distances that holds nothing but what it is given."""

    @staticmethod
    def forward(
        ctx: Any, predictions: Tensor, goal: Tensor, factors: Tensor, *settings: Any
    ) -> Tensor:
        ctx.save_for_backward(predictions, goal, factors)
        ctx.settings = settings
        add_up = _for_device(_weighted_sum, predictions, *settings)
        return add_up(predictions.detach(), goal, factors)

    @staticmethod
    @once_differentiable(of="next_frame_loss")
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        predictions, goal, factors = ctx.saved_tensors
        differentiate = _for_device(_gradient, predictions, *ctx.settings)
        gradient = differentiate(predictions.detach(), goal, factors, upstream)
        return gradient, None, None, None, None
