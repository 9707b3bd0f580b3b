"""Rows of a few lengths meet a few compiled graphs, whatever is packed in them."""

from random import Random
from typing import Any

import torch
from torch.nn.attention.flex_attention import flex_attention

from fastslow import (
    KeyIntervals,
    bucket_length,
    interval_attention,
    interval_block_mask,
    visible_intervals,
)

CAPACITY = 512


def random_pack(random: Random) -> KeyIntervals:
    """Pack samples of text and frames, and pad the row to one of two lengths."""
    runs, samples = list[int](), list[int]()
    for sample in range(random.randint(1, 4)):
        frames = [random.choice((1, 1, 8, 16, 30)) for _ in range(random.randint(1, 9))]
        if sum(runs) + sum(frames) <= CAPACITY:
            runs += frames
            samples += [sample] * sum(frames)
    ranks = torch.arange(len(runs)).repeat_interleave(torch.tensor(runs))
    length = bucket_length(len(ranks), CAPACITY, buckets=2, multiple_of=128)
    padding = (0, length - len(ranks))
    return visible_intervals(
        torch.nn.functional.pad(ranks, padding),
        torch.nn.functional.pad(torch.tensor(samples), padding, value=-1),
    )


def test_flex_attention_has_one_graph_for_each_row_length() -> None:
    graphs = list[torch.fx.GraphModule]()

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    attend = torch.compile(flex_attention, backend=count)
    random, lengths = Random(0), set[int]()
    for _ in range(20):
        intervals = random_pack(random)
        tokens = len(intervals.start)
        lengths.add(tokens)
        query, key, value = torch.randn(3, 1, 2, tokens, 16).unbind()
        with torch.no_grad():
            mask = interval_block_mask(intervals)
            found = attend(query, key, value, block_mask=mask)
        torch.testing.assert_close(
            found, interval_attention(query, key, value, intervals)
        )
    assert lengths == {256, 512}
    assert len(graphs) == 2
