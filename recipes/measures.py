"""The numbers of a run: what it begins with, and what each of its steps was."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from math import prod

import torch
from torch import Tensor

from fastslow import (
    StreamState,
    VideoSpan,
    copy_skill,
    describe_schedule,
    direction_spread,
    next_frame_loss,
)
from fastslow.qwen2_vl import FastSlowOutput, step_flops
from recipes.config import Config
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.loader import Row, count_rows
from recipes.edge.data.sample_set import PlannedSamples
from recipes.edge.estimates.devices import this_device
from recipes.edge.ranks.distributed import World
from recipes.progress import Progress, Run
from recipes.unread import without_effect

TERMS = (
    "language_loss",
    "autoregressive_loss",
    "copy_loss",
    "prediction_spread",
    "target_spread",
)
"""What is summed over rows; the first alone without next-frame loss."""

MFU = """\
mfu is FLOPs / (seconds x {0} ranks x {1.bf16_flops:.4g}, the bf16 peak of {1.name})
  FLOPs: tower, language model and heads, forward and backward, by weights and visible
  pairs; no padding, no embeddings, nothing that is computed again
  seconds: the whole step, waiting for data included
"""
"""How the utilisation is computed, of so many ranks on such devices."""


LOOKED_AT = 1_000
"""Samples among which a run looks for a clip to show."""


def _clips(samples: PlannedSamples) -> Iterator[VideoSpan]:
    """Give the clips of the first samples."""
    for number in range(min(len(samples), LOOKED_AT)):
        for span in samples[number].spans:
            if isinstance(span, VideoSpan):
                yield span


def describe(run: Run, progress: Progress) -> str:
    """Say what will be trained, on what, and from where."""
    data, world = run.data, run.world
    shown = "".join(
        f"first clip {describe_schedule(clip.grid, clip.schedule)}, "
        f"{clip.schedule.num_frames * prod(clip.grid)} before pooling\n"
        for clip in islice(_clips(data.train), 1)
    )
    whole = trained = 0
    for weight in run.model.parameters():
        whole += weight.numel()
        trained += weight.numel() * weight.requires_grad
    done, rows = progress.step, progress.rows_per_step
    begin = f"goes on after step {done}" if done else "begins with step 1"
    course = (
        f"the run {begin} and ends with step {run.config.max_steps}; each is a line of "
        f"{run.config.output_dir / 'train.log'}"
    )
    if done == run.config.max_steps:
        course = f"the run has taken all of its {done} steps"
    notes = "".join(f"{note}\n" for note in without_effect(run.config))
    device, mfu = this_device(world.device), ""
    if device is not None:
        mfu = MFU.format(world.size, device)
    elif world.device.type == "cuda":
        gpu = torch.cuda.get_device_name(world.device)
        listed = "recipes/edge/estimates/devices.py"
        mfu = f"no mfu: the peak of {gpu} is not listed in {listed}\n"
    return (
        f"{whole:,} parameters, {trained:,} of them trained, on {world.size} ranks "
        f"({world.device.type})\n"
        f"{len(data.train)} samples to train on, {len(data.held_out)} held out, "
        f"{len(data.bad)} unusable\n{shown}{mfu}"
        f"a step takes {rows} packed rows, {rows // world.size} on each rank\n"
        f"{notes}{course}"
    )


def describe_bad(found: Sequence[BadSample]) -> str:
    """Say which samples turn out to be unusable; there is at least one."""
    more = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"{found[0].sample_id} is left out: {found[0].reason}{more}; quarantine.jsonl "
        "names all"
    )


def passes(state: StreamState, num_samples: int) -> float:
    """Count the passes over the samples so far; what waits for a row has been drawn."""
    return state.epoch + state.position / num_samples


def by_rank(name: str, value: float, world: World) -> dict[str, float]:
    """Give a number of this rank a name of its own, and those of others zeros to add.

    Summed over ranks, the values are the numbers of all of them, in order.
    """
    return {
        f"{name}_{rank}": value if rank == world.rank else 0.0
        for rank in range(world.size)
    }


def of_all_ranks(name: str, sums: dict[str, float], world: World) -> list[float]:
    """Take the numbers of all ranks out of what ``by_rank`` let be summed."""
    return [sums[f"{name}_{rank}"] for rank in range(world.size)]


def count_step(run: Run, rows: list[Row], waited: float) -> dict[str, float]:
    """Count what this rank's rows hold, and the waiting that they are."""
    return count_rows(rows) | by_rank("waited", waited, run.world)


def count_flops(run: Run, rows: list[Row]) -> int:
    """Count the work that this rank's rows are.

    The host takes up to half a second for the rows of a large model: call it while a
    GPU is at work.
    """
    return sum(step_flops(run.model, row.plan).total for row in rows)


def summed_terms(config: Config) -> tuple[str, ...]:
    """Name what ``measure_terms`` gives."""
    return TERMS if config.loss_weight else TERMS[:1]


def measure_terms(output: FastSlowOutput, config: Config) -> list[Tensor]:
    """Give what is summed over rows: losses, and how far their sides spread.

    A spread is times the tokens that it is of.
    """
    if not config.loss_weight:
        return [output.language_loss]
    measure = partial(next_frame_loss, distance=config.next_frame_distance)
    ahead, _ = measure(output.predictions, output.targets)
    copying, _ = measure(output.copies, output.targets)
    tokens = len(output.predictions)
    both = (output.predictions, output.targets.values)
    spreads = [tokens * direction_spread(features) for features in both]
    return [output.language_loss, ahead, copying, *spreads]


def mean_losses(
    total: dict[str, float], labels: float, pairs: float, *, weight: float
) -> dict[str, float]:
    """Divide each loss by its count; without the next-frame loss there is but one.

    A mean over nothing is no number; it adds nothing to the loss that is minimised.
    """
    loss = total["language_loss"] / max(labels, 1)
    language_loss = total["language_loss"] / (labels or math.nan)
    if not weight:
        return {"loss": loss, "language_loss": language_loss}
    ahead_loss = total["autoregressive_loss"] / (pairs or math.nan)
    copy_loss = total["copy_loss"] / (pairs or math.nan)
    return {
        "loss": loss + weight * total["autoregressive_loss"] / max(pairs, 1),
        "language_loss": language_loss,
        "autoregressive_loss": ahead_loss,
        "weighted_autoregressive_loss": weight * ahead_loss,
        "copy_loss": copy_loss,
        "skill": copy_skill(ahead_loss, copy_loss),
        "spread": total["prediction_spread"] / (total["target_spread"] or math.nan),
    }


def throughput(
    run: Run, counts: dict[str, float], flops: float, seconds: float
) -> dict[str, float]:
    """Measure the whole step's wall clock, data wait included, for each rank."""
    ranks, device = run.world.size, this_device(run.world.device)
    waited = of_all_ranks("waited", counts, run.world)
    waits = [each / seconds for each in waited]
    mfu = {}
    if device is not None:
        mfu["mfu"] = flops / (seconds * ranks * device.bf16_flops)
    return {
        "seconds": seconds,
        **mfu,
        "tokens_per_second": counts["tokens"] / seconds / ranks,
        "frames_per_second": counts["frames"] / seconds / ranks,
        "tokens_per_clip": counts["clip_tokens"] / (counts["clips"] or math.nan),
        "fill": counts["tokens"] / (counts["rows"] * run.config.tokens_per_row),
        "data_wait": sum(waits) / ranks,
        "longest_data_wait": max(waits),
        "waiting_rank": waits.index(max(waits)),
        "bad_samples": counts["bad_samples"],
    }
