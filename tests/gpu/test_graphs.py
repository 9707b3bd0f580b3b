"""Rows of a few lengths meet a few compiled graphs, in both passes."""

from collections.abc import Iterator
from functools import partial
from itertools import groupby
from random import Random
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from fastslow import (
    KeyIntervals,
    bucket_length,
    interval_attention,
    interval_block_mask,
    to_device,
    visible_intervals,
)
from recipes.edge.training.parallel import EXPENSIVE

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # torch's compiler warns of itself
]

CAPACITY, BUCKETS, PACKS = 1024, 4, 200


def random_packs() -> Iterator[KeyIntervals]:
    """Pack samples of text and frames, and pad the rows to one of four lengths."""
    random = Random(0)
    for _ in range(PACKS):
        runs, samples = list[int](), list[int]()
        for sample in range(random.randint(1, 8)):
            drawn = [random.choice((1, 1, 8, 16, 30)) for _ in range(9)]
            if sum(runs) + sum(drawn) <= CAPACITY:
                runs += drawn
                samples += [sample] * sum(drawn)
        ranks = torch.arange(len(runs)).repeat_interleave(torch.tensor(runs))
        length = bucket_length(len(ranks), CAPACITY, buckets=BUCKETS, multiple_of=128)
        padding = (0, length - len(ranks))
        yield visible_intervals(
            torch.nn.functional.pad(ranks, padding),
            torch.nn.functional.pad(torch.tensor(samples), padding, value=-1),
        )


def test_as_many_graphs_as_row_lengths() -> None:
    torch.compiler.reset()
    counters.clear()
    attend = torch.compile(flex_attention)
    generator, lengths = torch.Generator().manual_seed(0), list[int]()
    for number, intervals in enumerate(random_packs()):
        lengths.append(len(intervals.start))
        inputs = torch.randn(3, 1, 2, lengths[-1], 16, generator=generator)
        leaves = [x.cuda().requires_grad_() for x in inputs.unbind()]
        mask = interval_block_mask(to_device(intervals, "cuda"))
        output = attend(*leaves, block_mask=mask)
        gradients = torch.autograd.grad(output, leaves, torch.ones_like(output))
        if number % 20 == 0:
            expected = interval_attention(*inputs.unbind(), intervals)
            torch.testing.assert_close(
                output.detach().cpu(), expected, rtol=1e-2, atol=1e-2
            )
            assert all(gradient.isfinite().all() for gradient in gradients)
    assert len(set(lengths)) == BUCKETS
    assert len(list(groupby(lengths))) > PACKS // 4  # in no order
    assert 0 < counters["stats"]["unique_graphs"] <= BUCKETS
    assert not counters["graph_break"]


def test_selective_checkpointing_leaves_attention_compiled() -> None:
    """What a policy keeps of it depends on torch: the result, or nothing."""
    tokens = 4096
    intervals = to_device(visible_intervals(torch.arange(tokens)), "cuda")
    mask = interval_block_mask(intervals)
    inputs = [
        torch.randn(1, heads, tokens, 64, device="cuda", dtype=torch.bfloat16)
        for heads in (8, 2, 2)
    ]
    torch.compiler.reset()
    counters.clear()
    attend, seen = torch.compile(flex_attention), list[str]()

    def policy(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        seen.append(operation.name())
        kept = operation.name() in EXPENSIVE
        must, may = CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE
        return must if kept else may

    def block(*given: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = attend(*given, block_mask=mask, enable_gqa=True)
        return output

    found = []
    for is_checkpointed in (False, True):
        leaves = [each.detach().requires_grad_() for each in inputs]
        torch.cuda.reset_peak_memory_stats()
        if is_checkpointed:
            contexts = partial(create_selective_checkpoint_contexts, policy)
            output = checkpoint(
                block, *leaves, use_reentrant=False, context_fn=contexts
            )
        else:
            output = block(*leaves)
        gradients = torch.autograd.grad(output, leaves, torch.ones_like(output))
        scores = 8 * tokens**2 * 4  # what it holds if it is not compiled
        assert torch.cuda.max_memory_allocated() < scores / 2
        found.append([output.detach(), *gradients])
    assert counters["stats"]["unique_graphs"] >= 1
    assert set(seen) <= EXPENSIVE
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain)
