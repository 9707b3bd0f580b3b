"""Train a tiny, random Qwen2-VL on fast/slow frames, on any CPU.

    torchrun --standalone --nproc-per-node 2 recipes/qwen2vl_tiny.py --output-dir runs/tiny
    torchrun --standalone --nproc-per-node 2 recipes/qwen2vl_tiny.py --data-path my/clips
    python recipes/qwen2vl_tiny.py --help

Without ``--data-path`` it makes its own mp4 clips of a moving shape and asks for its
colour and its direction. The same command, given again, goes on from the last
checkpoint.
"""

import dataclasses
import hashlib
import math
import os
import time
from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from fastslow import (
    StreamState,
    VideoSpan,
    best_fit_decreasing,
    next_frame_loss,
    to_device,
    tokens_per_frame,
)
from fastslow.layouts import Attention
from fastslow.qwen2_vl import FastSlowQwen2VL, VisionGeometry
from fastslow.schedules import Strategy
from recipes.edge.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from recipes.edge.clips import make_clips
from recipes.edge.dataset import BadSample, Sample, read_samples
from recipes.edge.distributed import (
    World,
    broadcast_from_main,
    gather_from_ranks,
    process_group,
    sum_over_ranks,
)
from recipes.edge.loader import (
    ClipSettings,
    PackedRows,
    PlannedSample,
    Row,
    plan_samples,
    stream_rows,
)
from recipes.edge.metrics import RunLog
from recipes.edge.quarantine import Quarantine
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


def main(config: Config) -> None:
    """Plan, build, shard, train, save, and ask the held-out questions."""
    with process_group() as world:
        data = broadcast_from_main(lambda: plan_data(config, world), world)
        model = build_model(config, data, world)
        optimizer = torch.optim.AdamW(
            [weight for weight in model.parameters() if weight.requires_grad],
            betas=(0.9, 0.95),
        )
        quarantine = Quarantine(
            config.output_dir,
            num_samples=len(data.train) + len(data.held_out) + len(data.bad),
            max_share=config.max_bad_share,
            world=world,
        )
        quarantine.add(data.bad)
        done, stream = resume(config, data, model, optimizer, quarantine, world)
        rows = PackedRows(data.train, clip_settings(config, world), data.video_token_id)
        batches = stream_rows(
            rows,
            stream,
            rank=world.rank,
            world_size=world.size,
            window=config.packing_window,
            seed=config.seed,
            num_workers=config.dataloader_num_workers,
        )
        with RunLog(
            output_dir=config.output_dir,
            total_steps=config.max_steps,
            first_step=done + 1,
            world=world,
        ) as log:
            log.message(describe(config, data, model, done, world))
            for step in range(done + 1, config.max_steps + 1):
                started = time.perf_counter()
                micro = list(islice(batches, config.gradient_accumulation_steps))
                counts = sum_over_ranks(count(micro), world)
                if counts["skipped"]:
                    share_bad_samples(micro, quarantine, world)
                losses = train_step(
                    config, step, model, optimizer, micro, counts, world
                )
                seconds = time.perf_counter() - started
                log.step(step, losses | throughput(config, counts, seconds, world))
                if step % config.save_steps == 0 or step == config.max_steps:
                    state = run_state(config, data, micro[-1].state, quarantine)
                    folder = save_checkpoint(
                        config.output_dir,
                        step,
                        model=model,
                        optimizer=optimizer,
                        state=state,
                        world=world,
                    )
                    log.message(f"saved {folder}")
            if data.held_out:
                held_out = PackedRows(data.held_out, rows.settings, data.video_token_id)
                accuracy, answered = evaluate(model, held_out, world)
                log.scalars(
                    config.max_steps, {"accuracy": accuracy, "chance": data.chance}
                )
                log.message(
                    f"held-out accuracy {accuracy:.3f} on {answered} questions "
                    f"(chance {data.chance:.3f})"
                )


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
        reasons = "; ".join(sample.reason for sample in (bad + unplanned)[:3])
        raise ValueError(f"{train_path} has no sample that can be used: {reasons}")
    return Data(
        train=planned,
        held_out=planned_held_out,
        bad=[*bad, *bad_held_out, *unplanned, *unplanned_held_out],
        chance=most_common_share(train, held_out),
        vocabulary_size=len(tokenizer),
        video_token_id=tokenizer.convert_tokens_to_ids(VIDEO_TOKEN),
    )


def most_common_share(train: list[Sample], held_out: list[Sample]) -> float:
    """Tell how often the most common answer of the training set is right."""
    answers = Counter(answer_of(sample) for sample in train)
    guess = answers.most_common(1)[0][0]
    right = sum(answer_of(sample) == guess for sample in held_out)
    return right / max(len(held_out), 1)


def answer_of(sample: Sample) -> tuple[str, ...]:
    """Give everything that the assistant says in a sample."""
    return tuple(turn.text for turn in sample.turns if turn.role == "assistant")


def clip_settings(config: Config, world: World) -> ClipSettings:
    """Gather what turns a clip into tokens."""
    return ClipSettings(
        geometry=VisionGeometry(min_pixels=56 * 56, max_pixels=config.max_pixels),
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


def resume(
    config: Config,
    data: Data,
    model: FastSlowQwen2VL,
    optimizer: torch.optim.AdamW,
    quarantine: Quarantine,
    world: World,
) -> tuple[int, StreamState]:
    """Go on from the last checkpoint of the output folder, if there is one."""
    folder = broadcast_from_main(lambda: latest_checkpoint(config.output_dir), world)
    if folder is None:
        return 0, StreamState()
    state = load_checkpoint(folder, model=model, optimizer=optimizer, world=world)
    for name, now in settings_as_json(config).items():
        before = state["settings"].get(name)
        if before != now and name not in FREE_TO_CHANGE:
            raise ValueError(
                f"{name} is {now!r} but {folder} was trained with {before!r}; a run "
                "goes on with the settings that it began with"
            )
    if state["data"] != fingerprint(data):
        raise ValueError(
            f"the samples differ from those that {folder} was trained on; a run goes "
            "on with the data that it began with"
        )
    quarantine.add(BadSample(**sample) for sample in state["quarantine"])
    stream = state["stream"]
    return state["step"], StreamState(**stream | {"waiting": tuple(stream["waiting"])})


def run_state(
    config: Config, data: Data, stream: StreamState, quarantine: Quarantine
) -> dict[str, Any]:
    """Gather what a checkpoint needs beside tensors and random states."""
    return {
        "settings": settings_as_json(config),
        "data": fingerprint(data),
        "stream": dataclasses.asdict(stream),
        "quarantine": [dataclasses.asdict(sample) for sample in quarantine],
    }


def settings_as_json(config: Config) -> dict[str, Any]:
    """Give the settings in the form that a checkpoint keeps."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
    }


def fingerprint(data: Data) -> str:
    """Sum up which samples there are, in which order and how long."""
    planned = [(each.sample.sample_id, each.num_tokens) for each in data.train]
    return hashlib.sha256(repr(planned).encode()).hexdigest()


def count(rows: list[Row]) -> dict[str, float]:
    """Count what this rank's rows hold; all of it is known before the forward pass."""
    return {
        "labels": sum(len(row.plan.labels.rows) for row in rows),
        "pairs": sum(len(row.plan.next_frame.targets.cu_seqlens) - 1 for row in rows),
        "tokens": sum(row.num_tokens for row in rows),
        "frames": sum(row.num_frames for row in rows),
        "rows": len(rows),
        "skipped": sum(len(row.bad) for row in rows),
    }


def share_bad_samples(rows: list[Row], quarantine: Quarantine, world: World) -> None:
    """Tell every rank which samples any rank could not decode."""
    found = gather_from_ranks([bad for row in rows for bad in row.bad], world)
    quarantine.add(chain.from_iterable(found))


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
    sums = dict.fromkeys(("language", "autoregressive", "copy"), 0.0)
    labels, pairs = max(counts["labels"], 1), max(counts["pairs"], 1)
    for row in rows:
        plan = to_device(row.plan, world.device)
        output = model(row.patches.to(world.device), plan)
        language = F.cross_entropy(
            output.logits.float(), plan.labels.targets, reduction="sum"
        )
        ahead, _ = next_frame_loss(output.predictions, output.targets)
        copying, _ = next_frame_loss(output.copies, output.targets)
        loss = language / labels + config.loss_weight * ahead / pairs
        (loss * world.size).backward()  # FSDP divides gradients by the number of ranks
        sums["language"] += language.item()
        sums["autoregressive"] += ahead.item()
        sums["copy"] += copying.item()
    norm = float(clip_gradients(model, config.max_grad_norm))
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient norm is {norm} at step {step}")
    rate = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    total = sum_over_ranks(sums, world)
    ahead_loss, copy_loss = total["autoregressive"] / pairs, total["copy"] / pairs
    return {
        "loss": total["language"] / labels + config.loss_weight * ahead_loss,
        "language_loss": total["language"] / labels,
        "autoregressive_loss": ahead_loss,
        "copy_loss": copy_loss,
        "skill": 1 - ahead_loss / copy_loss if copy_loss else math.nan,
        "learning_rate": rate,
        "gradient_norm": norm,
    }


def clip_gradients(model: FastSlowQwen2VL, max_norm: float) -> float:
    """Scale gradients down to ``max_norm``; give the norm that they had."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def learning_rate(config: Config, step: int) -> float:
    """Warm up linearly, then follow a cosine to zero."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)
    return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def throughput(
    config: Config, counts: dict[str, float], seconds: float, world: World
) -> dict[str, float]:
    """Measure the whole step's wall clock, data wait included."""
    return {
        "tokens_per_second": counts["tokens"] / seconds,
        "frames_per_second": counts["frames"] / seconds,
        "fill": counts["tokens"] / (counts["rows"] * config.tokens_per_row),
        "skipped": counts["skipped"],
    }


@torch.no_grad()
def evaluate(
    model: FastSlowQwen2VL, rows: PackedRows, world: World
) -> tuple[float, int]:
    """Ask every held-out question; an answer counts when all of its tokens are right.

    All tokens are scored in one pass under the true answer. Greedy decoding gives that
    answer exactly when each of its tokens is the most likely one after those before.
    """
    model.eval()
    lengths = [planned.num_tokens for planned in rows.samples]
    bins = best_fit_decreasing(lengths, rows.settings.capacity)
    right = asked = 0
    for turn in range(0, len(bins), world.size):
        mine = bins[turn + world.rank] if turn + world.rank < len(bins) else ()
        row = rows[mine, StreamState()]
        plan = to_device(row.plan, world.device)
        logits = model(row.patches.to(world.device), plan).logits
        wrong = logits.argmax(-1) != plan.labels.targets
        segments = plan.layout.segment_ids[plan.labels.rows]
        asked += len(row.sample_ids)
        right += len(row.sample_ids) - len(segments[wrong].unique())
    total = sum_over_ranks({"right": right, "asked": asked}, world)
    return total["right"] / max(total["asked"], 1), int(total["asked"])


def describe(
    config: Config, data: Data, model: FastSlowQwen2VL, done: int, world: World
) -> str:
    """Say what will be trained, on what, and from where."""
    clip = next(s for s in data.train[0].spans if isinstance(s, VideoSpan))
    schedule = "".join("S" if s == min(clip.strides) else "." for s in clip.strides)
    before = len(clip.strides) * clip.grid[0] * clip.grid[1]
    after = sum(tokens_per_frame(clip.grid, clip.strides))
    weights = sum(weight.numel() for weight in model.parameters())
    begin = f"goes on after step {done}" if done else "begins"
    return (
        f"{weights:,} parameters on {world.size} ranks ({world.device.type})\n"
        f"{len(data.train)} samples to train on, {len(data.held_out)} held out, "
        f"{len(data.bad)} unusable\n"
        f"first clip {schedule}: {after} tokens after pooling, {before} before\n"
        f"the run {begin} and ends with step {config.max_steps}"
    )


if __name__ == "__main__":
    main(tyro.cli(Config, console_outputs=os.environ.get("RANK", "0") == "0"))
