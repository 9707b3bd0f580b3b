"""T1: a whole training step, beside the usual one, without pooling, and with its data.

The model has the shape of Qwen2-VL 2B and the row 16,384 tokens. Without a GPU nothing
is timed: ``--benchmark-disable`` takes the same steps with a tiny model and shorter
rows. Weights are random. Clips have 2, 4, 8, 16 or 32 frames of the tower, equally
often: few samples are long, as in data.

The usual step takes the same samples 4 at a time, pads each to the longest of its 4,
attends under a dense mask, and makes float32 logits of every token. That both steps
have the same loss and gradients is checked first, with the tiny model. The tower reads
as many patches in both, and most FLOPs of the pooled step are its own.

What a step waits for its data is measured with the settings of the 2B recipe, on clips
that are as large as they allow. The clips show shapes on a plain ground: others take
longer to decode.
"""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration

from fastslow import (
    FrameSchedule,
    LabelPlan,
    Span,
    TextSpan,
    VideoSpan,
    build_schedule,
    count_tokens,
    next_frame_loss,
    pool_tokens,
    schedule_from_strides,
    to_device,
)
from fastslow.qwen2_vl import (
    FastSlowOutput,
    FastSlowQwen2VL,
    RowPlan,
    plan_row,
    step_flops,
)
from recipes.config import Config
from recipes.data import plan_data
from recipes.edge.data.clips import make_clips
from recipes.edge.data.loader import count_rows
from recipes.edge.data.quarantine import Quarantine
from recipes.edge.estimates.devices import this_device
from recipes.edge.ranks.distributed import World, process_group
from recipes.edge.training.optimization import SkippedSteps
from recipes.edge.training.parallel import parallelise
from recipes.edge.weights.loading import materialize, meta_model
from recipes.edge.weights.published import model_config
from recipes.edge.weights.tiny import tiny_config
from recipes.progress import Progress, Run
from recipes.qwen2vl_2b import QWEN2VL_2B
from recipes.qwen2vl_tiny import TINY
from recipes.settings.parallel import Parallel
from recipes.train import row_stream, train_step

pytestmark = pytest.mark.filterwarnings("default")  # torch's compiler warns of itself

VIDEO_TOKEN_ID = 6
BATCH = 4
IGNORED = -100


def pooled(frames: int) -> FrameSchedule:
    return build_schedule(frames, slow_stride=2, fast_stride=4)


def every_token(frames: int) -> FrameSchedule:
    return schedule_from_strides([1] * frames)


Pooling = Callable[[int], FrameSchedule]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row and its patches, on the device, and its plan on the CPU as well."""

    plan: RowPlan
    on_device: RowPlan
    patches: Tensor


class Usual(FastSlowQwen2VL):
    """Reads every sample in a row of its own, and scores all of their tokens.

    The tower, pooling and the next-frame head are the same.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.use_sdpa()

    def use_sdpa(self) -> None:
        """Let transformers' own SDPA attend, under the mask that it is given."""
        self.backbone.set_attn_implementation({"text_config": "sdpa"})

    def forward(self, patches: Tensor, plan: RowPlan) -> FastSlowOutput:
        none = plan.labels.rows[:0]
        without = replace(plan, labels=LabelPlan(rows=none, targets=none))
        output = super().forward(patches, without)
        logits = self.backbone.lm_head(self.states).float()
        labels = torch.full_like(plan.layout.input_ids, IGNORED)
        labels[plan.labels.rows + 1] = plan.labels.targets
        labels = filled_up(labels, places(plan), IGNORED)
        loss = F.cross_entropy(
            logits[:, :-1].flatten(0, 1),
            labels[:, 1:].flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        del self.states
        return replace(output, language_loss=loss)

    def _read(self, vision: Any, plan: RowPlan) -> Tensor:
        layout, model = plan.layout, self.backbone.model.language_model
        text = model.embed_tokens(layout.input_ids)
        video = pool_tokens(vision.pooler_output, plan.pool).values.to(text)
        where = places(plan)
        last = torch.iinfo(layout.causal_ranks.dtype).max
        ranks = filled_up(layout.causal_ranks, where, last)
        positions = filled_up(layout.position_ids.T, where, 0)
        self.states: Tensor = model(
            inputs_embeds=filled_up(
                text.index_copy(0, plan.video_rows, video), where, 0
            ),
            position_ids=positions.permute(2, 0, 1),
            attention_mask=(ranks[:, None] <= ranks[..., None])[:, None],
            use_cache=False,
        ).last_hidden_state
        return self.states[where]


def places(plan: RowPlan) -> tuple[Tensor, Tensor]:
    """Give the sample of each token, and its place in that sample."""
    sample = plan.layout.segment_ids
    first = torch.searchsorted(sample, sample)
    return sample, torch.arange(len(sample), device=sample.device) - first


def filled_up(values: Tensor, where: tuple[Tensor, Tensor], fill: int) -> Tensor:
    """Put tokens in a row for each sample, as long as the longest."""
    sizes = [int(each.max()) + 1 for each in where]
    filled = values.new_full((*sizes, *values.shape[1:]), fill)
    return filled.index_put(where, values)


def samples(pooling: Pooling, *, is_large: bool) -> list[list[Span]]:
    """Draw clips of many lengths, and take what still fits into the row."""
    random, taken, tokens = Random(0), list[list[Span]](), 0
    grid, capacity = ((16, 16), 16_384) if is_large else ((4, 4), 600)
    text = 100 if is_large else 10
    for _ in range(200):
        question = TextSpan(token_ids=tuple(range(10, 10 + text)))
        answer = TextSpan(token_ids=tuple(range(10, 10 + text // 2)), trained=True)
        schedule = pooling(random.choice((2, 4, 8, 16, 32)))
        sample = [question, VideoSpan(grid=grid, schedule=schedule), answer]
        if tokens + count_tokens(sample) <= capacity:
            tokens += count_tokens(sample)
            taken.append(sample)
    return taken


@cache
def rows(
    pooling: Pooling, device: torch.device, batch: int | None = None
) -> tuple[Row, ...]:
    """Lay out one packed row, or one for each batch of samples, to be padded later."""
    is_large = device.type == "cuda"
    chosen = samples(pooling, is_large=is_large)
    size = batch or len(chosen)
    plans = [
        plan_row(
            chosen[first : first + size],
            video_token_id=VIDEO_TOKEN_ID,
            length=16_384 if is_large and batch is None else None,
        )
        for first in range(0, len(chosen), size)
    ]
    counts = [int(plan.grid_thw.prod(1).sum()) for plan in plans]
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(sum(counts), 1176, generator=generator).to(device)
    return tuple(
        Row(plan=plan, on_device=to_device(plan, device), patches=part)
        for plan, part in zip(plans, patches.split(counts), strict=True)
    )


def tiny(way: type[FastSlowQwen2VL]) -> FastSlowQwen2VL:
    torch.manual_seed(0)
    return way(Qwen2VLForConditionalGeneration(tiny_config(512)))


def build(
    way: type[FastSlowQwen2VL], world: World, settings: Parallel
) -> FastSlowQwen2VL:
    """Build the model of this device's size with random weights, ready to train."""
    if world.device.type == "cpu":
        model = tiny(way)
        parallelise(model, settings, world)
        return model
    model = meta_model(model_config("Qwen/Qwen2-VL-2B-Instruct"))
    if way is Usual:
        model.__class__ = Usual
        model.use_sdpa()
    parallelise(model, settings, world)
    materialize(model, world.device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_q" in name:
                parameter.fill_(float(name.endswith("weight")))
            else:
                nn.init.normal_(parameter, std=0.02)
    return model


def backward(model: FastSlowQwen2VL, parts: tuple[Row, ...]) -> Tensor:
    """Add up the gradients of the loss over some rows; give the loss."""
    labels = sum(len(part.plan.labels.rows) for part in parts)
    pairs = sum(part.plan.next_frame.num_frames for part in parts)
    total = torch.zeros((), device=parts[0].patches.device)
    for part in parts:
        output = model(part.patches, part.on_device)
        ahead, _ = next_frame_loss(output.predictions, output.targets)
        loss = output.language_loss / labels + 0.15 * ahead / pairs
        loss.backward()
        total += loss.detach()
    return total


@cache
def assert_same_step() -> None:
    """Compare loss and gradients of both steps, in float32 on the CPU."""
    cpu, found = torch.device("cpu"), []
    for way, batch in ((FastSlowQwen2VL, None), (Usual, BATCH)):
        model = tiny(way).eval()
        loss = backward(model, rows(pooled, cpu, batch))
        found.append({n: p.grad for n, p in model.named_parameters()} | {"loss": loss})
    ours, usual = found
    for name, expected in usual.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Join a group of one, for FSDP."""
    with process_group() as joined:
        yield joined


@pytest.fixture(autouse=True)
def empty_memory(device: torch.device) -> Iterator[None]:
    """Give back what models before this one held, cycles and graphs included."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def optimizer_of(model: nn.Module, device: torch.device) -> torch.optim.AdamW:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-5, fused=device.type == "cuda")


WAYS = {
    "packed, compiled": (FastSlowQwen2VL, pooled, None, True),
    "packed, compiled, all frames at stride 1": (
        FastSlowQwen2VL,
        every_token,
        None,
        True,
    ),
    "padded, dense masks, all logits": (Usual, pooled, BATCH, False),
    "packed": (FastSlowQwen2VL, pooled, None, False),
}
TARGETS = {
    "packed, compiled": "MFU at least 0.45",
    "padded, dense masks, all logits": "at least 3x",
}


@pytest.mark.parametrize("name", WAYS)
def test_t1(
    benchmark: BenchmarkFixture,
    device: torch.device,
    to_the_end: Callable[[Any], Any],
    world: World,
    name: str,
) -> None:
    if device.type == "cpu" and benchmark.enabled:
        pytest.skip("a tiny model on a CPU says nothing about speed")
    benchmark.group = "T1: Training step of Qwen2-VL 2B, 16,384 tokens"
    way, pooling, batch, is_compiled = WAYS[name]
    assert_same_step()
    is_large = device.type == "cuda"
    settings = Parallel(
        compute="bfloat16" if is_large else "float32",
        activation_checkpointing="selective",
        torch_compile=is_compiled and is_large,
    )
    parts = rows(pooling, device, batch)
    before = torch.cuda.memory_allocated(device) if is_large else 0
    model = build(way, world, settings).train()
    optimizer = optimizer_of(model, device)

    def step() -> Tensor:
        loss = backward(model, parts)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    assert step().isfinite()
    if name in TARGETS:
        benchmark.extra_info["target"] = TARGETS[name]
    if is_large:
        torch.cuda.reset_peak_memory_stats(device)
    benchmark.pedantic(to_the_end(step), rounds=5, warmup_rounds=1)
    if benchmark.enabled:
        peak = torch.cuda.max_memory_allocated(device) - before
        benchmark.extra_info["peak GiB"] = round(peak / 2**30, 1)
        record(benchmark, model, parts, device)


def run_of(preset: Config, size: tuple[int, int], folder: Path, world: World) -> Run:
    """Prepare a run of a recipe's settings, with random weights and clips of a size."""
    make_clips(folder / "clips", num_clips=64, held_out=0, seed=0, size=size)
    config = replace(
        preset,
        model_name_or_path=None,
        data_path=str(folder / "clips" / "train.jsonl"),
        output_dir=folder,
        gradient_accumulation_steps=4,
        parallel=replace(preset.parallel, torch_compile=world.device.type == "cuda"),
    )
    data = plan_data(config, world)
    model = build(FastSlowQwen2VL, world, config.parallel)
    return Run(
        config=config,
        data=data,
        model=model,
        optimizer=optimizer_of(model, world.device),
        quarantine=Quarantine(
            folder, num_samples=len(data.train), max_share=0, world=world
        ),
        world=world,
    )


def test_t1_data(
    benchmark: BenchmarkFixture, device: torch.device, world: World, tmp_path: Path
) -> None:
    """Take the recipe's own steps on rows that are decoded meanwhile."""
    if device.type == "cpu" and benchmark.enabled:
        pytest.skip("a tiny model on a CPU says nothing about waiting")
    benchmark.group = "T1: Steps of Qwen2-VL 2B on clips that are decoded meanwhile"
    preset, size = (
        (QWEN2VL_2B, (448, 448)) if device.type == "cuda" else (TINY, (56, 56))
    )
    run = run_of(preset, size, tmp_path, world)
    begin = Progress(rows_per_step=run.config.rows_per_step)
    rows, waits = row_stream(run, begin), list[float]()

    def step() -> None:
        started = time.perf_counter()
        taken = list(islice(rows, run.config.rows_per_step))
        waits.append(time.perf_counter() - started)
        losses, *_ = train_step(run, 1, taken, count_rows(taken), SkippedSteps())
        assert losses["loss"] < float("inf")

    benchmark.extra_info["target"] = "data wait under 2%"
    benchmark.pedantic(step, rounds=4, warmup_rounds=1)
    if benchmark.enabled:
        stats = benchmark.stats.stats
        benchmark.extra_info["data wait in %"] = 100 * sum(waits[-4:]) / stats.total
        benchmark.extra_info["rows a step"] = run.config.rows_per_step
        list(islice(rows, 2 * run.config.dataloader_num_workers))  # ready before
        started = time.perf_counter()
        list(islice(rows, run.config.rows_per_step))
        alone = time.perf_counter() - started
        benchmark.extra_info["loading alone in % of a step"] = round(
            100 * alone / stats.median
        )


def record(
    benchmark: BenchmarkFixture,
    model: FastSlowQwen2VL,
    parts: tuple[Row, ...],
    device: torch.device,
) -> None:
    """Note what the median step achieves; padding is no token and no FLOP."""
    seconds = benchmark.stats.stats.median
    plans = [part.plan for part in parts]
    tokens = sum(int((plan.layout.segment_ids >= 0).sum()) for plan in plans)
    frames = sum(
        clip.schedule.num_frames for plan in plans for clip in plan.layout.clips
    )
    rows = sum(len(plan.visible.start) for plan in plans)
    if isinstance(model, Usual):
        rows = sum(padded_tokens(plan) for plan in plans)
    benchmark.extra_info |= {
        "fill": round(tokens / rows, 3),
        "tokens a second": round(tokens / seconds),
        "frames a second": round(frames / seconds, 1),
    }
    flops = [step_flops(model, plan) for plan in plans]
    total = sum(each.total for each in flops)
    benchmark.extra_info["TFLOP"] = round(total / 1e12)
    tower = sum(each.tower for each in flops)
    benchmark.extra_info["of these the tower"] = round(tower / 1e12)
    gpu = this_device(device)
    if gpu is not None:
        benchmark.extra_info["MFU"] = round(total / seconds / gpu.bf16_flops, 3)


def padded_tokens(plan: RowPlan) -> int:
    """Count the tokens of a plan's samples when each is as long as the longest."""
    sizes = plan.layout.segment_ids.bincount()
    return len(sizes) * int(sizes.max())
