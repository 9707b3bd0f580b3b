"""Clips: from a file to the patches of its frames, and to when they are shown."""

from dataclasses import dataclass, field
from itertools import product
from math import floor
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from tests.oracles.whole_step.options import Options
from tests.oracles.whole_step.schedules import (
    Bounds,
    Frame,
    Grid,
    schedule,
    spread,
    squares,
)

Seen = list[Tensor]
"""Features of each frame of a clip: down, across, features."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video or a picture.

    Attributes:
        grid: Merged tokens of a frame at full size, down and across.
        frames: Its pooled frames.
        scales: How many times smaller each of its frames is encoded.
        patches: The patches of each of its frames.
        times: Place of each frame on the time axis.
        told: What is written before each pooled frame, where the family tells time so.
        about: What is said after it of its length and its frames.
    """

    grid: Grid
    frames: list[Frame]
    scales: list[int]
    patches: list[Tensor]
    times: list[int]
    told: list[str] = field(default_factory=list)
    about: str = ""

    def encoded_grid(self, time: int) -> Grid:
        return self.grid[0] // self.scales[time], self.grid[1] // self.scales[time]


@dataclass(frozen=True, kw_only=True)
class _Film:
    """The frames of a file, and the seconds at which they are shown."""

    pictures: Tensor
    seconds: list[float]
    fps: float
    is_even: bool

    @property
    def length(self) -> float:
        lone = len(self.seconds) == 1
        last = 1 / self.fps if lone else self.seconds[-1] - self.seconds[-2]
        return self.seconds[-1] + last


def load_picture(path: Path, options: Options, config: Any) -> Clip:
    """Read a picture for a model of this configuration."""
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
    picture = pixels.permute(2, 0, 1)
    grid = _grid(picture, options, config)
    patches = _encode(picture[None], grid, [1], config)
    frames = squares(grid, [1], [True])
    return Clip(grid=grid, frames=frames, scales=[1], patches=patches, times=[0])


def load_video(path: Path, options: Options, config: Any) -> Clip:
    """Read a video for a model of this configuration."""
    film = _read_film(path)
    chosen = _choose(film, options)
    seconds, count = [film.seconds[n] for n in chosen], (len(chosen) + 1) // 2
    grid = _grid(film.pictures[0], options, config)
    frames = schedule(options, count, grid)
    slow = {t for f in frames if f.is_slow for t in range(f.start, f.stop)}
    scales = [1 if t in slow else options.fast_scale for t in range(count)]
    times, told = list(range(count)), list[str]()
    if config.model_type == "qwen2_5_vl":
        times = _counted_times(film, seconds, config.vision_config.tokens_per_second)
    elif config.model_type == "qwen3_vl":
        times, told = [0] * count, _told_times(frames, seconds)
    return Clip(
        grid=grid,
        frames=frames,
        scales=scales,
        patches=_encode(film.pictures[chosen], grid, scales, config),
        times=times,
        told=told,
        about=_about(film, seconds) if options.add_time_instruction else "",
    )


def _grid(picture: Tensor, options: Options, config: Any) -> Grid:
    token = 2 * config.vision_config.patch_size
    height, width = smart_resize(
        *picture.shape[1:],
        factor=token * options.fast_scale,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
    )
    return height // token, width // token


def _encode(shown: Tensor, grid: Grid, scales: list[int], config: Any) -> list[Tensor]:
    """Give the patches of every two pictures; the last may be two by itself."""
    side, patches = config.vision_config.patch_size, []
    for time, scale in enumerate(scales):
        size = 2 * side * grid[0] // scale, 2 * side * grid[1] // scale
        both = [shown[min(2 * time + n, len(shown) - 1)] for n in range(2)]
        pair = [_resize(picture, size) for picture in both]
        patches.append(_cut(pair, side, config.model_type))
    return patches


def _read_film(path: Path) -> _Film:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or 0)
        frames = list(container.decode(stream))
        pictures = [torch.from_numpy(f.to_ndarray(format="rgb24")) for f in frames]
        seconds = [float(f.time - frames[0].time) for f in frames]
    rate = [number / fps for number in range(len(frames))]
    off = max(abs(one - other) for one, other in zip(seconds, rate, strict=True))
    is_even = off <= min(0.5 / fps, 0.02)
    return _Film(
        pictures=torch.stack(pictures).permute(0, 3, 1, 2),
        seconds=rate if is_even else seconds,
        fps=fps,
        is_even=is_even,
    )


def _choose(film: _Film, options: Options) -> list[int]:
    """Choose the first frame of every part of a second, or all, but not too many."""
    wanted = list(range(len(film.seconds)))
    if options.video_fps:
        parts = [floor(each * options.video_fps + 1e-6) for each in film.seconds]
        wanted = [n for n in wanted if parts[n] not in parts[:n]]
    if len(wanted) <= options.max_frames_num:
        return wanted
    return [wanted[n] for n in spread(len(wanted), options.max_frames_num)]


def _resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if picture.shape[1:] == size:
        return picture
    resized = F.interpolate(picture[None], size=size, mode="bicubic", antialias=True)
    return resized[0]


def _cut(pair: list[Tensor], side: int, model_type: str) -> Tensor:
    """Cut two frames into patches, the four of a merged token one after another."""
    mean, std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    if model_type == "qwen3_vl":
        mean, std = [0.5] * 3, [0.5] * 3
    shift, scale = (torch.tensor(each)[:, None, None] for each in (mean, std))
    both = torch.stack([(each.float() / 255 - shift) / scale for each in pair], 1)
    height, width = both.shape[2:]
    patches = []
    for top, left in product(range(0, height, 2 * side), range(0, width, 2 * side)):
        for y, x in product((top, top + side), (left, left + side)):
            patches.append(both[:, :, y : y + side, x : x + side].flatten())
    return torch.stack(patches)


def _counted_times(film: _Film, seconds: list[float], per_second: float) -> list[int]:
    """Count the time axis in parts of a second, as transformers' processor does."""
    rate = len(seconds) / len(film.seconds) * film.fps
    if not film.is_even:
        rate = len(seconds) / film.length
    step = torch.tensor(2 / rate) * per_second
    return [int(time * step) for time in range((len(seconds) + 1) // 2)]


def _told_times(frames: list[Frame], seconds: list[float]) -> list[str]:
    seconds = [*seconds, seconds[-1]]
    both = [(seconds[2 * f.start], seconds[2 * f.stop - 1]) for f in frames]
    return [f"<{(first + last) / 2:.1f} seconds>" for first, last in both]


def _about(film: _Film, seconds: list[float]) -> str:
    return (
        f"\nThe video is {film.length:.2f} seconds long. You see {len(seconds)} of its "
        f"frames, taken at these seconds: {', '.join(f'{s:.2f}' for s in seconds)}."
    )


def cells_of(seen: Tensor, window: tuple[Bounds, Bounds], scale: int) -> Tensor:
    """Give the cells of a frame, so many times smaller, that a window touches."""
    (top, bottom), (left, right) = window
    return torch.stack(
        [
            seen[row, column]
            for row in range(top // scale, -(-bottom // scale))
            for column in range(left // scale, -(-right // scale))
        ]
    )
