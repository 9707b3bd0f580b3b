"""Weighted sums of bags of rows on a GPU, in one pass over its memory.

``embedding_bag`` reaches a fifth of a copy's bandwidth on an H100, this kernel nine
tenths. Triton comes with torch on GPUs, and FlexAttention needs it as well; only code
that has a GPU's tensor in its hands imports this module.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastslow._typing import no_type_check

LONGEST_BLOCK = 4096
"""Channels that one program adds up at most."""


def sum_bags_on_gpu(
    rows: Tensor, entries: Tensor, starts: Tensor, weights: Tensor
) -> Tensor:
    """Add up bags of weighted rows, in float32 or wider, and round once.

    Args:
        rows: ``(rows, channels)``, on a GPU.
        entries: Rows of bag 0, then those of bag 1, and so on.
        starts: First entry of each bag; a bag may be empty.
        weights: Factor of each entry, in any precision.

    Returns:
        ``(bags, channels)`` in the dtype of ``rows``.
    """
    rows = rows.contiguous()
    channels = rows.shape[1]
    sums = rows.new_empty(len(starts), channels)
    if not sums.numel():
        return sums
    block = min(triton.next_power_of_2(channels), LONGEST_BLOCK)
    with torch.cuda.device_of(rows):  # a kernel is launched on the current device
        _sum_bags[(len(starts), triton.cdiv(channels, block))](
            rows,
            entries,
            starts,
            weights,
            sums,
            len(entries),
            len(starts),
            channels,
            is_wide=rows.element_size() == 8,
            block=block,
            num_warps=8 if block > 2048 else 4,
        )
    return sums


@triton.jit(do_not_specialize=["num_entries", "num_bags"])  # rows share one kernel
@no_type_check
def _sum_bags(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    rows,
    entries,
    starts,
    weights,
    sums,
    num_entries,
    num_bags,
    channels,
    is_wide: tl.constexpr,
    block: tl.constexpr,
):
    """Add up some channels of one bag."""
    bag = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    exists = channel < channels
    wide = tl.float64 if is_wide else tl.float32
    total = tl.zeros([block], wide)
    end = tl.load(starts + bag + 1, mask=bag + 1 < num_bags, other=num_entries)
    for entry in range(tl.load(starts + bag), end):
        row = tl.load(entries + entry).to(tl.int64)
        values = tl.load(rows + row * channels + channel, mask=exists, other=0)
        total += values.to(wide) * tl.load(weights + entry).to(wide)
    tl.store(
        sums + bag * channels + channel,
        total.to(sums.dtype.element_ty),
        mask=exists,
    )
