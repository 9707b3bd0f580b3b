"""Pictures to train on."""

from pathlib import Path

import av
import numpy as np


def write_picture(path: Path, *, height: int, width: int) -> None:
    """Write a grey picture."""
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.height, stream.width, stream.pix_fmt = height, width, "rgb24"
        grey = np.full((height, width, 3), 99, dtype=np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
