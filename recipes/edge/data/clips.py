"""The built-in demonstration data: short clips of a coloured shape that moves."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import av
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 80, 235),
    "yellow": (235, 215, 40),
}
"""RGB value of each colour that the shape can have."""

DIRECTIONS: Mapping[str, tuple[int, int]] = {
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "down": (1, 0),
}
"""Step of each direction, as ``(down, right)``."""

QUESTION = "Which colour is the shape, and which way does it move?"
"""What every clip is asked; the answer is a colour and a direction."""

_BACKGROUND = (16, 16, 20)


def write_clip(
    path: Path, frames: UInt8[Tensor, "frames channels height width"], *, fps: int = 8
) -> None:
    """Write frames as an mp4 file: H.264, nearly lossless, the same bytes every time.

    Args:
        path: File to write; an existing one is replaced.
        frames: RGB, values 0 to 255; at least one frame, both sides even, because
            the format halves the resolution of colours.
        fps: Frames per second, at least 1.

    Raises:
        ValueError: If the frames do not have that shape, or ``fps`` is below 1.
    """
    count, channels, height, width = frames.shape
    if min(count, height, width) < 1 or channels != 3 or height % 2 or width % 2:
        raise ValueError(
            f"frames has shape {tuple(frames.shape)}; it must be (frames, 3, height, "
            "width) with at least one frame and even sides"
        )
    if fps < 1:
        raise ValueError(f"fps is {fps}; it must be at least 1")
    pictures = frames.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    with av.open(str(path.absolute()), "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=fps, options={"crf": "10", "preset": "ultrafast"}
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode())


def render_clip(
    colour: str,
    direction: str,
    *,
    generator: torch.Generator,
    num_frames: int = 16,
    size: tuple[int, int] = (112, 112),
) -> UInt8[Tensor, "frames channels height width"]:
    """Draw a square or a disc that moves over a dark background.

    The shape crosses half of the room that its centre has, about a third of the side,
    and starts anywhere that leaves room for that. So every single frame shows the
    colour but fits at least two directions, one along each axis.

    Args:
        colour: Colour of the shape, a key of ``COLOURS``.
        direction: Where it moves, a key of ``DIRECTIONS``.
        generator: Source of its form, size and place.
        num_frames: Frames to draw, at least 2.
        size: Height and width in pixels, both even and at least 32.

    Returns:
        RGB frames, values 0 to 255.

    Raises:
        ValueError: If an argument is out of its range.

    Laws:
        travel: the shape keeps its lane and crosses half of its room
        deterministic: equal generator states give equal clips
    """
    _check_clip(colour, direction, num_frames, size)
    is_disc, *place, scale = torch.rand(4, generator=generator).unbind()
    radius = min(size) * (0.16 + 0.02 * scale)
    room = torch.tensor(size) - 1 - 2 * radius
    travel = torch.tensor(DIRECTIONS[direction]) * room / 2
    spare = room - travel.abs()
    start = radius - travel.clamp(max=0) + spare * torch.stack(place)
    path = start + torch.linspace(0, 1, num_frames)[:, None] * travel
    inside = _inside(path, radius, size, is_disc=bool(is_disc < 0.5))
    shape = torch.tensor(COLOURS[colour], dtype=torch.uint8)[:, None, None]
    background = torch.tensor(_BACKGROUND, dtype=torch.uint8)[:, None, None]
    return torch.where(inside[:, None], shape, background)


def make_clips(
    folder: Path,
    *,
    num_clips: int,
    held_out: int,
    seed: int,
    num_frames: int = 16,
    size: tuple[int, int] = (112, 112),
) -> None:
    """Make a folder of clips with questions and answers, once.

    The folder holds ``videos/``, the rows of ``train.jsonl`` and ``held_out.jsonl``,
    and the settings in ``made_with.txt``. It is written aside and renamed at the end,
    so it is complete whenever it exists. One made with the same settings is kept.

    Args:
        folder: Folder to make; it must be absent, empty or made here before.
        num_clips: Clips of ``train.jsonl``, at least 1.
        held_out: Further clips, of ``held_out.jsonl``, at least 0.
        seed: Seed of all that is random.
        num_frames: Frames of a clip, at least 2.
        size: Height and width in pixels, both even and at least 32.

    Raises:
        ValueError: If an argument is out of its range, or the folder holds anything
            but clips made with the same settings.

    Laws:
        deterministic: equal settings give equal files
        balanced: in each file, counts of (colour, direction) differ by at most one,
            and so do counts of colours, and of directions
    """
    if num_clips < 1:
        raise ValueError(f"num_clips is {num_clips}; it must be at least 1")
    if held_out < 0:
        raise ValueError(f"held_out is {held_out}; it must be at least 0")
    counts = {"num_clips": num_clips, "held_out": held_out, "seed": seed}
    settings = json.dumps(counts | {"num_frames": num_frames, "size": size})
    if _is_made(folder, settings):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    prefix = f".{folder.name}-"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix) as aside:
        made = Path(aside) / "clips"
        (made / "videos").mkdir(parents=True)
        answers = list(_balanced_answers(num_clips, generator))
        answers += _balanced_answers(held_out, generator)
        rows = []
        for number, (colour, direction) in enumerate(answers):
            frames = render_clip(
                colour, direction, generator=generator, num_frames=num_frames, size=size
            )
            video = f"videos/{number:05d}.mp4"
            write_clip(made / video, frames)
            rows.append(_row(f"{number:05d}", video, f"{colour} {direction}"))
        (made / "train.jsonl").write_text("".join(rows[:num_clips]))
        (made / "held_out.jsonl").write_text("".join(rows[num_clips:]))
        (made / "made_with.txt").write_text(settings)
        try:
            made.rename(folder)
        except OSError:
            if not _is_made(folder, settings):
                raise


def _check_clip(
    colour: str, direction: str, num_frames: int, size: tuple[int, int]
) -> None:
    """Raise a ValueError for the first argument outside its range."""
    if colour not in COLOURS:
        known = ", ".join(COLOURS)
        raise ValueError(f"colour is {colour!r}; it must be one of {known}")
    if direction not in DIRECTIONS:
        known = ", ".join(DIRECTIONS)
        raise ValueError(f"direction is {direction!r}; it must be one of {known}")
    if num_frames < 2:
        raise ValueError(f"num_frames is {num_frames}; it must be at least 2")
    if min(size) < 32 or size[0] % 2 or size[1] % 2:
        raise ValueError(f"size is {size}; both sides must be even and at least 32")


def _inside(
    centres: Float[Tensor, "frames 2"],
    radius: Float[Tensor, ""],
    size: tuple[int, int],
    *,
    is_disc: bool,
) -> Bool[Tensor, "frames height width"]:
    """Mark the pixels of the shape at each place; both forms have one area."""
    down = torch.arange(size[0])[:, None] - centres[:, 0, None, None]
    right = torch.arange(size[1]) - centres[:, 1, None, None]
    if is_disc:
        return down.square() + right.square() <= radius.square()
    side = radius * math.sqrt(math.pi)
    return torch.maximum(down.abs(), right.abs()) <= side / 2


def _balanced_answers(
    count: int, generator: torch.Generator
) -> Iterator[tuple[str, str]]:
    """Yield ``count`` pairs of colour and direction, balanced, in random order.

    Before the shuffle, pair ``i`` walks the diagonals of the table of all pairs, so
    that a part of the table is balanced in its colours and in its directions too.
    """
    colours, directions = tuple(COLOURS), tuple(DIRECTIONS)
    for i in torch.randperm(count, generator=generator).tolist():
        colour, diagonal = i % len(colours), i // len(colours)
        yield colours[colour], directions[(colour + diagonal) % len(directions)]


def _row(sample_id: str, video: str, answer: str) -> str:
    """Give one line of a file of conversations."""
    turns = [
        {"from": "human", "value": f"<image>\n{QUESTION}"},
        {"from": "gpt", "value": answer},
    ]
    return json.dumps({"id": sample_id, "video": video, "conversations": turns}) + "\n"


def _is_made(folder: Path, settings: str) -> bool:
    """Tell whether the folder holds these clips; raise if it holds anything else."""
    occupied = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if not occupied:
        return False
    marker = folder / "made_with.txt"
    if not marker.is_file():
        raise ValueError(
            f"{folder} exists and has no made_with.txt; it must be absent, empty or "
            "made by make_clips"
        )
    found = marker.read_text()
    if found != settings:
        raise ValueError(
            f"{folder} was made with {found} but {settings} is asked for; one folder "
            "holds the clips of one setting"
        )
    return True
