"""A dry run's memory is what a GPU then takes."""

import gc
from dataclasses import dataclass

import pytest
import torch

from fastslow import TextSpan, VideoSpan, build_schedule, next_frame_loss, to_device
from fastslow.qwen2_vl import plan_row
from recipes.edge.estimates.memory import estimate_memory
from recipes.edge.ranks.distributed import process_group
from recipes.edge.training.parallel import parallelise
from recipes.edge.weights.loading import materialize, meta_model
from recipes.edge.weights.published import model_config
from recipes.settings.parallel import Parallel

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # torch's compiler warns of itself
]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, how it is computed, and the samples in its row."""

    model: str = "Qwen/Qwen2-VL-2B-Instruct"
    settings: Parallel
    samples: int


CASES = [
    Case(settings=Parallel(activation_checkpointing="selective"), samples=28),
    Case(settings=Parallel(activation_checkpointing="full"), samples=28),
    Case(settings=Parallel(), samples=6),
    Case(
        settings=Parallel(activation_checkpointing="full", tower="trained"), samples=14
    ),
    Case(
        model="Qwen/Qwen2-VL-7B-Instruct",
        settings=Parallel(activation_checkpointing="selective", lora_rank=16),
        samples=14,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_peak_is_within_a_tenth_of_what_was_said(case: Case) -> None:
    config = model_config(case.model)
    schedule = build_schedule(8, slow_stride=2, fast_stride=4)
    sample = [
        TextSpan(token_ids=tuple(range(200))),
        VideoSpan(grid=(16, 16), schedule=schedule),
        TextSpan(token_ids=tuple(range(60)), trained=True),
    ]
    plan = plan_row([sample] * case.samples, video_token_id=6)
    foretold = estimate_memory(meta_model(config), case.settings, plan, world_size=1)
    with process_group() as world:
        gc.collect()  # models of other tests hold themselves by cycles
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model = meta_model(config)
        parallelise(model, case.settings, world)
        materialize(model, world.device, seed=0)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, fused=True)
        on_gpu = to_device(plan, world.device)
        size = int(plan.grid_thw.prod(1).sum()), 1176
        patches = torch.randint(256, size, dtype=torch.uint8, device=world.device)
        for _ in range(2):
            output = model(patches, on_gpu)
            ahead, _ = next_frame_loss(output.predictions, output.targets)
            (output.language_loss + ahead).backward()
            del output, ahead
            optimizer.step()
        for _ in range(2):  # as later rows of a step do, with gradients and averages
            output = model(patches, on_gpu)
            ahead, _ = next_frame_loss(output.predictions, output.targets)
            (output.language_loss + ahead).backward()
            del output, ahead
        peak = torch.cuda.max_memory_allocated() - before
    print(f"\n{case}: foretold {foretold.total / 2**30:.2f} GiB, {foretold}")
    print(f"held {peak / 2**30:.2f} GiB, {peak / foretold.total:.3f} of it")
    assert foretold.total == pytest.approx(peak, rel=0.1)
