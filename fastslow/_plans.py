"""Plans: integers of the host, which meet tensors on a device."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

P = TypeVar("P")


def integers(values: Sequence[int]) -> Tensor:
    """Make an integer tensor on the host, of an empty sequence too.

    Everything is planned there, whatever torch's default device is.
    """
    return torch.tensor(values, dtype=torch.long, device="cpu")


def booleans(values: Sequence[bool]) -> Tensor:
    """Make a boolean tensor on the host, as ``integers`` does."""
    return torch.tensor(values, dtype=torch.bool, device="cpu")


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
    to = torch.device(device)
    moved: P = _changed(plan, lambda part: part.to(to, non_blocking=to.type != "cpu"))
    return moved


def pin_memory(plan: P) -> P:
    """Give a plan whose tensors lie in page-locked memory, which needs a GPU.

    A copy from there to the GPU does not make the host wait. Nor does the plan take
    shared memory any longer where a worker of a ``DataLoader`` made it, which hands
    over every tensor as an open file.

    Args:
        plan: As ``to_device`` takes it, on the host.

    Returns:
        The same plan there.

    Raises:
        TypeError: As ``to_device`` does.

    Laws:
        lossless: every tensor keeps shape, dtype and values:
            ``torch.equal(pinned.field, plan.field)``

    Example:
        >>> from fastslow import plan_pooling, repeat_strides
        >>> plan = plan_pooling([((2, 2), repeat_strides(1, (2,)))])
        >>> pin_memory(plan).cells.is_pinned()  # doctest: +SKIP
        True
    """
    pinned: P = _changed(plan, Tensor.pin_memory)
    return pinned


def _changed(plan: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change a tensor, or those of a dataclass."""
    if isinstance(plan, Tensor):
        return change(plan)
    if not _has_tensors(plan):
        raise TypeError(
            f"plan is a {type(plan).__name__}; it must be a dataclass, or a tensor"
        )
    changed = {
        field.name: _changed(value, change)
        for field in dataclasses.fields(plan)
        if _has_tensors(value := getattr(plan, field.name))
    }
    return dataclasses.replace(plan, **changed)


def _has_tensors(value: object) -> bool:
    """Tell whether a value is a tensor or a dataclass."""
    is_dataclass = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return is_dataclass or isinstance(value, Tensor)
