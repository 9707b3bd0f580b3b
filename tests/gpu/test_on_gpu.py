"""What a GPU computes is what a CPU computes."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import Qwen2VLForConditionalGeneration

from fastslow import (
    TextSpan,
    VideoSpan,
    build_schedule,
    next_frame_loss,
    plan_pooling,
    pool_tokens,
    scale_fast_frames,
    schedule_from_grids,
    to_device,
)
from fastslow.grids import Mode
from fastslow.qwen2_vl import (
    FastSlowQwen2VL,
    RowPlan,
    WindowedTowerPlan,
    plan_row,
    plan_tower,
)
from fastslow.qwen2_vl.tower import attend_within_frames
from recipes.edge.checkpoints.checkpoint import (
    load_checkpoint,
    take_snapshot,
    write_snapshot,
)
from recipes.edge.ranks.distributed import process_group
from recipes.edge.training.optimization import clip_gradients
from recipes.edge.training.parallel import parallelise
from recipes.edge.weights.tiny import tiny_config
from recipes.settings.parallel import Parallel

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # torch's compiler warns of itself
]

CUDA = torch.device("cuda", 0)
VIDEO_TOKEN_ID = 6


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.set_float32_matmul_precision("highest")


def packed_row(length: int = 256) -> RowPlan:
    schedule = build_schedule(4, slow_stride=1, fast_stride=2)
    clips = [
        VideoSpan(grid=(4, 6), schedule=schedule),
        VideoSpan(grid=(4, 4), schedule=scale_fast_frames(schedule, 2)),
    ]
    question = TextSpan(token_ids=tuple(range(10, 30)))
    answer = TextSpan(token_ids=(40, 41, 42), trained=True)
    return plan_row(
        [[question, clip, answer] for clip in clips],
        video_token_id=VIDEO_TOKEN_ID,
        length=length,
    )


def model() -> FastSlowQwen2VL:
    torch.manual_seed(0)
    backbone = Qwen2VLForConditionalGeneration(tiny_config(64))
    return FastSlowQwen2VL(backbone)


def patches_of(plan: RowPlan) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    count = int(plan.grid_thw.prod(1).sum())
    return torch.randn(count, 1176, generator=generator)


def loss_of(trained: Any, patches: Tensor, plan: RowPlan) -> Tensor:
    output = trained(patches, plan)
    ahead, _ = next_frame_loss(output.predictions, output.targets)
    total: Tensor = output.language_loss + ahead
    return total


def test_a_row_gives_the_same_loss_and_gradients() -> None:
    plan = packed_row()
    found = []
    for device in (torch.device("cpu"), CUDA):
        trained = model().to(device)
        trained.train_tower()
        loss = loss_of(trained, patches_of(plan).to(device), to_device(plan, device))
        loss.backward()
        gradients = [p.grad for p in trained.parameters() if p.grad is not None]
        found.append([loss.detach().cpu(), *(grad.cpu() for grad in gradients)])
    assert len(found[0]) == len(found[1])
    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["average", "max", "area", "bilinear"])
def test_pooling_is_exact(mode: Mode, dtype: torch.dtype) -> None:
    """Compare with float64 on the CPU, in both passes."""
    clips = [
        ((13, 23), build_schedule(3, slow_stride=2, fast_stride=4)),
        ((5, 4), schedule_from_grids([(2, 3), (1, 1)])),
    ]
    plan = plan_pooling(clips, mode=mode)
    generator = torch.Generator().manual_seed(0)
    tokens, upstream = (
        torch.randn(rows, 64, generator=generator).to(dtype)
        for rows in (len(plan.cell_starts), len(plan.window_sizes))
    )
    found = list[tuple[Tensor, ...]]()
    ways: list[dict[str, Any]] = [{"dtype": torch.float64}, {"device": CUDA}]
    for like in ways:
        leaf = tokens.to(**like).requires_grad_()
        pooled = pool_tokens(leaf, to_device(plan, leaf.device)).values
        gradient = torch.autograd.grad(pooled, leaf, upstream.to(**like))
        found.append((pooled.detach(), *gradient))
    eps = torch.finfo(dtype).eps
    for exact, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(
            on_gpu.cpu(), exact.to(dtype), rtol=max(2 * eps, 1e-6), atol=max(eps, 1e-5)
        )


@pytest.mark.parametrize("channels", [16, 72, 80, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("in_windows", [False, True], ids=["frames", "windows"])
def test_attention_within_frames_is_exact(
    channels: int, dtype: torch.dtype, trains: bool, in_windows: bool
) -> None:
    """Compare both kernels with float32 on the CPU: views, and tiles that are cut."""
    plan = plan_tower([(2, (8, 9)), (3, (16, 16)), (1, (1, 1))], window=4)
    assert isinstance(plan, WindowedTowerPlan)
    starts, most = plan.cu_seqlens, plan.max_seqlen
    if in_windows:
        starts, most = plan.cu_window_seqlens, plan.max_window_seqlen
    generator = torch.Generator().manual_seed(0)
    shape = len(plan.position_ids), 3, 4, channels
    given = torch.randn(shape, generator=generator).to(dtype)
    bounds: dict[str, Any] = {"max_length_q": most}
    found = list[tuple[Tensor, ...]]()
    ways: list[dict[str, Any]] = [{"dtype": torch.float32}, {"device": CUDA}]
    for like in ways:
        leaf = given.to(**like).requires_grad_(trains)
        query, key, value = (rearrange(x, "n h d -> 1 h n d") for x in leaf.unbind(1))
        bounds["cu_seq_lens_q"] = starts.to(leaf.device)
        attended, _ = attend_within_frames(
            nn.Identity(), query, key, value, None, **bounds
        )
        gradients = torch.autograd.grad(attended.sum(), leaf) if trains else ()
        found.append((attended.detach(), *gradients))
    for exact, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu.cpu().float(), exact, rtol=2e-2, atol=2e-2)


def test_frames_may_be_more_than_an_axis_of_a_launch_holds() -> None:
    plan = plan_tower([(70_000, (1, 1))], merge_size=1)
    shape = 3, 1, 2, len(plan.position_ids), 16
    query, key, value = torch.randn(shape, dtype=torch.bfloat16, device=CUDA).unbind()
    attended, _ = attend_within_frames(
        nn.Identity(),
        query,
        key,
        value,
        None,
        cu_seq_lens_q=plan.cu_seqlens.to(CUDA),
        max_length_q=plan.max_seqlen,
    )
    assert torch.equal(attended, rearrange(value, "1 h n d -> 1 n h d"))


@pytest.mark.parametrize(
    "settings",
    [
        Parallel(),
        Parallel(activation_checkpointing="selective", torch_compile=True),
        Parallel(activation_checkpointing="full", tower="trained", torch_compile=True),
        Parallel(cpu_offload=True),
        Parallel(lora_rank=4),
    ],
    ids=str,
)
def test_steps_in_half_precision_learn_a_row(
    settings: Parallel, tmp_path: Path
) -> None:
    """Steps over NCCL, a checkpoint, and a step after it."""
    plan = packed_row()
    with process_group() as world:
        trained = model()
        if not settings.cpu_offload:
            trained.to(world.device)
        parallelise(trained, settings, world)
        optimizer = torch.optim.AdamW(
            [p for p in trained.parameters() if p.requires_grad], lr=3e-3
        )
        patches, on_gpu = patches_of(plan).cuda(), to_device(plan, world.device)
        losses = []
        for _ in range(20):
            loss = loss_of(trained, patches, on_gpu)
            loss.backward()
            clip_gradients(trained, 1.0, world)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]
        snapshot = take_snapshot(
            20, model=trained, optimizer=optimizer, state={}, world=world
        )
        folder = write_snapshot(tmp_path, snapshot, world)
        before = loss_of(trained, patches, on_gpu).item()
        load_checkpoint(folder, model=trained, optimizer=optimizer, world=world)
        after = loss_of(trained, patches, on_gpu).item()
        assert after == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("tower", ["frozen", "trained"])
def test_rows_of_a_few_lengths_are_compiled_once(tower: Any) -> None:
    """In any order, and with the losses of blocks that are not compiled."""
    plans = [packed_row(length) for length in (256, 384, 512, 640)]
    found = list[list[float]]()
    for is_compiled in (False, True):
        settings = Parallel(
            activation_checkpointing="selective",
            tower=tower,
            torch_compile=is_compiled,
        )
        torch.compiler.reset()
        with process_group() as world:
            trained = model().to(world.device)
            parallelise(trained, settings, world)

            def step(
                plan: RowPlan, trained: Any = trained, on: torch.device = world.device
            ) -> float:
                loss = loss_of(trained, patches_of(plan).to(on), to_device(plan, on))
                loss.backward()
                return loss.item()

            losses = [step(plan) for plan in plans]
            assert counters["stats"]["unique_graphs"] or not is_compiled
            counters.clear()
            order = Random(0).choices(range(len(plans)), k=12)
            losses += [step(plans[number]) for number in order]
        assert not counters["stats"].get("unique_graphs")
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=2e-2)
