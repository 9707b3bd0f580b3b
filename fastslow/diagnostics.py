"""Numbers that show whether a next-frame head has learned more than to copy."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fastslow._shapes import check_axes


def copy_skill(loss: float, copy_loss: float) -> float:
    """Compare a next-frame loss with that of repeating the frame.

    Args:
        loss: Mean loss of the predictions, at least 0.
        copy_loss: Mean loss of predicting that nothing changes, at least 0.

    Returns:
        ``1 - loss / copy_loss``: 1 is perfect, 0 no better than a copy, below 0 worse.
        Where nothing changes there is nothing to beat, and it is not a number.

    Laws:
        ends: a loss of 0 gives 1, that of copying gives 0: ``copy_skill(0, c) == 1,
            copy_skill(c, c) == 0``
        scale_free: a common factor changes nothing: ``copy_skill(a * x, a * c) ==
            copy_skill(x, c)``
        falls: a larger loss never gives a larger skill: ``copy_skill(y, c) <=
            copy_skill(x, c) if x <= y``

    Example:
        >>> copy_skill(0.2, 0.8)
        0.75
    """
    return 1 - loss / copy_loss if copy_loss else math.nan


def effective_rank(features: Float[Tensor, "tokens dim"]) -> Float[Tensor, ""]:
    """Count the directions that features really use.

    The exponential of the entropy of the singular values, taken as shares of their
    sum. Predictions that collapse fall to 1, whatever their scale. Computed in float64
    from the products of the shorter side with itself.

    Args:
        features: One vector for each token; at least one is not zero. Not centred.

    Returns:
        A number between 1 and the smaller side, in float64, without gradient; 1 where
        there is no vector, not a number where a feature is none.

    Raises:
        ValueError: If ``features`` has other axes.

    Laws:
        bounds: between 1 and the smaller of both sides: ``1 <= r <= min(n, d)``
        scale_free: a factor changes nothing: ``r(a * X) == r(X)``
        rotation_free: nor does a rotation of the channels: ``r(X @ Q) == r(X) if Q.T @
            Q == eye``
        orthogonal: n orthogonal vectors of one length use n directions: ``r(X) == n if
            X @ X.T == a * eye``
        collapsed: multiples of one vector use 1: ``r(u[:, None] * v) == 1``
        matches_svd: equals the definition on the singular values themselves: ``r ==
            exp(-sum(p * log(p))), p = s / sum(s)``

    Example:
        >>> effective_rank(torch.eye(4)[:3])
        tensor(3.0000, dtype=torch.float64)

    References:
        Roy and Vetterli, "The effective rank: a measure of effective dimensionality"
        (EUSIPCO 2007), section 2.
    """
    check_axes("features", features, "tokens", "dim")
    rows = features.detach().double()
    if rows.shape[0] > rows.shape[1]:
        rows = rows.mT
    if not rows.isfinite().all():  # for which the eigenvalues do not converge
        return rows.new_tensor(torch.nan)
    values = torch.linalg.eigvalsh(rows @ rows.mT).clamp(min=0).sqrt()
    shares = values / values.sum()
    entropy: Tensor = torch.special.entr(shares).sum()
    return entropy.exp()


def direction_spread(features: Float[Tensor, "tokens dim"]) -> Float[Tensor, ""]:
    """Tell how far vectors point in different directions.

    ``1 - |m|^2`` with ``m`` the mean of the vectors, each brought to length 1: the mean
    over all pairs of 1 minus their cosine, a vector's pair with itself included. Linear
    in tokens and channels, so it can be watched at every step.

    Args:
        features: One vector for each token, none of them zero.

    Returns:
        A number between 0 and 1, in float32 or wider, without gradient; 0 where there
        is no vector.

    Raises:
        ValueError: If ``features`` has other axes.

    Laws:
        bounds: between 0 and 1, up to rounding: ``0 <= s <= 1``
        scale_free: a positive factor for each vector changes nothing: ``s(a[:, None] *
            X) == s(X)``
        rotation_free: nor does a rotation of the channels: ``s(X @ Q) == s(X) if Q.T @
            Q == eye``
        orthogonal: n orthogonal vectors spread by ``s(X) == 1 - 1 / n``
        collapsed: positive multiples of one vector do not spread: ``s(u[:, None] * v)
            == 0``
        matches_pairs: equals the mean over all pairs: ``s == mean(1 - cos(x, y))``

    Example:
        >>> direction_spread(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        tensor(0.5000)
    """
    check_axes("features", features, "tokens", "dim")
    rows = features.detach()
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if not len(rows):
        return rows.new_zeros(())
    mean = torch.nn.functional.normalize(rows, dim=-1).mean(0)
    return 1 - mean.square().sum()
