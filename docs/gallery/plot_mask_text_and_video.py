"""
The mask of text and video
==========================

A row is a query, a column a key. Text is a staircase of single tokens; each frame is a
square, because its tokens read each other both ways. Nothing above the squares: nobody
reads what comes later.

.. alt: The mask of a prompt, a clip of six frames and an answer: a lower triangle whose
   diagonal has a square for each frame, large for slow frames and small for fast ones.
"""

import fastslow as fs
from fastslow.plotting import mask_svg

schedule = fs.build_schedule(6, slow_ratio=1 / 3, slow_stride=2, fast_stride=4)
sample = [
    fs.TextSpan(token_ids=tuple(range(6))),
    fs.VideoSpan(grid=(8, 8), schedule=schedule),
    fs.TextSpan(token_ids=tuple(range(8)), trained=True),
]
svg = mask_svg(fs.build_layout([sample], video_token_id=9))
