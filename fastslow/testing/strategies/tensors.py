"""Clips and values."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from fastslow.testing.strategies.schedules import grids, stride_lists


def seeds() -> st.SearchStrategy[int]:
    """Draw a seed for a ``torch.Generator``."""
    return st.integers(0, 2**32 - 1)


def float_tensors(
    shape: Sequence[int], *, dtype: torch.dtype = torch.float32
) -> st.SearchStrategy[Float[Tensor, "..."]]:
    """Draw a tensor of normal values; only its seed is drawn.

    Args:
        shape: Shape of the tensor.
        dtype: Floating type; values are drawn in float32 and float64 alone.
    """
    return seeds().map(lambda seed: random_values(shape, seed=seed, dtype=dtype))


def clips(
    *,
    max_side: int = 5,
    max_frames: int = 4,
    dim: int = 3,
    dtype: torch.dtype = torch.float64,
) -> st.SearchStrategy[tuple[Float[Tensor, "frames height width dim"], list[int]]]:
    """Draw the tokens of a clip and one stride per frame."""
    return st.builds(
        lambda grid, frames, seed: (
            random_values((len(frames), *grid, dim), seed=seed, dtype=dtype),
            frames,
        ),
        grids(max_side=max_side),
        stride_lists(max_size=max_frames),
        seeds(),
    )


def random_values(
    shape: Sequence[int], *, seed: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "..."]:
    """Give normal values that depend on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    return torch.randn(tuple(shape), generator=generator, dtype=wide).to(dtype)
