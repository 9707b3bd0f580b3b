"""What is asked of arguments where nothing checks annotations."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from numbers import Real
from operator import index
from reprlib import repr as brief
from typing import Any, Literal, get_args

import torch
from torch import Tensor


def check_axes(name: str, tensor: Tensor, *axes: str) -> None:
    """Raise unless a tensor has these axes; those of one name are equally long."""
    wanted = f"({', '.join(axes)})"
    check_type(name, tensor, Tensor, f"a tensor {wanted}")
    found = tuple(tensor.shape)
    lengths = dict(zip(axes, found, strict=False))
    if found != tuple(lengths.get(axis) for axis in axes):
        raise ValueError(f"{name} has shape {found}; it must be {wanted}")


Kind = Literal["integers", "floats", "booleans"]


def check_dtype(name: str, tensor: Tensor, kind: Kind) -> None:
    """Raise unless a tensor holds numbers of a kind."""
    if tensor.dtype == torch.bool:
        found = "booleans"
    elif tensor.is_floating_point():
        found = "floats"
    else:
        found = "complex" if tensor.is_complex() else "integers"
    if found != kind:
        raise ValueError(f"{name} is {tensor.dtype}; it must hold {kind}")


def check_type(name: str, value: object, kind: Any, wanted: str) -> None:
    """Raise unless a value is of a type."""
    if not isinstance(value, kind):
        found = type(value).__name__
        article = "an" if found[0] in "aeiou" else "a"
        raise ValueError(f"{name} is {article} {found}; it must be {wanted}")


def check_word(name: str, word: str, words: Any) -> None:
    """Raise unless a word is one of those of a Literal."""
    if word not in get_args(words):
        known = ", ".join(get_args(words))
        raise ValueError(f"{name} is {word!r}; it must be one of {known}")


def check_whole(name: str, value: int) -> None:
    """Raise unless a value is a whole number, from 0 on."""
    try:
        is_whole = whole_number(name, value) >= 0
    except ValueError:
        is_whole = False
    if not is_whole:
        said = f"{name} is {_shown(value)}; it must be a whole number, from 0 on"
        raise ValueError(said)


def whole_number(name: str, value: int) -> int:
    """Give a whole number as an integer; raise unless it is one, or if it is a flag.

    What a compiler calls the size of an axis stays a symbol.
    """
    if type(value) in (int, torch.SymInt):
        return value
    try:
        number = None if type(value) is bool else index(value)
    except TypeError:
        number = None
    if number is None:
        raise ValueError(f"{name} is {_shown(value)}; it must be a whole number")
    return number


def positive(name: str, value: int) -> int:
    """Give a whole number as an integer; raise unless it is one, from 1 on."""
    number = whole_number(name, value)
    if number < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
    return number


def whole_numbers(
    name: str, values: Iterable[int], count: int | None = None
) -> tuple[int, ...]:
    """Give whole numbers as integers; raise unless they are that, from 0 on.

    Args:
        name: What they are called.
        values: The numbers; those of an array too.
        count: How many there must be; any number by default.
    """
    try:
        values = tuple(entries(values))
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
    if count is not None and len(whole) != count:
        raise ValueError(f"{name} is {whole}; it must hold {count} numbers")
    return whole


def exact_ratio(name: str, ratio: float | Fraction) -> Fraction:
    """Read a share as a fraction, a float as one of a small denominator that rounds.

    Args:
        name: What it is called.
        ratio: The share; raises unless it is a number between 0 and 1.
    """
    check_type(name, ratio, Real, "a float or a Fraction between 0 and 1")
    if not 0 <= ratio <= 1:
        raise ValueError(f"{name} is {ratio}; it must lie between 0 and 1")
    if isinstance(ratio, int | Fraction):
        return Fraction(ratio)
    exact, precision = Fraction(float(ratio)), type(ratio)
    candidates = (exact.limit_denominator(10**k) for k in range(1, 18))
    return next((c for c in candidates if precision(float(c)) == ratio), exact)


def whole_grid(grid: Sequence[int], name: str = "grid") -> tuple[int, int]:
    """Give a grid as integers; raise unless it has two sides, which are that."""
    if not (has_entries(grid) and len(grid) == 2):
        raise ValueError(f"{name} is {grid}; it must hold a height and a width")
    height, width = grid
    return whole_number(f"{name}[0]", height), whole_number(f"{name}[1]", width)


def flag(name: str, value: bool, hint: str = "") -> bool:
    """Give a flag as a boolean; raise unless it is true or false: a score is neither.

    Args:
        name: What it is called.
        value: The flag; that of an array too, 0 or 1.
        hint: What else is said where it is none.
    """
    if value is True or value is False:
        return value
    if getattr(value, "ndim", 0) or value not in (0, 1):
        raise ValueError(f"{name} is {brief(value)}; it must be true or false{hint}")
    return bool(value)


def flags(name: str, values: Iterable[bool]) -> tuple[bool, ...]:
    """Give flags as booleans; raise unless all are true or false."""
    values = tuple(entries(values))
    if set(map(type, values)) <= {bool}:
        return values
    return tuple(flag(f"{name}[{number}]", each) for number, each in enumerate(values))


def has_entries(value: Any) -> bool:
    """Tell whether a value is a sequence or an array that has an axis."""
    return hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0


def entries(values: Any) -> Any:
    """Give the entries of an array, or its one number, as Python's; else the values."""
    return values.tolist() if hasattr(values, "tolist") else values


def _shown(value: object) -> str:
    """Write a value as messages do; a word has its quotation marks."""
    return repr(value) if isinstance(value, str) else f"{value}"
