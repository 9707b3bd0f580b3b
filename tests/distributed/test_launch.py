"""Two nodes on one machine: two agents with two ranks each, and one that dies.

Their torchrun imports what the recipe needs before it forks the ranks, so that it is
imported by each of three agents, and not by each of eight ranks.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from recipes.edge.data.clips import make_clips
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
DEADLINE = 240


TORCHRUN = """#!{python}
import datasets
import recipes.qwen2vl_tiny
from torch.distributed.run import main
main()
"""


def write_torchrun(folder: Path) -> None:
    """Write a torchrun that has ranks to fork."""
    folder.mkdir()
    file = folder / "torchrun"
    file.write_text(TORCHRUN.format(python=sys.executable))
    file.chmod(0o755)


@contextmanager
def node(head: str, folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start one node's agent as a user would, in a process group of its own."""
    environment = os.environ | {
        "NODES": "2",
        "PROCESSES": "2",
        "HEAD": head,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    command = ["recipes/launch/node.sh", "--run-path", "--start-method", "fork"]
    command += ["tests/preloaded.py", "recipes/qwen2vl_tiny.py"]
    command += ["--output-dir", str(folder / "run")]
    command += ["--data-path", str(folder / "clips" / "train.jsonl")]
    command += ["--max-steps", "12", "--save-steps", "2", "--warmup-steps", "2"]
    command += ["--tokens-per-row", "250", "--parallel.replicate", "2"]
    with (folder / f"{name}.log").open("wb") as log:
        agent = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield agent
        finally:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
            agent.wait()


def children(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(child) for child in tasks.read_text().split()]


def hears_ctrl_c(process: int) -> bool:
    """Tell whether a process does not ignore SIGINT."""
    status = Path(f"/proc/{process}/status").read_text()
    (ignored,) = (line for line in status.splitlines() if line.startswith("SigIgn"))
    return not int(ignored.split()[1], 16) & 1 << signal.SIGINT - 1


def wait_for_child(agent: subprocess.Popen[str]) -> None:
    """Wait for a child that has said that it hears Ctrl-C."""
    end = time.monotonic() + DEADLINE
    while not any(map(hears_ctrl_c, children(agent.pid))):
        assert time.monotonic() < end, "nothing was started"
        time.sleep(0.001)


def wait_for(found: Path, agents: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + DEADLINE
    while not found.exists():
        assert time.monotonic() < end, f"{found} did not appear"
        assert all(agent.poll() is None for agent in agents), "an agent gave up"
        time.sleep(0.05)


def wait_for_listener(port: int, agent: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + DEADLINE
    with socket.socket() as probe:
        while probe.connect_ex(("localhost", port)):
            assert time.monotonic() < end, f"nobody listens at {port}"
            assert agent.poll() is None, "the agent gave up"
            time.sleep(0.05)


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "event" not in row]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_agent_that_dies_is_started_again_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    make_clips(tmp_path / "clips", num_clips=12, held_out=0, seed=0, size=(56, 84))
    write_torchrun(tmp_path / "bin")
    port = free_port()
    head = f"localhost:{port}"
    with ExitStack() as nodes:
        first = nodes.enter_context(node(head, tmp_path, "first"))
        wait_for_listener(port, first)  # it is the head
        second = nodes.enter_context(node(head, tmp_path, "second"))
        wait_for(tmp_path / "run" / "checkpoint-4" / "state.json", [first, second])
        (torchrun,) = children(second.pid)
        ranks = children(torchrun)
        assert len(ranks) == 2
        for process in (torchrun, *ranks):  # as if the node had been lost
            os.kill(process, signal.SIGKILL)
        codes = [agent.wait(DEADLINE) for agent in (first, second)]
    logs = [(tmp_path / f"{name}.log").read_text() for name in ("first", "second")]
    assert codes == [0, 0], "\n".join(logs)
    assert "node.sh: torchrun ended with 137, attempt 1 of 4" in logs[1]
    assert "attempt 2" not in logs[1]
    assert "node.sh: torchrun ended" not in logs[0]  # it waited for the other
    log = (tmp_path / "run" / "train.log").read_text()
    assert "on 4 ranks" in log
    assert "the run goes on after step" in log
    assert [row["step"] for row in steps(tmp_path)] == list(range(1, 13))
    assert (tmp_path / "run" / "model-12" / "model.safetensors").is_file()


def node_environment() -> dict[str, str]:
    """Give the environment of one node with one rank."""
    return os.environ | {
        "NODES": "1",
        "PROCESSES": "1",
        "HEAD": f"localhost:{free_port()}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def test_a_run_without_hope_is_given_up(tmp_path: Path) -> None:
    """Two agents start its rank two times each."""
    (tmp_path / "rank.py").write_text(
        "import pathlib, sys\n"
        "with pathlib.Path(__file__).with_name('starts').open('a') as starts:\n"
        "    starts.write('one\\n')\n"
        "sys.exit(1)\n"
    )
    done = subprocess.run(
        ["recipes/launch/node.sh", str(tmp_path / "rank.py")],
        check=False,
        cwd=ROOT,
        env=node_environment() | {"RESTARTS": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 1
    assert (tmp_path / "starts").read_text().splitlines() == ["one"] * 4
    assert done.stderr.count("node.sh: torchrun ended with 1, attempt") == 2


RANK = """
import os, signal, sys, time

def save(*_):
    for each in asked:
        signal.signal(each, signal.SIG_IGN)
    os.write(1, b"saved\\n")  # print may be at it already
    sys.exit(143)

asked = signal.SIGTERM, signal.SIGINT
for each in asked:
    signal.signal(each, save)
print("started", flush=True)
time.sleep(100)
"""


def ask_the_node(agent: subprocess.Popen[str]) -> None:
    agent.terminate()


def press_ctrl_c(agent: subprocess.Popen[str]) -> None:
    os.killpg(agent.pid, signal.SIGINT)


HEARS_CTRL_C = ("env", "--default-signal=INT")
"""Tests that run in the background of a shell are deaf to it, as what they start is."""


@contextmanager
def node_of_one(folder: Path) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """Start a node whose rank waits; give its process and what it says."""
    (folder / "rank.py").write_text(RANK)
    with subprocess.Popen(
        [*HEARS_CTRL_C, "recipes/launch/node.sh", str(folder / "rank.py")],
        cwd=ROOT,
        env=node_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as node:
        assert node.stdout is not None
        yield node, node.stdout


@pytest.mark.parametrize("ask", [ask_the_node, press_ctrl_c])
def test_a_node_that_is_asked_to_stop_starts_nothing_again(
    tmp_path: Path, ask: Callable[[subprocess.Popen[str]], None]
) -> None:
    with node_of_one(tmp_path) as (node, output):
        assert output.readline() == "started\n"
        ask(node)
        assert output.read() == "saved\n"
    assert node.returncode == 143


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_node_is_stopped_before_its_ranks_have_started(
    tmp_path: Path, seconds: float
) -> None:
    with node_of_one(tmp_path) as (node, output):
        wait_for_child(node)
        time.sleep(seconds)  # torch is being imported
        for _ in range(3):  # an import may swallow one
            press_ctrl_c(node)
            with suppress(subprocess.TimeoutExpired):
                node.wait(10)
                break
        assert output.read() in {"", "saved\n", "started\nsaved\n"}
    assert node.returncode == 143


STANDS_FOR = {
    "scontrol": "printf 'localhost\n%.0s' {1..20000}",  # more than a pipe holds
    "srun": 'shift; "$@" & "$@" & wait',
}
"""What two nodes of Slurm do, on one machine and without Slurm."""


def test_the_slurm_script_starts_an_agent_on_every_node(tmp_path: Path) -> None:
    for name, words in STANDS_FOR.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{words}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "rank.py").write_text(
        "import os, pathlib, sys\n"
        "names = 'RANK', 'WORLD_SIZE', 'TORCHELASTIC_RUN_ID', 'OMP_NUM_THREADS', "
        "'SRUN_CPUS_PER_TASK'\n"
        "rank, *others = (os.environ[name] for name in names)\n"
        "words = ' '.join(others + sys.argv[1:])\n"
        "pathlib.Path(__file__).with_name(f'rank-{rank}').write_text(words)\n"
    )
    job = free_port() - 20_000  # the script adds as much
    environment = os.environ | {
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "localhost,localhost",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "7",
        "PROCESSES": "2",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = ["bash", "recipes/launch/slurm.sh", str(tmp_path / "rank.py"), "--x", "1"]
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    seen = {path.name: path.read_text() for path in tmp_path.glob("rank-*")}
    assert seen == {f"rank-{rank}": f"4 {job} 1 7 --x 1" for rank in range(4)}
