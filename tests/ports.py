"""Ports for processes that are yet to start."""

import random
import socket
from contextlib import suppress

NOT_GIVEN_OUT = range(20_000, 32_000)
"""Systems give a connection that asks for none in particular a port above these."""


_shuffled = iter(random.SystemRandom().sample(NOT_GIVEN_OUT, len(NOT_GIVEN_OUT)))
"""In an order of this process alone: others look for ports at the same time."""


def free_port() -> int:
    """Give a port that is free, another one each time, until it is listened at."""
    for port in _shuffled:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("localhost", port))
            return port
    raise OSError("there is no port left")
