"""The tensors of plans: listed, compared and changed."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def tensors(plan: object, name: str = "plan") -> Iterator[tuple[str, Tensor]]:
    """List the tensors of a plan by path."""
    if isinstance(plan, Tensor):
        yield name, plan
    elif dataclasses.is_dataclass(plan):
        for field in dataclasses.fields(plan):
            yield from tensors(getattr(plan, field.name), f"{name}.{field.name}")


def assert_equal(found: object, expected: object) -> None:
    """Hold two results against each other, down to the devices of their tensors."""
    if isinstance(expected, list | tuple):
        assert isinstance(found, list | tuple)
        for each, other in zip(found, expected, strict=True):
            assert_equal(each, other)
    elif dataclasses.is_dataclass(expected) or isinstance(expected, Tensor):
        there = dict(tensors(expected))
        for name, tensor in tensors(found):
            assert tensor.device == there[name].device
            assert torch.equal(tensor, there.pop(name))
        assert not there
    else:
        assert found == expected


def with_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Change every tensor of a value or of a dataclass, nested or not."""
    if isinstance(value, Tensor):
        return change(value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    changed = {
        field.name: with_tensors(change, getattr(value, field.name))
        for field in dataclasses.fields(value)
    }
    return dataclasses.replace(value, **changed)
