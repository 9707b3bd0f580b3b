"""Learning rates and gradient norms."""

import math

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def warmup_cosine(step: int, *, peak: float, warmup: int, total: int) -> float:
    """Warm up linearly, then follow a cosine to zero.

    Args:
        step: Optimizer step, from 1 to ``total``.
        peak: Learning rate at the end of the warm-up.
        warmup: Steps of the warm-up, at least 0.
        total: Steps of the run.

    Returns:
        The learning rate of the step.

    Example:
        >>> [warmup_cosine(s, peak=1.0, warmup=2, total=4) for s in (1, 2, 3, 4)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if step <= warmup:
        return peak * step / warmup
    return peak * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def clip_gradients(model: nn.Module, max_norm: float) -> float:
    """Scale the gradients of a sharded model down to a bound.

    Args:
        model: A root module sharded with ``fully_shard``.
        max_norm: Largest norm of all gradients together that is let through.

    Returns:
        The norm that they had, the same on every rank.

    Raises:
        FloatingPointError: If the norm is not finite.
    """
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    assert isinstance(norm, DTensor)
    value = norm.full_tensor().item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the gradient norm is {value}; it must be finite")
    return value
