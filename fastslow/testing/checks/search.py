"""The search for the smallest input that breaks a law."""

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis.errors import NoSuchExample
from hypothesis.strategies import SearchStrategy

_T = TypeVar("_T")

DRAWS = 200
"""Inputs that are drawn at least; a Hypothesis profile may ask for more."""


def check_laws(laws: Iterable[str], known: Collection[str]) -> None:
    """Raise where the name of a law is not known."""
    for law in laws:
        if law not in known:
            names = ", ".join(known)
            raise ValueError(f"laws has {law!r}; it must be one of {names}")


def smallest(inputs: SearchStrategy[_T], breaks: Callable[[_T], Any]) -> _T | None:
    """Find the smallest input for which a condition holds.

    Every call draws the same inputs, and nothing is kept on disk.

    Args:
        inputs: What is drawn.
        breaks: The condition.

    Returns:
        The input; None if none was found.

    Example:
        >>> from hypothesis import strategies
        >>> smallest(strategies.integers(0, 100), lambda number: number > 7)
        8
    """
    quietly = settings(
        max_examples=max(DRAWS, settings().max_examples),
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),  # explaining takes as long again
        suppress_health_check=list(HealthCheck),
    )
    try:
        return find(inputs, lambda each: bool(breaks(each)), settings=quietly)
    except NoSuchExample:
        return None
