"""Signals to real processes, and processes whose parent goes away."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from recipes.edge.ranks.stopping import AGENT, StopSignal

ROOT = Path(__file__).parents[2]

PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
CHILD = """
import os, time
from recipes.edge.ranks.stopping import StopSignal
stop, parent = StopSignal(), os.getppid()
print(stop.is_asked, flush=True)
while os.getppid() == parent:
    time.sleep(0.01)
print(stop.is_asked, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.is_asked
        os.kill(os.getpid(), number)
        assert stop.is_asked
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("is_rank", [True, False])
def test_a_second_ctrl_c_ends_what_has_no_launcher(
    monkeypatch: pytest.MonkeyPatch, is_rank: bool
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if is_rank:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    expected = nullcontext() if is_rank else pytest.raises(KeyboardInterrupt)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with expected:
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_asked


def test_a_forked_process_goes_on() -> None:
    script = """
import os, signal
from recipes.edge.ranks.stopping import StopSignal
with StopSignal() as stop:
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stop.is_asked)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "0 False\n"


@pytest.mark.parametrize("is_rank", [True, False])
def test_a_rank_stops_without_its_launcher(is_rank: bool) -> None:
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "run"}
    if not is_rank:
        del environment["TORCHELASTIC_RUN_ID"]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "False\n"
        parent.kill()
        assert parent.stdout.readline() == f"{is_rank}\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_rank_may_have_lost_its_launcher_before_it_listened(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    here = Path("/proc/self/ns/pid").readlink()
    node = ROOT / "recipes" / "launch" / "node.sh"
    assert f"export {AGENT}\n" in node.read_text()

    def is_asked(agent: str) -> bool:
        monkeypatch.setenv(AGENT, agent)
        return StopSignal().is_asked

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    assert is_asked(f"{ended.pid}@{here}")
    assert not is_asked(f"{os.getppid()}@{here}")
    assert not is_asked(f"{ended.pid}@pid:[1]")  # ranks in a container of their own
    assert not is_asked(f"{ended.pid}@")
    assert not is_asked("")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert not is_asked(f"{ended.pid}@{here}")
