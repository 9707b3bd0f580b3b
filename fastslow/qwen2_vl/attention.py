"""Attention under a layout's mask, registered with transformers.

transformers refuses FlexAttention for Qwen2-VL and builds masks of its own; a function
registered under another name is called with the mask that it is given. Not every
family lets every form of a mask pass as ``attention_mask``, but all of them hand
keyword arguments on to the attention.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.masking_utils import sdpa_mask

from fastslow.attention import interval_attention
from fastslow.block_masks import interval_block_mask
from fastslow.masks import KeyIntervals

ATTENTION_NAME = "fastslow"
"""Name under which transformers knows this attention."""


def mask_for_device(intervals: KeyIntervals) -> KeyIntervals | BlockMask:
    """Read visible intervals in the form that the device computes fastest.

    Args:
        intervals: The keys that each query may read.

    Returns:
        A BlockMask on a GPU; elsewhere, where FlexAttention has no backward pass, the
        intervals themselves. Either is what our attention takes as ``layout_mask``.

    Laws:
        same_pairs: either form reads the pairs of the intervals

    Example:
        >>> import torch
        >>> from fastslow import visible_intervals
        >>> mask_for_device(visible_intervals(torch.arange(2))).stop
        tensor([1, 2], dtype=torch.int32)
    """
    return interval_block_mask(intervals) if intervals.start.is_cuda else intervals


def masked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: KeyIntervals | BlockMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend in the way that the form of the mask asks for.

    FlexAttention takes a BlockMask, tiles of queries take intervals, and SDPA takes a
    boolean mask, which is what transformers makes for calls that bring no layout.

    Args:
        module: The attention module; unused, part of transformers' contract.
        query: ``(batch, heads, tokens, dim)``.
        key: ``(batch, key_heads, tokens, dim)``.
        value: ``(batch, key_heads, tokens, dim)``.
        attention_mask: What each query may read. None is refused, because it would
            silently show every token everything.
        dropout: Must be 0, but under a boolean mask.
        scaling: Factor on the scores; ``dim ** -0.5`` by default.
        others: What else transformers hands on; of it, ``layout_mask`` is used in place
            of ``attention_mask``.

    Returns:
        ``(batch, tokens, heads, dim)``, and None in place of the weights.

    Raises:
        ValueError: If there is no mask, it has another form, or dropout is asked for
            where there is none.
    """
    attention_mask = others.get("layout_mask", attention_mask)
    shared_heads = query.shape[1] != key.shape[1]
    if dropout and isinstance(attention_mask, BlockMask | KeyIntervals):
        raise ValueError(f"dropout is {dropout}; attention under a layout takes none")
    if isinstance(attention_mask, KeyIntervals):
        output = _tiled_attention(query, key, value, attention_mask, scale=scaling)
    elif isinstance(attention_mask, BlockMask):
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
            f"attention_mask is {given}; it must be KeyIntervals, a BlockMask or a "
            "boolean tensor"
        )
    return output.transpose(1, 2).contiguous(), None


_tiled_attention = torch.compiler.disable(interval_attention)
"""Its tiles are planned on the host; torch 2.11 compiles it to wrong gradients."""


def last_hidden_states(
    language_model: nn.Module,
    inputs_embeds: Float[Tensor, "rows tokens hidden"],
    position_ids: Int[Tensor, "axes rows tokens"],
    mask: Any,
    cache: Cache | None,
    **deepstack: Any,
) -> Float[Tensor, "rows tokens hidden"]:
    """Let a language model read embedded tokens under a mask of ours.

    Args:
        language_model: Of a backbone that is wrapped.
        inputs_embeds: What is read.
        position_ids: Positions on all axes.
        mask: What our attention takes as ``layout_mask``.
        cache: Holds what was read before, and takes keys and values.
        deepstack: What deeper layers of Qwen3-VL take.

    Returns:
        The last hidden states.
    """
    hidden: Tensor = language_model(
        None,
        inputs_embeds.new_empty(1, 1, 0, 0),  # a mask of four axes: used as it is
        position_ids,
        cache,  # versions of transformers name it differently
        inputs_embeds=inputs_embeds,
        layout_mask=mask,
        use_cache=cache is not None,
        **deepstack,
    ).last_hidden_state
    return hidden


@cache
def _compiled_flex_attention() -> Any:
    """Compile FlexAttention once for the process."""
    return torch.compile(flex_attention)


def _boolean_causal_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Build transformers' own causal mask for calls that bring no layout."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


AttentionInterface.register(ATTENTION_NAME, masked_attention)
AttentionMaskInterface.register(ATTENTION_NAME, _boolean_causal_mask)
