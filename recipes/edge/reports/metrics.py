"""What a run writes while it trains: a log, a table of metrics, curves, a bar."""

import json
import math
import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from traceback import format_exception_only
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recipes.edge.files.provenance import time_stamp
from recipes.edge.files.publishing import write_whole
from recipes.edge.ranks.distributed import World
from recipes.edge.reports.health import Health, Warned, examine

CLOCKED = (
    "seconds",
    "tokens_per_second",
    "frames_per_second",
    "mfu",
    "data_wait",
    "longest_data_wait",
    "waiting_rank",
    "peak_memory_gib",
)
"""Metrics that differ when a run is repeated: clocks and memory of the machine."""


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """The open files of the main rank."""

    log: TextIO
    metrics: TextIO
    curves: SummaryWriter
    bar: "tqdm[Any]"


class RunLog:
    """The records of one run, written by the main rank; other ranks write nothing.

    =================  ============================================================
    ``train.log``      one time-stamped line per step and per message
    ``metrics.jsonl``  one JSON object per step; evaluations and warnings have an
                       ``event`` field
    ``logs/``          TensorBoard curves, ``train/...`` and ``evaluation/...``
    standard error     a progress bar, if it is a terminal
    =================  ============================================================

    Every step is examined by the rules of ``health.py``; what they say is written as a
    message and as a warning.

    Lines are flushed as they are written. A metric that is not finite is written as
    null in ``metrics.jsonl``, so that every line is valid JSON, and as ``nan`` or
    ``inf`` in ``train.log``.

    A run that starts at step 1 starts the files anew. A resumed run appends to them
    and drops the lines of ``metrics.jsonl`` from ``first_step`` on, which the
    interrupted run wrote after its last checkpoint, so no step stands twice;
    TensorBoard hides those points too. The rules read the lines that are left, but for
    the clocks in them: a rank that waits has to do so in new steps.

    Args:
        output_dir: Folder of the run; made if it does not exist.
        total_steps: Step at which the run ends, at least ``first_step - 1``.
        first_step: First step that this process will do: 1 for a new run, the
            checkpoint's step plus one for a resumed one. Steps count from 1.
        world: The ranks.
    """

    def __init__(
        self, *, output_dir: Path, total_steps: int, first_step: int, world: World
    ) -> None:
        """Open the files."""
        self._total_steps = total_steps
        self._open = ExitStack()
        self._outputs: _Outputs | None = None
        self._health = Health(num_ranks=world.size)
        if not world.is_main:
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        unreadable, metrics = 0, output_dir / "metrics.jsonl"
        if first_step > 1 and metrics.exists():
            unreadable = _drop_lines(metrics, first_step)
            self._health = _read_health(metrics, self._health)
        with ExitStack() as opening:
            self._outputs = _open_outputs(opening, output_dir, total_steps, first_step)
            self._open = opening.pop_all()
        if unreadable:
            self.message(f"metrics.jsonl: dropped {unreadable} unreadable lines")

    def __enter__(self) -> "RunLog":
        """Give the log itself."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        """Say what ends the run, if it is an error, and close the files; it goes on."""
        with self._open, suppress(OSError):  # which may be what ends it
            if isinstance(error, Exception):
                self.message(
                    f"the run ends with {''.join(format_exception_only(error))}"
                )

    def step(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Record one optimizer step.

        Args:
            step: Its number, from ``first_step`` to ``total_steps``.
            metrics: What it measured, by name, in the order of the log line.
        """
        outputs = self._outputs
        if outputs is None:
            return
        words = " ".join(f"{name} {_format(value)}" for name, value in metrics.items())
        _write_line(
            outputs.log, f"{time_stamp()} step {step}/{self._total_steps} {words}"
        )
        _write_line(outputs.metrics, _json_line({"step": step, **metrics}))
        for name, value in metrics.items():
            outputs.curves.add_scalar(f"train/{name}", value, step)
        if "loss" in metrics:
            outputs.bar.set_postfix(loss=_format(metrics["loss"]), refresh=False)
        outputs.bar.update(step - outputs.bar.n)
        self._health, said = examine(self._health, metrics)
        for each in said:
            self._warn(step, each)

    def scalars(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Record an evaluation, in the curves and in ``metrics.jsonl``.

        Args:
            step: Optimizer steps done before the evaluation; 0 is the untrained model.
            metrics: What it measured, by name.
        """
        outputs = self._outputs
        if outputs is None:
            return
        line = {"step": step, "event": "evaluation", **metrics}
        _write_line(outputs.metrics, _json_line(line))
        for name, value in metrics.items():
            outputs.curves.add_scalar(f"evaluation/{name}", value, step)

    def has_evaluation(self, step: int) -> bool:
        """Tell, on the main rank, whether an evaluation is recorded.

        Args:
            step: Optimizer steps done before it.
        """
        if self._outputs is None:
            return False
        return any(
            (content["step"], content.get("event")) == (step, "evaluation")
            for content in read_metrics(Path(self._outputs.metrics.name))
        )

    def sync(self) -> None:
        """Wait until all that is recorded is on disk.

        Before a checkpoint: the run that goes on from it does not do its steps again.
        """
        if self._outputs is not None:
            self._outputs.curves.flush()
            for file in (self._outputs.log, self._outputs.metrics):
                os.fsync(file.fileno())

    def message(self, text: str) -> None:
        """Write words to ``train.log`` and to standard output.

        Args:
            text: One or more lines.
        """
        outputs = self._outputs
        if outputs is None:
            return
        for line in text.splitlines():
            _write_line(outputs.log, f"{time_stamp()} {line}")
        outputs.bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def _warn(self, step: int, said: Warned) -> None:
        """Record what a rule says of a step."""
        assert self._outputs is not None
        line = {"step": step, "event": "warning", **asdict(said)}
        _write_line(self._outputs.metrics, _json_line(line))
        self.message(f"WARNING at step {step}, {said.rule}: {said.message}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a ``metrics.jsonl``.

    Args:
        path: The file, of a run that has ended or goes on.

    Returns:
        The content of each line.

    Raises:
        ValueError: If one has no step, such as half a line; the message names it.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        content = _content_of(line)
        if content is None:
            raise ValueError(
                f"line {number} of {path} is {line[:50]!r}; it must be a JSON object "
                "with a step"
            )
        rows.append(content)
    return rows


def _open_outputs(
    opening: ExitStack, output_dir: Path, total_steps: int, first_step: int
) -> _Outputs:
    """Open all outputs; what ``opening`` holds is closed if one of them fails."""
    is_new = first_step == 1
    log = opening.enter_context(_open_text(output_dir / "train.log", is_new))
    metrics = opening.enter_context(_open_text(output_dir / "metrics.jsonl", is_new))
    events = output_dir / "logs"
    for file in events.glob("events.*") if is_new else ():
        file.unlink()
    curves = SummaryWriter(str(events), purge_step=first_step)
    opening.callback(curves.close)
    bar = tqdm(total=total_steps, initial=first_step - 1, unit="step", disable=None)
    opening.callback(bar.close)
    return _Outputs(log=log, metrics=metrics, curves=curves, bar=bar)


def _open_text(path: Path, is_new: bool) -> TextIO:
    """Open a file at its end, or empty if it is to be new."""
    return path.open("w" if is_new else "a", encoding="utf-8")


def _drop_lines(path: Path, first_step: int) -> int:
    """Drop the lines of steps that will be done again; return how many had no step.

    A process that dies while it writes leaves half a line, which goes too.
    """
    kept: list[str] = []
    unreadable = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        content = _content_of(line)
        if content is None:
            unreadable += 1
        elif content["step"] < first_step:
            kept.append(f"{line}\n")
    write_whole(path, "".join(kept))
    return unreadable


def _read_health(path: Path, health: Health) -> Health:
    """Let the rules see again what an interrupted run has measured, clocks aside.

    Those are of the ranks and the machines that it had then.
    """
    for numbers in read_metrics(path):
        if "event" not in numbers:
            timeless = {k: v for k, v in numbers.items() if k not in CLOCKED}
            health, _ = examine(health, timeless)
    return health


def _content_of(line: str) -> dict[str, Any] | None:
    """Read a line of ``metrics.jsonl``; None if it has no step."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    has_step = isinstance(content, dict) and isinstance(content.get("step"), int)
    return content if has_step else None


def _format(value: float | int) -> str:
    """Write a number in few characters.

    Example:
        >>> [_format(v) for v in (8, 1.23456, 5123.4, 2e-5, 0.0, float("nan"))]
        ['8', '1.2346', '5123', '2.000e-05', '0.0000', 'nan']
    """
    if isinstance(value, int):
        return str(value)
    size = abs(value)
    if 0 < size < 1e-3 or size >= 1e9:
        return f"{value:.3e}"
    return f"{value:.0f}" if size >= 1e3 else f"{value:.4f}"


def _json_line(content: Mapping[str, Any]) -> str:
    """Write one JSON object; numbers that are not finite become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in content.items()
    }
    return json.dumps(finite, allow_nan=False)


def _write_line(file: TextIO, line: str) -> None:
    """Write a line and hand it to the system at once."""
    file.write(f"{line}\n")
    file.flush()
