"""Train a tiny, random Qwen2-VL on fast/slow frames, on any CPU.

    torchrun --standalone --nproc-per-node 2 recipes/qwen2vl_tiny.py
    torchrun --standalone --nproc-per-node 2 recipes/qwen2vl_tiny.py --data-path FILE
    python recipes/qwen2vl_tiny.py --help

Without ``--data-path`` it makes its own mp4 clips of a moving shape and asks for its
colour and its direction. The same command, given again, goes on from the last
checkpoint.
"""

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import tyro
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.fsdp import fully_shard
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from fastslow import (
    StreamState,
    VideoSpan,
    best_fit_decreasing,
    copy_skill,
    describe_schedule,
    next_frame_loss,
    to_device,
)
from fastslow.layouts import Attention
from fastslow.qwen2_vl import FastSlowQwen2VL, VisionGeometry
from fastslow.schedules import Strategy
from recipes.edge.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from recipes.edge.clips import make_clips
from recipes.edge.dataset import BadSample, most_common_share, read_samples
from recipes.edge.distributed import (
    World,
    broadcast_from_main,
    process_group,
    sum_over_ranks,
)
from recipes.edge.loader import (
    ClipSettings,
    PackedRows,
    PlannedSample,
    Row,
    count_rows,
    fingerprint,
    plan_samples,
    stream_rows,
)
from recipes.edge.metrics import RunLog
from recipes.edge.optimization import (
    SkippedSteps,
    clip_gradients,
    count_skipped,
    warmup_cosine,
)
from recipes.edge.quarantine import Quarantine
from recipes.edge.settings import check_same_settings, settings_as_json
from recipes.edge.tokenizer import VIDEO_TOKEN, train_tokenizer


@dataclass(frozen=True)
class Config:
    """Settings of a run; each is a flag of the command line."""

    output_dir: Path = Path("runs/qwen2vl_tiny")
    """Where the run's log, metrics, TensorBoard events and checkpoints go."""
    data_path: Path | None = None
    """JSON, JSONL or parquet file of conversations, or a folder of them; clips are
    named relative to it. Without it the recipe makes clips of its own."""
    eval_data_path: Path | None = None
    """Held-out conversations, in the same form."""
    frame_sampling_strategy: Strategy = "interleave"
    """Which frames are slow."""
    slow_frame_ratio: float = 0.5
    """Share of slow frames, 0 to 1."""
    mm_spatial_pool_stride: int = 2
    """Pooling stride of slow frames, in vision patches; fast frames use twice that.
    The clips here are small, 8 x 8 patches; real sizes take 4."""
    max_frames_num: int = 8
    """Raw frames sampled from a clip; two of them are one frame of the tower."""
    max_pixels: int = 112 * 112
    """Most pixels of a resized frame."""
    attention: Attention = "frame_causal"
    """Whether the tokens of a frame see each other both ways."""
    loss_weight: float = 0.15
    """Weight of the next-frame loss."""
    tokens_per_row: int = 640
    """Tokens of a packed row at most."""
    packing_window: int = 64
    """Samples from which each row is packed."""
    gradient_accumulation_steps: int = 1
    """Packed rows of each rank in one optimizer step."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 20
    """Steps of linear warm-up before the cosine."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    max_steps: int = 320
    """Optimizer steps of the whole run."""
    save_steps: int = 160
    """Steps from one checkpoint to the next; the last step is always saved."""
    max_bad_share: float = 0.05
    """The run stops when a larger share of the samples turns out to be unusable."""
    dataloader_num_workers: int = 0
    """Processes of each rank that decode ahead; 0 decodes between steps."""
    seed: int = 0
    """Seeds weights, clips and the order of the samples."""

    def __post_init__(self) -> None:
        """Check every number before any work is done."""
        for name, (least, most) in BOUNDS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                rule = (
                    f"be at least {least}"
                    if most == math.inf
                    else f"lie between {least} and {most}"
                )
                raise ValueError(f"{name} is {value}; it must {rule}")
        if self.mm_spatial_pool_stride % 2:
            raise ValueError(
                f"mm_spatial_pool_stride is {self.mm_spatial_pool_stride}; it must be "
                "even, since a token already holds 2 x 2 patches"
            )


MIN_PIXELS = 56 * 56
"""Fewest pixels of a resized frame."""

BOUNDS = {
    "slow_frame_ratio": (0, 1),
    "mm_spatial_pool_stride": (2, math.inf),
    "max_frames_num": (1, math.inf),
    "max_pixels": (MIN_PIXELS, math.inf),
    "loss_weight": (0, math.inf),
    "tokens_per_row": (1, math.inf),
    "packing_window": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "learning_rate": (0, math.inf),
    "warmup_steps": (0, math.inf),
    "max_grad_norm": (0, math.inf),
    "max_steps": (1, math.inf),
    "save_steps": (1, math.inf),
    "max_bad_share": (0, 1),
    "dataloader_num_workers": (0, math.inf),
}
"""Least and greatest value of each number."""

TERMS = ("language_loss", "autoregressive_loss", "copy_loss")
"""What is summed over the rows of a step."""

FREE_TO_CHANGE = {"output_dir", "max_steps", "save_steps", "dataloader_num_workers"}
"""Settings that may differ when a run goes on from a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What the main rank plans for all ranks.

    Attributes:
        train: Samples to train on.
        held_out: Samples to ask afterwards.
        bad: Samples that cannot be used.
        chance: Accuracy of always giving the most common answer of the training set.
        vocabulary_size: Tokens of the tokenizer.
        video_token_id: Its id for a video token.
    """

    train: list[PlannedSample]
    held_out: list[PlannedSample]
    bad: list[BadSample]
    chance: float
    vocabulary_size: int
    video_token_id: int


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run consists of, on one rank."""

    config: Config
    data: Data
    model: FastSlowQwen2VL
    optimizer: torch.optim.AdamW
    quarantine: Quarantine
    world: World


@record
def main(config: Config) -> None:
    """Plan, build, shard, train, save, and ask the held-out questions."""
    with process_group() as world:
        data = broadcast_from_main(lambda: plan_data(config, world), world)
        model = build_model(config, data, world)
        run = Run(
            config=config,
            data=data,
            model=model,
            optimizer=torch.optim.AdamW(
                [weight for weight in model.parameters() if weight.requires_grad],
                betas=(0.9, 0.95),
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
        done, stream = resume(run)
        with RunLog(
            output_dir=config.output_dir,
            total_steps=config.max_steps,
            first_step=done + 1,
            world=world,
        ) as log:
            log.message(describe(run, done))
            if done < config.max_steps:
                train(run, done, stream, log)
                ask_held_out(run, log)


def train(run: Run, done: int, stream: StreamState, log: RunLog) -> None:
    """Take the steps that are left; save now and then, and at the end."""
    config, data, world = run.config, run.data, run.world
    batches = stream_rows(
        PackedRows(data.train, clip_settings(config, world), data.video_token_id),
        stream,
        rank=world.rank,
        world_size=world.size,
        window=config.packing_window,
        seed=config.seed,
        num_workers=config.dataloader_num_workers,
    )
    for step in range(done + 1, config.max_steps + 1):
        started = time.perf_counter()
        rows = list(islice(batches, config.gradient_accumulation_steps))
        counts = sum_over_ranks(count_rows(rows), world)
        if counts["skipped"]:
            run.quarantine.share(bad for row in rows for bad in row.bad)
        losses = train_step(config, step, run.model, run.optimizer, rows, counts, world)
        seconds = time.perf_counter() - started
        log.step(step, losses | throughput(config, counts, seconds))
        if step % config.save_steps == 0 or step == config.max_steps:
            folder = save_checkpoint(
                config.output_dir,
                step,
                model=run.model,
                optimizer=run.optimizer,
                state=state_beside_tensors(run, rows[-1].state),
                world=world,
            )
            log.message(f"saved {folder}")


def plan_data(config: Config, world: World) -> Data:
    """Find the samples, make the tokenizer, and plan every token."""
    train_path, held_out_path = config.data_path, config.eval_data_path
    if train_path is None:
        clips = config.output_dir / "clips"
        make_clips(clips, num_clips=512, held_out=128, seed=config.seed)
        train_path, held_out_path = clips / "train.jsonl", clips / "held_out.jsonl"
    train, bad = read_samples(train_path)
    held_out, bad_held_out = read_samples(held_out_path) if held_out_path else ([], [])
    folder = config.output_dir / "tokenizer"
    if latest_checkpoint(config.output_dir) is None:
        texts = [turn.text for sample in train for turn in sample.turns]
        train_tokenizer(texts, vocabulary_size=512).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    settings = clip_settings(config, world)
    planned, unplanned = plan_samples(train, settings, encode)
    planned_held_out, unplanned_held_out = plan_samples(held_out, settings, encode)
    if not planned:
        found = dict.fromkeys(sample.reason for sample in bad + unplanned)
        reasons = "; ".join(list(found)[:3])
        raise ValueError(f"{train_path} has no sample that can be used: {reasons}")
    return Data(
        train=planned,
        held_out=planned_held_out,
        bad=[*bad, *bad_held_out, *unplanned, *unplanned_held_out],
        chance=most_common_share(train, held_out),
        vocabulary_size=len(tokenizer),
        video_token_id=tokenizer.get_vocab()[VIDEO_TOKEN],
    )


def clip_settings(config: Config, world: World) -> ClipSettings:
    """Gather what turns a clip into tokens."""
    return ClipSettings(
        geometry=VisionGeometry(min_pixels=MIN_PIXELS, max_pixels=config.max_pixels),
        max_frames=config.max_frames_num,
        strategy=config.frame_sampling_strategy,
        slow_ratio=config.slow_frame_ratio,
        slow_stride=config.mm_spatial_pool_stride,
        attention=config.attention,
        capacity=config.tokens_per_row,
        row_multiple=128 if world.device.type == "cuda" else 1,
    )


def build_model(config: Config, data: Data, world: World) -> FastSlowQwen2VL:
    """Build the model from random weights, the same on every rank, and shard it."""
    torch.manual_seed(config.seed)
    backbone = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={
                "vocab_size": data.vocabulary_size,
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "initializer_range": 0.08,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10_000.0,
                    "mrope_section": [4, 6, 6],
                },
                "bos_token_id": None,
                "eos_token_id": None,
            },
            vision_config={
                "depth": 2,
                "embed_dim": 64,
                "hidden_size": 128,
                "num_heads": 4,
                "mlp_ratio": 2,
                "initializer_range": 0.08,
            },
            video_token_id=data.video_token_id,
        )
    )
    model = FastSlowQwen2VL(backbone).to(world.device)
    model.freeze_tower()
    for layer in backbone.model.language_model.layers:
        fully_shard(layer, mesh=world.mesh)
    fully_shard(model, mesh=world.mesh)
    return model


def resume(run: Run) -> tuple[int, StreamState]:
    """Go on from the last checkpoint of the output folder, if there is one."""
    config = run.config
    folder = broadcast_from_main(
        lambda: latest_checkpoint(config.output_dir), run.world
    )
    if folder is None:
        return 0, StreamState()
    state = load_checkpoint(
        folder, model=run.model, optimizer=run.optimizer, world=run.world
    )
    check_same_settings(state["settings"], config, free=FREE_TO_CHANGE)
    if state["data"] != fingerprint(run.data.train):
        raise ValueError(
            f"the samples differ from those that {folder} was trained on; a run goes "
            "on with the data that it began with"
        )
    run.quarantine.add(BadSample(**sample) for sample in state["quarantine"])
    stream = state["stream"]
    return state["step"], StreamState(**stream | {"waiting": tuple(stream["waiting"])})


def state_beside_tensors(run: Run, stream: StreamState) -> dict[str, Any]:
    """Gather what a checkpoint needs beside tensors and random states."""
    return {
        "settings": settings_as_json(run.config),
        "data": fingerprint(run.data.train),
        "stream": dataclasses.asdict(stream),
        "quarantine": [dataclasses.asdict(sample) for sample in run.quarantine],
    }


def train_step(
    config: Config,
    step: int,
    model: FastSlowQwen2VL,
    optimizer: torch.optim.AdamW,
    rows: list[Row],
    counts: dict[str, float],
    world: World,
) -> dict[str, float]:
    """Take one optimizer step; every loss is divided by its count over all ranks."""
    model.train()
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    labels, pairs = max(counts["labels"], 1), max(counts["pairs"], 1)
    for row in rows:
        plan = to_device(row.plan, world.device)
        output = model(row.patches.to(world.device), plan)
        ahead, _ = next_frame_loss(output.predictions, output.targets)
        copying, _ = next_frame_loss(output.copies, output.targets)
        loss = output.language_loss / labels + config.loss_weight * ahead / pairs
        (loss * world.size).backward()  # FSDP divides gradients by the number of ranks
        sums += torch.stack([output.language_loss, ahead, copying]).detach()
    norm = clip_gradients(model, config.max_grad_norm)
    count_skipped(norm, SkippedSteps(), most_in_a_row=0)
    rate = warmup_cosine(
        step,
        peak=config.learning_rate,
        warmup=config.warmup_steps,
        total=config.max_steps,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    total = sum_over_ranks(dict(zip(TERMS, sums.tolist(), strict=True)), world)
    language_loss = total["language_loss"] / labels
    ahead_loss = total["autoregressive_loss"] / pairs
    copy_loss = total["copy_loss"] / pairs
    return {
        "loss": language_loss + config.loss_weight * ahead_loss,
        "language_loss": language_loss,
        "autoregressive_loss": ahead_loss,
        "copy_loss": copy_loss,
        "skill": copy_skill(ahead_loss, copy_loss),
        "learning_rate": rate,
        "gradient_norm": norm,
    }


def throughput(
    config: Config, counts: dict[str, float], seconds: float
) -> dict[str, float]:
    """Measure the whole step's wall clock, data wait included."""
    return {
        "tokens_per_second": counts["tokens"] / seconds,
        "frames_per_second": counts["frames"] / seconds,
        "fill": counts["tokens"] / (counts["rows"] * config.tokens_per_row),
        "skipped": counts["skipped"],
    }


@torch.no_grad()
def ask_held_out(run: Run, log: RunLog) -> None:
    """Ask every held-out question; an answer counts when all of its tokens are right.

    All tokens are scored in one pass under the true answer. Greedy decoding gives that
    answer exactly when each of its tokens is the most likely one after those before.
    """
    config, data, world = run.config, run.data, run.world
    samples = PackedRows(
        data.held_out, clip_settings(config, world), data.video_token_id
    )
    lengths = [planned.num_tokens for planned in data.held_out]
    bins = best_fit_decreasing(lengths, config.tokens_per_row)
    run.model.eval()
    asked, right, bad = 0, 0, list[BadSample]()
    for first in range(0, len(bins), world.size):
        dealt = (*bins[first : first + world.size], *[()] * world.size)
        row = samples[dealt[world.rank], StreamState()]
        plan = to_device(row.plan, world.device)
        output = run.model(row.patches.to(world.device), plan, return_logits=True)
        assert output.logits is not None
        wrong = output.logits.argmax(-1) != plan.labels.targets
        missed = plan.layout.segment_ids[plan.labels.rows][wrong].unique()
        asked += len(row.sample_ids)
        right += len(row.sample_ids) - len(missed)
        bad.extend(row.bad)
    run.quarantine.share(bad)
    total = sum_over_ranks({"right": right, "asked": asked}, world)
    if total["asked"]:
        accuracy = total["right"] / total["asked"]
        log.scalars(config.max_steps, {"accuracy": accuracy, "chance": data.chance})
        log.message(
            f"held-out accuracy {accuracy:.3f} on {total['asked']:.0f} questions, "
            f"chance {data.chance:.3f} (always the most common answer)"
        )


def describe(run: Run, done: int) -> str:
    """Say what will be trained, on what, and from where."""
    data, world = run.data, run.world
    first = data.train[0]
    clip = next(span for span in first.spans if isinstance(span, VideoSpan))
    before = clip.schedule.num_frames * clip.grid[0] * clip.grid[1]
    weights = sum(weight.numel() for weight in run.model.parameters())
    begin = f"goes on after step {done}" if done else "begins with step 1"
    return (
        f"{weights:,} parameters on {world.size} ranks ({world.device.type})\n"
        f"{len(data.train)} samples to train on, {len(data.held_out)} held out, "
        f"{len(data.bad)} unusable\n"
        f"first clip {describe_schedule(first.schedule, clip.grid)}, {before} before "
        "pooling\n"
        f"the run {begin} and ends with step {run.config.max_steps}"
    )


if __name__ == "__main__":
    main(tyro.cli(Config, console_outputs=os.environ.get("RANK", "0") == "0"))
