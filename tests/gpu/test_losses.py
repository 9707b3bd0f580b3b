"""Losses on a GPU are those of a CPU."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from fastslow import (
    LabelPlan,
    labelled_cross_entropy,
    next_frame_loss,
    pack_ragged,
    to_device,
)
from fastslow.losses import Distance, Reduction

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICES = ("cpu", "cuda")


@pytest.fixture(autouse=True)
def exact_products() -> None:
    torch.set_float32_matmul_precision("highest")


def values(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(found: list[list[Tensor]]) -> None:
    on_cpu, on_gpu = found
    for expected, other in zip(on_cpu, on_gpu, strict=True):
        assert other.is_cuda
        near = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(other.cpu(), expected, rtol=1e-5, atol=near)


@pytest.mark.parametrize("distance", get_args(Distance))
def test_next_frame_loss_is_the_same(distance: Distance) -> None:
    targets = pack_ragged([values(n, 64, seed=n) for n in (3, 1, 16, 4)])
    cu_videos = torch.tensor([0, 3, 4], dtype=torch.int32)
    torch.compiler.reset()
    counters.clear()
    terms: dict[Reduction, int] = {"frame": 4, "token": 24, "video": 2}
    for reduction in get_args(Reduction):
        found = []
        for device in DEVICES:
            guess = values(24, 64, seed=5).to(device).requires_grad_()
            total, count = next_frame_loss(
                guess,
                to_device(targets, device),
                distance=distance,
                reduction=reduction,
                cu_videos=cu_videos.to(device),
            )
            assert count == terms[reduction]
            found.append([total.detach(), *torch.autograd.grad(total, guess)])
        assert_same(found)
    assert counters["stats"]["unique_graphs"] == 2  # one for each pass
    assert not counters["graph_break"]


def test_a_graph_writes_nothing_wide_beside_the_gradient() -> None:
    targets = pack_ragged([values(4096, 512, seed=0).bfloat16()])
    on_gpu = to_device(targets, "cuda")
    guess = on_gpu.values.flip(0).requires_grad_()

    def both_passes() -> Tensor:
        total, _ = next_frame_loss(
            guess, on_gpu, distance="mse+cosine", normalize_targets=True
        )
        return torch.autograd.grad(total, guess)[0]

    first = both_passes()  # is compiled, and kept, so that it is not freed meanwhile
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    second = both_passes()
    assert torch.equal(first, second)
    assert torch.cuda.max_memory_allocated() - before < 1.1 * guess.nbytes


@pytest.mark.parametrize("labels", [40, 70_000], ids=["whole", "in chunks"])
def test_labelled_cross_entropy_is_the_same(labels: int) -> None:
    rows = torch.arange(labels)
    plan = LabelPlan(rows=rows, targets=rows * 7 % 1000)
    found = []
    for device in DEVICES:
        hidden = values(labels, 16, seed=0).to(device).requires_grad_()
        weight = values(1000, 16, seed=1).to(device).requires_grad_()
        total, count = labelled_cross_entropy(hidden, weight, to_device(plan, device))
        assert count == labels
        gradients = torch.autograd.grad(total, (hidden, weight))
        found.append([total.detach(), *gradients])
    assert_same(found)
