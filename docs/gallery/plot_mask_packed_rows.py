"""
The mask of a packed row
========================

Three samples share a row and do not see each other: the mask is a chain of separate
triangles. What fills the row up reads nothing and is read by nothing.

.. alt: Three triangles along the diagonal, one for each packed sample, with nothing
   between them, and an empty band for the padding at the end.
"""

import fastslow as fs
from fastslow.plotting import mask_svg


def sample(frames, words):
    """Put a question before a clip and an answer after it."""
    schedule = fs.build_schedule(frames, slow_stride=2, fast_stride=4)
    clip = fs.VideoSpan(grid=(6, 6), schedule=schedule)
    return [fs.TextSpan(token_ids=(7, 8)), clip, fs.TextSpan(token_ids=(5,) * words)]


samples = [sample(frames=4, words=5), sample(frames=2, words=3), sample(1, words=9)]
svg = mask_svg(fs.build_layout(samples, video_token_id=9, length=100))
