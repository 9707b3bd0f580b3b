"""Values as a file gives them, and the types that settings have."""

import difflib
import math
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

_PLAIN: dict[Any, tuple[str, type | tuple[type, ...]]] = {
    bool: ("true or false", bool),
    int: ("a whole number", int),
    float: ("a number", (int, float)),
    Fraction: ("a fraction", Fraction),
    str: ("text", str),
    Path: ("a path", (str, Path)),
    type(None): ("null", type(None)),
}


def nearest(name: str, known: Iterable[str]) -> str:
    """Give the known name that looks most like another.

    Args:
        name: An unknown name.
        known: The known ones, at least one.

    Returns:
        One of them.

    Example:
        >>> nearest("loss_wieght", ["loss", "loss_weight", "seed"])
        'loss_weight'
    """
    (best,) = difflib.get_close_matches(name, list(known), n=1, cutoff=0)
    return best


def check_bounds(settings: object, bounds: Mapping[str, tuple[float, float]]) -> None:
    """Refuse settings with a number that is out of its bounds, or not finite.

    Args:
        settings: Their numbers are its attributes.
        bounds: Least and greatest value of each number.

    Raises:
        ValueError: If one is; the message names the first.
    """
    for name, (least, most) in bounds.items():
        value = getattr(settings, name)
        if not least <= value <= most:
            rule = (
                f"be at least {least}"
                if most == math.inf
                else f"lie between {least} and {most}"
            )
            raise ValueError(f"{name} is {value}; it must {rule}")
        if math.isinf(value):
            raise ValueError(f"{name} is {value}; it must be finite")


def by_dotted_name(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Name every value, those of mappings within too.

    Args:
        values: Values and mappings of them, at any depth.

    Yields:
        The keys on the way with dots between, and the value.

    Example:
        >>> dict(by_dotted_name({"seed": 0, "parallel": {"replicate": 2}}))
        {'seed': 0, 'parallel.replicate': 2}
    """
    for name, value in values.items():
        if isinstance(value, Mapping):
            for inner, each in by_dotted_name(value):
                yield f"{name}.{inner}", each
        else:
            yield name, value


def convert(name: str, value: Any, kind: Any) -> Any:
    """Give a value the type of a setting, or say what it should be.

    A whole number is a number, text is a path, a list is a tuple; nothing else is
    turned into anything.

    Args:
        name: What the value is called.
        value: Of a YAML file or a literal of Python.
        kind: A type, ``Literal``, union, tuple or sequence.

    Returns:
        The value.

    Raises:
        ValueError: If the value is of another type.

    Example:
        >>> convert("learning_rate", 1, float)
        1.0
        >>> convert("max_steps", "ten", int)
        Traceback (most recent call last):
        ValueError: max_steps is 'ten'; it must be a whole number
    """
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name} has more than 64 bits")
    if not _fits(value, kind):
        raise ValueError(f"{name} is {value!r}; it must be {_rule(kind)}")
    if kind is float:
        return float(value)
    if Path in (kind, *get_args(kind)) and isinstance(value, str):
        return Path(value)
    return value


def _fits(value: Any, kind: Any) -> bool:
    """Tell whether a value is of a kind; true and false are no numbers."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Sequence or inner[1:] == (...,):
        return isinstance(value, tuple) and all(_fits(v, inner[0]) for v in value)
    if origin is tuple:
        same = isinstance(value, tuple) and len(value) == len(inner)
        return same and all(map(_fits, value, inner))
    wanted = _PLAIN[kind][1]
    return isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))


def _rule(kind: Any) -> str:
    """Say what a kind asks for."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, types.UnionType):
        return " or ".join(_rule(each) for each in inner)
    if origin is Sequence or inner[1:] == (...,):
        return f"a list, each of it {_rule(inner[0])}"
    if origin is tuple:
        return f"a list of {len(inner)}: {', '.join(_rule(each) for each in inner)}"
    return _PLAIN[kind][0]
