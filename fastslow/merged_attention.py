"""Frame-causal attention by a kernel that knows no frames: two calls, merged."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastslow.varlen import VarlenPlan


def varlen_attention(
    query: Float[Tensor, "tokens heads dim"],
    key: Float[Tensor, "tokens key_heads dim"],
    value: Float[Tensor, "tokens key_heads dim"],
    plan: VarlenPlan,
    *,
    scale: float | None = None,
) -> Float[Tensor, "tokens heads dim"]:
    """Attend to what a frame-causal row shows, with FlashAttention.

    The causal call of the plan and the one ahead attend by themselves; a query that is
    in both takes the mean of the two outputs, weighted by what each has summed up. The
    backward pass runs each call's own, with the merged output and the merged
    log-sum-exp, and adds the gradients up: softmax over the union of the keys has no
    other terms. Exact, and differentiable once. On a GPU, in half precision, on one
    row; ``interval_attention`` is for the CPU, FlexAttention under
    ``interval_block_mask`` for windows.

    Args:
        query: One vector for each query head and token.
        key: One vector for each key head and token; ``heads`` is a multiple of
            ``key_heads``, and neighbouring query heads share a key head.
        value: One vector for each key head and token.
        plan: Of the row, on the device of ``query``.
        scale: Factor on the scores; ``dim ** -0.5`` by default.

    Returns:
        The weighted means of the values; zero for padding.

    Raises:
        ValueError: If ``query`` is not in half precision on a GPU.

    Laws:
        matches_dense: equals attention under the dense mask of the row:
            ``varlen_attention(q, k, v, plan) == sdpa(q, k, v, m)``
        gradients_match: so do the gradients of query, key and value
        padding: padding gives zero and sends back no gradient: ``out[q] == 0 if
            segment[q] == -1``

    References:
        Dao et al., "FlashAttention" (arXiv:2205.14135), section 3.1 and appendix B;
        Liu et al., "Ring Attention" (arXiv:2310.01889), for attention over parts of the
        keys.
    """
    if not query.is_cuda or query.dtype not in {torch.bfloat16, torch.float16}:
        raise ValueError(
            f"query is {query.dtype} on {query.device}; FlashAttention takes half "
            "precision on a GPU"
        )
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    output: Tensor = _Merged.apply(  # type: ignore[no-untyped-call]
        query, key, value, plan, scale, _Flash()
    )
    return output


@dataclass(frozen=True, kw_only=True)
class _Call:
    """Sequences end to end, and which keys of its sequence a query reads.

    Attributes:
        cu_seqlens: Bounds of the sequences, of queries and keys alike.
        max_seqlen: Tokens of the longest.
        is_ahead: Whether query ``i`` reads keys ``j >= i``, else ``j <= i``.
    """

    cu_seqlens: Int32[Tensor, " bounds"]
    max_seqlen: int
    is_ahead: bool


@runtime_checkable
class _Kernel(Protocol):
    """One varlen call, and its backward pass from a given output and log-sum-exp."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, call: _Call, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Give the output, and the log-sum-exp as ``(heads, tokens)``."""
        ...

    def backward(
        self,
        grad: Tensor,
        tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        call: _Call,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give the gradients, from query, key, value, output and log-sum-exp."""
        ...


class _Flash:
    """FlashAttention, as torch brings it along."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, call: _Call, scale: float
    ) -> tuple[Tensor, Tensor]:
        attend = torch.ops.aten._flash_attention_forward
        bounds, longest = call.cu_seqlens, call.max_seqlen
        left, right = _window(call)
        output, total, *_ = attend(
            *(query, key, value, bounds, bounds, longest, longest),
            *(0.0, not call.is_ahead, False),
            scale=scale,
            window_size_left=left,
            window_size_right=right,
        )
        return output, total

    def backward(
        self,
        grad: Tensor,
        tensors: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        call: _Call,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        attend_back = torch.ops.aten._flash_attention_backward
        bounds, longest = call.cu_seqlens, call.max_seqlen
        left, right = _window(call)
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=grad.device)
        gradients: tuple[Tensor, Tensor, Tensor] = attend_back(
            *(grad, *tensors, bounds, bounds, longest, longest),
            *(0.0, not call.is_ahead, no_dropout, grad.new_empty(0)),
            scale=scale,
            window_size_left=left,
            window_size_right=right,
        )
        return gradients


def _window(call: _Call) -> tuple[int, int]:
    """Give how far a query sees to each side; -1 is without end."""
    return (0, -1) if call.is_ahead else (-1, 0)


def _calls(plan: VarlenPlan) -> tuple[_Call, _Call]:
    """Give both calls of a plan."""
    causal = _Call(
        cu_seqlens=plan.cu_seqlens, max_seqlen=plan.max_seqlen, is_ahead=False
    )
    ahead = _Call(
        cu_seqlens=plan.ahead_cu_seqlens,
        max_seqlen=plan.ahead_max_seqlen,
        is_ahead=True,
    )
    return causal, ahead


class _Merged(torch.autograd.Function):
    """Both calls, of which the second is of the rows that see ahead alone.

    Where a row has no padding, the first call reads it as it lies.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: VarlenPlan,
        scale: float,
        kernel: _Kernel,
    ) -> Tensor:
        causal, ahead = _calls(plan)
        q, k, v = (_take(x, plan) for x in (query, key, value))
        output, total = kernel.forward(q, k, v, causal, scale)
        output, total = _put(output, plan, len(query)), _put_last(total, plan, query)
        if len(plan.ahead_queries):
            rows = plan.ahead_queries
            there, total_there = kernel.forward(
                query[rows], key[plan.ahead_keys], value[plan.ahead_keys], ahead, scale
            )
            here, total_here = output[rows], total[:, rows]
            share = (total_there - total_here).sigmoid().T[..., None]
            merged = torch.lerp(here, there, share.to(here.dtype))
            output.index_copy_(0, rows, merged)
            total.index_copy_(1, rows, torch.logaddexp(total_here, total_there))
        ctx.save_for_backward(query, key, value, output, total)
        ctx.plan, ctx.scale, ctx.kernel = plan, scale, kernel
        return output

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, output, total = ctx.saved_tensors
        plan, kernel = ctx.plan, ctx.kernel
        causal, ahead = _calls(plan)
        of_queries, of_keys = (grad, query, output), (key, value)
        g, q, o = (_take(x, plan) for x in of_queries)
        k, v = (_take(x, plan) for x in of_keys)
        given = q, k, v, o, _take_last(total, plan)
        gradients = kernel.backward(g, given, causal, ctx.scale)
        dq, dk, dv = (_put(x, plan, len(query)) for x in gradients)
        if len(plan.ahead_queries):
            rows, ends = plan.ahead_queries, plan.ahead_keys
            g, q, o = (x[rows] for x in of_queries)
            k, v = (x[ends] for x in of_keys)
            given = q, k, v, o, total[:, rows].contiguous()
            gradients = kernel.backward(g, given, ahead, ctx.scale)
            for whole, places, added in zip(
                (dq, dk, dv), (rows, ends, ends), gradients, strict=True
            ):
                whole.index_copy_(0, places, whole[places] + added)
        return dq, dk, dv, None, None, None


def _take(rows: Tensor, plan: VarlenPlan) -> Tensor:
    """Leave out padding."""
    return rows if len(plan.tokens) == len(rows) else rows[plan.tokens]


def _take_last(columns: Tensor, plan: VarlenPlan) -> Tensor:
    """Leave out padding on the last axis."""
    is_whole = len(plan.tokens) == columns.shape[1]
    return columns if is_whole else columns[:, plan.tokens].contiguous()


def _put(rows: Tensor, plan: VarlenPlan, size: int) -> Tensor:
    """Put zeros where padding was left out."""
    if len(rows) == size:
        return rows
    return rows.new_zeros(size, *rows.shape[1:]).index_copy_(0, plan.tokens, rows)


def _put_last(columns: Tensor, plan: VarlenPlan, like: Tensor) -> Tensor:
    """Put zeros where padding was left out on the last axis."""
    if columns.shape[1] == len(like):
        return columns
    zeros = columns.new_zeros(len(columns), len(like))
    return zeros.index_copy_(1, plan.tokens, columns)
