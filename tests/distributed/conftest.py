"""A torchrun that starts at once, for tests that start the recipe many times."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class PreloadedTorchrun:
    """The process of ``preloaded_torchrun.py``, which says what it is good for."""

    def __init__(self) -> None:
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("preloaded_torchrun.py"))],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, log: Path, ranks: int, *arguments: str) -> int:
        """Start the tiny recipe; a file takes what torchrun and ranks say."""
        answer = self._ask([str(log), str(ranks), *arguments])
        assert answer is not None
        return answer

    def exit_code(self, process: int) -> int | None:
        """Give the exit code of a torchrun, minus the signal that killed it."""
        return self._ask(process)

    def close(self) -> None:
        """End the process, not what it has started."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _ask(self, question: int | list[str]) -> int | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(question)}\n")
        self._process.stdin.flush()
        answer: int | None = json.loads(self._process.stdout.readline())
        return answer


@pytest.fixture(scope="session")
def torchrun() -> Iterator[PreloadedTorchrun]:
    """Have such a process until the tests end."""
    process = PreloadedTorchrun()
    yield process
    process.close()
