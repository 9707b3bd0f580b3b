"""Kernels for GPUs equal what a CPU computes, without a GPU.

``tests/gpu`` compares the two on a GPU. Here Triton interprets the kernels.
"""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest


def release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.skipif(
    find_spec("triton") is not None
    and release("triton") < (3, 7)
    and release("numpy") >= (2, 4),
    reason="the interpreter of Triton 3.6 needs numpy below 2.4",
)
@pytest.mark.parametrize("kernel", ["attention", "bags", "block_masks"])
def test_the_interpreted_kernel_equals_the_cpus(kernel: str) -> None:
    script = Path(__file__).with_name(f"gpu_{kernel}_on_cpu.py")
    finished = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
