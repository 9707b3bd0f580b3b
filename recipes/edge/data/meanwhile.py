"""What is said while all wait for something long."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")

EVERY = 60.0
"""Seconds between two lines; what is done in less says nothing."""


def say_how_many(items: Iterable[_Item], what: str) -> Iterator[_Item]:
    """Pass items on, and say once a minute how many there were so far.

    It is said on stderr: what a program writes for others to read stays as it is.

    Args:
        items: The items.
        what: What they are, and what is done with them.

    Yields:
        The same items.
    """
    said = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - said >= EVERY:
            said = time.monotonic()
            sys.stderr.write(f"{number:,} {what}\n")
