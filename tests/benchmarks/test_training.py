"""T1: a whole training step, beside the same step padded, and without pooling.

The model has the shape of Qwen2-VL 2B and the row 16,384 tokens. Without a GPU nothing
is timed: ``--benchmark-disable`` takes the same steps with a tiny model. Weights are
random. Clips have 4 to 32 frames, as data do, so padding every
sample to the longest costs what it costs there. The tower, the heads and the losses are
the same in every way; what differs is how the language model reads the samples.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastslow import (
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
from fastslow.qwen2_vl import FastSlowQwen2VL, RowPlan, plan_row, step_flops
from recipes.edge.devices import this_device
from recipes.edge.distributed import World, process_group
from recipes.edge.parallel import Parallel, parallelise
from recipes.edge.published import model_config
from recipes.edge.tiny import tiny_backbone
from recipes.edge.weights import materialize, meta_model

VIDEO_TOKEN_ID = 6
SCHEDULES = {
    "pooled": lambda frames: build_schedule(frames, slow_stride=2, fast_stride=4),
    "unpooled": lambda frames: schedule_from_strides([1] * frames),
}


@dataclass(frozen=True)
class Work:
    """A row and its patches, on the device, and its plan on the CPU."""

    plan: RowPlan
    on_device: RowPlan
    patches: Tensor
    tokens: int
    frames: int


class Padded(FastSlowQwen2VL):
    """Reads every sample in a row of its own, filled up, under a dense mask."""

    def _read(self, vision: Any, plan: RowPlan) -> Tensor:
        layout, model = plan.layout, self.backbone.model.language_model
        text = model.embed_tokens(layout.input_ids)
        whole = self._with_video(vision, plan, text)
        real = layout.segment_ids >= 0
        sample, place = layout.segment_ids[real], layout.position_ids[0][real]
        size = (int(sample.max()) + 1, int(place.max()) + 1)
        states = text.new_zeros(*size, text.shape[1])
        states[sample, place] = whole[real]
        positions = layout.position_ids.new_zeros(4, *size)
        positions[:, sample, place] = layout.position_ids[:, real]
        last = torch.iinfo(torch.long).max
        ranks = layout.causal_ranks.new_full(size, last)
        ranks[sample, place] = layout.causal_ranks[real]
        mask = ranks[:, None, None, :] <= ranks[:, None, :, None]
        hidden = model(
            inputs_embeds=states,
            position_ids=positions,
            attention_mask=text.new_empty(1, 1, 0, 0),
            layout_mask=mask,
            use_cache=False,
        ).last_hidden_state
        packed = torch.zeros_like(whole)
        packed[real] = hidden[sample, place]
        return packed

    def _with_video(self, vision: Any, plan: RowPlan, text: Tensor) -> Tensor:
        video = pool_tokens(vision.pooler_output, plan.pool).values.to(text)
        return text.index_copy(0, plan.video_rows, video)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Join a group of one, for FSDP."""
    with process_group() as joined:
        yield joined


def samples(kind: str, *, is_large: bool) -> list[list[Span]]:
    """Draw clips of many lengths until the row is full; the same of both kinds."""
    random, drawn, tokens = Random(0), list[list[Span]](), 0
    grid, capacity = ((16, 16), 16_384) if is_large else ((4, 4), 600)
    text = 100 if is_large else 10
    while True:
        frames = random.randint(2, 16)
        question = TextSpan(token_ids=tuple(range(10, 10 + text)))
        answer = TextSpan(token_ids=tuple(range(10, 10 + text // 2)), trained=True)
        clip = VideoSpan(grid=grid, schedule=SCHEDULES[kind](frames))
        sample: list[Span] = [question, clip, answer]
        tokens += count_tokens(sample)
        if tokens > capacity and drawn:
            return drawn
        drawn.append(sample)


@cache
def work(kind: str, device: torch.device) -> Work:
    is_large = device.type == "cuda"
    chosen = samples(kind, is_large=is_large)
    plan = plan_row(
        chosen,
        video_token_id=VIDEO_TOKEN_ID,
        length=16_384 if is_large else None,
    )
    generator = torch.Generator().manual_seed(0)
    count = int(plan.grid_thw.prod(1).sum())
    patches = torch.randn(count, 1176, generator=generator)
    return Work(
        plan=plan,
        on_device=to_device(plan, device),
        patches=patches.to(device),
        tokens=sum(map(count_tokens, chosen)),
        frames=sum(clip.schedule.num_frames for clip in plan.layout.clips),
    )


def build(way: type[FastSlowQwen2VL], world: World) -> FastSlowQwen2VL:
    """Build the model of this device's size with random weights, ready to train."""
    torch.manual_seed(0)
    if world.device.type == "cpu":
        backbone = tiny_backbone(vocabulary_size=512, video_token_id=VIDEO_TOKEN_ID)
        model = way(backbone)
        parallelise(model, Parallel(compute="float32"), world)
        return model
    model = meta_model(model_config("Qwen/Qwen2-VL-2B-Instruct"))
    model.__class__ = way
    parallelise(model, Parallel(activation_checkpointing="selective"), world)
    materialize(model, world.device)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def loss_of(model: FastSlowQwen2VL, row: Work) -> Tensor:
    output = model(row.patches, row.on_device)
    ahead, pairs = next_frame_loss(output.predictions, output.targets)
    labels = len(row.plan.labels.rows)
    return output.language_loss / labels + 0.15 * ahead / pairs


@pytest.mark.parametrize(
    ("way", "kind"),
    [(FastSlowQwen2VL, "pooled"), (Padded, "pooled"), (FastSlowQwen2VL, "unpooled")],
    ids=["packed", "padded, dense masks", "packed, all frames at stride 1"],
)
def test_t1(
    benchmark: BenchmarkFixture,
    device: torch.device,
    to_the_end: Callable[[Any], Any],
    world: World,
    way: type[FastSlowQwen2VL],
    kind: str,
) -> None:
    if device.type == "cpu" and benchmark.enabled:
        pytest.skip("a tiny model on a CPU says nothing about speed")
    benchmark.group = "T1: Training step of Qwen2-VL 2B, 16,384 tokens"
    row = work(kind, device)
    model = build(way, world)
    if way is Padded and device.type == "cpu":
        expected = loss_of(build(FastSlowQwen2VL, world), row)
        torch.testing.assert_close(loss_of(model, row), expected)
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad],
        lr=1e-5,
        fused=device.type == "cuda",
    )

    def step() -> None:
        loss_of(model, row).backward()
        optimizer.step()
        optimizer.zero_grad()

    if way is Padded:
        benchmark.extra_info["target"] = "at least 3x"
    benchmark.pedantic(to_the_end(step), rounds=5, warmup_rounds=2)
    if not benchmark.enabled:
        return
    seconds = benchmark.stats.stats.min
    benchmark.extra_info["tokens a second"] = round(row.tokens / seconds)
    benchmark.extra_info["frames a second"] = round(row.frames / seconds, 1)
    gpu = this_device(device)
    if gpu is not None:
        flops = step_flops(model, row.plan).total
        benchmark.extra_info["MFU"] = round(flops / seconds / gpu.bf16_flops, 3)
        peak = torch.cuda.max_memory_allocated(device)
        benchmark.extra_info["peak GiB"] = round(peak / 2**30, 1)
        torch.cuda.reset_peak_memory_stats(device)
