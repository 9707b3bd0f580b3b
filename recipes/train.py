"""The training loop of all recipes, from settings to weights.

``main`` is the whole run: plan, build, shard, train, save, export, and ask the held-out
questions. A recipe is a preset of the settings that it takes.
"""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from math import prod

import torch
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import record

from fastslow import (
    StreamState,
    VideoSpan,
    copy_skill,
    describe_schedule,
    direction_spread,
    next_frame_loss,
    to_device,
)
from fastslow.qwen2_vl import FastSlowOutput, FastSlowQwen2VL, step_flops
from recipes.command_line import parse_command_line
from recipes.config import FREE_TO_CHANGE, SETTINGS_FILE, Config, settings_before
from recipes.data import Data, plan_data
from recipes.edge.checkpoint_saver import CheckpointSaver
from recipes.edge.devices import this_device
from recipes.edge.distributed import (
    World,
    broadcast_from_main,
    check_same_on_ranks,
    process_group,
    sum_over_ranks,
)
from recipes.edge.export import export_pretrained
from recipes.edge.held_out import held_out_accuracy
from recipes.edge.loader import PackedRows, Row, count_rows, stream_rows
from recipes.edge.lora import merge_adapters, reset_adapters
from recipes.edge.metrics import RunLog
from recipes.edge.optimization import (
    SkippedSteps,
    clip_gradients,
    count_skipped,
    warmup_cosine,
)
from recipes.edge.output_lock import only_run
from recipes.edge.parallel import parallelise
from recipes.edge.profiling import peak_memory, profiled
from recipes.edge.provenance import code_versions, record_start
from recipes.edge.quarantine import Quarantine
from recipes.edge.random_states import seed_generators
from recipes.edge.settings import (
    check_same_settings,
    settings_as_json,
    write_settings,
)
from recipes.edge.stopping import STOPPED, StopSignal
from recipes.edge.tiny import VIDEO_TOKEN, tiny_backbone
from recipes.edge.weights import build_meta_model, load_pretrained, materialize
from recipes.preview import preview
from recipes.progress import Progress, Run, resume, state_beside_tensors

TERMS = (
    "language_loss",
    "autoregressive_loss",
    "copy_loss",
    "prediction_spread",
    "target_spread",
)
"""What is summed over the rows of a step; the first alone without next-frame loss."""

MFU = """\
mfu is FLOPs / (seconds x {0} ranks x {1.bf16_flops:.4g}, the bf16 peak of {1.name})
  FLOPs: tower, language model and heads, forward and backward, by weights and visible
  pairs; no padding, no embeddings, nothing that is computed again
  seconds: the whole step, waiting for data included
"""
"""How the utilisation is computed, of so many ranks on such devices."""


NO_HIDDEN_STATES = (
    "output_hidden_states has no effect: the next-frame loss reads the last hidden "
    "states in the same forward pass"
)


def run_recipe(preset: Config) -> None:
    """Let file and flags change a preset, and train or say what it would take."""
    config = parse_command_line(preset)
    if config.dry_run:
        text, is_possible = preview(config)
        sys.stdout.write(f"{text}\n")
        sys.exit(not is_possible)
    main(config)


@record
def main(config: Config) -> None:
    """Plan, build, shard, train, save, export, and ask the held-out questions."""
    stop = StopSignal()
    with process_group() as world, only_run(config.output_dir, world):
        run = prepare(config, world)
        progress, passed_over = resume(run)
        broadcast_from_main(lambda: keep_record(run, progress), world)
        with RunLog(
            output_dir=config.output_dir,
            total_steps=config.max_steps,
            first_step=progress.step + 1,
            world=world,
        ) as log:
            log.message("\n".join([*passed_over, describe(run, progress)]))
            if config.output_hidden_states and not progress.step:
                log.message(NO_HIDDEN_STATES)
            with stop, checkpoint_saver(run, log) as saver:
                is_whole = train(run, progress, log, stop, saver)
            if is_whole:
                finish(run, log)
    if not is_whole:
        sys.exit(STOPPED)


def prepare(config: Config, world: World) -> Run:
    """Plan the data, and build the model with its optimizer."""
    check_same_on_ranks(settings_as_json(config) | code_versions(), world)
    before = broadcast_from_main(lambda: settings_before(config), world)
    if before is not None:
        check_same_settings(before, config, free=FREE_TO_CHANGE)
    if world.device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    data = broadcast_from_main(lambda: plan_data(config, world), world)
    check_same_on_ranks(data.summary(), world)
    model = build_model(config, data, world)
    seed_generators(config.seed + world.rank)
    run = Run(
        config=config,
        data=data,
        model=model,
        optimizer=torch.optim.AdamW(
            [weight for weight in model.parameters() if weight.requires_grad],
            betas=(0.9, 0.95),
            fused=world.device.type == "cuda",
        ),
        quarantine=Quarantine(
            config.output_dir,
            num_samples=len(data.train) + len(data.held_out) + len(data.bad),
            max_share=config.max_bad_share,
            world=world,
        ),
        world=world,
    )
    run.quarantine.add(data.bad)
    return run


def checkpoint_saver(run: Run, log: RunLog) -> CheckpointSaver:
    """Make what saves the run."""
    return CheckpointSaver(
        run.config.output_dir,
        keep=run.config.save_total_limit,
        is_async=run.config.async_save,
        say=log.message,
        world=run.world,
    )


def train(
    run: Run,
    progress: Progress,
    log: RunLog,
    stop: StopSignal,
    saver: CheckpointSaver,
) -> bool:
    """Take the steps that are left; save now and then, and at the end.

    Where any rank is asked to stop, all save after the same step and stop.

    Returns:
        Whether all steps are taken.
    """
    config = run.config
    rows_per_rank = progress.rows_per_step // run.world.size
    batches = row_stream(run, progress.stream)
    for step in range(progress.step + 1, config.max_steps + 1):
        started = time.perf_counter()
        rows = list(islice(batches, rows_per_rank))
        waited = time.perf_counter() - started
        counts = sum_over_ranks(
            count_step(run, rows, waited) | {"stop": stop.is_asked}, run.world
        )
        if counts["skipped"]:
            run.quarantine.share(bad for row in rows for bad in row.bad)
        with profiled(config.output_dir, run.world, wanted=step == config.profile_step):
            losses, skipped = train_step(run, step, rows, counts, progress.skipped)
        seconds = time.perf_counter() - started
        log.step(step, losses | throughput(run, counts, seconds))
        progress = replace(progress, step=step, stream=rows[-1].state, skipped=skipped)
        is_last = step == config.max_steps
        saver.poll()
        if counts["stop"] or is_last or step % config.save_steps == 0:
            log.sync()
            saver.save(
                step,
                model=run.model,
                optimizer=run.optimizer,
                state=state_beside_tensors(run, progress),
            )
        if counts["stop"] and not is_last:
            saver.wait()
            log.message(f"stopped after step {step}, as asked; it goes on from there")
            return False
    saver.wait()
    return True


def row_stream(run: Run, state: StreamState) -> Iterator[Row]:
    """Stream this rank's packed rows from where the run stands."""
    config, data, world = run.config, run.data, run.world
    return stream_rows(
        PackedRows(data.train),
        state,
        rank=world.rank,
        world_size=world.size,
        window=config.packing_window,
        seed=config.seed,
        num_workers=config.dataloader_num_workers,
        pin_memory=config.dataloader_pin_memory and world.device.type == "cuda",
        persistent_workers=config.dataloader_persistent_workers
        and config.dataloader_num_workers > 0,
    )


def build_model(config: Config, data: Data, world: World) -> FastSlowQwen2VL:
    """Build the model, shard it, and give it its weights."""
    if data.checkpoint is None:
        vocabulary = data.train.tokenizer.get_vocab()
        torch.manual_seed(config.seed)
        backbone = tiny_backbone(
            vocabulary_size=len(vocabulary), video_token_id=vocabulary[VIDEO_TOKEN]
        )
        model = FastSlowQwen2VL(backbone).to(world.device)
    else:
        model = build_meta_model(data.checkpoint)
    if not config.loss_weight:
        model.drop_next_frame()
    parallelise(model, config.parallel, world)
    if data.checkpoint is not None:
        offload = config.parallel.cpu_offload
        materialize(model, world.device, seed=config.seed, offload=offload)
        load_pretrained(data.checkpoint, model)
        reset_adapters(model, seed=config.seed)
        if model.target_tower is not None:
            model.reset_target_tower()
    return model


def wait_names(world: World) -> list[str]:
    """Name the seconds that each rank waited for its rows."""
    return [f"waited_{rank}" for rank in range(world.size)]


def count_step(run: Run, rows: list[Row], waited: float) -> dict[str, float]:
    """Count what this rank's rows hold, and the work and the waiting that they are."""
    waits = dict.fromkeys(wait_names(run.world), 0.0)
    waits[f"waited_{run.world.rank}"] = waited
    return (
        count_rows(rows)
        | waits
        | {
            "clips": sum(len(row.plan.layout.clips) for row in rows),
            "clip_tokens": sum(len(row.plan.video_rows) for row in rows),
            "flops": sum(step_flops(run.model, row.plan).total for row in rows),
        }
    )


def train_step(
    run: Run,
    step: int,
    rows: list[Row],
    counts: dict[str, float],
    skipped: SkippedSteps,
) -> tuple[dict[str, float], SkippedSteps]:
    """Take one optimizer step; every loss is divided by its count over all ranks."""
    config, model, world = run.config, run.model, run.world
    model.train()
    terms = TERMS if config.loss_weight else TERMS[:1]
    sums = torch.zeros(len(terms), dtype=torch.float64, device=world.device)
    labels, pairs = max(counts["labels"], 1), max(counts["pairs"], 1)
    for row in rows:
        plan = to_device(row.plan, world.device)
        output = model(row.patches.to(world.device, non_blocking=True), plan)
        losses, loss = [output.language_loss], output.language_loss / labels
        if config.loss_weight:
            ahead, _ = next_frame_loss(output.predictions, output.targets)
            copying, _ = next_frame_loss(output.copies, output.targets)
            losses += [ahead, copying, *spreads(output)]
            loss = loss + config.loss_weight * ahead / pairs
        (loss * world.size).backward()  # FSDP divides gradients by the number of ranks
        sums += torch.stack(losses).detach()
    norm = clip_gradients(model, config.max_grad_norm)
    skipped = count_skipped(norm, skipped, most_in_a_row=config.max_skipped_steps)
    rate = warmup_cosine(
        step,
        peak=config.learning_rate,
        warmup=config.warmup_steps,
        total=config.max_steps,
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    if not skipped.in_a_row:
        run.optimizer.step()
    run.optimizer.zero_grad()
    total = sum_over_ranks(dict(zip(terms, sums.tolist(), strict=True)), world)
    return {
        **mean_losses(total, labels, pairs, weight=config.loss_weight),
        "learning_rate": rate,
        "gradient_norm": norm,
        "skipped_steps": skipped.total,
    }, skipped


def spreads(output: FastSlowOutput) -> list[Tensor]:
    """Tell how far predictions and targets spread, times the tokens that they are."""
    tokens = len(output.predictions)
    both = (output.predictions, output.targets.values)
    return [tokens * direction_spread(features) for features in both]


def mean_losses(
    total: dict[str, float], labels: float, pairs: float, *, weight: float
) -> dict[str, float]:
    """Divide each loss by its count; without the next-frame loss there is but one."""
    language_loss = total["language_loss"] / labels
    if not weight:
        return {"loss": language_loss, "language_loss": language_loss}
    ahead_loss = total["autoregressive_loss"] / pairs
    copy_loss = total["copy_loss"] / pairs
    return {
        "loss": language_loss + weight * ahead_loss,
        "language_loss": language_loss,
        "autoregressive_loss": ahead_loss,
        "weighted_autoregressive_loss": weight * ahead_loss,
        "copy_loss": copy_loss,
        "skill": copy_skill(ahead_loss, copy_loss),
        "spread": total["prediction_spread"] / (total["target_spread"] or math.nan),
    }


def throughput(run: Run, counts: dict[str, float], seconds: float) -> dict[str, float]:
    """Measure the whole step's wall clock, data wait included, for each rank."""
    ranks, device = run.world.size, this_device(run.world.device)
    waits = [counts[name] / seconds for name in wait_names(run.world)]
    mfu = {}
    if device is not None:
        mfu["mfu"] = counts["flops"] / (seconds * ranks * device.bf16_flops)
    return mfu | {
        "tokens_per_second": counts["tokens"] / seconds / ranks,
        "frames_per_second": counts["frames"] / seconds / ranks,
        "tokens_per_clip": counts["clip_tokens"] / counts["clips"],
        "fill": counts["tokens"] / (counts["rows"] * run.config.tokens_per_row),
        "data_wait": sum(waits) / ranks,
        "longest_data_wait": max(waits),
        "waiting_rank": waits.index(max(waits)),
        "peak_memory_gib": peak_memory(run.world.device) / 2**30,
        "skipped": counts["skipped"],
    }


def finish(run: Run, log: RunLog) -> None:
    """Ask the held-out questions, and write the weights for transformers, once."""
    folder = run.config.output_dir / f"model-{run.config.max_steps}"
    if broadcast_from_main(folder.exists, run.world):
        return
    if not broadcast_from_main(
        lambda: log.has_evaluation(run.config.max_steps), run.world
    ):
        ask_held_out(run, log)
    merge_adapters(run.model)
    export_pretrained(
        folder,
        run.model,
        run.world,
        dtype=run.config.parallel.compute_dtype,
        source=run.data.tokenizer,
    )
    log.message(f"weights for transformers in {folder}")


def ask_held_out(run: Run, log: RunLog) -> None:
    """Ask every held-out question, and record how many answers are right."""
    config, data, world = run.config, run.data, run.world
    accuracy, asked = held_out_accuracy(
        run.model, PackedRows(data.held_out), world, run.quarantine.share
    )
    if asked:
        log.scalars(config.max_steps, {"accuracy": accuracy, "chance": data.chance})
        log.message(
            f"held-out accuracy {accuracy:.3f} on {asked} questions, "
            f"chance {data.chance:.3f} (always the most common answer)"
        )


def keep_record(run: Run, progress: Progress) -> None:
    """Write the settings, and what this start of the run is remembered by."""
    folder = run.config.output_dir
    write_settings(folder / SETTINGS_FILE, run.config)
    start = {
        "first_step": progress.step + 1,
        "ranks": run.world.size,
        "device": run.world.device.type,
        "seed": run.config.seed,
        "settings": settings_as_json(run.config),
        "data": run.data.summary(),
    }
    record_start(folder, start)


def describe(run: Run, progress: Progress) -> str:
    """Say what will be trained, on what, and from where."""
    data, world = run.data, run.world
    clips = [span for span in data.train[0].spans if isinstance(span, VideoSpan)]
    shown = "".join(
        f"first clip {describe_schedule(clip.schedule, clip.grid)}, "
        f"{clip.schedule.num_frames * prod(clip.grid)} before pooling\n"
        for clip in clips[:1]
    )
    weights = sum(weight.numel() for weight in run.model.parameters())
    done, rows = progress.step, progress.rows_per_step
    begin = f"goes on after step {done}" if done else "begins with step 1"
    device = this_device(world.device)
    mfu = "" if device is None else MFU.format(world.size, device)
    return (
        f"{weights:,} parameters on {world.size} ranks ({world.device.type})\n"
        f"{len(data.train)} samples to train on, {len(data.held_out)} held out, "
        f"{len(data.bad)} unusable\n{shown}{mfu}"
        f"a step takes {rows} packed rows, {rows // world.size} on each rank\n"
        f"the run {begin} and ends with step {run.config.max_steps}"
    )
