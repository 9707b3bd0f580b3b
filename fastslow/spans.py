"""What a sample is made of: runs of text, and clips."""

from dataclasses import dataclass

from fastslow._shapes import check_whole
from fastslow._typing import Grid
from fastslow.frames import FrameSchedule, encoded_grids, tokens_per_frame


@dataclass(frozen=True, kw_only=True)
class TextSpan:
    """A run of text.

    Attributes:
        token_ids: Token ids from the tokenizer.
        trained: Whether the model learns to produce these tokens.
    """

    token_ids: tuple[int, ...]
    trained: bool = False

    def __post_init__(self) -> None:
        """Check that there are ids and nothing else."""
        check_whole("token_ids", self.token_ids)


@dataclass(frozen=True, kw_only=True)
class VideoSpan:
    """A clip.

    Qwen2-VL counts frames, which is the default. Other models give ``times``, or set
    frames apart by text that says when they were taken.

    Attributes:
        grid: Height and width of every frame before pooling, in merged tokens.
        schedule: How its frames are pooled, in the same tokens.
        times: Position in time of each frame, from 0 on and never falling; frame ``t``
            stands at ``t`` by default.
        between: Token ids of the text between one pooled frame and the next. Positions
            then start anew with every pooled frame, where the text before it ends.
            Nothing stands between frames by default.
    """

    grid: Grid
    schedule: FrameSchedule
    times: tuple[int, ...] = ()
    between: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        """Check that the schedule keeps a frame, and that everything fits."""
        if not self.schedule.frames:
            raise ValueError("the schedule keeps no frame; a clip has at least 1 frame")
        tokens_per_frame(self.grid, self.schedule)
        encoded_grids(self.grid, self.schedule)
        frames, pooled = self.schedule.num_frames, len(self.schedule.frames)
        in_order = list(self.times) == sorted(max(time, 0) for time in self.times)
        if self.times and not (len(self.times) == frames and in_order):
            raise ValueError(
                f"times is {self.times}; it must hold one position for each of "
                f"{frames} frames, from 0 on and never falling"
            )
        check_whole("times", self.times)
        for number, text in enumerate(self.between):
            check_whole(f"between[{number}]", text)
        if self.between and len(self.between) != pooled - 1:
            raise ValueError(
                f"between holds {len(self.between)} texts but the schedule keeps "
                f"{pooled} frames; one text stands between any two"
            )

    @property
    def time_extent(self) -> int:
        """Positions in time that the clip, or a frame set apart, takes up."""
        return self.times[-1] + 1 if self.times else self.schedule.num_frames


Span = TextSpan | VideoSpan
"""One part of a sample."""
