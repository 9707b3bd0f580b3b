"""One step on two ranks and on 2 x 2 equals the step of one process.

The file is its own worker: ``torchrun`` runs it on as many ranks as a case needs, and
rank 0 leaves what they computed. The four rows of the step are a clip, text alone, no
sample at all, and another clip; the two in the middle have only the black clip that
keeps the ranks' calls of the tower equal.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2VLForConditionalGeneration

from fastslow import (
    Span,
    TextSpan,
    VideoSpan,
    next_frame_loss,
    repeat_strides,
    schedule_from_strides,
)
from fastslow.qwen2_vl import FastSlowQwen2VL, RowPlan, plan_row
from recipes.edge.checkpoints.checkpoint import (
    load_checkpoint,
    take_snapshot,
    write_snapshot,
)
from recipes.edge.ranks.distributed import World, gather_from_ranks, process_group
from recipes.edge.training.optimization import (
    SkippedSteps,
    clip_gradients,
    count_skipped,
    refuse_to_skip_on,
)
from recipes.edge.training.parallel import (
    all_reduce_once,
    checkpoint_activations,
    choose_trained,
    compile_blocks,
    parallelise,
    shard,
    sharding_mesh,
)
from recipes.edge.weights.lora import merge_adapters, reset_adapters
from recipes.edge.weights.shards import local_part
from recipes.settings.parallel import Parallel
from tests.small_models import small_config

VIDEO_TOKEN_ID = 9
MAX_NORM = 2.0
RATE = 0.1

BLACK: list[Span] = [VideoSpan(grid=(1, 1), schedule=repeat_strides(1, (1,)))]


def talk(strides: tuple[int, ...], *answer: int) -> list[Span]:
    clip = VideoSpan(grid=(3, 2), schedule=schedule_from_strides(strides))
    question = TextSpan(token_ids=(1, 2, 3), trained=False)
    return [question, clip, TextSpan(token_ids=answer, trained=True)]


ROWS: list[list[list[Span]]] = [
    [talk((1, 2, 1), 6, 10, 11), talk((2, 1), 12)],
    [[TextSpan(token_ids=(4, 5, 13, 14), trained=True)], BLACK],
    [BLACK],
    [talk((1, 1, 2, 1), 15, 16)],
]
"""The packed rows of the step."""

STEPS: dict[str, dict[str, Any]] = {
    "frozen": {"compute": "float32"},
    "trained": {
        "compute": "float32",
        "tower": "trained",
        "activation_checkpointing": "full",
    },
    "selective": {
        "compute": "float32",
        "tower": "trained",
        "activation_checkpointing": "selective",
    },
    "offloaded": {"compute": "float32", "cpu_offload": True},
    "adapters": {
        "compute": "float32",
        "lora_rank": 3,
        "activation_checkpointing": "full",
    },
    "narrow": {
        "compute": "bfloat16",
        "tower": "trained",
        "activation_checkpointing": "full",
    },
}
"""Settings under which the step is taken."""


def build() -> FastSlowQwen2VL:
    """Make a tiny model, the same in every process."""
    torch.manual_seed(0)
    backbone = Qwen2VLForConditionalGeneration(
        small_config(
            {"vocab_size": 41, "initializer_range": 0.2},
            {"initializer_range": 0.2},
            video_token_id=VIDEO_TOKEN_ID,
        )
    )
    return FastSlowQwen2VL(backbone).train()


def load(number: int) -> tuple[Tensor, RowPlan]:
    """Plan a row and draw its pixels; a black clip stays black."""
    plan = plan_row(ROWS[number], video_token_id=VIDEO_TOKEN_ID)
    shape = int(plan.grid_thw.prod(1).sum()), 3 * 2 * 2 * 2
    if number in (1, 2):
        return torch.zeros(shape), plan
    return torch.randn(shape, generator=torch.Generator().manual_seed(number)), plan


def losses(model: nn.Module, number: int) -> Tensor:
    """Give a row's share of the step's loss."""
    patches, plan = load(number)
    output = model(patches, plan)
    ahead, _ = next_frame_loss(output.predictions, output.targets)
    return output.language_loss / 10 + ahead / 5


def whole(value: Tensor) -> Tensor:
    """Gather a tensor, and leave the sharded one alone."""
    full = value.full_tensor() if isinstance(value, DTensor) else value
    return full.detach().clone()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gather every gradient, by name."""
    return {
        name: whole(parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def step(
    model: nn.Module,
    rows: list[int],
    settings: Parallel | None = None,
    world: World | None = None,
) -> dict[str, Any]:
    """Take a step of plain gradient descent; give all that it is made of.

    Without a world it is the step of a whole model, whose gradients torch clips.
    """
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE)
    total = torch.zeros(())
    for turn, number in enumerate(rows, 1):
        if settings is not None:
            all_reduce_once(model, settings, is_last=turn == len(rows))
        loss = losses(model, number)
        (loss * (world.size if world else 1)).backward()
        total += loss.detach()
    found: dict[str, Any] = {"loss": total.item(), "gradients": gradients(model)}
    found["norm"] = (
        clip_gradients(model, MAX_NORM, world)
        if world
        else torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item()
    )
    found["clipped"] = gradients(model)
    optimizer.step()
    found["weights"] = {name: whole(each) for name, each in model.named_parameters()}
    return found


def deal(world: World) -> list[int]:
    """Give a rank its rows; with two ranks the second has no video.

    With four ranks each has three, most of them the one without a sample.
    """
    return {
        1: [[0, 1, 2, 3]],
        2: [[0, 3], [1, 2]],
        4: [[1, 0, 2], [2, 2, 2], [2, 3, 2], [2, 2, 2]],
    }[world.size][world.rank]


def take_steps(folder: Path, world: World) -> dict[str, Any]:
    """Worker: take the step under every setting."""
    found: dict[str, Any] = {}
    for name, settings in STEPS.items():
        model = build()
        replicate = 2 if world.size == 4 else 1
        parallel = Parallel(replicate=replicate, **settings)
        parallelise(model, parallel, world)
        found[name] = step(model, deal(world), parallel, world)
        losses_of_ranks = gather_from_ranks(found[name]["loss"], world)
        found[name]["loss"] = sum(losses_of_ranks)
        norms = gather_from_ranks(found[name]["norm"], world)
        found[name]["norms agree"] = len(set(norms)) == 1
        weight = model.next_frame_head[0].weight
        found[name]["mesh"] = weight.device_mesh.mesh.tolist()
        found[name]["axes"] = weight.device_mesh.mesh_dim_names
        found[name]["rows of 32"] = len(weight.to_local())
        found[name]["dtypes"] = {
            (parameter.requires_grad, str(parameter.dtype))
            for parameter in model.parameters()
        }
    return found


def skip(folder: Path, world: World) -> dict[str, Any]:
    """Worker: one rank's shard of one gradient is not a number."""
    model = build()
    parallelise(model, Parallel(), world)
    losses(model, 0).backward()
    if world.rank == 1:
        parameter = next(each for each in model.parameters() if each.grad is not None)
        assert isinstance(parameter.grad, DTensor)
        parameter.grad.to_local()[0] = float("nan")
    before = gradients(model)
    skipped, told = SkippedSteps(), ""
    for _ in range(3):
        norm = clip_gradients(model, MAX_NORM, world)
        try:
            skipped = count_skipped(norm, skipped)
            refuse_to_skip_on(skipped, most_in_a_row=2)
        except FloatingPointError as error:
            told = str(error).split(":")[0]
    same = all(
        torch.equal(value.nan_to_num(7), before[name].nan_to_num(7))
        for name, value in gradients(model).items()
    )
    return {"ranks": gather_from_ranks((skipped, told, same), world)}


def train(model: nn.Module, optimizer: torch.optim.AdamW, world: World) -> None:
    """Take a step of AdamW."""
    for number in deal(world):
        losses(model, number).backward()
    optimizer.step()
    optimizer.zero_grad()


def keep_targets(folder: Path, world: World) -> dict[str, Any]:
    """Worker: the tower moves, its copy does not, and a checkpoint holds both.

    Two ranks compile their blocks, which takes nearly all of the time.
    """
    compiled = world.size == 2

    def made(*, compiled: bool) -> tuple[FastSlowQwen2VL, torch.optim.AdamW]:
        model = build()
        settings = Parallel(
            tower="trained",
            activation_checkpointing="full",
            replicate=2 if world.size == 4 else 1,
        )
        choose_trained(model, settings)
        checkpoint_activations(model, settings.activation_checkpointing)
        if compiled:
            compile_blocks(model, backend="aot_eager")
        shard(model, settings, sharding_mesh(world, settings.replicate))
        trained = [each for each in model.parameters() if each.requires_grad]
        return model, torch.optim.AdamW(trained, lr=0.01)

    def weights(model: nn.Module) -> dict[str, Tensor]:
        return {name: whole(each) for name, each in model.named_parameters()}

    names = set(dict(made(compiled=False)[0].named_parameters()))
    model, optimizer = made(compiled=compiled)
    found: dict[str, Any] = {"names": set(get_model_state_dict(model)) == names}
    found["before"] = weights(model)
    train(model, optimizer, world)
    folder.mkdir(exist_ok=True)
    snapshot = take_snapshot(1, model=model, optimizer=optimizer, state={}, world=world)
    saved = write_snapshot(folder, snapshot, world)
    train(model, optimizer, world)
    found["after"] = weights(model)
    found["optimizer dtypes"] = {
        value.dtype for state in optimizer.state.values() for value in state.values()
    }
    model, optimizer = made(compiled=compiled)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    load_checkpoint(saved, model=model, optimizer=optimizer, world=world)
    train(model, optimizer, world)
    found["resumed"] = weights(model)
    model.reset_target_tower()
    found["reset"] = weights(model)
    return found


class NothingIsSentFrom(TorchDispatchMode):
    """Refuse what NCCL refuses of parameters that are offloaded: to send them.

    Here all memory is the host's, so what moves a part to the device copies it instead.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parts = [local_part(parameter) for parameter in model.parameters()]
        self._kept = {part.untyped_storage().data_ptr() for part in parts}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if DTensor in types:
            return NotImplemented  # it comes again, as what a DTensor makes of it
        if function.namespace == "_c10d_functional":
            sent = [arg for arg in args if isinstance(arg, Tensor)]
            assert not {each.untyped_storage().data_ptr() for each in sent} & self._kept
        return function(*args, **(kwargs or {}))


def merge(folder: Path, world: World) -> dict[str, Any]:
    """Worker: adapters that have learned something become part of the weights."""
    model = build()
    names = set(dict(model.named_parameters()))
    parallelise(model, Parallel(compute="float32", lora_rank=3), world)
    started = {name: whole(each) for name, each in model.named_parameters()}
    reset_adapters(model, seed=1)
    again = {name: whole(each) for name, each in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for number in deal(world):
        (losses(model, number) * world.size).backward()
    clip_gradients(model, 1.0, world)
    optimizer.step()
    model.eval()
    with torch.no_grad():
        before = losses(model, 0)
        with pytest.MonkeyPatch.context() as patch, NothingIsSentFrom(model):
            patch.setattr("recipes.edge.weights.lora.on_mesh", torch.clone)
            merge_adapters(model)
        after = losses(model, 0)
    return {
        "started": started,
        "again": again,
        "names": set(dict(model.named_parameters())) == names,
        "losses": (before.item(), after.item()),
        "merged": {name: whole(each) for name, each in model.named_parameters()},
    }


CASES: dict[str, Callable[[Path, World], dict[str, Any]]] = {
    "take_steps": take_steps,
    "skip": skip,
    "keep_targets": keep_targets,
    "merge": merge,
}


def work(cases: list[str], folder: Path) -> None:
    """Worker: run cases on this number of ranks; rank 0 leaves what they gave."""
    with process_group() as world:
        found = {
            case: CASES[case](folder / f"{case}-{world.size}", world) for case in cases
        }
        if world.is_main:
            torch.save(found, folder / f"{world.size}.pt")


@pytest.fixture(scope="module")
def ranks(
    preloaded: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, Any]]:
    """What one, two and four ranks gave."""
    folder = tmp_path_factory.mktemp("parallel")
    cases = {
        1: ["take_steps", "merge"],
        2: ["take_steps", "skip", "keep_targets", "merge"],
        4: ["take_steps", "keep_targets"],
    }
    found = {}
    for size, names in cases.items():
        log = folder / f"{size}.log"
        preloaded.run_ranks(size, __file__, str(folder), *names, log=log)
        found[size] = torch.load(folder / f"{size}.pt", weights_only=False)
    return found


@pytest.fixture(scope="module")
def alone() -> Callable[[str], dict[str, Any]]:
    """The step of a process without ranks, in which nothing is sharded."""

    def take(name: str) -> dict[str, Any]:
        model = build()
        choose_trained(model, Parallel(**{**STEPS[name], "compute": "float32"}))
        return step(model, [0, 1, 2, 3])

    return take


def assert_near(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float
) -> None:
    """Compare tensors by name, each beside the largest of them all."""
    assert found.keys() == expected.keys()
    scale = max(value.abs().max() for value in expected.values())
    for name, value in expected.items():
        difference = (found[name] - value).abs().max()
        assert difference <= tolerance * scale, f"{name}: {difference} beside {scale}"


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", [name for name in STEPS if name != "narrow"])
def test_a_sharded_step_is_the_step_of_one_process(
    ranks: dict[int, dict[str, Any]],
    alone: Callable[[str], dict[str, Any]],
    name: str,
    size: int,
) -> None:
    expected, found = alone(name), ranks[size]["take_steps"][name]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["norm"] == pytest.approx(expected["norm"], rel=1e-5)
    assert found["norms agree"]
    assert expected["norm"] > MAX_NORM
    for part in ("gradients", "clipped", "weights"):
        assert_near(found[part], expected[part], 1e-5)
    assert found["dtypes"] == {(True, "torch.float32"), (False, "torch.float32")}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_step_in_bfloat16_stays_close_and_keeps_wide_weights(
    ranks: dict[int, dict[str, Any]],
    alone: Callable[[str], dict[str, Any]],
    size: int,
) -> None:
    expected, found = alone("narrow"), ranks[size]["take_steps"]["narrow"]
    one = ranks[1]["take_steps"]["narrow"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert found["norm"] == pytest.approx(expected["norm"], rel=0.1)
    assert_near(found["gradients"], expected["gradients"], 0.1)
    # Other ranks add the same narrow gradients up in another order, in float32.
    assert found["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert_near(found["gradients"], one["gradients"], 1e-5)
    assert {gradient.dtype for gradient in found["gradients"].values()} == {
        torch.float32
    }
    assert found["dtypes"] == {(True, "torch.float32"), (False, "torch.bfloat16")}


@pytest.mark.parametrize(
    ("size", "axes", "mesh", "rows"),
    [
        (1, ("data",), [0], 32),
        (2, ("data",), [0, 1], 16),
        (4, ("replicate", "shard"), [[0, 1], [2, 3]], 16),
    ],
)
def test_a_copy_is_sharded_over_consecutive_ranks(
    ranks: dict[int, dict[str, Any]],
    size: int,
    axes: tuple[str, ...],
    mesh: list[Any],
    rows: int,
) -> None:
    for found in ranks[size]["take_steps"].values():
        assert found["axes"] == axes
        assert found["mesh"] == mesh
        assert found["rows of 32"] == rows


def test_a_bad_gradient_of_one_rank_is_skipped_by_all(
    ranks: dict[int, dict[str, Any]],
) -> None:
    said = "the gradients were not finite in 3 steps in a row; max_skipped_steps is 2"
    expected = (SkippedSteps(in_a_row=3, total=3), said, True)
    assert ranks[2]["skip"]["ranks"] == [expected, expected]


@pytest.mark.parametrize("size", [2, 4])
def test_targets_stay_while_the_tower_trains(
    ranks: dict[int, dict[str, Any]], size: int
) -> None:
    found = ranks[size]["keep_targets"]
    before, after = found["before"], found["after"]
    assert found["names"]
    copies = [name for name in before if name.startswith("target_tower.")]
    assert len(copies) == 25
    for name in copies:
        tower = name.replace("target_tower.", "backbone.model.visual.")
        assert torch.equal(after[name], before[name]), name
        assert not torch.equal(after[tower], before[tower]), name
        assert torch.equal(found["reset"][name], after[tower].bfloat16()), name
    assert found["optimizer dtypes"] == {torch.float32}


@pytest.mark.parametrize("size", [2, 4])
def test_a_compiled_checkpointed_run_resumes_bit_for_bit(
    ranks: dict[int, dict[str, Any]], size: int
) -> None:
    found = ranks[size]["keep_targets"]
    assert found["resumed"].keys() == found["after"].keys()
    for name, value in found["after"].items():
        assert torch.equal(found["resumed"][name], value), name


@pytest.mark.parametrize("size", [1, 2])
def test_merged_adapters_compute_the_same(
    ranks: dict[int, dict[str, Any]], size: int
) -> None:
    found, one = ranks[size]["merge"], ranks[1]["merge"]
    assert found["names"]
    before, after = found["losses"]
    assert after == pytest.approx(before, rel=1e-5)
    assert_near(found["merged"], one["merged"], 1e-5)
    for name, value in found["started"].items():
        if name.endswith("base_layer.weight"):
            merged = found["merged"][name.replace("base_layer.", "")]
            assert not torch.equal(merged, value), name


def test_adapters_start_the_same_on_any_number_of_ranks(
    ranks: dict[int, dict[str, Any]],
) -> None:
    one, two = ranks[1]["merge"], ranks[2]["merge"]
    for part in ("started", "again"):
        for name, value in one[part].items():
            assert torch.equal(two[part][name], value), name
    noise = [name for name in one["started"] if ".lora_A." in name]
    assert len(noise) == 14
    for name in noise:
        first, second = one["started"][name], one["again"][name]
        assert not torch.equal(first, second)
        bound = first.shape[1] ** -0.5
        assert 0.7 * bound < first.abs().max() <= bound


if __name__ == "__main__":
    work(sys.argv[2:], Path(sys.argv[1]))
