"""How far a run has come: kept in its checkpoints, and taken up from the last one."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastslow import StreamState
from fastslow.qwen2_vl import FastSlowQwen2VL
from recipes.config import FREE_TO_CHANGE, Config
from recipes.data import Data
from recipes.edge.checkpoints.checkpoint import OtherModelError, load_checkpoint
from recipes.edge.checkpoints.folders import good_checkpoint
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.quarantine import Quarantine
from recipes.edge.ranks.distributed import MainRankError, World, broadcast_from_main
from recipes.edge.training.optimization import SkippedSteps
from recipes.edge.weights.loading import load_pretrained
from recipes.settings.mappings import (
    changed_settings,
    check_same_settings,
    settings_as_json,
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run consists of, on one rank."""

    config: Config
    data: Data
    model: FastSlowQwen2VL
    optimizer: torch.optim.AdamW
    quarantine: Quarantine
    world: World


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: Optimizer steps that are done.
        rows_per_step: Packed rows of all ranks in one step, which stay as many when
            the run goes on with more ranks or fewer.
        stream: Where the stream of packed rows stands.
        skipped: Steps that were not taken.
    """

    step: int = 0
    rows_per_step: int
    stream: StreamState = field(default_factory=StreamState)
    skipped: SkippedSteps = field(default_factory=SkippedSteps)


def resume(run: Run) -> tuple[Progress, list[str]]:
    """Go on from the last good checkpoint, if there is one, or begin.

    All ranks call this together. There may be more of them than before, or fewer: each
    takes as many rows of a step as all of them have to. A checkpoint holds all weights
    of the model, and is refused where it does not, so those that the run began with are
    not read again.

    Returns:
        Where the run stands, and what to say of it: a sentence for each checkpoint that
        is damaged, one for the settings that changed, and one for a head that the
        weights to begin with do not have.

    Raises:
        MainRankError: If all checkpoints are damaged, the run began with another model,
            other settings or data, its end is past, or the ranks cannot share the rows
            of a step.
    """
    config = run.config
    folder, passed_over = good_checkpoint(config.output_dir, run.world)
    if folder is None:
        rows = config.rows_per_step * run.world.size
        return Progress(rows_per_step=rows), _begin(run)
    try:
        state = load_checkpoint(
            folder, model=run.model, optimizer=run.optimizer, world=run.world
        )
    except OtherModelError as error:  # every rank finds the same
        raise MainRankError(str(error), str(error)) from error
    broadcast_from_main(lambda: _refuse_other_run(state, folder, run), run.world)
    run.quarantine.add(
        moved_with_data(BadSample(**sample), state["settings"], run.config)
        for sample in state["quarantine"]
    )
    broadcast_from_main(run.quarantine.check, run.world)
    stream = state["stream"]
    progress = Progress(
        step=state["step"],
        rows_per_step=state["rows_per_step"],
        stream=StreamState(**stream | {"waiting": tuple(stream["waiting"])}),
        skipped=SkippedSteps(**state["skipped"]),
    )
    return progress, [*passed_over, *_changes(state, config)]


def _begin(run: Run) -> list[str]:
    """Read the weights to begin with, if they are not drawn; say what they lack."""
    folder, model = run.data.checkpoint, run.model
    if folder is None:
        return []
    has_head = load_pretrained(folder, model)
    if model.target_tower is not None:
        model.reset_target_tower()
    if has_head or not run.config.loss_weight:
        return []
    return [f"{folder} has no next-frame head; a new one is trained"]


def moved_with_data(
    sample: BadSample, before: Mapping[str, Any], config: Config
) -> BadSample:
    """Name a sample's source as it is called where the data lie now.

    Args:
        sample: As it was reported.
        before: The settings of that time.
        config: The settings now.

    Returns:
        The sample. Its reason keeps the words of that time.
    """
    moves = [
        (str(Path(then)), str(Path(now)))
        for name in ("data_path", "eval_data_path")
        if (then := before[name]) is not None
        and (now := getattr(config, name)) is not None
    ]
    for then, now in sorted(moves, reverse=True):  # a folder's parts before the folder
        rest = sample.source.removeprefix(then)
        if rest != sample.source and rest[:1] in {"/", ":"}:
            return dataclasses.replace(sample, source=now + rest)
    return sample


def _changes(state: Mapping[str, Any], config: Config) -> list[str]:
    """Say in one sentence which settings are not those of the checkpoint."""
    changes = changed_settings(state["settings"], config).items()
    words = [f"{name} is {now} (was {then})" for name, (then, now) in changes]
    return [f"from step {state['step'] + 1} on {', '.join(words)}"] if words else []


def _refuse_other_run(state: dict[str, Any], folder: Path, run: Run) -> None:
    """Refuse to go on from the checkpoint of another run, or of a later step."""
    check_same_settings(state["settings"], run.config, free=FREE_TO_CHANGE)
    if state.get("model") != run.data.model:
        raise ValueError(
            f"{run.data.tokenizer} has another configuration or tokenizer than the one "
            f"that {folder} was trained with; a run goes on with the model that it "
            "began with, wherever its files lie"
        )
    if state["data"] != run.data.order():
        raise ValueError(
            f"the samples differ from those that {folder} was trained on, in names, "
            "texts, lengths or order; a run goes on with the data that it began with, "
            f"wherever they lie{_cannot_be_used(run.data.bad)}"
        )
    if state["rows_per_step"] % run.world.size:
        raise ValueError(
            f"each step of {folder} takes {state['rows_per_step']} packed rows, which "
            f"{run.world.size} ranks cannot share; their number must divide it"
        )
    if state["step"] > run.config.max_steps:
        raise ValueError(
            f"max_steps is {run.config.max_steps} but the run has come to {folder}; it "
            "does not go back"
        )


def _cannot_be_used(bad: Sequence[BadSample]) -> str:
    """Say what may be why samples differ: a clip has gone, or broken, since."""
    if not bad:
        return ""
    return (
        f" ({len(bad)} cannot be used now; the first is {bad[0].sample_id}: "
        f"{bad[0].reason})"
    )


def state_beside_tensors(run: Run, progress: Progress) -> dict[str, Any]:
    """Gather what a checkpoint needs beside tensors and random states."""
    return {
        "settings": settings_as_json(run.config),
        "data": run.data.order(),
        "model": run.data.model,
        "rows_per_step": progress.rows_per_step,
        "stream": dataclasses.asdict(progress.stream),
        "skipped": dataclasses.asdict(progress.skipped),
        "quarantine": [dataclasses.asdict(sample) for sample in run.quarantine],
    }
