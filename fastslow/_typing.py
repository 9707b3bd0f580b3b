"""Types that several rooms share."""

from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

Grid = tuple[int, int]
"""``(height, width)`` of one frame, in tokens."""

_F = TypeVar("_F", bound=Callable[..., object])


@runtime_checkable
class MaskMod(Protocol):
    """A FlexAttention rule: may query ``q_idx`` read key ``kv_idx``?

    The four arguments are integer tensors that broadcast against each other;
    the answer is a boolean tensor of their common shape.
    """

    def __call__(
        self, batch: Tensor, head: Tensor, q_idx: Tensor, kv_idx: Tensor, /
    ) -> Tensor:
        """Answer for every broadcast element."""
        ...


def no_type_check(function: _F) -> _F:
    """Keep run-time type checkers away from ``function``.

    The jaxtyping import hook leaves alone whatever carries a decorator of this
    name. A ``mask_mod`` needs that: FlexAttention counts its positional arguments.
    """
    return function
