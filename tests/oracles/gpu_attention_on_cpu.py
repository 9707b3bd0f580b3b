"""Hold the kernel of attention within frames to SDPA, in Triton's interpreter.

``test_gpu_kernels.py`` runs this with ``TRITON_INTERPRET=1``, which has to be set
before Triton is imported.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastslow import cu_seqlens_from_lengths

SIZES = [100, 0, 1, 63, 64, 193, 127, 128]
"""Patches of frames: none, one, whole tiles, tiles that are cut, also by one patch."""


def frame_by_frame(*given: Tensor, scale: float | None) -> Tensor:
    """Attend in one frame after the other."""
    frames = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in frame), scale=scale)
        for frame in zip(*(x.split(SIZES) for x in given), strict=True)
    ]
    return torch.cat([frame.transpose(0, 1) for frame in frames])


def compare(given: list[Tensor], scale: float | None, kernel: Any) -> None:
    """Compare with float32, in which half precision is exact."""
    starts = cu_seqlens_from_lengths(torch.tensor(SIZES))
    found = kernel(*given, starts, max(SIZES), scale)
    wanted = frame_by_frame(*(x.float() for x in given), scale=scale)
    limit = 1e-5 if found.dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.float(), wanted, rtol=limit, atol=limit)


def main(kernel: Any) -> None:
    """Compare for numbers of channels, forms of the inputs, dtypes and scales."""
    torch.manual_seed(0)
    patches = sum(SIZES)
    for channels in (8, 16, 72, 80, 96, 128):
        given = torch.randn(3, patches, 2, channels).unbind()
        compare(list(given), None, kernel)
    for apart in (1, 4):  # channels to the next head, so that few rows are aligned
        given = torch.randn(3, patches, 2, 72 + apart)[..., :72].unbind()
        compare(list(given), None, kernel)
    together = torch.randn(patches, 3, 2, 80)
    compare(list(together.unbind(1)), None, kernel)  # as one projection gives them
    compare(list(together.mT.contiguous().mT.unbind(1)), None, kernel)
    # The interpreter takes bfloat16 for integers when it multiplies matrices.
    compare(list(together.half().unbind(1)), 0.3, kernel)


if __name__ == "__main__":
    from fastslow._gpu_attention import attend_to_frames

    main(attend_to_frames)
