"""What is done to a model before it trains, on one rank.

The tests of compilation run without the jaxtyping hook: ``nox -s compile``.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2VLForConditionalGeneration

from fastslow import (
    TextSpan,
    VideoSpan,
    dense_mask,
    interval_block_mask,
    interval_mask,
    next_frame_loss,
    pool_tokens,
    repeat_strides,
    schedule_from_strides,
    to_device,
    visible_intervals,
)
from fastslow.qwen2_vl import (
    FastSlowOutput,
    FastSlowQwen2VL,
    RowPlan,
    TowerPlan,
    plan_row,
    plan_tower,
)
from recipes.edge.checkpoints.checkpoint import (
    load_checkpoint,
    take_snapshot,
    write_snapshot,
)
from recipes.edge.ranks.distributed import World
from recipes.edge.training.parallel import (
    checkpoint_activations,
    choose_trained,
    compile_blocks,
    parallelise,
    shard,
    sharding_mesh,
)
from recipes.edge.weights.lora import checkpoint_name, merge_adapters, reset_adapters
from recipes.settings.parallel import Parallel
from tests.small_models import small_config

VIDEO_TOKEN_ID = 9

no_hook = pytest.mark.skipif(
    hasattr(pool_tokens, "__wrapped__"),
    reason="functions under the jaxtyping hook do not compile: nox -s compile",
)


def compiler(test: Callable[..., None]) -> Callable[..., None]:
    """Let torch's compiler call what torch deprecates, and look at inner gradients."""
    for ignored in ("ignore::DeprecationWarning", "ignore:The .grad attribute of a"):
        test = pytest.mark.filterwarnings(ignored)(test)
    return test


def make_model(layers: int = 2, seed: int = 0) -> FastSlowQwen2VL:
    """Build a tiny model with random weights in float32."""
    torch.manual_seed(seed)
    backbone = Qwen2VLForConditionalGeneration(
        small_config(
            {"num_hidden_layers": layers, "initializer_range": 0.2},
            {"initializer_range": 0.2},
            video_token_id=VIDEO_TOKEN_ID,
        )
    )
    return FastSlowQwen2VL(backbone).train()


def talk(*answer: int) -> tuple[TextSpan | VideoSpan, ...]:
    clip = VideoSpan(grid=(3, 2), schedule=schedule_from_strides((1, 2, 1)))
    question = TextSpan(token_ids=(1, 2, 3), trained=False)
    return question, clip, TextSpan(token_ids=answer, trained=True)


PLAN = plan_row([talk(6, 10, 11), talk(12)], video_token_id=VIDEO_TOKEN_ID)


def draw_patches(plan: RowPlan, seed: int = 5) -> Tensor:
    shape = int(plan.grid_thw.prod(1).sum()), 3 * 2 * 2 * 2
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loss_of(model: nn.Module, plan: RowPlan = PLAN) -> Tensor:
    output = model(draw_patches(plan), plan)
    ahead, _ = next_frame_loss(output.predictions, output.targets)
    total: Tensor = output.language_loss + ahead
    return total


def loss_and_gradients(model: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    loss = loss_of(model)
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_all_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def prepared(world: World, **settings: Any) -> FastSlowQwen2VL:
    model = make_model()
    parallelise(model, Parallel(**settings), world)
    return model


# Settings


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"replicate": 0}, "replicate is 0; it must be at least 1"),
        ({"lora_rank": -1}, "lora_rank is -1; it must be at least 0"),
        ({"lora_alpha": 0}, "lora_alpha is 0; it must be at least 1"),
        (
            {"lora_dropout": 1.0},
            "lora_dropout is 1.0; it must lie between 0 and 1, without 1",
        ),
        (
            {"lora_dropout": -0.1},
            "lora_dropout is -0.1; it must lie between 0 and 1, without 1",
        ),
        (
            {"lora_rank": 1, "tower": "trained"},
            "lora_rank is 1 but tower is trained; with adapters the tower is frozen",
        ),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Parallel(**settings)
    assert str(caught.value) == said


def test_the_mesh_has_an_axis_for_copies(world: World) -> None:
    assert sharding_mesh(world, 1) is world.mesh
    with pytest.raises(ValueError) as caught:
        sharding_mesh(world, 2)
    said = "replicate is 2 but there are 1 ranks; it must divide them"
    assert str(caught.value) == said


# Precision


@pytest.mark.parametrize("tower", ["frozen", "trained"])
def test_what_trains_is_wide_and_what_does_not_is_narrow(
    world: World, tower: str
) -> None:
    model = prepared(world, tower=tower)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    seen = list[torch.dtype]()
    model.backbone.model.language_model.layers[1].register_forward_hook(
        lambda module, arguments, output: seen.append(output.dtype)
    )
    rotary = list[torch.dtype]()
    model.backbone.model.visual.blocks[0].attn.register_forward_pre_hook(
        lambda module, _, named: rotary.extend(
            table.dtype for table in named["position_embeddings"]
        ),
        with_kwargs=True,
    )
    loss = loss_of(model)
    loss.backward()
    optimizer.step()
    assert seen == [torch.bfloat16]
    assert rotary == [torch.float32] * 2
    assert loss.dtype == torch.float32
    for parameter in model.parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None and parameter.grad.dtype == torch.float32
            state = optimizer.state[parameter]
            assert {value.dtype for value in state.values()} == {torch.float32}
        else:
            assert parameter.dtype == torch.bfloat16


def test_plans_are_not_rounded(world: World) -> None:
    """Sharded modules cast what they are given unless told not to."""
    seen = list[RowPlan]()
    model = prepared(world)
    inner = model.forward

    def forward(patches: Tensor, plan: RowPlan) -> FastSlowOutput:
        seen.append(plan)
        return inner(patches, plan)

    model.forward = forward
    loss_of(model)
    assert [id(plan) for plan in seen] == [id(PLAN)]


def test_narrow_losses_are_close(world: World) -> None:
    wide, narrow = (prepared(world, compute=c) for c in ("float32", "bfloat16"))
    expected, found = loss_of(wide), loss_of(narrow)
    assert found != expected
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.0)


# Activation checkpointing


SDPA = "_scaled_dot_product_flash_attention_for_cpu"


class Products(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.counts[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["selective", "full"])
@pytest.mark.parametrize(
    "settings",
    [
        {"tower": tower, "compute": compute}
        for tower, compute in product(("frozen", "trained"), ("float32", "bfloat16"))
    ]
    + [{"lora_rank": 2, "lora_dropout": 0.5}],
)
def test_recomputing_changes_no_bit(
    world: World, settings: dict[str, Any], kind: str
) -> None:
    found = []
    for each in ("none", kind):
        model = prepared(world, activation_checkpointing=each, **settings)
        torch.manual_seed(3)
        found.append(loss_and_gradients(model))
    (expected, gradients), (loss, others) = found
    assert torch.equal(loss, expected)
    assert_all_equal(others, gradients)


def test_selective_repeats_no_product_and_full_repeats_all(world: World) -> None:
    forward, backward = {}, {}
    for kind in ("none", "selective", "full"):
        model = prepared(
            world, compute="float32", tower="trained", activation_checkpointing=kind
        )
        with Products() as first:
            loss = loss_of(model)
        with Products() as second:
            loss.backward()
        forward[kind], backward[kind] = first.counts, second.counts
    expensive = [f"aten.{name}" for name in ("mm", "addmm", SDPA)]
    for name in expensive:
        assert forward["none"][name] == forward["selective"][name] > 0, name
        assert backward["selective"][name] == backward["none"][name], name
    for name in ("aten.silu", "aten.rsqrt", "aten.native_layer_norm"):
        assert backward["none"][name] == 0, name
        assert backward["full"][name] == backward["selective"][name] > 0, name
    # All of a block's but the last, whose result its backward pass does not need.
    repeated = {"aten.addmm": 2 * (4 - 1) + 2 * 3, "aten.mm": 2 * (4 - 1)}
    for name, count in repeated.items():
        assert backward["full"][name] - backward["none"][name] == count, name


# Names


@compiler
def test_names_stay_those_of_the_plain_model(world: World) -> None:
    plain = {name for name, _ in make_model().named_parameters()}
    model = prepared(world, activation_checkpointing="full", torch_compile=True)
    assert {name for name, _ in model.named_parameters()} == plain
    state = get_model_state_dict(model)
    assert state.keys() == make_model().state_dict().keys()
    blocks = model.backbone.model.language_model.layers
    assert all("forward" in vars(block) for block in blocks)


# Memory


def test_offloaded_steps_are_the_same(world: World) -> None:
    """On a machine without GPU host memory is the only one; the path is the same."""
    found = []
    for offloaded in (False, True):
        model = prepared(world, cpu_offload=offloaded)
        loss, _ = loss_and_gradients(model)
        trained = [each for each in model.parameters() if each.requires_grad]
        torch.optim.AdamW(trained).step()
        weights = dict(model.state_dict())
        assert {value.device.type for value in weights.values()} == {"cpu"}
        found.append({"loss": loss.detach(), **weights})
    assert_all_equal(*found)


# Adapters


def test_adapters_and_head_are_all_that_trains(world: World) -> None:
    model = prepared(world, compute="float32", lora_rank=2)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    head = {name for name in trained if name.startswith("next_frame_head.")}
    adapters = {name for name in trained if ".lora_" in name}
    assert trained == head | adapters
    assert len(head) == 4
    assert len(adapters) == 2 * 7 * 2
    assert all(".language_model.layers." in name for name in adapters)
    loss, gradients = loss_and_gradients(model)
    assert torch.equal(loss, loss_of(prepared(world, compute="float32")))
    assert gradients.keys() == trained


def test_names_in_checkpoints_are_those_without_adapters(world: World) -> None:
    plain = [name for name, _ in make_model().named_parameters()]
    model = prepared(world, lora_rank=2)
    found = [checkpoint_name(name) for name, _ in model.named_parameters()]
    assert [name for name in found if name is not None] == plain


def test_merged_adapters_leave_a_plain_model(world: World) -> None:
    model = make_model()
    choose_trained(model, Parallel(compute="float32", lora_rank=2, lora_alpha=6))
    generator = torch.Generator().manual_seed(1)
    expected = dict(make_model().named_parameters())
    with torch.no_grad():
        for name, up in model.named_parameters():
            if ".lora_B." in name:
                up.copy_(torch.randn(up.shape, generator=generator))
                down = model.get_parameter(name.replace("lora_B", "lora_A"))
                plain = name.replace("lora_B.default.", "")
                expected[plain].add_(up @ down, alpha=6 / 2)
        before = loss_of(model)
        merge_adapters(model)
        torch.testing.assert_close(loss_of(model), before)
    merged = dict(model.named_parameters())
    assert list(merged) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(merged[name], value.detach(), msg=name)
    merge_adapters(model)
    assert dict(model.named_parameters()).keys() == expected.keys()


def test_adapters_resume_bit_for_bit(world: World, tmp_path: Path) -> None:
    def made() -> tuple[FastSlowQwen2VL, torch.optim.AdamW]:
        model = prepared(world, lora_rank=2, activation_checkpointing="full")
        trained = [each for each in model.parameters() if each.requires_grad]
        return model, torch.optim.AdamW(trained, lr=0.01)

    def train(model: nn.Module, optimizer: torch.optim.AdamW) -> None:
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = made()
    train(model, optimizer)
    snapshot = take_snapshot(1, model=model, optimizer=optimizer, state={}, world=world)
    saved = write_snapshot(tmp_path, snapshot, world)
    train(model, optimizer)
    resumed, other = made()
    reset_adapters(resumed, seed=9)
    load_checkpoint(saved, model=resumed, optimizer=other, world=world)
    train(resumed, other)
    assert_all_equal(resumed.state_dict(), model.state_dict())


def test_adapters_of_a_model_without_storage_are_reset_later(world: World) -> None:
    with torch.device("meta"):
        model = make_model()
    parallelise(model, Parallel(lora_rank=2), world)
    assert {each.device.type for each in model.parameters()} == {"meta"}
    model.to_empty(device="cpu")
    reset_adapters(model)
    expected = prepared(world, lora_rank=2).state_dict()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name in (name for name in expected if ".lora_" in name):
        assert torch.equal(found[name], expected[name]), name


# Rows without a video


def test_the_black_clip_of_a_text_row_weighs_exactly_nothing(world: World) -> None:
    text = [TextSpan(token_ids=(4, 5, 13, 14), trained=True)]
    black = [VideoSpan(grid=(1, 1), schedule=repeat_strides(1, (1,)))]
    for row in ([text, black], [black]):
        plan = plan_row(row, video_token_id=VIDEO_TOKEN_ID)
        found = []
        for scale in (0.0, 100.0):
            model = prepared(world, compute="float32", tower="trained")
            output = model(scale * draw_patches(plan), plan)
            ahead, count = next_frame_loss(output.predictions, output.targets)
            (output.language_loss + ahead).backward()
            assert (ahead.item(), count) == (0.0, 0)
            trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
            assert all(each.grad is not None for each in trained.values())
            found.append({n: each.grad for n, each in trained.items()})
            assert (output.language_loss == 0.0) == (row == [black])
        assert_all_equal(*found)
        silent = ("backbone.model.visual.", "next_frame_head.")
        for name, gradient in found[0].items():
            if row == [black] or name.startswith(silent):
                assert not gradient.full_tensor().any(), name


# Compilation


@pytest.fixture
def clean_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    counters.clear()


def compiled(mesh: DeviceMesh, settings: Parallel, backend: str) -> FastSlowQwen2VL:
    model = make_model(layers=4)
    choose_trained(model, settings)
    checkpoint_activations(model, settings.activation_checkpointing)
    compile_blocks(model, backend=backend)
    shard(model, settings, mesh)
    return model


@no_hook
@compiler
@pytest.mark.usefixtures("clean_compiler")
@pytest.mark.parametrize("kind", ["none", "selective", "full"])
def test_compiled_blocks_compute_the_same(world: World, kind: str) -> None:
    settings = Parallel(
        compute="float32", tower="trained", activation_checkpointing=kind
    )
    eager = make_model(layers=4)
    parallelise(eager, settings, world)
    expected, gradients = loss_and_gradients(eager)
    loss, found = loss_and_gradients(compiled(world.mesh, settings, "aot_eager"))
    torch.testing.assert_close(loss, expected)
    assert found.keys() == gradients.keys()
    for name, value in gradients.items():
        difference = (found[name] - value).full_tensor().abs().max()
        assert difference <= 1e-5, f"{name}: {difference}"


@no_hook
@compiler
@pytest.mark.usefixtures("clean_compiler")
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_compiled_layers_share_one_graph(lora_rank: int) -> None:
    """Under a mask that is a tensor a decoder layer compiles in one piece."""
    model = make_model(layers=4)
    choose_trained(model, Parallel(compute="float32", lora_rank=lora_rank))
    compile_blocks(model, backend="aot_eager")
    layout = PLAN.layout
    mask = dense_mask(interval_mask(PLAN.visible), len(layout.input_ids))
    hidden = torch.randn(1, len(mask), 32, requires_grad=not lora_rank)
    model.backbone.model.language_model(
        inputs_embeds=hidden,
        position_ids=layout.position_ids[:, None],
        attention_mask={"full_attention": mask[None, None]},
        use_cache=False,
    ).last_hidden_state.sum().backward()
    assert counters["stats"]["unique_graphs"] == (2 if lora_rank else 1)
    assert not counters["graph_break"]


def random_row(random: Random) -> TowerPlan:
    """Plan what a tower needs to know of some frames of some sizes."""
    sides = [(random.randint(2, 5), random.randint(2, 5)) for _ in range(4)]
    return plan_tower([(random.randint(1, 4), grid) for grid in sides])


def see(model: FastSlowQwen2VL, plan: TowerPlan) -> None:
    """Let a tower without values see the frames of a plan."""
    patches = torch.empty(len(plan.position_ids), 3 * 2 * 2 * 2)
    known = vars(to_device(plan, "meta"))
    model.backbone.model.visual(patches.bfloat16().to("meta"), grid_thw=None, **known)


def read(model: FastSlowQwen2VL, tokens: int) -> None:
    """Let a language model read a row of so many tokens under a BlockMask."""
    mask = interval_block_mask(visible_intervals(torch.arange(tokens) // 3))
    language_model = model.backbone.model.language_model
    with torch.no_grad():  # FlexAttention has no backward pass on the CPU
        language_model(
            None,
            torch.empty(1, 1, 0, 0),
            torch.arange(tokens).expand(4, 1, -1),
            inputs_embeds=torch.randn(1, tokens, 32, requires_grad=True),
            layout_mask=mask,
            use_cache=False,
        )


@no_hook
@compiler
@pytest.mark.usefixtures("clean_compiler")
@pytest.mark.parametrize("tower", ["frozen", "trained"])
def test_a_compiled_tower_has_two_graphs_whatever_is_packed(tower: str) -> None:
    """As on a GPU: tensors without values are not on the CPU, and wait for nothing."""
    settings = Parallel(tower=tower, activation_checkpointing="selective")
    model = make_model()
    choose_trained(model, settings)
    checkpoint_activations(model, settings.activation_checkpointing)
    compile_blocks(model.bfloat16().to("meta"), backend="eager")
    random = Random(0)
    for _ in range(12):
        see(model, random_row(random))
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


@no_hook
@compiler
@pytest.mark.usefixtures("clean_compiler")
def test_compiled_layers_have_graphs_for_each_row_length() -> None:
    """Two of each: the input of the first layer asks for a gradient, others do not."""
    model = make_model()
    compile_blocks(model, few_lengths=True, backend="eager")
    lengths = [512, 128, 512, 384, 256, 128, 512, 384]
    for tokens in lengths:
        read(model, tokens)
    assert counters["stats"]["unique_graphs"] == 2 * len(set(lengths))
    assert not counters["graph_break"]


@no_hook
@compiler
@pytest.mark.usefixtures("clean_compiler")
def test_no_block_is_left_uncompiled_for_having_many_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tower and language model share what torch counts graphs by."""
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    model, seeing = make_model(), make_model().bfloat16().to("meta")
    for each in (seeing, model):
        compile_blocks(each, few_lengths=True, backend="eager")
    random = Random(0)
    for _ in range(2):
        see(seeing, random_row(random))
    for tokens in (128, 256, 384, 512):
        read(model, tokens)
    assert counters["stats"]["unique_graphs"] == 2 + 2 * 4
