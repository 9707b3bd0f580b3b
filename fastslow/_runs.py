"""Runs of equal values along a row."""

import torch
from torch import Tensor


def starts_run(values: Tensor) -> Tensor:
    """Mark every value that differs from the one before, and the first."""
    is_new = torch.ones(len(values), dtype=torch.bool, device=values.device)
    is_new[1:] = values[1:] != values[:-1]
    return is_new
