"""From decoded frames to the patches that the vision tower takes.

The arithmetic is that of transformers' ``Qwen2VLVideoProcessor``, without its need for
torchvision: sizes and token counts follow from a clip's metadata alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float32, UInt8
from torch import Tensor

from fastslow._shapes import check_type
from fastslow._typing import Grid
from fastslow.grids import temporal_patches
from fastslow.schedules import repeat_strides
from fastslow.spans import VideoSpan


@dataclass(frozen=True, kw_only=True)
class VisionGeometry:
    """How pixels become patches; the defaults are those of Qwen2-VL and Qwen2.5-VL.

    Attributes:
        patch_size: Side of a patch, in pixels.
        temporal_patch_size: Raw frames merged into one.
        merge_size: Patches along each side of a merged token.
        grid_multiple: Both sides of the merged grid are multiples of this, so that
            frames can be encoded that many times coarser.
        min_pixels: Fewest pixels of a resized frame.
        max_pixels: Most pixels of a resized frame.
        mean: Mean of each colour, on a scale from 0 to 1, for ``normalize_patches``; a
            model has those of its family.
        std: Standard deviation of each colour, on the same scale, likewise.
    """

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    grid_multiple: int = 1
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def patch_pixels(self) -> int:
        """Numbers of a patch, that is its pixels in three colours in all its frames."""
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def token_side(self) -> int:
        """Side of a merged token, in pixels."""
        return self.patch_size * self.merge_size


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Choose the size to which a frame is resized.

    Both sides become multiples of ``factor``, the area comes to lie between the two
    bounds where that is possible, and the aspect ratio changes as little as it can.

    Args:
        height: Height of the decoded frame, in pixels, at least 1.
        width: Width of the decoded frame, in pixels, at least 1.
        factor: Side of a merged token, in pixels.
        min_pixels: Fewest pixels of the resized frame, at least 1.
        max_pixels: Most pixels of the resized frame, at least min_pixels.

    Returns:
        Height and width after resizing, in pixels.

    Raises:
        ValueError: If a side is below 1, one is over 200 times the other, or the
            bounds are crossed or below 1.

    Laws:
        multiples: both sides are positive multiples of ``factor``: ``h % factor == w %
            factor == 0``
        matches_transformers: equals transformers' function of the same name

    Example:
        >>> smart_resize(360, 640, factor=28, min_pixels=100352, max_pixels=602112)
        (364, 644)
    """
    if min(height, width) < 1 or max(height, width) > 200 * min(height, width):
        raise ValueError(
            f"frame is {height} x {width} pixels; both sides must be at least 1 and "
            "neither over 200 times the other"
        )
    if not 1 <= min_pixels <= max_pixels:
        raise ValueError(
            f"min_pixels is {min_pixels} and max_pixels is {max_pixels}; they must be "
            "at least 1, in this order"
        )
    sides = [round(side / factor) * factor for side in (height, width)]
    if math.prod(sides) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        sides = [
            max(factor, math.floor(side / shrink / factor) * factor)
            for side in (height, width)
        ]
    elif math.prod(sides) < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        sides = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return sides[0], sides[1]


def clip_grid(
    num_video_frames: int, height: int, width: int, geometry: VisionGeometry
) -> tuple[int, Grid]:
    """Give the token grid of a clip from its metadata, before a pixel is decoded.

    Args:
        num_video_frames: Raw frames that are sampled from the clip, at least 1.
        height: Height of the video, in pixels.
        width: Width of the video, in pixels.
        geometry: How pixels become patches.

    Returns:
        Frames of the tower, and height and width of each in merged tokens, which is
        what schedules and spans take.

    Raises:
        ValueError: As ``smart_resize`` and ``temporal_patches`` do.

    Laws:
        matches_patchify: the product is the number of merged tokens of
            ``patchify_clip``: ``t * h * w * merge_size ** 2 ==
            len(patchify_clip(frames))``

    Example:
        >>> clip_grid(16, 448, 448, VisionGeometry())
        (8, (16, 16))
    """
    new_height, new_width = smart_resize(
        height,
        width,
        factor=geometry.token_side * geometry.grid_multiple,
        min_pixels=geometry.min_pixels,
        max_pixels=geometry.max_pixels,
    )
    frames = temporal_patches(
        num_video_frames, temporal_patch_size=geometry.temporal_patch_size
    )
    return frames, (new_height // geometry.token_side, new_width // geometry.token_side)


def patchify_clip(
    frames: UInt8[Tensor, "frames 3 height width"],
    geometry: VisionGeometry,
    scales: Sequence[int] | None = None,
) -> UInt8[Tensor, "patches pixels"]:
    """Resize a decoded clip and cut it into patches.

    The last raw frame is repeated when the clip does not fill its last temporal patch.
    Patches stay bytes, a quarter of what the tower reads, on their way from a process
    that decodes to the device: the model normalises them there.

    Args:
        frames: Raw RGB frames on the CPU, 0 to 255.
        geometry: How pixels become patches.
        scales: How many times smaller, along each side, each temporal patch is made;
            divisors of ``grid_multiple``. None leaves all as large as ``clip_grid``
            says.

    Returns:
        Patches in the order of the tower: frames in order, merged tokens in raster
        order, the patches of a merged token next to each other; values 0 to 255.

    Raises:
        ValueError: If ``frames`` has another dtype or shape, as ``clip_grid`` does, or
            if there is not one scale for each temporal patch or one does not divide
            ``grid_multiple``.

    Laws:
        scales: a frame under a scale has the patches of the frame resized that much
            smaller, whatever the other frames
        matches_transformers: normalised, equals the values of transformers' own
            processor: ``normalize_patches(patchify_clip(frames)) ==
            pixel_values_videos``

    Example:
        >>> import torch
        >>> frames = torch.zeros(3, 3, 448, 448, dtype=torch.uint8)
        >>> clip_grid(3, 448, 448, VisionGeometry())
        (2, (16, 16))
        >>> tuple(patchify_clip(frames, VisionGeometry()).shape)  # 2 x 32 x 32 patches
        (2048, 1176)
    """
    check_type("frames", frames, Tensor, "a uint8 tensor (frames, 3, height, width)")
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise ValueError(
            f"frames is {frames.dtype} of shape {tuple(frames.shape)}; it must be "
            "uint8 (frames, 3, height, width)"
        )
    height, width = frames.shape[2:]
    num_frames, grid = clip_grid(len(frames), height, width, geometry)
    scales = (1,) * num_frames if scales is None else scales
    if len(scales) != num_frames or any(geometry.grid_multiple % s for s in scales):
        raise ValueError(
            f"scales is {tuple(scales)}; each of {num_frames} temporal patches needs a "
            f"divisor of {geometry.grid_multiple}, the geometry's grid_multiple"
        )
    missing = -len(frames) % geometry.temporal_patch_size
    if missing:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    parts, first = [], 0
    for scale, run in groupby(scales):
        end = first + len(list(run)) * geometry.temporal_patch_size
        size = [side * geometry.token_side // scale for side in grid]
        parts.append(_patchify(frames[first:end], size, geometry))
        first = end
    return torch.cat(parts) if len(parts) > 1 else parts[0]  # one is not copied


def normalize_patches(
    patches: UInt8[Tensor, "patches pixels"], geometry: VisionGeometry
) -> Float32[Tensor, "patches pixels"]:
    """Bring each colour of patches to the mean and the scale that a tower expects.

    Args:
        patches: As ``patchify_clip`` gives them, on any device.
        geometry: Holds mean and standard deviation of each colour.

    Returns:
        ``(patches / 255 - mean) / std``, as the tower takes them.

    Laws:
        invertible: bytes are found again, so nothing of a picture is lost

    Example:
        >>> _, black = blank_clip(VisionGeometry())
        >>> normalize_patches(black, VisionGeometry())[0, [0, 392, 784]]
        tensor([-1.7923, -1.7521, -1.4802])
    """
    share = (patches.shape[1] // 3,)
    # Filled on the device: what comes from the host would be waited for.
    mean, std = (
        255 * torch.cat([patches.new_full(share, x, dtype=torch.float32) for x in each])
        for each in (geometry.mean, geometry.std)
    )
    return patches.float().sub_(mean).div_(std)


def blank_clip(
    geometry: VisionGeometry,
) -> tuple[VideoSpan, UInt8[Tensor, "patches pixels"]]:
    """Give a clip of one token without content, for a row that shows nothing.

    Under FSDP2 every rank has to call the vision tower equally often.

    Args:
        geometry: How pixels become patches.

    Returns:
        The clip, and its patches.

    Laws:
        one_token: the clip is one token, and has the patches of one

    Example:
        >>> clip, patches = blank_clip(VisionGeometry())
        >>> clip.grid, tuple(patches.shape)
        ((1, 1), (4, 1176))
    """
    patches = torch.zeros(
        geometry.merge_size**2,
        geometry.patch_pixels,
        dtype=torch.uint8,
        device="cpu",
    )
    return VideoSpan(grid=(1, 1), schedule=repeat_strides(1, (1,))), patches


def _patchify(frames: Tensor, size: Sequence[int], geometry: VisionGeometry) -> Tensor:
    """Resize whole temporal patches to one size and cut them."""
    return rearrange(
        F.interpolate(frames, list(size), mode="bicubic", antialias=True),
        "(t n) c (h m p) (w l q) -> (t h w m l) (c n p q)",
        n=geometry.temporal_patch_size,
        m=geometry.merge_size,
        l=geometry.merge_size,
        p=geometry.patch_size,
        q=geometry.patch_size,
    )
