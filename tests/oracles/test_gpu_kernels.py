"""Kernels for GPUs equal what a CPU computes, without a GPU.

``tests/gpu`` compares the two on a GPU. Here Triton interprets the kernels.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
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
