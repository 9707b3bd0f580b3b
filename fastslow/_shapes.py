"""What is asked of arguments where nothing checks annotations."""

from collections.abc import Iterable, Sequence
from operator import index
from typing import Any, get_args

from torch import Tensor


def check_axes(name: str, tensor: Tensor, *axes: str) -> None:
    """Raise unless a tensor has these axes; those of one name are equally long."""
    wanted = f"({', '.join(axes)})"
    check_type(name, tensor, Tensor, f"a tensor {wanted}")
    found = tuple(tensor.shape)
    lengths = dict(zip(axes, found, strict=False))
    if found != tuple(lengths.get(axis) for axis in axes):
        raise ValueError(f"{name} has shape {found}; it must be {wanted}")


def check_type(name: str, value: object, kind: Any, wanted: str) -> None:
    """Raise unless a value is of a type."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} is a {type(value).__name__}; it must be {wanted}")


def check_word(name: str, word: str, words: Any) -> None:
    """Raise unless a word is one of those of a Literal."""
    if word not in get_args(words):
        known = ", ".join(get_args(words))
        raise ValueError(f"{name} is {word!r}; it must be one of {known}")


def check_whole(name: str, value: int) -> None:
    """Raise unless a value is a whole number, from 0 on."""
    try:
        is_whole = index(value) >= 0
    except TypeError:
        is_whole = False
    if not is_whole:
        raise ValueError(f"{name} is {value}; it must be a whole number, from 0 on")


def whole_numbers(name: str, values: Iterable[int]) -> tuple[int, ...]:
    """Give whole numbers as integers; raise unless they are that, from 0 on."""
    try:
        values = tuple(values)
    except TypeError:  # of a tensor without axes too
        said = f"{name} is {values}; it must hold whole numbers, from 0 on"
        raise ValueError(said) from None
    try:
        whole = tuple(map(index, values))
    except TypeError:
        whole = (-1,)
    if min(whole, default=0) < 0:
        for number, value in enumerate(values):
            check_whole(f"{name}[{number}]", value)
    return whole


def check_flags(name: str, flags: Iterable[bool]) -> None:
    """Raise unless all are true or false: a score counts as neither."""
    for number, flag in enumerate(flags):
        if flag not in (0, 1):
            raise ValueError(f"{name}[{number}] is {flag}; it must be true or false")


def check_grid(grid: Sequence[int]) -> None:
    """Raise unless a grid has two sides."""
    if not (hasattr(grid, "__len__") and len(grid) == 2):
        raise ValueError(f"grid is {grid}; it must hold a height and a width")
