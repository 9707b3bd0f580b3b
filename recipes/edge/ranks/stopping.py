"""A run that is asked to stop, by a scheduler or by hand, or loses its launcher."""

import os
import signal
from contextlib import suppress
from pathlib import Path

STOPPING = (signal.SIGTERM, signal.SIGINT)
"""What asks a run to stop; Ctrl-C is the second."""

STOPPED = 128 + signal.SIGTERM
"""Exit code of a run that saved and stopped because it was asked to: 143."""

AGENT = "FASTSLOW_AGENT"
"""Variable in which ``node.sh`` names the ``torchrun`` of a rank, with the namespace of
processes: ``17@pid:[4]``. A rank may lose its launcher while it imports what it needs.
"""


class StopSignal:
    """Notes SIGTERM and Ctrl-C instead of dying of them, so that a run can save first.

    A second Ctrl-C ends a process at once, but not under ``torchrun``: where all
    processes are signalled, a rank may hear of the first one twice.

    A rank whose ``torchrun`` is gone is to stop as well: nobody would hear of its end,
    and the same command, given again, would find it still at work. A process that is
    forked inside notes the signal too, and goes on.
    """

    def __init__(self) -> None:
        """Nothing has been asked yet."""
        self._is_noted = False
        has_launcher = "TORCHELASTIC_RUN_ID" in os.environ
        self._launcher = os.getppid() if has_launcher else None
        self._is_late = has_launcher and _has_ended(os.environ.get(AGENT, ""))

    def __enter__(self) -> "StopSignal":
        """Listen."""
        self._before = {each: signal.signal(each, self._note) for each in STOPPING}
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the signals to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def is_asked(self) -> bool:
        """Whether this process is to stop."""
        is_orphan = self._launcher not in {None, os.getppid()}
        return self._is_noted or self._is_late or is_orphan

    def _note(self, number: int, _: object) -> None:
        if self._is_noted and number == signal.SIGINT and self._launcher is None:
            raise KeyboardInterrupt
        self._is_noted = True


def _has_ended(agent: str) -> bool:
    """Tell whether a process has ended, where that can be known."""
    process, _, namespace = agent.partition("@")
    with suppress(OSError):  # there is no /proc
        is_here = str(Path("/proc/self/ns/pid").readlink()) == namespace
        return is_here and not Path("/proc", process).exists()
    return False
