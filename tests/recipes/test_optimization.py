"""Learning rates, decay, gradient norms and skipped steps, on one rank."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from recipes.edge.ranks.distributed import World, process_group
from recipes.edge.training.optimization import (
    SkippedSteps,
    build_optimizer,
    clip_gradients,
    count_skipped,
    refuse_to_skip_on,
    warmup_cosine,
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """This process alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RANK", raising=False)
        with process_group() as alone:
            yield alone


def make_model() -> nn.Sequential:
    """Make a small model of which one weight does not train."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    model[0].bias.requires_grad_(False)
    return model


def make_models(world: World, scale: float) -> tuple[nn.Sequential, nn.Sequential]:
    """Make a whole model with gradients, and the same sharded."""
    plain, sharded = make_model(), make_model()
    fully_shard(sharded, mesh=world.mesh)
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            parameter.grad = scale * torch.randn(parameter.shape)
            other = sharded.get_parameter(name)
            assert isinstance(other, DTensor)
            other.grad = distribute_tensor(
                parameter.grad, other.device_mesh, other.placements
            )
    return plain, sharded


def full_gradients(model: nn.Module) -> dict[str, Tensor]:
    """Give all gradients of a sharded model by name."""
    found = dict[str, Tensor]()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert isinstance(parameter.grad, DTensor)
            found[name] = parameter.grad.full_tensor().clone()
    return found


@given(total=st.integers(1, 200), warmup=st.integers(0, 200))
def test_every_step_trains(total: int, warmup: int) -> None:
    rates = [
        warmup_cosine(step, peak=0.5, warmup=warmup, total=total)
        for step in range(1, total + 1)
    ]
    assert all(0 < rate <= 0.5 for rate in rates)
    rises, falls = rates[:warmup], rates[max(warmup - 1, 0) :]
    assert rises == sorted(rises)
    assert falls == sorted(falls, reverse=True)
    assert total < warmup or warmup == 0 or max(rates) == 0.5


def test_matrices_decay_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    model[2].requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    optimizer = build_optimizer(model, weight_decay=0.5, fused=False)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    optimizer.step()
    for name, weight in model.named_parameters():
        left = 0.95 if name == "0.weight" else 1.0
        torch.testing.assert_close(weight, left * before[name], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_model_may_have_parameters_of_one_kind(lost: int) -> None:
    model = nn.Linear(3, 5)
    for weight in model.parameters():
        weight.requires_grad_(weight.ndim != lost)
    (group,) = build_optimizer(model, weight_decay=0.5, fused=False).param_groups
    assert [weight.ndim for weight in group["params"]] == [3 - lost]


@given(
    scale=st.floats(1e-6, 1e6),
    max_norm=st.floats(0, 1e6),
)
@example(scale=1.0, max_norm=0.0)
@example(scale=1.0, max_norm=math.inf)
@example(scale=1e15, max_norm=1.0)
def test_clipping_equals_that_of_torch(
    world: World, scale: float, max_norm: float
) -> None:
    expected, found = make_models(world, scale)
    weights = [each for each in expected.parameters() if each.grad is not None]
    norm = math.sqrt(sum(each.grad.double().square().sum() for each in weights))
    for each in weights:
        each.grad *= min(1.0, max_norm / norm) if max_norm else 1.0
    assert clip_gradients(found, max_norm, world) == pytest.approx(norm, rel=1e-5)
    gradients = full_gradients(found)
    assert len(gradients) == len(weights) == 3
    for name, gradient in gradients.items():
        other = expected.get_parameter(name).grad
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=0.0)


def test_a_model_without_gradients_has_no_norm(world: World) -> None:
    assert clip_gradients(fully_shard(make_model(), mesh=world.mesh), 1.0, world) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_are_left_alone(world: World, bad: float) -> None:
    _, model = make_models(world, 1.0)
    gradient = model[2].weight.grad
    assert isinstance(gradient, DTensor)
    gradient.to_local()[0, 0] = bad
    before = full_gradients(model)
    norm = clip_gradients(model, 0.1, world)
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
    for name, found in full_gradients(model).items():
        torch.testing.assert_close(found, before[name], rtol=0, atol=0, equal_nan=True)


@given(st.lists(st.sampled_from([0.0, 2.5, math.inf, math.nan])), st.integers(0, 3))
@example([math.nan], 0)
@example([math.nan, math.inf, 1.0, math.inf, math.nan], 2)
@example([math.nan, math.inf, math.inf], 2)
def test_skipped_steps_are_counted_and_bounded(norms: list[float], most: int) -> None:
    skipped = SkippedSteps()
    for number, norm in enumerate(norms, start=1):
        row = 0
        while row < number and not math.isfinite(norms[number - 1 - row]):
            row += 1
        total = sum(not math.isfinite(each) for each in norms[:number])
        skipped = count_skipped(norm, skipped)
        assert skipped == SkippedSteps(in_a_row=row, total=total)
        if row > most:
            with pytest.raises(FloatingPointError) as caught:
                refuse_to_skip_on(skipped, most_in_a_row=most)
            assert str(caught.value).startswith(
                f"the gradients were not finite in {row} steps in a row; "
                f"max_skipped_steps is {most}: go on from a checkpoint before"
            )
        else:
            refuse_to_skip_on(skipped, most_in_a_row=most)
