"""What a schedule is made of: the pooled frames of a clip, counted and written down."""

from dataclasses import dataclass
from operator import index

from fastslow._shapes import (
    check_whole,
    check_word,
    flag,
    flags,
    whole_grid,
    whole_numbers,
)
from fastslow._typing import Grid
from fastslow.grids import Edge, window_bounds

Bounds = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class PooledFrame:
    """One frame of the pooled clip: what it reads, and at which resolution.

    Attributes:
        start: First frame of the clip that it reads.
        stop: One past the last; more than one frame is a temporal kernel.
        stride: Height and width of the pooling window, in cells of the clip's grid.
        grid: Height and width that remain after pooling, instead of a stride.
        is_slow: Whether it counts as slow, that is, as one of the finer frames.
        keep: Which of its tokens remain, in raster order; None keeps all.
    """

    start: int
    stop: int
    stride: tuple[int, int] | None = None
    grid: Grid | None = None
    is_slow: bool = False
    keep: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        """Check that the frame reads something, in one of the two ways."""
        for name in ("start", "stop"):
            check_whole(name, getattr(self, name))
            object.__setattr__(self, name, index(getattr(self, name)))
        for name in ("stride", "grid"):
            if getattr(self, name) is not None:
                sides = whole_numbers(name, getattr(self, name))
                object.__setattr__(self, name, sides)
        object.__setattr__(self, "is_slow", flag("is_slow", self.is_slow))
        if self.keep is not None:
            object.__setattr__(self, "keep", flags("keep", self.keep))
        if self.start >= self.stop:
            raise ValueError(
                f"a pooled frame reads frames {self.start} to {self.stop}, half open; "
                "it must read at least one"
            )
        if (self.stride is None) == (self.grid is None):
            raise ValueError(
                f"stride is {self.stride} and grid is {self.grid}; exactly one of them "
                "is given"
            )
        name = "grid" if self.stride is None else "stride"
        sides = getattr(self, name)
        if len(sides) != 2:
            raise ValueError(f"{name} is {sides}; it holds a height and a width")
        if min(sides) < 1:
            raise ValueError(f"{name} is {sides}; both sides must be at least 1")
        if self.keep is not None and not any(self.keep):
            raise ValueError("keep drops every token; a frame keeps at least one")


@dataclass(frozen=True, kw_only=True)
class FrameSchedule:
    """A clip's pooled frames, in the order in which the model reads them.

    ``str()`` draws one letter a frame, ``S`` for slow and ``.`` for fast.

    Attributes:
        num_frames: Frames of the clip before pooling.
        frames: The pooled frames, if any. They may overlap, repeat and leave frames
            out.
        edge: What becomes of cells that fill no whole window, see ``window_bounds``.
        scales: How many times coarser, along each side, the grid is on which each
            frame of the clip is encoded, see ``encoded_grids``; None where all frames
            are encoded on the clip's own grid.
    """

    num_frames: int
    frames: tuple[PooledFrame, ...]
    edge: Edge = "ceil"
    scales: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check that every pooled frame reads frames that exist."""
        check_whole("num_frames", self.num_frames)
        object.__setattr__(self, "num_frames", index(self.num_frames))
        object.__setattr__(self, "frames", tuple(self.frames))
        if self.scales is not None:
            object.__setattr__(self, "scales", whole_numbers("scales", self.scales))
        last = max((frame.stop for frame in self.frames), default=0)
        if last > self.num_frames:
            raise ValueError(
                f"a pooled frame reads up to frame {last} but the clip has "
                f"{self.num_frames}"
            )
        check_word("edge", self.edge, Edge)
        if self.scales is not None and len(self.scales) != self.num_frames:
            raise ValueError(
                f"scales has {len(self.scales)} entries but the clip has "
                f"{self.num_frames} frames; each frame needs one"
            )
        if min(self.scales or (1,)) < 1:
            raise ValueError(f"scales is {self.scales}; each must be at least 1")

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each pooled frame, where all windows are square."""
        found = {frame.stride for frame in self.frames}
        if None in found:
            raise ValueError(
                f"the schedule {self} has frames with a grid instead of a stride; "
                "strides has one number per frame"
            )
        if any(stride and stride[0] != stride[1] for stride in found):
            raise ValueError(
                f"the schedule {self} has windows that are not square; strides has "
                "one number per frame"
            )
        return tuple(frame.stride[0] for frame in self.frames if frame.stride)

    @property
    def is_slow(self) -> tuple[bool, ...]:
        """Whether each pooled frame is slow."""
        return tuple(frame.is_slow for frame in self.frames)

    def __str__(self) -> str:
        """Draw the frames and count them."""
        drawn = "".join("S" if frame.is_slow else "." for frame in self.frames)
        return f"{drawn}  {len(self.frames)} frame{'s' * (len(self.frames) != 1)}"


def frame_windows(
    grid: Grid, frame: PooledFrame, *, edge: Edge = "ceil"
) -> tuple[Bounds, Bounds]:
    """Give the windows of a pooled frame along the height and along the width.

    Args:
        grid: Height and width of the clip before pooling.
        frame: The pooled frame.
        edge: What becomes of cells that fill no whole window, see ``window_bounds``.

    Returns:
        Bounds of the windows of each side; their product, in raster order, are the
        frame's windows before any is dropped by ``keep``.

    Raises:
        ValueError: As ``window_bounds`` does, or if ``keep`` has not one entry per
            window.

    Laws:
        matches_reference: equals the loop-written reference

    Example:
        >>> frame_windows((3, 2), PooledFrame(start=0, stop=1, stride=(2, 2)))
        (((0, 2), (2, 3)), ((0, 2),))
    """
    grid = whole_grid(grid)
    if frame.stride is not None:
        height, width = (
            window_bounds(side, stride=stride, edge=edge)
            for side, stride in zip(grid, frame.stride, strict=True)
        )
    else:
        assert frame.grid is not None
        height, width = (
            window_bounds(side, count=count)
            for side, count in zip(grid, frame.grid, strict=True)
        )
    windows = len(height) * len(width)
    if frame.keep is not None and len(frame.keep) != windows:
        raise ValueError(
            f"keep has {len(frame.keep)} entries but the frame has {windows} windows "
            f"on a grid of {grid}"
        )
    return height, width


_Kind = tuple[int, tuple[int, int] | None, Grid | None, tuple[bool, ...] | None]


def frame_kinds(
    schedule: FrameSchedule,
) -> tuple[tuple[PooledFrame, ...], tuple[int, ...]]:
    """Sort the pooled frames of a schedule by what they do, whenever they do it.

    A long schedule has few kinds of frames. What follows from a frame's windows is
    computed once for each kind and looked up for each frame.

    Args:
        schedule: The schedule.

    Returns:
        The kinds, as frames that begin at 0, in order of first appearance; and the
        number of each frame's kind. Moved to its time, a kind is the frame again, but
        for whether it is slow.

    Example:
        >>> from fastslow import build_schedule
        >>> kinds, kind_of = frame_kinds(build_schedule(5))
        >>> len(kinds), kind_of
        (2, (0, 1, 0, 1, 0))
    """
    numbers = dict[_Kind, int]()
    kind_of = tuple(
        numbers.setdefault((f.stop - f.start, f.stride, f.grid, f.keep), len(numbers))
        for f in schedule.frames
    )
    kinds = tuple(
        PooledFrame(start=0, stop=span, stride=stride, grid=grid, keep=keep)
        for span, stride, grid, keep in numbers
    )
    return kinds, kind_of


def encoded_grids(grid: Grid, schedule: FrameSchedule) -> tuple[Grid, ...]:
    """Give the grid on which each frame of a clip is encoded.

    Pooling after the vision tower leaves the tower's own work as it is. A frame that
    keeps few tokens can enter the tower smaller: under scale ``s`` a cell of it stands
    for ``s x s`` cells of the clip's grid. What pooling keeps, and where it stands, is
    said on the clip's grid all the same.

    Args:
        grid: Height and width of a frame at scale 1, in tokens.
        schedule: The clip's schedule.

    Returns:
        Height and width of each frame of the clip, in the same tokens.

    Raises:
        ValueError: If a scale does not divide both sides.

    Laws:
        covers: times its scale, each grid is the clip's: ``grids[t] * scales[t] ==
            grid``
        no_scales: without scales all are the clip's grid: ``grids == (grid,) * T``

    Example:
        >>> from fastslow import build_schedule, scale_fast_frames
        >>> encoded_grids((16, 24), scale_fast_frames(build_schedule(3), 2))
        ((16, 24), (8, 12), (16, 24))
    """
    grid = whole_grid(grid)
    if schedule.scales is None:
        return (grid,) * schedule.num_frames
    height, width = grid
    for scale in set(schedule.scales):
        if height % scale or width % scale:
            raise ValueError(
                f"grid is {grid} and a frame is encoded {scale} times coarser; both "
                "sides must be multiples of that"
            )
    return tuple((height // scale, width // scale) for scale in schedule.scales)


def tokens_per_frame(grid: Grid, schedule: FrameSchedule) -> tuple[int, ...]:
    """Count the tokens that each pooled frame of a clip keeps.

    Args:
        grid: Height and width of every frame before pooling, in tokens.
        schedule: The clip's schedule.

    Returns:
        One count per pooled frame, each at least 1.

    Raises:
        ValueError: As ``frame_windows`` does.

    Laws:
        matches_pooling: equals the lengths that pooling returns:
            ``tokens_per_frame(grid, s) == pool_frames(x, s).cu_seqlens.diff()``
        monotone: under ``ceil`` a larger stride never keeps more tokens: ``n(b) <= n(a)
            if a <= b``
        matches_reference: equals the loop-written reference

    Example:
        >>> from fastslow import build_schedule
        >>> tokens_per_frame((16, 16), build_schedule(4, slow_stride=2, fast_stride=4))
        (64, 16, 64, 16)
    """
    grid = whole_grid(grid)
    kinds, kind_of = frame_kinds(schedule)
    counts = []
    for kind in kinds:
        height, width = frame_windows(grid, kind, edge=schedule.edge)
        counts.append(sum(kind.keep) if kind.keep else len(height) * len(width))
    return tuple(counts[kind] for kind in kind_of)


def describe_schedule(grid: Grid, schedule: FrameSchedule) -> str:
    """Say in one line what a schedule makes of a clip.

    Args:
        grid: Height and width of every frame before pooling, in tokens.
        schedule: The clip's schedule.

    Returns:
        One letter a frame, ``S`` for slow, then the number of frames and of tokens.

    Raises:
        ValueError: As ``frame_windows`` does.

    Laws:
        counts: the tokens it tells are the sum of ``tokens_per_frame``: ``told ==
            sum(tokens_per_frame(grid, schedule))``

    Example:
        >>> from fastslow import build_schedule
        >>> schedule = build_schedule(7, slow_ratio=1 / 3, slow_stride=2, fast_stride=4)
        >>> print(describe_schedule((16, 16), schedule))
        S..S..S  7 frames, 256 tokens
    """
    return f"{schedule}, {sum(tokens_per_frame(grid, schedule))} tokens"
