"""Kernels for GPUs equal what a CPU computes, and compile, without a GPU.

``tests/gpu`` compares the two on a GPU. Here Triton interprets the kernels, and makes
machine code of them. ``nox -s kernels`` brings it.
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


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def run(script: str, **environment: str) -> None:
    """Run a file beside this one in a new process."""
    finished = subprocess.run(
        [sys.executable, Path(__file__).with_name(script)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr


@needs_triton
def test_every_kernel_becomes_machine_code(tmp_path: Path) -> None:
    run("gpu_kernels_compile.py", TRITON_CACHE_DIR=str(tmp_path))


@needs_triton
@pytest.mark.skipif(
    find_spec("triton") is not None
    and release("triton") < (3, 7)
    and release("numpy") >= (2, 4),
    reason="the interpreter of Triton 3.6 needs numpy below 2.4",
)
@pytest.mark.parametrize("kernel", ["attention", "bags", "block_masks"])
def test_the_interpreted_kernel_equals_the_cpus(kernel: str) -> None:
    run(f"gpu_{kernel}_on_cpu.py", TRITON_INTERPRET="1")
