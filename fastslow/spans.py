"""What a sample is made of: runs of text, and clips."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastslow._shapes import check_type, flag, whole_grid, whole_numbers
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
        """Check that there are ids and nothing else; lists become tuples."""
        ids = whole_numbers("token_ids", self.token_ids)
        if (most := max(ids, default=0)) >= 2**63:
            raise ValueError(f"token_ids holds {most}; ids must be less than 2**63")
        object.__setattr__(self, "token_ids", ids)
        hint = ", of all its tokens alike: one span for each run of them"
        object.__setattr__(self, "trained", flag("trained", self.trained, hint))


@dataclass(frozen=True, kw_only=True)
class VideoSpan:
    """A clip.

    Qwen2-VL counts frames, which is the default. Other models give ``times``, or set
    frames apart by text that says when they were taken.

    Attributes:
        grid: Height and width of every frame before pooling, in merged tokens.
        schedule: How its frames are pooled, in the same tokens.
        times: Position in time of each frame, from 0 on and never falling; frame ``t``
            stands at ``t`` by default, or at 0 where text sets frames apart.
        between: Token ids of the text between one pooled frame and the next. Positions
            then start anew with every pooled frame, where the text before it ends.
            Nothing stands between frames by default.
    """

    grid: Grid
    schedule: FrameSchedule
    times: tuple[int, ...] = ()
    between: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        """Check that a frame is kept and everything fits; lists become tuples."""
        wanted = "a FrameSchedule, as schedule_from_strides makes"
        check_type("schedule", self.schedule, FrameSchedule, wanted)
        object.__setattr__(self, "grid", whole_grid(self.grid))
        object.__setattr__(self, "times", whole_numbers("times", self.times))
        check_type("between", self.between, Iterable, "a sequence of texts")
        texts = enumerate(self.between)
        between = tuple(whole_numbers(f"between[{n}]", text) for n, text in texts)
        object.__setattr__(self, "between", between)
        if not self.schedule.frames:
            raise ValueError("the schedule keeps no frame; a clip has at least 1 frame")
        tokens_per_frame(self.grid, self.schedule)
        encoded_grids(self.grid, self.schedule)
        frames, pooled = self.schedule.num_frames, len(self.schedule.frames)
        in_order = list(self.times) == sorted(self.times)
        if self.times and not (len(self.times) == frames and in_order):
            raise ValueError(
                f"times is {self.times}; it must hold one position for each of "
                f"{frames} frames, never falling"
            )
        if self.between and len(self.between) != pooled - 1:
            raise ValueError(
                f"between holds {len(self.between)} texts but the schedule keeps "
                f"{pooled} frames; one text stands between any two"
            )

    @property
    def frame_positions(self) -> tuple[int, ...]:
        """Position in time of each frame, from where the clip or the frame begins."""
        frames = self.schedule.num_frames
        counted = (0,) * frames if self.between else tuple(range(frames))
        return self.times or counted

    @property
    def time_extent(self) -> int:
        """Positions in time that the clip, or a frame set apart, takes up."""
        return self.frame_positions[-1] + 1


Span = TextSpan | VideoSpan
"""One part of a sample."""


def check_sample(sample: Sequence[Span]) -> None:
    """Raise unless a sample holds spans."""
    check_type("a sample", sample, Sequence, "a sequence of spans")
    for number, span in enumerate(sample):
        name = f"span {number} of a sample"
        check_type(name, span, Span, "a TextSpan or a VideoSpan")
