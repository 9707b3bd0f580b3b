"""Hold the kernel of a BlockMask's tables to torch's own, in Triton's interpreter.

``test_gpu_kernels.py`` runs this with ``TRITON_INTERPRET=1``, which has to be set
before Triton is imported.
"""

from random import Random
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask

from fastslow import KeyIntervals, interval_mask, visible_intervals

TABLES = ("num_blocks", "indices")


def drawn_row(random: Random) -> KeyIntervals:
    """Pack samples of frames, with padding before, between or behind them."""
    ranks, segments, frames = list[int](), list[int](), list[int]()
    for segment in range(random.randint(1, 4)):
        if random.random() < 0.4:
            padding = random.randint(1, 30)
            ranks += [0] * padding
            segments += [-1] * padding
            frames += [-1] * padding
        for rank in range(random.randint(0, 6)):
            tokens = random.choice((1, 2, 3, 8))
            ranks += [rank] * tokens
            segments += [segment] * tokens
            frames += [rank] * tokens
    row = [torch.tensor(values or [0]) for values in (ranks, segments, frames)]
    window = random.choice((None, 1, 2))
    return visible_intervals(*row[:2], frame_ids=row[2], window=window)


def compare(intervals: KeyIntervals, block_size: int, kernel: Any) -> None:
    """Compare both directions, of partial blocks and of full ones."""
    tokens = len(intervals.start)
    blocks = -(-tokens // block_size)
    counts, lists = kernel(intervals.start, intervals.stop, block_size, blocks)
    rule = interval_mask(intervals)
    wanted = create_block_mask(
        rule, None, None, tokens, tokens, device="cpu", BLOCK_SIZE=block_size
    )
    for table, name in enumerate(("kv", "full_kv", "q", "full_q")):
        for found, part in zip((counts, lists), TABLES, strict=True):
            expected = getattr(wanted, f"{name}_{part}")[0, 0]
            assert torch.equal(found[table], expected), (name, part, block_size)


def main(kernel: Any) -> None:
    """Compare rows of many forms, blocks of any size, and one row of many blocks."""
    random = Random(0)
    for _ in range(40):
        compare(drawn_row(random), random.choice((1, 2, 3, 8, 16, 128)), kernel)
    frames = torch.arange(52).repeat_interleave(5)
    compare(visible_intervals(frames, frames // 25), 1, kernel)  # in two parts


if __name__ == "__main__":
    from fastslow._gpu_block_masks import tables_on_gpu

    main(tables_on_gpu)
