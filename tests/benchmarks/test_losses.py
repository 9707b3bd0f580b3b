"""Losses beside the usual ways: peaks of memory first, then time.

E1 is the loss of a language model where 6% of the tokens are labelled, on a GPU of a
whole row; E2 the loss of next-frame features where 90% of the rows count. Peaks are
those of both passes, beside what was there before.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from fastslow import LabelPlan, Ragged, labelled_cross_entropy, next_frame_loss

WIDTH, VOCABULARY = 896, 152_064
IGNORED = -100
ROWS, CHANNELS = 16_384, 3584

Loss = Callable[..., Tensor]
PeakBytes = Callable[[Callable[[], object]], int]


class Head(NamedTuple):
    hidden: Tensor
    weight: Tensor
    labels: Tensor
    plan: LabelPlan


@cache
def head(vocabulary: int, device: torch.device) -> Head:
    """Draw states and a head in bfloat16, labels, and the plan of these labels."""
    tokens = 16_384 if device.type == "cuda" else 2048  # minutes on a CPU
    labelled = round(0.06 * tokens)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=generator).bfloat16()
    weight = torch.randn(vocabulary, WIDTH, generator=generator).bfloat16() / WIDTH**0.5
    trained = torch.randperm(tokens - 1, generator=generator)[:labelled].sort()[0] + 1
    token_ids = torch.randint(vocabulary, (labelled,), generator=generator)
    labels = torch.full((tokens,), IGNORED)
    labels[trained] = token_ids
    plan = LabelPlan(rows=(trained - 1).to(device), targets=token_ids.to(device))
    return Head(hidden.to(device), weight.to(device), labels.to(device), plan)


def labelled_rows(hidden: Tensor, weight: Tensor, work: Head) -> Tensor:
    total, count = labelled_cross_entropy(hidden, weight, work.plan)
    return total / count


def all_rows(hidden: Tensor, weight: Tensor, work: Head) -> Tensor:
    """Give every row its logits, shift the labels, ignore most: the usual way."""
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(
        logits, F.pad(work.labels, (0, 1), value=IGNORED)[1:], ignore_index=IGNORED
    )


def head_both_ways(loss: Loss, work: Head) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (work.hidden, work.weight)]
    value = loss(*leaves, work)
    return value.detach(), *torch.autograd.grad(value, leaves)


@cache
def assert_equal_heads(device: torch.device) -> None:
    work = head(4096, device)
    ours, theirs = (head_both_ways(loss, work) for loss in (labelled_rows, all_rows))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("loss", [labelled_rows, all_rows])
def test_e1(
    benchmark: BenchmarkFixture,
    device: torch.device,
    to_the_end: Callable[[Any], Any],
    peak_bytes: PeakBytes,
    loss: Loss,
) -> None:
    assert_equal_heads(device)
    work = head(VOCABULARY, device)
    benchmark.group = (
        f"E1: Cross entropy of {len(work.hidden):,} x {WIDTH} states, "
        f"{VOCABULARY:,} words, 6% labelled, bfloat16, both passes"
    )
    run = partial(head_both_ways, loss, work)
    gradients = work.hidden.nbytes + work.weight.nbytes
    benchmark.extra_info["peak MiB"] = round(peak_bytes(run) / 2**20)
    benchmark.extra_info["of it gradients MiB"] = round(gradients / 2**20)
    if loss is all_rows:
        benchmark.extra_info["target"] = "at least 20x, 10x the peak"
    rounds = 3 if loss is labelled_rows else 1
    benchmark.pedantic(to_the_end(run), rounds=rounds)


class Features(NamedTuple):
    predictions: Tensor
    targets: Tensor
    counts: Tensor


@cache
def features(channels: int, device: torch.device) -> Features:
    """Draw features, and which rows count."""
    generator = torch.Generator().manual_seed(0)
    predictions, targets = torch.randn(2, ROWS, channels, generator=generator).to(
        device, torch.bfloat16
    )
    counts = torch.rand(ROWS, generator=generator) < 0.9
    return Features(predictions, targets, counts.to(device))


def weighted_rows(predictions: Tensor, work: Features) -> Tensor:
    """Let the other rows weigh nothing."""
    ends = torch.tensor([0, ROWS], dtype=torch.int32, device=predictions.device)
    total, count = next_frame_loss(
        predictions,
        Ragged(values=work.targets, cu_seqlens=ends),
        distance="mse",
        reduction="token",
        weights=work.counts.float(),
    )
    return total / count


def indexed_rows(predictions: Tensor, work: Features) -> Tensor:
    """Pick the rows, widen them, and take the mean of squares: the usual way."""
    chosen = predictions[work.counts].float()
    return F.mse_loss(chosen, work.targets[work.counts].float())


def features_both_ways(loss: Loss, work: Features) -> tuple[Tensor, Tensor]:
    leaf = work.predictions.detach().requires_grad_()
    value = loss(leaf, work)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@cache
def assert_equal_features(device: torch.device) -> None:
    work = features(64, device)
    ours = features_both_ways(weighted_rows, work)
    torch.testing.assert_close(ours, features_both_ways(indexed_rows, work))
    torch.compiler.reset()  # its graphs suit so few channels, and would serve more


@pytest.mark.parametrize("loss", [weighted_rows, indexed_rows])
def test_e2(
    benchmark: BenchmarkFixture,
    device: torch.device,
    to_the_end: Callable[[Any], Any],
    peak_bytes: PeakBytes,
    loss: Loss,
) -> None:
    benchmark.group = (
        f"E2: Squared error of {ROWS:,} x {CHANNELS:,} bfloat16, 90% of the rows, "
        "both passes"
    )
    assert_equal_features(device)
    work = features(CHANNELS, device)
    run = partial(features_both_ways, loss, work)
    share = peak_bytes(run) / work.predictions.nbytes
    benchmark.extra_info["peak over predictions"] = round(share, 2)
    if loss is weighted_rows:
        benchmark.extra_info["target"] = "peak at most 1.5"
    benchmark.pedantic(to_the_end(run), rounds=3, warmup_rounds=1)
