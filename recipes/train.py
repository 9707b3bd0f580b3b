"""The training loop of all recipes, from settings to weights.

``main`` is the whole run: plan, build, shard, train, save, ask the held-out questions,
and export. A recipe is a preset of the settings that it takes.
"""

import math
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice

import torch
from torch.distributed.elastic.multiprocessing.errors import record
from transformers import Qwen2VLForConditionalGeneration

from fastslow import to_device
from fastslow.qwen2_vl import FastSlowQwen2VL, step_cost
from recipes.command_line import parse_command_line
from recipes.config import (
    SETTINGS_FILE,
    Config,
    refuse_contradictions,
    refuse_other_settings,
)
from recipes.data import Data, plan_data
from recipes.edge.checkpoints.folders import remove_leftovers
from recipes.edge.checkpoints.records import records_unless_refused
from recipes.edge.checkpoints.saver import CheckpointSaver
from recipes.edge.data.conversations import BadSample
from recipes.edge.data.loader import Dealing, PackedRows, Row, stream_rows
from recipes.edge.data.quarantine import Quarantine
from recipes.edge.estimates.devices import find_device
from recipes.edge.evaluation.held_out import ask_questions
from recipes.edge.files.output_lock import only_run
from recipes.edge.files.provenance import code_versions, record_start
from recipes.edge.files.publishing import write_whole
from recipes.edge.ranks.distributed import (
    World,
    broadcast_from_main,
    check_same_on_ranks,
    mistakes_in_words,
    process_group,
    refusals_in_words,
    speaks,
    sum_over_ranks,
)
from recipes.edge.ranks.random_states import seed_generators
from recipes.edge.ranks.stopping import STOPPED, StopSignal
from recipes.edge.reports.metrics import RunLog
from recipes.edge.training.optimization import (
    SkippedSteps,
    build_optimizer,
    clip_gradients,
    count_skipped,
    refuse_to_skip_on,
    warmup_cosine,
)
from recipes.edge.training.parallel import all_reduce_once, check_copies, parallelise
from recipes.edge.training.profiling import peak_memory, profiled
from recipes.edge.weights.export import export_pretrained
from recipes.edge.weights.loading import build_meta_model, materialize
from recipes.edge.weights.lora import merge_adapters, reset_adapters
from recipes.edge.weights.tiny import tiny_config
from recipes.measures import (
    by_rank,
    count_flops,
    count_step,
    describe,
    describe_bad,
    mean_losses,
    measure_terms,
    of_all_ranks,
    passes,
    summed_terms,
    throughput,
)
from recipes.preview import preview
from recipes.progress import Progress, Run, resume, state_beside_tensors
from recipes.settings.mappings import settings_as_json, settings_as_yaml

NO_HIDDEN_STATES = (
    "output_hidden_states has no effect: the next-frame loss reads the last hidden "
    "states in the same forward pass"
)


@record
def run_recipe(preset: Config) -> None:
    """Let file and flags change a preset, and train or say what it would take."""
    config = parse_command_line(preset)
    if config.dry_run:
        if not speaks():
            return
        with mistakes_in_words():
            text, is_possible = preview(config)
        sys.stdout.write(f"{text}\n")
        sys.exit(not is_possible)
    main(config)


def main(config: Config) -> None:
    """Plan, build, shard, train, save, ask the held-out questions, and export."""
    stop = StopSignal()
    with process_group() as world, ExitStack() as held:
        with refusals_in_words():
            held.enter_context(only_run(config.output_dir, world))
            with records_unless_refused(config.output_dir, world):
                run = prepare(config, world)
                progress, said = resume(run)
        broadcast_from_main(lambda: keep_record(run, progress), world)
        with RunLog(
            output_dir=config.output_dir,
            total_steps=config.max_steps,
            first_step=progress.step + 1,
            world=world,
        ) as log:
            log.message("\n".join([*said, describe(run, progress)]))
            if config.output_hidden_states and not progress.step:
                log.message(NO_HIDDEN_STATES)
            with stop, checkpoint_saver(run, log) as saver:
                batches = row_stream(run, progress)
                is_whole = train(run, progress, batches, log, stop, saver)
                batches.close()  # no sooner: a failure does not wait for workers
            if is_whole:
                finish(run, log)
    if not is_whole:
        sys.exit(STOPPED)


def prepare(config: Config, world: World) -> Run:
    """Plan the data, and build the model with its optimizer."""
    check_same_on_ranks(settings_as_json(config) | code_versions(), world)
    broadcast_from_main(lambda: refuse_impossible(config, world), world)
    if world.device.type == "cuda":
        torch.set_float32_matmul_precision(config.matmul_precision)
    broadcast_from_main(lambda: remove_leftovers(config.output_dir), world)
    data = broadcast_from_main(lambda: plan_data(config, world), world)
    check_same_on_ranks(data.summary(), world)
    quarantine = Quarantine(
        config.output_dir,
        num_samples=len(data.train) + len(data.held_out) + len(data.bad),
        max_share=config.max_bad_share,
        world=world,
    )
    quarantine.add(data.bad)
    broadcast_from_main(quarantine.check, world)
    model = build_model(config, data, world)
    seed_generators(config.seed + world.rank)
    return Run(
        config=config,
        data=data,
        model=model,
        optimizer=build_optimizer(
            model,
            weight_decay=config.weight_decay,
            fused=world.device.type == "cuda",
        ),
        quarantine=quarantine,
        world=world,
    )


def refuse_impossible(config: Config, world: World) -> None:
    """Refuse settings that no run can have on these ranks, or that this one has not."""
    refuse_contradictions(config)
    refuse_other_settings(config)
    find_device(config.device)  # a dry run's, but no misuse is silent
    check_copies(world.size, config.parallel.replicate)


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
    batches: Iterator[Row],
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
    for step in range(progress.step + 1, config.max_steps + 1):
        if config.eval_steps and step > 1 and (step - 1) % config.eval_steps == 0:
            ask_held_out(run, step - 1, log)  # once what it is asked of is safe
        started = time.perf_counter()
        rows = list(islice(batches, rows_per_rank))
        waited = time.perf_counter() - started
        counts = sum_over_ranks(
            count_step(run, rows, waited) | {"stop": stop.is_asked}, run.world
        )
        if counts["bad_samples"]:
            name_bad(run, (bad for row in rows for bad in row.bad), log)
        with profiled(config.output_dir, run.world, wanted=step == config.profile_step):
            losses, flops, skipped = train_step(
                run, step, rows, counts, progress.skipped
            )
            seconds = time.perf_counter() - started
        stream = rows[-1].state
        epoch = {"epoch": passes(stream, len(run.data.train))}
        log.step(step, losses | epoch | throughput(run, counts, flops, seconds))
        refuse_to_skip_on(skipped, most_in_a_row=config.max_skipped_steps)
        progress = replace(progress, step=step, stream=stream, skipped=skipped)
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


def name_bad(run: Run, bad: Iterable[BadSample], log: RunLog) -> None:
    """Tell all ranks which samples of this one could not be used; log new ones."""
    found = run.quarantine.share(bad)
    if found:
        log.message(describe_bad(found))


def row_stream(run: Run, progress: Progress) -> Generator[Row, None, None]:
    """Stream this rank's packed rows from where the run stands."""
    config, data, world = run.config, run.data, run.world
    return stream_rows(
        PackedRows(data.train),
        progress.stream,
        Dealing(
            rank=world.rank,
            world_size=world.size,
            rows=progress.rows_per_step // world.size,
            window=config.packing_window,
            seed=config.seed,
            cost=step_cost(run.model),
        ),
        num_workers=config.dataloader_num_workers,
        pin_memory=may_pin(config, world),
    )


def may_pin(config: Config, world: World) -> bool:
    """Tell whether rows wait in page-locked memory for their way to a GPU."""
    return config.dataloader_pin_memory and world.device.type == "cuda"


def build_model(config: Config, data: Data, world: World) -> FastSlowQwen2VL:
    """Build the model, and shard it; weights of files are NaN until ``resume``."""
    if data.checkpoint is None:
        torch.manual_seed(config.seed)
        shape = tiny_config(len(data.train.tokenizer))
        model = FastSlowQwen2VL(Qwen2VLForConditionalGeneration(shape)).to(world.device)
    else:
        model = build_meta_model(data.checkpoint)
    if not config.loss_weight:
        model.drop_next_frame()
    parallelise(model, config.parallel, world)
    if data.checkpoint is not None:
        offload = config.parallel.cpu_offload
        materialize(model, world.device, seed=config.seed, offload=offload)
    reset_adapters(model, seed=config.seed)
    return model


def train_step(
    run: Run,
    step: int,
    rows: list[Row],
    counts: dict[str, float],
    skipped: SkippedSteps,
) -> tuple[dict[str, float], float, SkippedSteps]:
    """Take one optimizer step; every loss is divided by its count over all ranks.

    Returns:
        The numbers of the step, the FLOPs of all ranks, and what is skipped with it.
    """
    config, model, world = run.config, run.model, run.world
    model.train()
    terms = summed_terms(config)
    sums = torch.zeros(len(terms), dtype=torch.float64, device=world.device)
    labels, pairs = max(counts["labels"], 1), max(counts["pairs"], 1)
    for row in rows:
        all_reduce_once(model, config.parallel, is_last=row is rows[-1])
        plan = to_device(row.plan, world.device)
        output = model(row.patches.to(world.device, non_blocking=True), plan)
        measured = measure_terms(output, config)
        loss = measured[0] / labels
        if config.loss_weight:
            loss = loss + config.loss_weight * measured[1] / pairs
        (loss * world.size).backward()  # FSDP divides gradients by the number of ranks
        sums += torch.stack(measured).detach()
    flops = count_flops(run, rows)  # while a GPU is at the last backward pass
    norm = clip_gradients(model, config.max_grad_norm, world)
    skipped = count_skipped(norm, skipped)
    rate = set_learning_rate(run, step)
    if not skipped.in_a_row:
        run.optimizer.step()
    run.optimizer.zero_grad()
    mine = dict(zip(terms, sums.tolist(), strict=True)) | {"flops": flops}
    mine |= by_rank("peak", peak_memory(world.device) / 2**30, world)
    total = sum_over_ranks(mine, world)
    numbers = {
        **mean_losses(
            total, counts["labels"], counts["pairs"], weight=config.loss_weight
        ),
        "learning_rate": rate,
        "gradient_norm": norm,
        "skipped_steps": skipped.total,
        "peak_memory_gib": max(of_all_ranks("peak", total, world)),
    }
    return numbers, total["flops"], skipped


def set_learning_rate(run: Run, step: int) -> float:
    """Give the optimizer the learning rate of a step; return it."""
    rate = warmup_cosine(
        step,
        peak=run.config.learning_rate,
        warmup=run.config.warmup_steps,
        total=run.config.max_steps,
    )
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    return rate


def finish(run: Run, log: RunLog) -> None:
    """Ask the held-out questions, and write the weights for transformers, once."""
    folder = run.config.output_dir / f"model-{run.config.max_steps}"
    if broadcast_from_main(folder.exists, run.world):
        log.message(f"{folder} was there before and is left as it is")
        return
    ask_held_out(run, run.config.max_steps, log)
    merge_adapters(run.model)
    export_pretrained(
        folder,
        run.model,
        run.world,
        dtype=run.config.parallel.compute_dtype,
        source=run.data.tokenizer,
    )
    log.message(f"weights for transformers in {folder}")


def ask_held_out(run: Run, step: int, log: RunLog) -> None:
    """Ask every held-out question after a step; record losses and right answers.

    What is recorded of a step is not asked again.
    """
    config, data, world = run.config, run.data, run.world
    is_recorded = broadcast_from_main(lambda: log.has_evaluation(step), world)
    if is_recorded or not len(data.held_out):
        return
    sums = ask_questions(
        run.model,
        PackedRows(data.held_out),
        world,
        lambda bad: name_bad(run, bad, log),
        terms=summed_terms(config),
        measure=lambda output: measure_terms(output, config),
        num_workers=config.dataloader_num_workers,
        pin_memory=may_pin(config, world),
    )
    losses = mean_losses(sums, sums["labels"], sums["pairs"], weight=config.loss_weight)
    questions, accuracy = int(sums["asked"]), sums["right"] / sums["asked"]
    if not sums["labels"]:  # nothing could be decoded, which is no loss of 0
        losses["loss"] = math.nan
    chance = broadcast_from_main(lambda: data.chance, world)
    found = {"accuracy": accuracy, "questions": questions, "chance": chance}
    log.scalars(step, found | losses)
    log.message(
        f"after step {step}: held-out loss {losses['loss']:.4f}, "
        f"held-out accuracy {accuracy:.3f} on {questions} questions, "
        f"chance {chance:.3f} (always the most common answer)"
    )


def keep_record(run: Run, progress: Progress) -> None:
    """Write the settings, and what this start of the run is remembered by."""
    folder = run.config.output_dir
    write_whole(folder / SETTINGS_FILE, settings_as_yaml(run.config))
    start = {
        "first_step": progress.step + 1,
        "ranks": run.world.size,
        "device": run.world.device.type,
        "seed": run.config.seed,
        "settings": settings_as_json(run.config),
        "data": run.data.summary(),
    }
    record_start(folder, start)
