"""Cross entropy of the labelled rows, which alone meet the vocabulary."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fastslow._once import once_differentiable
from fastslow._shapes import check_axes
from fastslow.loss_plans import LabelPlan

_CHUNK_BYTES = 2**28

_NO_TARGET = torch.iinfo(torch.int64).min
"""A target that is passed over; all others have to be words."""


def labelled_cross_entropy(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocabulary hidden"],
    plan: LabelPlan,
) -> tuple[Float[Tensor, ""], int]:
    """Measure how surprising the labels are, without the logits of unlabelled rows.

    The labelled rows are gathered first. Where their logits in float32 pass 256 MiB
    they are made a chunk of rows at a time, and in the backward pass once more, a chunk
    of words at a time, so that they take no more whatever the number of labels. Logits
    have the dtype of ``hidden``, or of autocast, as those of a linear layer; all that
    follows is float32 or wider. What is made in chunks is differentiable once, not by
    ``torch.func``.

    Args:
        hidden: Last hidden states of a packed row.
        weight: The output layer's weight, whole on this device, in the dtype of
            ``hidden``.
        plan: Labelled rows and their targets, on the device of ``hidden``; as
            ``to_device(plan_labels(layout), device)`` gives it.

    Returns:
        The sum over the labelled rows, and their number, known on the host. Without
        labels the sum is 0 and still reaches both gradients, so that ranks agree on
        the collectives that they run.

    Raises:
        ValueError: If hidden or weight has other axes, they differ in width or dtype,
            or the plan's rows and targets in number.
        NotImplementedError: If the backward pass of what is made in chunks is to have a
            graph.

    Laws:
        matches_cross_entropy: forward and both gradients are those of
            ``F.cross_entropy`` on all logits, with -100 where there is no label: ``loss
            == F.cross_entropy(hidden @ W.T, labels, reduction='sum')``
        chunk_free: how many logits are made at a time changes nothing
        no_labels: without labels the sum is 0 and both gradients are zeros: ``sum == 0,
            d sum / d hidden == d sum / d W == 0``
        additive: sums and counts of packed rows are those of the rows added up:
            ``loss(a ++ b) == loss(a) + loss(b)``
        matches_reference: equals the loop-written reference

    Example:
        >>> plan = LabelPlan(rows=torch.tensor([1]), targets=torch.tensor([0]))
        >>> labelled_cross_entropy(torch.zeros(3, 2), torch.ones(4, 2), plan)
        (tensor(1.3863), 1)

    References:
        Hsu et al., "Liger Kernel" (arXiv:2410.10989): FusedLinearCrossEntropy,
        which goes by chunks of rows too and forms the gradient on the way forward.
    """
    check_axes("hidden", hidden, "tokens", "hidden")
    check_axes("weight", weight, "vocabulary", "hidden")
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden has {hidden.shape[1]} channels but weight has {weight.shape[1]}; "
            "each logit is their product"
        )
    if len(plan.rows) != len(plan.targets):
        raise ValueError(
            f"plan has {len(plan.rows)} rows but {len(plan.targets)} targets; each "
            "labelled row has one"
        )
    given = f"hidden is {hidden.dtype} but weight is {weight.dtype}"
    labelled, weight = map(_narrowed, (hidden.index_select(0, plan.rows), weight))
    if labelled.dtype != weight.dtype:
        raise ValueError(
            f"{given}; both must have one dtype, or ones that autocast narrows to one"
        )
    targets = plan.targets.long()
    chunks = _count_chunks(len(labelled), len(weight))
    if chunks == 1:
        logits = _logits(labelled, weight)
        total = F.cross_entropy(
            logits, targets, reduction="sum", ignore_index=_NO_TARGET
        )
    else:
        total = _ChunkedCrossEntropy.apply(labelled, weight, targets, chunks)
    return total, len(labelled)


def _narrowed(factor: Tensor) -> Tensor:
    """Give a factor in the dtype in which autocast, where it is on, takes products."""
    device = factor.device.type
    if factor.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return factor
    if not torch.is_autocast_enabled(device):
        return factor
    return factor.to(torch.get_autocast_dtype(device))


def _count_chunks(labelled: int, vocabulary: int) -> int:
    """Count the chunks of rows whose logits in float32 fit the bound."""
    most = max(_CHUNK_BYTES // (4 * max(vocabulary, 1)), 1)
    return max(-(-labelled // most), 1)


def _logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """Give the scores of all words, in float32 or wider."""
    logits = hidden @ weight.T
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Summed cross entropy; the backward pass makes all logits once more."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunks: int
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        normalizers = hidden.new_empty(len(hidden), dtype=wide)
        total = hidden.new_zeros((), dtype=wide)
        for chunk in _cut(len(hidden), chunks):
            logits = _logits(hidden[chunk], weight)
            scores = logits.gather(1, targets[chunk, None])[:, 0]
            highest = logits.amax(1, keepdim=True)
            weights = logits.sub_(highest).exp_().sum(1)
            normalizers[chunk] = weights.log_().add_(highest[:, 0])
            total += (normalizers[chunk] - scores).sum()
            del logits  # before those of the next chunk are made
        ctx.save_for_backward(hidden, weight, targets, normalizers)
        ctx.chunks = chunks
        return total

    @staticmethod
    @once_differentiable(of="labelled_cross_entropy")
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets, normalizers = ctx.saved_tensors
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        hidden_grad = weight_grad = None
        if for_hidden:
            hidden_grad = torch.zeros_like(hidden, dtype=normalizers.dtype)
        if for_weight:
            weight_grad = torch.empty_like(weight)
        # By words, not by rows: a sum over rows in half precision is rounded once.
        for words in _cut(len(weight), ctx.chunks):
            slopes = _logits(hidden, weight[words])
            slopes = slopes.sub_(normalizers[:, None]).exp_()
            word = targets[:, None] - words.start
            is_here = (word >= 0) & (word < slopes.shape[1])
            word = word.clamp(0, slopes.shape[1] - 1)
            slopes.scatter_add_(1, word, -is_here.to(slopes.dtype))
            slopes = slopes.mul_(grad).to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad += slopes @ weight[words]
            if weight_grad is not None:
                weight_grad[words] = slopes.T @ hidden
            del slopes
        if hidden_grad is not None:
            hidden_grad = hidden_grad.to(hidden.dtype)
        return hidden_grad, weight_grad, None, None


def _cut(items: int, chunks: int) -> Iterator[slice]:
    """Cut items into at most so many runs of one size."""
    size = max(-(-items // chunks), 1)
    return (slice(start, start + size) for start in range(0, items, size))
