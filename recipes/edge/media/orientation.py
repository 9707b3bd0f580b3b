"""How a video is shown: turned, mirrored, or as it is stored."""

import math
import struct
from dataclasses import dataclass
from typing import Any

import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from jaxtyping import UInt8
from torch import Tensor

from recipes.edge.media.containers import VideoError
from recipes.edge.media.media_file import MediaFile


@dataclass(frozen=True, kw_only=True)
class Orientation:
    """What is done to a stored frame before it is shown.

    Attributes:
        is_mirrored: Whether left and right change places, before it is turned.
        turns: Quarter turns, counterclockwise.
    """

    is_mirrored: bool = False
    turns: int = 0

    def show(
        self, pixels: UInt8[Tensor, "height width channels"]
    ) -> UInt8[Tensor, "shown_height shown_width channels"]:
        """Mirror and turn a frame."""
        pixels = pixels.flip(1) if self.is_mirrored else pixels
        return torch.rot90(pixels, self.turns) if self.turns else pixels


def may_turn(container: InputContainer) -> bool:
    """Tell whether a format can say that its video is shown turned."""
    return not {"mov", "matroska"}.isdisjoint(container.format.name.split(","))


def orientation_of(
    file: MediaFile, container: InputContainer, frame: VideoFrame
) -> Orientation:
    """Tell how a frame is shown; pictures are taken as they are stored.

    Its matrix takes a point that is stored at ``(x, y)`` to ``(a x + c y, b x + d y)``.

    Args:
        file: Its name, for messages.
        container: The open file.
        frame: Any frame of it.

    Returns:
        What is done to the frame.

    Raises:
        VideoError: If it is turned by no quarter turns, or in a format that cannot
            say so for a whole video.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None or container.format.name.endswith(("_pipe", "image2")):
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    is_mirrored = a * d < b * c
    if is_mirrored:
        a, b = -a, -b
    degrees = round(math.degrees(-math.atan2(b, a)))
    found = Orientation(is_mirrored=is_mirrored, turns=degrees // 90)
    if degrees % 90 or (found != Orientation() and not may_turn(container)):
        raise VideoError(
            f"{file} is shown {'mirrored and ' if is_mirrored else ''}turned by "
            f"{degrees} degrees; only mp4, mov and mkv may be turned, by 90, 180 or 270"
        )
    return found
