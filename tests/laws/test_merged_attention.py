"""Laws of ``fastslow.merged_attention``, with plain sums in place of its kernel."""

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastslow import (
    dense_mask,
    frame_causal_mask,
    varlen_attention,
    varlen_plan,
    visible_intervals,
)
from fastslow.merged_attention import _Call, _Merged
from fastslow.testing import strategies as fst

Row = fst.Row

PADDED = (torch.tensor([0, 0, 1, 1, 2, 0, 0]), torch.tensor([-1, 3, 3, 3, 3, -1, 5]))
ALL_PADDING = (torch.tensor([0, 0]), torch.tensor([-1, -1]))
ONE_FRAME = (torch.tensor([4, 4, 4]), torch.tensor([0, 0, 0]))
SINGLES = (torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]))
HEADS, KEY_HEADS, DIM, SCALE = 4, 2, 3, 0.4


class Plain:
    """What FlashAttention states of one call, sequence by sequence in float64."""

    def weights(
        self, query: Tensor, key: Tensor, call: _Call, total: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Give the shares of all keys, as ``(heads, queries, keys)``, and their sums.

        Shares are of the sums that are given, as a backward pass computes them.
        """
        bounds = call.cu_seqlens.tolist()
        tokens = torch.arange(len(query))
        sequence = torch.searchsorted(call.cu_seqlens[1:].long(), tokens, right=True)
        visible = sequence[:, None] == sequence
        order = torch.ge if call.is_ahead else torch.le
        visible &= order(tokens, tokens[:, None])
        assert bounds[-1] == len(query)
        assert call.max_seqlen == max(b - a for a, b in pairwise(bounds))
        repeated = key.repeat_interleave(HEADS // KEY_HEADS, 1)
        scores = torch.einsum("qhd,khd->hqk", query, repeated) * SCALE
        scores = scores.masked_fill(~visible, -torch.inf)
        found = scores.logsumexp(-1) if total is None else total
        return (scores - found[..., None]).exp(), found

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, call: _Call, scale: float
    ) -> tuple[Tensor, Tensor]:
        assert scale == SCALE
        if not len(query):
            return query.clone(), query.new_zeros(HEADS, 0)
        shares, total = self.weights(query, key, call)
        repeated = value.repeat_interleave(HEADS // KEY_HEADS, 1)
        return torch.einsum("hqk,khd->qhd", shares, repeated), total

    def backward(
        self,
        grad: Tensor,
        tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        call: _Call,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, output, total = tensors
        if not len(query):
            return query.clone(), key.clone(), value.clone()
        shares, _ = self.weights(query, key, call, total)
        groups = HEADS // KEY_HEADS
        k, v = (x.repeat_interleave(groups, 1) for x in (key, value))
        mean = (grad * output).sum(-1).T[..., None]
        slopes = shares * (torch.einsum("qhd,khd->hqk", grad, v) - mean) * scale
        dk = torch.einsum("hqk,qhd->khd", slopes, query)
        dv = torch.einsum("hqk,qhd->khd", shares, grad)
        dk, dv = (x.unflatten(1, (KEY_HEADS, groups)).sum(2) for x in (dk, dv))
        return torch.einsum("hqk,khd->qhd", slopes, k), dk, dv


def problem(row: Row, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Attend in two merged calls and under the dense mask; give outputs, gradients."""
    tokens = len(row[0])
    generator = torch.Generator().manual_seed(seed)
    inputs = [
        torch.randn(tokens, heads, DIM, generator=generator, dtype=torch.float64)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)
    ]
    *leaves, slopes = inputs
    leaves = [leaf.requires_grad_() for leaf in leaves]
    plan = varlen_plan(visible_intervals(*row))
    ours = _Merged.apply(*leaves, plan, SCALE, Plain())
    is_real = (row[1] >= 0)[:, None, None]
    expected = scaled_dot_product_attention(
        *(leaf.transpose(0, 1) for leaf in leaves),
        attn_mask=dense_mask(frame_causal_mask(*row), tokens),
        scale=SCALE,
        enable_gqa=True,
    ).transpose(0, 1)
    found = []
    for output in (ours, torch.where(is_real, expected, 0)):
        gradients = torch.autograd.grad(output, leaves, slopes)
        found.append([output.detach(), *gradients])
    return found[0], found[1]


@given(fst.ranked_rows(), fst.seeds())
@example(PADDED, 0)
@example(ALL_PADDING, 0)
@example(ONE_FRAME, 0)
@example(SINGLES, 0)
def test_varlen_attention__matches_dense(row: Row, seed: int) -> None:
    ours, expected = problem(row, seed)
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-10, atol=1e-12)


@given(fst.ranked_rows(), fst.seeds())
@example(PADDED, 0)
@example(ONE_FRAME, 0)
@example(SINGLES, 0)
def test_varlen_attention__gradients_match(row: Row, seed: int) -> None:
    ours, expected = problem(row, seed)
    for mine, other in zip(ours[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@given(fst.ranked_rows(), fst.seeds())
@example(PADDED, 0)
@example(ALL_PADDING, 0)
def test_varlen_attention__padding(row: Row, seed: int) -> None:
    ours, _ = problem(row, seed)
    for found in ours:
        assert not found[row[1] < 0].any()


def test_the_kernel_takes_half_precision_on_a_gpu() -> None:
    query = torch.zeros(3, 1, 2)
    plan = varlen_plan(visible_intervals(*ONE_FRAME))
    with pytest.raises(ValueError) as error:
        varlen_attention(query, query, query, plan)
    assert str(error.value) == (
        "query is torch.float32 on cpu; FlashAttention takes half precision on a GPU"
    )
