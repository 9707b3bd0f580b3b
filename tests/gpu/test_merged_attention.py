"""Two calls of FlashAttention, merged, are attention under the dense mask."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastslow import (
    dense_mask,
    frame_causal_mask,
    to_device,
    varlen_attention,
    varlen_plan,
    visible_intervals,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FRAMES = [1] * 37 + [144, 16, 16, 16] * 3 + [1] * 20
ROWS = {
    "one sample": [FRAMES],
    "packed": [FRAMES, [4] * 40, [1, 300, 1], [1]],
    "text": [[1] * 300],
}


def row(samples: list[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Lay out samples by the tokens of their frames, and some padding."""
    ranks = [
        torch.arange(len(frames)).repeat_interleave(torch.tensor(frames))
        for frames in samples
    ]
    segments = [torch.full_like(each, number) for number, each in enumerate(ranks)]
    nothing = torch.zeros(padding, dtype=torch.long)
    return torch.cat([*ranks, nothing]), torch.cat([*segments, nothing - 1])


@pytest.mark.parametrize("padding", [0, 50])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", ROWS)
def test_it_equals_attention_under_the_dense_mask(
    name: str, dim: int, dtype: torch.dtype, padding: int
) -> None:
    ranks, segments = row(ROWS[name], padding)
    tokens = len(ranks)
    generator = torch.Generator().manual_seed(0)
    query, key, value, slopes = (
        torch.randn(tokens, heads, dim, generator=generator).cuda().to(dtype)
        for heads in (8, 2, 2, 8)
    )
    plan = to_device(varlen_plan(visible_intervals(ranks, segments)), "cuda")
    leaves = [x.requires_grad_() for x in (query, key, value)]
    varlen_attention(query, key, value, plan)  # libraries wait when they start
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours = varlen_attention(*leaves, plan)
        found = [ours, *torch.autograd.grad(ours, leaves, slopes)]
    finally:
        torch.cuda.set_sync_debug_mode("default")

    mask = dense_mask(frame_causal_mask(ranks, segments), tokens).cuda()
    wide = [x.detach().double().requires_grad_() for x in leaves]
    dense = scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in wide), attn_mask=mask, enable_gqa=True
    ).transpose(0, 1)
    dense = torch.where((segments >= 0).cuda()[:, None, None], dense, 0)
    expected = [dense, *torch.autograd.grad(dense, wide, slopes.double())]
    for mine, other in zip(found, expected, strict=True):
        error = (mine.double() - other).norm() / other.norm()
        assert error < (1e-2 if dtype is torch.bfloat16 else 2e-3)
        assert not mine[segments.cuda() < 0].any()
