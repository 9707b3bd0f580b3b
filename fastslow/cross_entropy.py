"""Cross entropy on the rows that are trained, and on no other."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fastslow.loss_plans import LabelPlan

_PLAIN_BYTES = 2**29
"""Logits in float32 up to this size are held at once; more are computed in chunks."""


def labelled_cross_entropy(
    hidden: Float[Tensor, "tokens dim"],
    weight: Float[Tensor, "vocabulary dim"],
    plan: LabelPlan,
) -> tuple[Float[Tensor, ""], int]:
    """Add up the cross entropy of the tokens that are trained.

    Only the rows that predict a trained token meet the vocabulary: with 6 % of the
    tokens labelled that is 6 % of the logits. Where these still are many, torch takes
    them in chunks (from torch 2.13; before, they are held at once). Computed in
    float32 or wider.

    Args:
        hidden: Last hidden states of a row.
        weight: Weight of the language model's head.
        plan: Which rows predict which token.

    Returns:
        The sum, and the number of tokens to divide it by. Without a label the sum is 0
        and its gradients are zeros, so that every rank takes part in every collective.

    Laws:
        matches_full: equals cross entropy over all logits with the other labels
            ignored, gradients included
        additive: sums and counts of two plans are those of both together
        chunk_free: whether the logits are held at once changes nothing
        no_labels: without a label the sum and all gradients are 0

    Example:
        >>> plan = LabelPlan(rows=torch.tensor([1]), targets=torch.tensor([0]))
        >>> labelled_cross_entropy(torch.zeros(3, 2), torch.zeros(4, 2), plan)
        (tensor(1.3863), 1)

    References:
        Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models"
        (arXiv:2411.09009), section 4.3: filtering rows, and chunks of the vocabulary.
    """
    rows = hidden[plan.rows]
    wide = torch.promote_types(rows.dtype, torch.float32)
    logits_bytes = len(rows) * len(weight) * wide.itemsize
    if logits_bytes > _PLAIN_BYTES and hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions(acc_policy="accurate")
        total = F.linear_cross_entropy(
            rows, weight, plan.targets, reduction="sum", options=options
        )
        return total.to(wide), len(rows)
    logits = F.linear(rows, weight).to(wide)
    return F.cross_entropy(logits, plan.targets, reduction="sum"), len(rows)
