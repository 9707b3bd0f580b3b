"""The vision tower's own plan, and its attention in one call for all frames.

transformers computes what the tower needs to know from ``grid_thw`` on the device,
which waits for it, and calls most kinds of attention once for every frame. The first is
planned here instead; for the second it is told that this attention takes bounds.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float32, Int, Int32
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from fastslow._plans import integers
from fastslow._typing import Grid
from fastslow.qwen2_vl.preprocess import VisionGeometry, normalize_patches
from fastslow.ragged import cu_seqlens_from_lengths

TOWER_ATTENTION_NAME = "fastslow_flash"
"""Name under which transformers knows this attention. What has ``flash`` in its name
is called once, with the bounds of all frames; anything else once for every frame,
which reads the bounds on the host and so ends every compiled graph."""
MOST_CHANNELS = 96
"""Channels of a head that our kernel takes at most. Tiles of more than 112 do not fit
the shared memory of every GPU, those of 256 that of none; towers have 64, 72 or 80."""


@dataclass(frozen=True, kw_only=True)
class TowerPlan:
    """What the tower needs to know of the clips of a row.

    Fields are named as a tower of transformers names its arguments, so that
    ``tower(patches, grid_thw=grid_thw, **vars(plan))`` is the call.

    Attributes:
        position_ids: Row and column of each patch, in the order of ``patchify_clip``.
        cu_seqlens: Cumulative number of patches, frame by frame.
        max_seqlen: Patches of the largest frame, known on the host.
    """

    position_ids: Int[Tensor, "patches 2"]
    cu_seqlens: Int32[Tensor, " frame_bounds"]
    max_seqlen: int


@dataclass(frozen=True, kw_only=True)
class WindowedTowerPlan(TowerPlan):
    """What a tower needs to know that attends in square windows, as Qwen2.5-VL's does.

    Windows are smaller at the far edges of a frame. The tower takes its tokens window
    by window; windows and their tokens are in raster order.

    Attributes:
        window_index: Number in raster order, through all frames of all clips, of each
            merged token as the tower takes it.
        cu_window_seqlens: Cumulative number of patches, window by window.
        max_window_seqlen: Patches of the largest window, known on the host.
    """

    window_index: Int[Tensor, " merged"]
    cu_window_seqlens: Int32[Tensor, " window_bounds"]
    max_window_seqlen: int


@dataclass(frozen=True, kw_only=True)
class ResampledTowerPlan(TowerPlan):
    """What a tower needs to know that learnt its positions, as Qwen3-VL's did.

    They are a square table, which is resampled to the grid of each frame.

    Attributes:
        interp_indices: The four entries of the table around each patch.
        interp_weights: Share of each in the patch's position; the shares of a patch add
            up to 1.
    """

    interp_indices: Int[Tensor, "patches 4"]
    interp_weights: Float32[Tensor, "patches 4"]


def plan_tower(
    runs: Sequence[tuple[int, Grid]],
    *,
    merge_size: int = 2,
    window: int | None = None,
    table_side: int | None = None,
) -> TowerPlan:
    """Plan the tower's call for all clips of a row.

    Args:
        runs: Frames, and height and width in merged tokens, of each run of frames on
            one grid.
        merge_size: Patches along each side of a merged token.
        window: Side of the windows that the tower attends in, in merged tokens; None
            if it attends within whole frames.
        table_side: Side of the table of positions that the tower learnt; None if it
            has none. No tower has both.

    Returns:
        The plan, on the CPU; with windows, a ``WindowedTowerPlan``, with a table, a
        ``ResampledTowerPlan``.

    Laws:
        matches_transformers: positions, bounds and the largest frame, order, bounds
            and the largest window, entries and shares of a table are those that
            transformers computes

    Example:
        >>> plan_tower([(2, (1, 1))]).cu_seqlens
        tensor([0, 4, 8], dtype=torch.int32)
    """
    grids = [(t, (h * merge_size, w * merge_size)) for t, (h, w) in runs]
    every = {sides for _, sides in grids}
    planes = {sides: _frame_positions(sides, merge_size) for sides in every}
    positions = [torch.empty(0, 2, dtype=torch.long, device="cpu")]
    positions += [planes[sides].repeat(frames, 1) for frames, sides in grids]
    sizes = [prod(sides) for frames, sides in grids for _ in range(frames)]
    plan = TowerPlan(
        position_ids=torch.cat(positions),
        cu_seqlens=cu_seqlens_from_lengths(integers(sizes)),
        max_seqlen=max(sizes, default=0),
    )
    if window is not None:
        return _add_windows(plan, runs, merge_size, window)
    if table_side is not None:
        return _add_table(plan, grids, merge_size, table_side)
    return plan


def _frame_positions(sides: Grid, merge_size: int) -> Tensor:
    """Give row and column of one frame's patches, merged token by merged token."""
    rows_and_columns = [torch.arange(side, device="cpu") for side in sides]
    plane = torch.stack(torch.meshgrid(*rows_and_columns, indexing="ij"))
    return rearrange(plane, "c (h m) (w n) -> (h w m n) c", m=merge_size, n=merge_size)


def _add_windows(
    plan: TowerPlan, runs: Sequence[tuple[int, Grid]], merge_size: int, window: int
) -> WindowedTowerPlan:
    """Cut every frame into windows."""
    orders, sizes, first = [integers([])], [integers([])], 0
    known = {grid: _frame_windows(grid, window) for grid in {grid for _, grid in runs}}
    for frames, grid in runs:
        order, tokens = known[grid]
        starts = first + len(order) * torch.arange(frames, device="cpu")
        orders.append((starts[:, None] + order).flatten())
        sizes.append(tokens.repeat(frames))
        first += frames * len(order)
    patches = torch.cat(sizes) * merge_size**2
    return WindowedTowerPlan(
        **vars(plan),
        window_index=torch.cat(orders),
        cu_window_seqlens=cu_seqlens_from_lengths(patches),
        max_window_seqlen=max(patches.tolist(), default=0),
    )


def _frame_windows(grid: Grid, window: int) -> tuple[Tensor, Tensor]:
    """Give one frame's tokens window by window, and how many each window has."""
    height, width = grid
    row = torch.arange(height, device="cpu")[:, None]
    column = torch.arange(width, device="cpu")
    per_row = -(-width // window)
    numbers = (row // window * per_row + column // window).flatten()
    return numbers.argsort(stable=True), torch.bincount(numbers)


def _add_table(
    plan: TowerPlan,
    grids: Sequence[tuple[int, Grid]],
    merge_size: int,
    table_side: int,
) -> ResampledTowerPlan:
    """Resample the table to every frame, as transformers does it."""
    indices, weights = [integers([]).reshape(0, 4)], [torch.empty(0, 4, device="cpu")]
    known = {}
    for frames, sides in grids:
        if sides not in known:
            one = torch.tensor([(1, *sides)], device="cpu")
            known[sides] = get_vision_interpolation_indices_and_weights(
                one, table_side, align_corners=True, spatial_merge_size=merge_size
            )
        entries, shares = known[sides]
        indices.append(entries.repeat(frames, 1))
        weights.append(shares.repeat(frames, 1))
    return ResampledTowerPlan(
        **vars(plan),
        interp_indices=torch.cat(indices),
        interp_weights=torch.cat(weights),
    )


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
    starts = bounds["cu_seq_lens_q"]
    attended: Any
    q, k, v = (rearrange(x, "1 h n d -> n h d") for x in (query, key, value))
    if query.is_cpu or query.dtype not in {torch.bfloat16, torch.float16}:
        attended = _attend_by_size(q, k, v, starts, scaling)
    elif _has_our_kernel(q, k, v):
        attended = _attend_on_gpu(q, k, v, starts, bounds["max_length_q"], scaling)
    else:
        most = bounds["max_length_q"]
        attended = varlen_attn(q, k, v, starts, starts, most, most, scale=scaling)
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
    starts: Tensor,
    most: int,
    scale: float | None,
) -> Tensor:
    """Attend by a kernel that has no backward pass; compilers leave it whole."""
    from fastslow._gpu_attention import attend_to_frames  # noqa: PLC0415

    return attend_to_frames(query, key, value, starts, most, scale)


@_attend_on_gpu.register_fake
def _(query: Tensor, *_: Any) -> Tensor:
    return query.new_empty(query.shape)


def _attend_by_size(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scaling: float | None
) -> Tensor:
    """Attend in one batch for each run of frames of one size."""
    batches, first = [], 0
    for length, run in groupby(starts.diff().tolist()):
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
