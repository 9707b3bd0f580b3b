"""Frequencies of rotary positions, which no cast may round."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn


def keep_frequencies(backbone: nn.Module) -> None:
    """Let a cast of a backbone leave its rotary frequencies as they are.

    They are buffers, which ``module.to(torch.bfloat16)`` casts with the weights:
    angles of tokens 1,000 apart are then off by up to a radian. ``from_pretrained`` in
    that dtype leaves them in float32.

    Args:
        backbone: One of transformers, of any dtype.

    Raises:
        ValueError: If they have been rounded before.
    """
    for name, module in backbone.named_modules():
        frequencies = getattr(module, "inv_freq", None)
        if isinstance(frequencies, Tensor):
            if frequencies.dtype.itemsize < 4:
                raise ValueError(
                    f"{name}.inv_freq is {frequencies.dtype}, which rounds positions; "
                    "cast a backbone once it is wrapped, or load it in that dtype"
                )
            # Unlike a method, this is pickled and copied with its module.
            rotary: Any = module
            rotary._apply = partial(_cast_nothing, rotary)


def _cast_nothing(
    rotary: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True
) -> nn.Module:
    """Move the buffers of a module, and keep their dtype."""
    exact = dict(rotary.named_buffers(recurse=False))
    type(rotary)._apply(rotary, change, recurse)
    for name, buffer in exact.items():
        changed = rotary.get_buffer(name)
        if changed.dtype != buffer.dtype:
            setattr(rotary, name, buffer.to(changed.device))
    return rotary
