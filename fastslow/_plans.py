"""Plans: integers of the host, which meet tensors on a device."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

P = TypeVar("P")


def integers(values: Sequence[int]) -> Tensor:
    """Make an integer tensor on the host, of an empty sequence too.

    Everything is planned there, whatever torch's default device is.
    """
    return torch.tensor(values, dtype=torch.long, device="cpu")


def to_device(plan: P, device: torch.device | str) -> P:
    """Give a plan whose tensors lie on ``device``.

    Works for every result type of the library: frozen dataclasses of tensors, nested
    or not. Copies to a GPU do not block, so pinned memory is copied while the host goes
    on; those to the host are done when this returns.

    Args:
        plan: A frozen dataclass, or a tensor.
        device: Where the tensors should lie.

    Returns:
        The same plan there; fields that hold no tensors are kept as they are.

    Raises:
        TypeError: If the plan is something else, such as a list of plans.

    Laws:
        lossless: every tensor keeps shape, dtype and values: ``torch.equal(moved.field,
            plan.field)``

    Example:
        >>> from fastslow import plan_pooling, repeat_strides
        >>> plan = plan_pooling([((2, 2), repeat_strides(1, (2,)))])
        >>> to_device(plan, "meta").cells.device
        device(type='meta')
    """
    if not _can_move(plan):
        raise TypeError(
            f"plan is a {type(plan).__name__}; it must be a dataclass, or a tensor"
        )
    moved: P = _moved(plan, torch.device(device))
    return moved


def _moved(plan: Any, device: torch.device) -> Any:
    """Move a tensor, or those of a dataclass."""
    if isinstance(plan, Tensor):
        return plan.to(device, non_blocking=device.type != "cpu")
    moved = {
        field.name: _moved(value, device)
        for field in dataclasses.fields(plan)
        if _can_move(value := getattr(plan, field.name))
    }
    return dataclasses.replace(plan, **moved)


def _can_move(value: object) -> bool:
    """Tell whether a value is a tensor or a dataclass."""
    is_dataclass = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return is_dataclass or isinstance(value, Tensor)
