"""A tower that trains does not move the targets of the next-frame loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastslow import TextSpan, VideoSpan, next_frame_loss, schedule_from_strides
from fastslow.qwen2_vl import FastSlowOutput, FastSlowQwen2VL, RowPlan

SAMPLE = (
    TextSpan(token_ids=(1, 2), trained=False),
    VideoSpan(grid=(3, 2), schedule=schedule_from_strides((1, 2, 1))),
    TextSpan(token_ids=(6, 12, 13), trained=True),
)

Step = Callable[[FastSlowQwen2VL], FastSlowOutput]


@pytest.fixture
def step(lay: Callable[..., RowPlan], make_patches: Callable[..., Tensor]) -> Step:
    """Take a step of gradient descent; give what it saw."""
    plan = lay([SAMPLE, SAMPLE])
    patches = make_patches(plan)

    def take(model: FastSlowQwen2VL) -> FastSlowOutput:
        trained = [each for each in model.parameters() if each.requires_grad]
        output: FastSlowOutput = model(patches, plan)
        ahead, _ = next_frame_loss(output.predictions, output.targets)
        (output.language_loss + ahead).backward()
        torch.optim.SGD(trained, lr=0.01).step()
        return output

    return take


def test_targets_stay_those_of_the_first_step(
    make_model: Callable[..., FastSlowQwen2VL], step: Step
) -> None:
    model, moving = make_model(), make_model()
    model.train_tower()
    assert model.target_tower is not None
    weights = {name: p.clone() for name, p in model.target_tower.named_parameters()}
    first, plain = step(model), step(moving)
    assert torch.equal(first.targets.values, plain.targets.values)
    assert torch.equal(first.copies, plain.copies)
    second, moved = step(model), step(moving)
    assert torch.equal(second.targets.values, first.targets.values)
    assert torch.equal(second.copies, first.copies)
    assert torch.equal(second.predictions, moved.predictions)
    assert not torch.equal(moved.targets.values, plain.targets.values)
    assert not first.targets.values.requires_grad
    assert not first.copies.requires_grad
    for name, parameter in model.target_tower.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.grad is None
        assert not parameter.requires_grad


def test_both_towers_are_told_their_plan(
    make_model: Callable[..., FastSlowQwen2VL],
    lay: Callable[..., RowPlan],
    make_patches: Callable[..., Tensor],
) -> None:
    model, plan, given = make_model(), lay([SAMPLE]), list[dict[str, Any]]()
    model.train_tower()
    assert model.target_tower is not None
    for tower in (model.backbone.model.visual, model.target_tower):
        tower.register_forward_pre_hook(
            lambda _, patches, named: given.append(named), with_kwargs=True
        )
    model(make_patches(plan), plan)
    expected = {"grid_thw": plan.grid_thw} | vars(plan.tower)
    assert len(given) == 2
    for named in given:
        assert named.keys() == expected.keys()
        assert all(named[name] is value for name, value in expected.items())


def test_gradients_reach_the_whole_tower(
    make_model: Callable[..., FastSlowQwen2VL], step: Step
) -> None:
    model = make_model()
    model.freeze_tower()
    model.train_tower()
    step(model)
    for name, parameter in model.backbone.model.visual.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_copy_has_no_merger(family: str, make_family: Callable[..., Any]) -> None:
    model = FastSlowQwen2VL(make_family(family))
    model.train_tower()
    names = {name for name, _ in model.named_parameters()}
    copy = {name for name in names if name.startswith("target_tower.")}
    tower = {name for name in names if name.startswith("backbone.model.visual.")}
    assert {name.removeprefix("target_tower.") for name in copy} == {
        rest
        for name in tower
        if not (rest := name.removeprefix("backbone.model.visual.")).startswith(
            ("merger.", "deepstack_merger_list.")
        )
    }
    shared = {p.data_ptr() for p in model.backbone.parameters()}
    assert model.target_tower is not None
    assert shared.isdisjoint(p.data_ptr() for p in model.target_tower.parameters())


def test_a_frozen_tower_is_its_own_target(
    make_model: Callable[..., FastSlowQwen2VL], step: Step
) -> None:
    model = make_model()
    model.train_tower()
    model.freeze_tower()
    assert model.target_tower is None
    first, second = step(model), step(model)
    assert torch.equal(first.targets.values, second.targets.values)


def test_reset_takes_the_weights_of_now(
    make_model: Callable[..., FastSlowQwen2VL], step: Step
) -> None:
    model = make_model()
    model.train_tower()
    first = step(model)
    model.reset_target_tower()
    expected = make_model()
    expected.load_state_dict(model.state_dict(), strict=False)
    found, plain = step(model), step(expected)
    assert torch.equal(found.targets.values, plain.targets.values)
    assert not torch.equal(found.targets.values, first.targets.values)
    assert model.target_tower is not None
    assert not any(p.requires_grad for p in model.target_tower.parameters())


def put_adapters_into(model: FastSlowQwen2VL) -> None:
    peft = pytest.importorskip("peft")
    adapters = peft.LoraConfig(r=2, target_modules="all-linear")
    peft.inject_adapter_in_model(adapters, model.backbone)
    model.double()


def test_a_tower_that_trains_is_not_its_own_target(
    make_model: Callable[..., FastSlowQwen2VL], step: Step
) -> None:
    said = r"^\d+ parameters of the tower train, such as (.*), and its features are the"
    with pytest.raises(ValueError, match=said):
        step(make_model().train())
    adapted = make_model().train()
    adapted.freeze_tower()
    step(adapted)
    put_adapters_into(adapted)
    with pytest.raises(ValueError, match=said) as error:
        step(adapted)
    assert "lora_A" in str(error.value)
    without = make_model().train()
    without.drop_next_frame()
    step(without)


def test_adapters_in_a_tower_leave_its_copy_alone(
    make_model: Callable[..., FastSlowQwen2VL], step: Step
) -> None:
    model = make_model().train()
    model.train_tower()
    put_adapters_into(model)
    first, second = step(model), step(model)
    assert torch.equal(second.targets.values, first.targets.values)
    assert not torch.equal(second.predictions, first.predictions)
    said = r"^the tower and its copy differ in \d+ parameters, such as blocks.*; reset"
    with pytest.raises(ValueError, match=said):
        model.reset_target_tower()


def test_without_a_copy_there_is_nothing_to_reset(
    make_model: Callable[..., FastSlowQwen2VL],
) -> None:
    with pytest.raises(ValueError) as caught:
        make_model().reset_target_tower()
    assert str(caught.value) == "target_tower is None; train_tower makes it"


def test_the_copy_goes_with_the_loss_that_needs_it(
    make_model: Callable[..., FastSlowQwen2VL],
) -> None:
    model = make_model()
    model.train_tower()
    assert model.target_tower is not None
    model.drop_next_frame()
    assert model.target_tower is None


@pytest.mark.parametrize("trained", ["train_tower", "freeze_tower"])
def test_without_the_next_frame_nothing_of_it_is_computed(
    make_model: Callable[..., FastSlowQwen2VL],
    lay: Callable[..., RowPlan],
    make_patches: Callable[..., Tensor],
    trained: str,
) -> None:
    plan = lay([SAMPLE, SAMPLE])
    patches = make_patches(plan)
    models = make_model(), make_model()
    models[1].drop_next_frame()
    losses, flops, calls = [], [], []
    for model in models:
        getattr(model, trained)()
        heard = list[object]()
        for part in (model.next_frame_head, model.target_tower):
            if part is not None:
                part.register_forward_hook(lambda *each, to=heard: to.append(each[0]))
        with FlopCounterMode(display=False) as counter:
            output = model(patches, plan)
            output.language_loss.backward()
        losses.append(output.language_loss)
        flops.append(counter.get_total_flops())
        calls.append(len(heard))
    assert calls == [1 + (trained == "train_tower"), 0]
    assert torch.equal(*losses)
    for (name, with_it), without in zip(
        models[0].named_parameters(), models[1].parameters(), strict=False
    ):
        if with_it.grad is not None:
            assert torch.equal(with_it.grad, without.grad), name
    assert models[1].target_tower is None
    assert all(weight.grad is None for weight in models[1].next_frame_head.parameters())
    assert (len(output.predictions), len(output.copies)) == (0, 0)
    assert output.targets.cu_seqlens.tolist() == [0]
    weights = [
        each.weight for each in models[0].next_frame_head if hasattr(each, "weight")
    ]
    head = 2 * len(plan.next_frame.rows) * sum(each.numel() for each in weights)
    assert flops[0] - flops[1] >= head
    if trained == "freeze_tower":
        assert flops[0] - flops[1] == head
