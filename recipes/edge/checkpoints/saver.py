"""Checkpoints of a run, one after the other, beside the training if that is wanted."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from recipes.edge.checkpoints.checkpoint import Snapshot, take_snapshot, write_snapshot
from recipes.edge.checkpoints.folders import remove_old_checkpoints
from recipes.edge.ranks.distributed import World, group_of_hosts


class CheckpointSaver:
    """Saves a run, and removes the checkpoints that are too many.

    Beside the training, a checkpoint is copied to the host at once and written by a
    thread, whose messages go over a group of their own. It is made visible by the same
    rename; the next one waits for it, and so does the end of the run.

    Args:
        output_dir: Folder of the run, which is there.
        keep: Checkpoints that are kept, at least 1.
        is_async: Whether to write beside the training.
        say: Called with a sentence for each checkpoint once it is visible.
        world: The ranks; all of them make a saver together.
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        keep: int,
        is_async: bool,
        say: Callable[[str], None],
        world: World,
    ) -> None:
        """Nothing is being written yet."""
        self._output_dir = output_dir
        self._keep = keep
        self._say = say
        self._world = world
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[Path] | None = None
        if is_async:
            self._world_of_thread = replace(world, group=group_of_hosts())
            self._thread = ThreadPoolExecutor(
                1, "checkpoint", _take_device, (world.device,)
            )

    def __enter__(self) -> "CheckpointSaver":
        """Give the saver itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for what is being written, also if the run fails."""
        if self._thread is not None:
            self._thread.shutdown()

    def save(
        self,
        step: int,
        *,
        model: nn.Module,
        optimizer: torch.optim.AdamW,
        state: Mapping[str, Any],
    ) -> None:
        """Save the run after a step; ``take_snapshot`` explains the arguments.

        All ranks call this together.

        Raises:
            OSError: If this checkpoint, or the one before it, cannot be written.
            RuntimeError: The same, where the main rank is the one that cannot.
        """
        self.wait()
        snapshot = take_snapshot(
            step, model=model, optimizer=optimizer, state=state, world=self._world
        )
        if self._thread is None:
            self._say(f"saved {self._write(snapshot, self._world)}")
            return
        self._pending = self._thread.submit(
            self._write, snapshot.copied(), self._world_of_thread
        )

    def poll(self) -> None:
        """Say what has been saved meanwhile; raise what went wrong."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written any more."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._say(f"saved {pending.result()}")

    def _write(self, snapshot: Snapshot, world: World) -> Path:
        """Write a checkpoint, and remove the oldest."""
        folder = write_snapshot(self._output_dir, snapshot, world)
        if world.is_main:
            remove_old_checkpoints(self._output_dir, keep=self._keep)
        return folder


def _take_device(device: torch.device) -> None:
    """Give this thread the rank's GPU, and a stream where nothing is computed.

    DCP waits for the current stream at each tensor, those on the host too. A new thread
    has the first GPU, where each rank would open a context, and the stream of the
    training, whose steps it would wait for.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))
