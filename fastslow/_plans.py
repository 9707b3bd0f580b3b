"""Plans: integers of the host, which meet tensors on a device."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar, cast

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
        plan: A frozen dataclass.
        device: Where the tensors should lie.

    Returns:
        The same plan there; fields that hold no tensors are kept as they are.

    Laws:
        lossless: every tensor keeps shape, dtype and values: ``torch.equal(moved.field,
            plan.field)``

    Example:
        >>> from fastslow import plan_pooling, repeat_strides
        >>> plan = plan_pooling([((2, 2), repeat_strides(1, (2,)))])
        >>> to_device(plan, "meta").cells.device
        device(type='meta')
    """
    if isinstance(plan, Tensor):
        to_host = torch.device(device).type == "cpu"
        return cast(P, plan.to(device, non_blocking=not to_host))
    if not dataclasses.is_dataclass(plan) or isinstance(plan, type):
        return plan
    moved = {
        field.name: to_device(getattr(plan, field.name), device)
        for field in dataclasses.fields(plan)
    }
    return dataclasses.replace(plan, **moved)
