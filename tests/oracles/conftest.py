"""Snippets that run as a user's would: nothing checks types at run time."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

PREAMBLE = """
    import warnings
    from dataclasses import replace

    import numpy as np
    import torch

    from fastslow import *

    warnings.simplefilter("error")
"""


@pytest.fixture(scope="session")
def unchecked_process(start_preloaded: Callable[..., Any]) -> Any:
    """Have a process that has imported what snippets do, with no hook of the tests."""
    return start_preloaded("numpy", "fastslow.qwen2_vl")


@pytest.fixture
def run_unchecked(unchecked_process: Any, tmp_path: Path) -> Callable[[str], None]:
    """Let a snippet end well."""

    def run(snippet: str) -> None:
        file = tmp_path / "snippet.py"
        file.write_text(dedent(PREAMBLE) + dedent(snippet))
        unchecked_process.run(str(file), log=tmp_path / "snippet.log")

    return run


@pytest.fixture
def run_refused(
    run_unchecked: Callable[[str], None],
) -> Callable[[dict[str, str]], None]:
    """Hold each call to the sentence that it is refused with."""

    def run(messages: dict[str, str]) -> None:
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

    return run
