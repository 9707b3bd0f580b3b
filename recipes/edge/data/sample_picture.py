"""A drawing of one sample: its frames, which of them are slow, its tokens, its mask."""

from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor

from fastslow import (
    PooledFrame,
    TokenLayout,
    VideoSpan,
    build_layout,
    dense_mask,
    frame_causal_mask,
    frame_windows,
)
from recipes.edge.data.sample_set import PlannedSamples
from recipes.edge.data.samples import PlannedClip, PlannedSample
from recipes.edge.media.video import decode_frames

COLOURS = ("#d9d9d9", "#6b6b6b", "#c4572a", "#2a6fb0")
KINDS = ("text", "answer", "slow frame", "fast frame")
"""What a token can be, each in its colour."""

MOST_TOKENS = 4096
"""Tokens of a mask that is drawn one by one; of a longer one every n-th is."""

PER_LINE = 8
"""Frames in a line."""


def draw_sample(sample: PlannedSample, planned: PlannedSamples, file: Path) -> None:
    """Draw a sample.

    Args:
        sample: The sample; its clips are decoded.
        planned: Where it comes from.
        file: Image file to write; its suffix says of which format.

    Raises:
        VideoError: If a clip cannot be decoded.
    """
    frames = [
        (*entry, clip) for clip in sample.clips for entry in _frames_of(clip, planned)
    ]
    lines = -(-len(frames) // PER_LINE)
    figure = Figure(figsize=(11, 1.55 * lines + 7.4), layout="constrained")
    heights = [*[1.4] * lines, 0.6, 5.8]
    grid = figure.add_gridspec(lines + 2, PER_LINE, height_ratios=heights)
    for place in range(lines * PER_LINE):
        axes = figure.add_subplot(grid[divmod(place, PER_LINE)])
        axes.set_axis_off()
        if place < len(frames):
            _draw_frame(axes, *frames[place][:3])
    layout = build_layout(
        [sample.spans],
        video_token_id=-1,
        attention=planned.settings.attention,
    )
    _draw_tokens(figure.add_subplot(grid[lines, :]), layout)
    _draw_mask(figure.add_subplot(grid[lines + 1, :]), layout)
    said = " / ".join(turn.text.replace("\n", " ") for turn in sample.sample.turns)
    title = f"{sample.sample.sample_id}: {sample.num_tokens:,} tokens\n{said[:110]}"
    figure.suptitle(title, fontsize=10, parse_math=False)
    figure.savefig(file, dpi=110)


def _frames_of(
    clip: PlannedClip, planned: PlannedSamples
) -> list[tuple[Tensor, str, bool]]:
    """Give the picture of each pooled frame, its caption, and whether it is slow."""
    size = planned.settings.family.geometry.temporal_patch_size
    first = list(clip.frame_indices[::size])
    pixels = decode_frames(clip.clip.file(planned.store), first)
    seconds = clip.clip.info.seconds_at(first)
    return [
        (
            pixels[frame.start],
            f"{seconds[frame.start]:.1f} s, {_pooling(frame, clip.span)}",
            frame.is_slow,
        )
        for frame in clip.span.schedule.frames
    ]


def _pooling(frame: PooledFrame, span: VideoSpan) -> str:
    """Give the stride of a pooled frame where its windows are square, else its grid."""
    if frame.stride is not None and frame.stride[0] == frame.stride[1]:
        return f"stride {frame.stride[0]}"
    height, width = frame_windows(span.grid, frame, edge=span.schedule.edge)
    return f"grid {len(height)} x {len(width)}"


def _draw_frame(axes: Axes, pixels: Tensor, words: str, is_slow: bool) -> None:
    """Draw a frame in a border that says whether it is slow."""
    axes.imshow(pixels.permute(1, 2, 0).numpy())
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks([])
    for edge in axes.spines.values():
        edge.set_color(COLOURS[2 if is_slow else 3])
        edge.set_linewidth(3)
    axes.set_xlabel(words, fontsize=8)


def _draw_tokens(axes: Axes, layout: TokenLayout) -> None:
    """Draw the row of tokens, each in the colour of its kind."""
    is_video = layout.frame_ids >= 0
    kinds = torch.where(layout.labels >= 0, 1, 0)
    kinds = torch.where(is_video, torch.where(layout.is_slow, 2, 3), kinds)
    axes.imshow(
        kinds[None].numpy(),
        aspect="auto",
        interpolation="nearest",
        cmap=ListedColormap(COLOURS),
        vmin=-0.5,
        vmax=3.5,
    )
    axes.set_yticks([])
    handles = [
        axes.plot(
            [], [], "s", color=colour, label=f"{kind}: {int((kinds == n).sum())}"
        )[0]
        for n, (kind, colour) in enumerate(zip(KINDS, COLOURS, strict=True))
    ]
    axes.legend(handles=handles, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))


def _draw_mask(axes: Axes, layout: TokenLayout) -> None:
    """Draw which keys each query may read."""
    step = -(-len(layout.input_ids) // MOST_TOKENS)
    ranks, segments = layout.causal_ranks[::step], layout.segment_ids[::step]
    mask = dense_mask(frame_causal_mask(ranks, segments), len(ranks))
    last = len(layout.input_ids) - 0.5
    axes.imshow(
        mask.numpy(),
        cmap=ListedColormap(("#ffffff", "#2f3e4e")),
        interpolation="nearest",
        extent=(-0.5, last, last, -0.5),
    )
    axes.set_xlabel("key")
    axes.set_ylabel("query")
