"""How the tests run: Hypothesis profiles, one thread for each worker, fast starts.

``HYPOTHESIS_PROFILE`` names a profile; without it ``ci`` runs where ``CI`` is set, and
``dev`` everywhere else.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

ROOT = Path(__file__).parents[1]

COMMON = settings(
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("dev", COMMON, max_examples=50)
settings.register_profile("ci", COMMON, max_examples=100, derandomize=True)
settings.register_profile("nightly", COMMON, max_examples=5000)
settings.register_profile(  # a mutant need not be shown at its smallest
    "mutants",
    COMMON,
    max_examples=100,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev")
)

torch.set_num_threads(1)


class _Unchecked:
    """Leave the annotations of one module alone, before jaxtyping's hook sees it.

    ``_shapes`` asks itself what its arguments are, in nearly half of all the calls that
    would be checked.
    """

    @staticmethod
    def find_spec(name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Find that module as Python does."""
        is_it = name == "fastslow._shapes"
        return PathFinder.find_spec(name, path, target) if is_it else None


sys.meta_path.insert(0, _Unchecked)


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Start one process more than there are cores: many tests wait for others."""
    found = yield
    return found if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else found + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests in one process, which makes their fixtures once.

    Files go in their order: those that start ranks, which take longest, are first.
    """
    if config.getoption("dist") != "load":
        return None  # another way was asked for
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def _with_room(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function where its calls have a megabyte for their frames.

    CPython 3.11 and later take the memory of frames from the system 16 KiB at a time
    and give it back at once. Where calls go back and forth over such an edge, as those
    of Hypothesis and of checked annotations do, they take up to half as long again. A
    frame that asks for far more than it uses has a piece of its own, and they its rest.
    """
    return function(*arguments)


_with_room.__code__ = _with_room.__code__.replace(co_stacksize=2**17)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    """Call a test where its calls have room."""
    python = pyfuncitem.config.pluginmanager.get_plugin("python")
    return _with_room(python.pytest_pyfunc_call, pyfuncitem)


class Preloaded:
    """The process of ``preloaded.py``, which says what it is good for."""

    def __init__(self, *modules: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("preloaded.py")), *modules],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self,
        *words: str,
        log: Path,
        errors: Path | None = None,
        cwd: Path = ROOT,
        **environment: str,
    ) -> int:
        """Start a script of Python.

        Args:
            *words: The script and its arguments.
            log: A file that takes what it says.
            errors: A file that takes what it says to standard error; ``log`` without.
            cwd: Its folder.
            **environment: What is in its environment beside what is in this one.

        Returns:
            The id of its process, which leads a process group.
        """
        question = {
            "words": words,
            "cwd": str(cwd),
            "env": _environment() | environment,
            "log": str(log),
            "errors": str(errors or log),
        }
        answer = self._ask(question)
        assert answer is not None
        return answer

    def start_ranks(self, ranks: int, *words: str, log: Path, **rest: Any) -> int:
        """Start a script on so many ranks; give the process of torchrun."""
        torchrun = [str(Path(sys.executable).with_name("torchrun")), "--standalone"]
        torchrun += ["--nproc-per-node", str(ranks)]
        torchrun += ["--run-path", "--start-method", "fork"]
        rank = str(Path(__file__).with_name("preloaded.py"))
        return self.start(*torchrun, rank, *words, log=log, **rest)

    def exit_code(self, process: int) -> int | None:
        """Give the exit code of a process, minus the signal that killed it."""
        return self._ask(process)

    def wait(self, process: int, *, seconds: float = 300) -> int:
        """Wait for the exit code of a process."""
        end = time.monotonic() + seconds
        while (code := self.exit_code(process)) is None:
            assert time.monotonic() < end, f"{process} runs for {seconds} seconds"
            time.sleep(0.02)
        return code

    def run(self, *words: str, log: Path) -> None:
        """Let a script end well."""
        assert self.wait(self.start(*words, log=log)) == 0, log.read_text()

    def ask(
        self, *words: str, folder: Path, **environment: str
    ) -> tuple[str, str, int]:
        """Let a script end; give what it says, its errors and its exit code."""
        files = folder / "output.log", folder / "errors.log"
        for file in files:
            file.unlink(missing_ok=True)
        process = self.start(*words, log=files[0], errors=files[1], **environment)
        code = self.wait(process)
        return files[0].read_text(), files[1].read_text(), code

    def run_ranks(self, ranks: int, *words: str, log: Path) -> None:
        """Let a script end well on so many ranks."""
        process = self.start_ranks(ranks, *words, log=log)
        assert self.wait(process) == 0, log.read_text()

    def close(self) -> None:
        """End the process, not what it has started."""
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _ask(self, question: int | dict[str, Any]) -> int | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(question)}\n")
        self._process.stdin.flush()
        answer: int | None = json.loads(self._process.stdout.readline())
        return answer


def _environment() -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | own


@pytest.fixture(scope="session")
def start_preloaded() -> Iterator[Callable[..., Preloaded]]:
    """Have processes that start scripts, until the tests end."""
    with ExitStack() as opened:

        def start(*modules: str) -> Preloaded:
            return opened.enter_context(closing(Preloaded(*modules)))

        yield start


@pytest.fixture(scope="session")
def preloaded(start_preloaded: Callable[..., Preloaded]) -> Preloaded:
    """Have one that has imported what trains."""
    return start_preloaded("datasets", "torch.distributed.run", "recipes.qwen2vl_tiny")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """This process alone, whatever started it, as a ``World`` of one rank."""
    from recipes.edge.ranks.distributed import process_group

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with process_group() as alone:
        yield alone
