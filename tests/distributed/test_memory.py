"""The bytes that a dry run foretells are those of real shards and of real steps.

The file is its own worker: ``torchrun`` runs it on two and on 2 x 2 ranks.
"""

import gc
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import (
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fastslow import TextSpan, build_schedule, next_frame_loss
from fastslow.qwen2_vl import (
    ATTENTION_NAME,
    TOWER_ATTENTION_NAME,
    Family,
    FastSlowQwen2VL,
    RowPlan,
    family_of,
    place_clip,
    plan_row,
)
from recipes.edge.estimates.memory import estimate_memory, shard_bytes
from recipes.edge.ranks.distributed import World, process_group
from recipes.edge.training.parallel import (
    all_reduce_once,
    choose_trained,
    parallelise,
)
from recipes.edge.weights.loading import materialize, meta_model
from recipes.edge.weights.tiny import tiny_config
from recipes.settings.parallel import Parallel

CASES = {
    "frozen tower": Parallel(),
    "trained tower": Parallel(tower="trained", compute="float32"),
    "adapters": Parallel(lora_rank=3),
    "replicated": Parallel(replicate=2),
}
WORDS = 517
"""A vocabulary that no number of ranks divides."""


STEPS = {
    f"{kind}, {tower} tower": Parallel(activation_checkpointing=kind, tower=tower)
    for kind in ("none", "selective", "full")
    for tower in ("frozen", "trained")
}
STEPS |= {
    "Qwen2.5-VL": Parallel(activation_checkpointing="selective", tower="trained"),
    "Qwen3-VL": Parallel(activation_checkpointing="full", tower="trained"),
    "adapters": Parallel(activation_checkpointing="full", lora_rank=8),
    "float32": Parallel(activation_checkpointing="full", compute="float32"),
    "replicated": Parallel(activation_checkpointing="full", replicate=2),
    "one shard": Parallel(activation_checkpointing="full", replicate=4),
    "replicated, on the host": Parallel(
        activation_checkpointing="full", replicate=2, cpu_offload=True
    ),
}
"""Real rows, one whose activations weigh and one where parameters do."""

RANKS = 4


def shape(case: str) -> PreTrainedConfig:
    """Describe a model whose root and whose blocks both weigh something."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
    text = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 9001,
        "rope_parameters": rope,
    }
    no_ends = {"bos_token_id": None, "eos_token_id": None}
    tower: dict[str, Any] = {"depth": 4, "num_heads": 4}
    later = tower | {
        "hidden_size": 160,
        "intermediate_size": 640,
        "out_hidden_size": 256,
    }
    if case == "Qwen2.5-VL":
        tower = later | {"fullatt_block_indexes": [1, 3]}
        return Qwen2_5_VLConfig(text_config=text | no_ends, vision_config=tower)
    if case == "Qwen3-VL":
        text |= {"head_dim": 64, "rope_parameters": rope | {"mrope_interleaved": True}}
        tower = later | {"deepstack_visual_indexes": [0, 2]}
        return Qwen3VLConfig(text_config=text, vision_config=tower)
    tower |= {"embed_dim": 160, "hidden_size": 256, "mlp_ratio": 4}
    return Qwen2VLConfig(text_config=text | no_ends, vision_config=tower)


def rows(family: Family) -> list[RowPlan]:
    """Plan a row with a clip of some size, and one with next to nothing in it."""
    schedule = build_schedule(6, slow_stride=2, fast_stride=4)
    seconds = [number / 2 for number in range(12)]
    question, answer = tuple(range(400)), tuple(range(60))
    return [
        plan_row(
            [
                (
                    place_clip(
                        grid, schedule, seconds, family=family, encode=lambda _: (0, 1)
                    ).span,
                    TextSpan(token_ids=question[:words]),
                    TextSpan(token_ids=answer, trained=True),
                )
            ],
            video_token_id=2000,
            family=family,
        )
        for grid, words in (((8, 8), 400), ((2, 2), 4))
    ]


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attend in one fused call, which keeps what the GPU's kernels keep."""

    def attend(
        module: object, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, None]:
        shared = query.shape[1] != key.shape[1]
        attended = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=shared
        )
        return attended.transpose(1, 2).contiguous(), None

    names = (ATTENTION_NAME, TOWER_ATTENTION_NAME)
    for name in names:
        ALL_ATTENTION_FUNCTIONS[name] = attend
    try:
        yield
    finally:
        for name in names:
            del ALL_ATTENTION_FUNCTIONS[name]


def measured_peak(case: str, plan: RowPlan, world: World) -> int:
    """Take the first, a middle and the last row of a step; read torch's own record.

    The first has no gradients to add its own to, so its peak is lower than the others'.
    """
    gc.collect()  # other cases' models hold themselves by cycles
    model, settings = meta_model(shape(case)), STEPS[case]
    parallelise(model, settings, world)
    materialize(model, world.device)
    width = model.family.geometry.patch_pixels
    size = int(plan.grid_thw.prod(1).sum()), width
    patches = torch.randint(256, size, dtype=torch.uint8)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with (
        plain_attention(),
        torch.profiler.profile(activities=cpu, profile_memory=True) as profile,
    ):
        for is_last in (False, False, True):
            all_reduce_once(model, settings, is_last=is_last)
            output = model(patches, plan)
            ahead, _ = next_frame_loss(output.predictions, output.targets)
            (output.language_loss + ahead).backward()
            del output, ahead
    return most_held(profile.profiler.kineto_results.events()) + patches.nbytes


def most_held(events: Any) -> int:
    """Add up what was allocated and freed, in the order of time; see the most.

    Left out are the shards of the gradients, which alone stay, and what gradients take
    on their way into one buffer: a GPU writes them there at once, where the CPU pads
    and casts each of them before.
    """
    events = sorted(events, key=lambda event: event.start_ns())
    ends, sizes = 0, []
    for event in events:
        if event.name() == "aten::_chunk_cat":
            ends = event.start_ns() + event.duration_ns()
        if event.name() == "[memory]" and event.start_ns() > ends:
            sizes.append(event.nbytes())
    return max(accumulate(sizes)) - sum(sizes)


def stepped(folder: Path) -> None:
    """Worker: measure every case, as one of several ranks that are not there.

    Gloo takes memory of its own in this process, which no GPU's kernels do.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    gc.freeze()  # what is there now need not be gone through after each case
    device = torch.device("cpu")
    mesh = init_device_mesh("cpu", (RANKS,), mesh_dim_names=("data",))
    world = World(rank=0, size=RANKS, device=device, mesh=mesh, group=mesh.get_group())
    found = {
        case: [
            measured_peak(case, plan, world) for plan in rows(family_of(shape(case)))
        ]
        for case in STEPS
    }
    (folder / "peaks.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held(settings: Parallel, folder: Path) -> None:
    """Worker: take a step of AdamW, and note what rank 0 holds."""
    with process_group() as world:
        backbone = Qwen2VLForConditionalGeneration(tiny_config(WORDS))
        model = FastSlowQwen2VL(backbone)
        parallelise(model, settings, world)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        for weight in trained:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        gradients = [weight.grad for weight in trained if weight.grad is not None]
        averages = [
            value
            for state in optimizer.state.values()
            for name, value in state.items()
            if name.startswith("exp_avg")
        ]
        found = [
            sum(local(tensor).nbytes for tensor in tensors)
            for tensors in (list(model.parameters()), gradients, averages)
        ]
        if world.is_main:
            (folder / "held.json").write_text(json.dumps(found))


@pytest.mark.parametrize("case", CASES)
def test_shards_hold_what_was_foretold(
    case: str, preloaded: Any, tmp_path: Path
) -> None:
    settings = CASES[case]
    words = json.dumps(asdict(settings)), str(tmp_path)
    log = tmp_path / "ranks.log"
    preloaded.run_ranks(2 * settings.replicate, __file__, *words, log=log)
    backbone = Qwen2VLForConditionalGeneration(tiny_config(WORDS))
    model = meta_model(backbone.config)
    choose_trained(model, settings)
    assert json.loads((tmp_path / "held.json").read_text()) == list(
        shard_bytes(model, 2)
    )


def test_steps_take_what_was_foretold(preloaded: Any, tmp_path: Path) -> None:
    preloaded.run(__file__, "steps", str(tmp_path), log=tmp_path / "steps.log")
    measured = json.loads((tmp_path / "peaks.json").read_text())
    for case, settings in STEPS.items():
        model = meta_model(shape(case))
        ratios = list[float]()
        for plan, peak in zip(rows(model.family), measured[case], strict=True):
            model = meta_model(shape(case))
            found = estimate_memory(model, settings, plan, world_size=RANKS)
            ratios.append((found.gathered + found.activations) / peak)
        assert ratios == pytest.approx([1, 1], rel=0.05), case


if __name__ == "__main__":
    if sys.argv[1] == "steps":
        stepped(Path(sys.argv[2]))
    else:
        held(Parallel(**json.loads(sys.argv[1])), Path(sys.argv[2]))
