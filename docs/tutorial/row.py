"""Two samples share a row, and a mask says who reads whom.

python docs/tutorial/row.py
"""

from pathlib import Path

import torch

from fastslow import (
    Span,
    TextSpan,
    VideoSpan,
    build_layout,
    dense_mask,
    frame_causal_mask,
    schedule_from_strides,
    visible_intervals,
)
from fastslow.plotting import mask_svg, render_mask

VIDEO = 9  # the token that stands for a place of the clip


def sample(strides: list[int]) -> list[Span]:
    """Give a question, a clip of 4 x 4 tokens a frame, and a trained answer."""
    clip = VideoSpan(grid=(4, 4), schedule=schedule_from_strides(strides))
    return [TextSpan(token_ids=(1,)), clip, TextSpan(token_ids=(2, 3), trained=True)]


first, second = sample([2, 4, 2]), sample([2, 4])
row = build_layout([first, second], video_token_id=VIDEO, length=22)
visible = visible_intervals(row.causal_ranks, row.segment_ids)
for name, numbers in {
    "token": row.input_ids,
    "label": row.labels,
    "segment": row.segment_ids,
    "frame": row.frame_ids,
    "rank": row.causal_ranks,
    "start": visible.start,
    "stop": visible.stop,
}.items():
    print(f"{name:8}", *(f"{number:4}" for number in numbers.tolist()))

mask = frame_causal_mask(row.causal_ranks, row.segment_ids)
print(render_mask(mask, 22))

# A sample in a pack reads what it reads alone.
alone = [build_layout([one], video_token_id=VIDEO) for one in (first, second)]
masks = [dense_mask(frame_causal_mask(a.causal_ranks), len(a.labels)) for a in alone]
packed = dense_mask(mask, 22)[:20, :20]
print("as if alone:", torch.equal(packed, torch.block_diag(*masks).bool()))

Path(__file__).with_suffix(".svg").write_text(mask_svg(row))
