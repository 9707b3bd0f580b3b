"""Attention under a layout's mask, registered with transformers.

transformers refuses FlexAttention for Qwen2-VL and builds masks of its own; a function
registered under another name is called with the mask that it is given.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from fastslow.block_masks import interval_block_mask
from fastslow.masks import KeyIntervals, dense_mask, interval_mask

ATTENTION_NAME = "fastslow"
"""Name under which transformers knows this attention."""


def attention_mask(intervals: KeyIntervals) -> Tensor | BlockMask:
    """Read visible intervals in the form that the device computes fastest.

    Args:
        intervals: The keys that each query may read.

    Returns:
        A BlockMask on a GPU; elsewhere, where FlexAttention has no backward pass, a
        boolean mask of shape ``(1, 1, tokens, tokens)``.
    """
    start = intervals.start
    if start.is_cuda:
        return interval_block_mask(intervals)
    rule = interval_mask(intervals)
    return dense_mask(rule, len(start), device=start.device)[None, None]


def masked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend under a BlockMask with FlexAttention, under a boolean mask with SDPA.

    Args:
        module: The attention module; unused, part of transformers' contract.
        query: ``(batch, heads, tokens, dim)``.
        key: ``(batch, key_heads, tokens, dim)``.
        value: ``(batch, key_heads, tokens, dim)``.
        attention_mask: What each query may read. None is refused, because it would
            silently show every token everything.
        dropout: Must be 0 under a BlockMask.
        scaling: Factor on the scores; ``dim ** -0.5`` by default.

    Returns:
        ``(batch, tokens, heads, dim)``, and None in place of the weights.

    Raises:
        ValueError: If there is no mask, it is not boolean, or FlexAttention is asked
            for dropout.
    """
    shared_heads = query.shape[1] != key.shape[1]
    if isinstance(attention_mask, BlockMask):
        if dropout:
            raise ValueError(f"dropout is {dropout}; FlexAttention takes none")
        attend = _compiled_flex_attention() if query.is_cuda else flex_attention
        output = attend(
            query,
            key,
            value,
            block_mask=attention_mask,
            scale=scaling,
            enable_gqa=shared_heads,
        )
    elif attention_mask is not None and attention_mask.dtype == torch.bool:
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=shared_heads,
        )
    else:
        given = None if attention_mask is None else attention_mask.dtype
        raise ValueError(
            f"attention_mask is {given}; it must be a BlockMask or a boolean tensor"
        )
    return output.transpose(1, 2).contiguous(), None


@cache
def _compiled_flex_attention() -> Any:
    """Compile FlexAttention once for the process."""
    return torch.compile(flex_attention)


def _boolean_causal_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Build transformers' own causal mask for calls that bring no layout."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(ATTENTION_NAME, masked_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _boolean_causal_mask)
