"""The vision tower's first product, and its attention in one call for all frames.

transformers calls most kinds of attention once for every frame; it is told that this
one takes bounds.
"""

from copy import deepcopy
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from fastslow.qwen2_vl.preprocess import VisionGeometry, normalize_patches

TOWER_ATTENTION_NAME = "fastslow_flash"
"""Name under which transformers knows this attention. What has ``flash`` in its name
is called once, with the bounds of all frames; anything else once for every frame,
which reads the bounds on the host and so ends every compiled graph."""
MOST_CHANNELS = 96
"""Channels of a head that our kernel takes at most. Tiles of more than 112 do not fit
the shared memory of every GPU, those of 256 that of none; towers have 64, 72 or 80."""


def prepare_tower(tower: nn.Module, geometry: VisionGeometry) -> None:
    """Let a tower take bytes, embed them by one product, and attend to all frames.

    A patch is as large as the kernel of the convolution that embeds it, so that is a
    product of matrices, which GPUs do many times faster.

    Args:
        tower: Of transformers' models; its weights and their names stay.
        geometry: How pixels became patches.

    Raises:
        ValueError: If something else stands in the place of that convolution.
    """
    patch_embed: Any = tower.patch_embed
    convolution = patch_embed.proj
    if not isinstance(convolution, nn.Conv3d):
        raise ValueError(
            f"patch_embed.proj is a {type(convolution)}; it must be torch's own "
            "convolution: adapters are put in once the model is wrapped"
        )
    patch_embed.register_forward_pre_hook(partial(_normalize_bytes, geometry))
    # Unlike a method of another name, this is pickled and copied with its module.
    patch_embed.proj.forward = partial(_multiply, patch_embed.proj)
    patch_embed.register_forward_hook(_copy_view)
    # A model that is asked for such a name looks for a package that brings the kernel,
    # so the tower alone learns it, and the model's configuration stays what it was.
    before: Any = tower.config
    config = deepcopy(before)
    config._attn_implementation = TOWER_ATTENTION_NAME
    for module in tower.modules():
        if getattr(module, "config", None) is before:
            module.config = config


def _normalize_bytes(
    geometry: VisionGeometry, _: nn.Module, given: tuple[Tensor]
) -> tuple[Tensor]:
    """Normalise patches on the way in, unless that is done."""
    (patches,) = given
    if patches.dtype == torch.uint8:
        patches = normalize_patches(patches, geometry)
    return (patches,)


def _copy_view(_: nn.Module, __: Any, embedded: Tensor) -> Tensor:
    """Give a tensor of its own: blocks that are compiled ask for the base of a view."""
    return embedded.clone()


def _multiply(convolution: nn.Conv3d, patches: Tensor) -> Tensor:
    """Multiply patches, each as large as the kernel, by it."""
    kernel = convolution.weight.flatten(1)
    embedded = F.linear(patches.flatten(1), kernel, convolution.bias)
    return embedded[:, :, None, None, None]


def attend_within_frames(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **bounds: Any,
) -> tuple[Tensor, None]:
    """Let the patches of each frame see each other, all frames in one call.

    On a GPU in half precision that is one kernel for frames of any sizes: our own where
    no gradient is asked for, torch's ``varlen_attn`` in training and for heads of more
    than ``MOST_CHANNELS``. Elsewhere frames of one size that stand together are one
    batch, which reads the bounds on the host.

    Args:
        module: The attention module; unused, part of transformers' contract.
        query: ``(1, heads, patches, dim)``.
        key: As ``query``.
        value: As ``query``.
        attention_mask: None.
        dropout: Must be 0.
        scaling: Factor on the scores; ``dim ** -0.5`` by default.
        bounds: What transformers hands on; of it ``cu_seq_lens_q`` and
            ``max_length_q`` are used, the cumulative number of patches by frame, and
            the most.

    Returns:
        ``(1, patches, heads, dim)``, and None in place of the weights.

    Raises:
        ValueError: If dropout is asked for.
    """
    if dropout:
        raise ValueError(f"dropout is {dropout}; attention within frames takes none")
    cu_seqlens, max_seqlen = bounds["cu_seq_lens_q"], bounds["max_length_q"]
    attended: Any
    q, k, v = (rearrange(x, "1 h n d -> n h d") for x in (query, key, value))
    if query.is_cpu or query.dtype not in {torch.bfloat16, torch.float16}:
        attended = _attend_by_size(q, k, v, cu_seqlens, scaling)
    elif _has_our_kernel(q, k, v):
        attended = _attend_on_gpu(q, k, v, cu_seqlens, max_seqlen, scaling)
    else:
        attended = varlen_attn(
            q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, scale=scaling
        )
    return attended[None], None


def _has_our_kernel(*given: Tensor) -> bool:
    """Whether no gradient is asked for, of heads that are narrow enough."""
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    return not trains and given[0].shape[-1] <= MOST_CHANNELS


@torch.library.custom_op("fastslow::attend_to_frames", mutates_args=())
def _attend_on_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None,
) -> Tensor:
    """Attend by a kernel that has no backward pass; compilers leave it whole."""
    from fastslow._gpu_attention import attend_to_frames  # noqa: PLC0415

    return attend_to_frames(query, key, value, cu_seqlens, max_seqlen, scale)


@_attend_on_gpu.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape)


def _attend_by_size(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scaling: float | None
) -> Tensor:
    """Attend in one batch for each run of frames of one size."""
    batches, first = [], 0
    for length, run in groupby(cu_seqlens.diff().tolist()):
        end = first + len(list(run)) * length
        q, k, v = (
            rearrange(x[first:end], "(t n) h d -> t h n d", n=length)
            for x in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, scale=scaling)
        batches.append(rearrange(attended, "t h n d -> (t n) h d"))
        first = end
    return torch.cat(batches)


AttentionInterface.register(TOWER_ATTENTION_NAME, attend_within_frames)
