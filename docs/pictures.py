"""Draw the pictures of the documentation anew.

python docs/pictures.py
"""

from pathlib import Path

from fastslow import (
    FrameSchedule,
    Span,
    TextSpan,
    TokenLayout,
    VideoSpan,
    build_layout,
    build_schedule,
    schedule_from_strides,
)
from fastslow.plotting import layout_svg, mask_svg, schedule_svg

FOLDER = Path(__file__).parent / "_static"


def pictures() -> dict[str, str]:
    """Give every picture by the name of its file."""
    clip = build_schedule(8, slow_stride=2, fast_stride=4)
    spread = build_schedule(8, strategy="uniform", slow_ratio=0.25)
    return {
        "schedule.svg": schedule_svg((8, 8), clip),
        "mask.svg": mask_svg(one_sample(clip)),
        "edges.svg": schedule_svg((13, 23), spread),
        "packed_row.svg": layout_svg(two_samples()),
        "packed_mask.svg": mask_svg(two_samples()),
    }


def one_sample(schedule: FrameSchedule) -> TokenLayout:
    """Lay out a prompt, a clip of 8 x 8 tokens a frame, and an answer."""
    clip = VideoSpan(grid=(8, 8), schedule=schedule)
    return build_layout([[_text(6), clip, _text(8)]], video_token_id=9)


def two_samples() -> TokenLayout:
    """Lay out two short samples and fill the row up to 24 tokens."""
    first = VideoSpan(grid=(4, 4), schedule=schedule_from_strides([2, 4, 2]))
    second = VideoSpan(grid=(4, 4), schedule=schedule_from_strides([2, 4]))
    samples: list[list[Span]] = [
        [_text(2), first, _text(2)],
        [_text(1), second, _text(2)],
    ]
    return build_layout(samples, video_token_id=9, length=24)


def _text(num_tokens: int) -> TextSpan:
    """Give a run of text."""
    return TextSpan(token_ids=tuple(range(num_tokens)))


if __name__ == "__main__":
    for name, picture in pictures().items():
        (FOLDER / name).write_text(picture)
