"""Learning rates, gradient norms, and steps that are better not taken."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from recipes.edge.ranks.distributed import World, sum_over_ranks
from recipes.edge.weights.shards import local_part


def warmup_cosine(step: int, *, peak: float, warmup: int, total: int) -> float:
    """Warm up linearly, then follow a cosine that is zero a step after the last.

    Args:
        step: Optimizer step, from 1 to ``total``.
        peak: Learning rate at the end of the warm-up.
        warmup: Steps of the warm-up, at least 0.
        total: Steps of the run.

    Returns:
        The learning rate of the step.

    Example:
        >>> steps = {"peak": 1.0, "warmup": 2, "total": 4}
        >>> rates = [warmup_cosine(step, **steps) for step in (1, 2, 3, 4)]
        >>> [round(rate, 2) for rate in rates]
        [0.5, 1.0, 0.75, 0.25]
    """
    if step <= warmup:
        return peak * step / warmup
    share = (step - warmup) / (total - warmup + 1)
    return peak * (1 + math.cos(math.pi * share)) / 2


def build_optimizer(
    model: nn.Module, *, weight_decay: float, fused: bool
) -> torch.optim.AdamW:
    """Make the optimizer of everything that trains.

    Args:
        model: Its parameters on the device where they are updated.
        weight_decay: Decay of matrices; norms and biases have none.
        fused: Whether all parameters are updated in one kernel.

    Returns:
        AdamW with betas of 0.9 and 0.95. Its learning rate is set with every step.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in trained if w.ndim > 1], "weight_decay": weight_decay},
        {"params": [w for w in trained if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=(0.9, 0.95),
        fused=fused,
    )


def clip_gradients(model: nn.Module, max_norm: float, world: World) -> float:
    """Scale the gradients of a sharded model down to a bound.

    Each rank adds up its own shards, and ``sum_over_ranks`` adds up those of all; what
    several ranks hold counts once. So the norm is the same on every rank to the last
    bit, also where the model is replicated or its gradients live in host memory.

    Args:
        model: A root module, sharded with ``fully_shard`` over all ranks.
        max_norm: Largest norm of all gradients together that is let through; 0 lets all
            through.
        world: The ranks; all call this together.

    Returns:
        The norm that they had, the same on every rank. If it is not finite, the
        gradients are left alone: ``count_skipped`` says what to do.
    """
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    squares = sum_over_ranks({"squares": _sum_of_squares(gradients)}, world)
    norm = math.sqrt(squares["squares"])
    if math.isfinite(norm) and norm > max_norm > 0:
        shards = [local_part(gradient) for gradient in gradients]
        torch._foreach_mul_(shards, max_norm / norm)
    return norm


@dataclass(frozen=True, kw_only=True)
class SkippedSteps:
    """Optimizer steps that were not taken because their gradients were not finite.

    Attributes:
        in_a_row: How many since the last step that was taken; 0 lets the optimizer
            take this one.
        total: How many in the whole run.
    """

    in_a_row: int = 0
    total: int = 0


def count_skipped(norm: float, skipped: SkippedSteps) -> SkippedSteps:
    """Decide whether to take a step.

    Every rank decides by the same norm, so all take the step or none does.

    Args:
        norm: What ``clip_gradients`` returned.
        skipped: What was skipped before this step.

    Returns:
        What is skipped with this step; it is to be taken if ``in_a_row`` is 0.

    Example:
        >>> skipped = count_skipped(math.inf, SkippedSteps())
        >>> skipped
        SkippedSteps(in_a_row=1, total=1)
        >>> count_skipped(0.5, skipped)
        SkippedSteps(in_a_row=0, total=1)
    """
    if math.isfinite(norm):
        return SkippedSteps(total=skipped.total)
    return SkippedSteps(in_a_row=skipped.in_a_row + 1, total=skipped.total + 1)


def refuse_to_skip_on(skipped: SkippedSteps, *, most_in_a_row: int) -> None:
    """Stop a run that only skips, once its last step is on record.

    Args:
        skipped: What was skipped so far.
        most_in_a_row: Steps that may be skipped one after the other, at least 0.

    Raises:
        FloatingPointError: If more are.
    """
    if skipped.in_a_row > most_in_a_row:
        raise FloatingPointError(
            f"the gradients were not finite in {skipped.in_a_row} steps in a row; "
            f"max_skipped_steps is {most_in_a_row}: go on from a checkpoint before the "
            "first of them with a smaller learning_rate, or look for the sample that "
            "causes them"
        )


def _sum_of_squares(gradients: Sequence[Tensor]) -> float:
    """Add up this rank's part of the squares of all gradients, in float64."""
    by_copies: dict[int, list[Tensor]] = {}
    for gradient in gradients:
        by_copies.setdefault(_count_copies(gradient), []).append(local_part(gradient))
    return sum(
        torch.nn.utils.get_total_norm(shards).double().square().item() / copies
        for copies, shards in by_copies.items()
    )


def _count_copies(gradient: Tensor) -> int:
    """Count the ranks that hold each entry of a gradient."""
    assert isinstance(gradient, DTensor)
    sizes = zip(gradient.device_mesh.shape, gradient.placements, strict=True)
    return math.prod(size for size, place in sizes if isinstance(place, Replicate))
