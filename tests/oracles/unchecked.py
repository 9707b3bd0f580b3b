"""Snippets that run as a user's would: nothing checks types at run time."""

import subprocess
import sys
from textwrap import dedent

PREAMBLE = """
    import warnings
    from dataclasses import replace

    import numpy as np
    import torch

    from fastslow import *

    warnings.simplefilter("error")
"""


def run_unchecked(snippet: str) -> None:
    command = [sys.executable, "-c", dedent(PREAMBLE) + dedent(snippet)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def run_refused(messages: dict[str, str]) -> None:
    """Hold each call to the sentence that it is refused with."""
    run_unchecked(
        f"""
        for call, message in {messages!r}.items():
            try:
                eval(call)
            except ValueError as error:
                assert str(error) == message, error
            else:
                raise AssertionError(call)
        """
    )
