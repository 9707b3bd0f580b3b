"""What is asked of shapes where nothing checks annotations."""

from torch import Tensor


def check_axes(name: str, tensor: Tensor, *axes: str) -> None:
    """Raise unless a tensor has these axes; those of one name are equally long."""
    found = tuple(tensor.shape)
    lengths = dict(zip(axes, found, strict=False))
    if found != tuple(lengths.get(axis) for axis in axes):
        raise ValueError(f"{name} has shape {found}; it must be ({', '.join(axes)})")
