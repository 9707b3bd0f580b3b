"""Ports for processes that are yet to start."""

import random
import socket
from contextlib import suppress

NOT_GIVEN_OUT = range(20_000, 32_000)
"""Systems give a connection that asks for none in particular a port above these."""


def free_port() -> int:
    """Give a port that is free, and stays so until it is listened at."""
    while True:
        port = random.SystemRandom().choice(NOT_GIVEN_OUT)  # other workers draw too
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("localhost", port))
            return port
