"""Rows of a few lengths meet a few compiled graphs, in both passes."""

from collections.abc import Iterator
from itertools import groupby
from random import Random

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from fastslow import (
    KeyIntervals,
    bucket_length,
    interval_attention,
    interval_block_mask,
    to_device,
    visible_intervals,
)

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
